"""``circuits mediate``: how much of a behaviour passes through a direction, what reads it, and both halves drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from circuits.cli.arguments import DEFAULT_MODEL, BehaviourArgument, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import model_name
from circuits.cli.tables import table
from circuits.errors import UsageError
from circuits.progress import PLANS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuits.circuit import Circuit
    from circuits.directions.stream_direction import StreamDirection
    from circuits.steering.mediation import Mediated, Mediation

FILE, PICTURE = "mediation.json", ".svg"
SHOWN = 15
"""How many readers and paths the tables show; the file has all."""


@dataclass(frozen=True)
class Exchanged:
    """What a direction is held against, what is measured behind it and drawn in front of it."""

    readers: Annotated[
        int, typer.Option(min=0, help="Of so many of the strongest readers paths are measured; 0: no readers.")
    ] = 10
    random: Annotated[int, typer.Option(min=0, help="Random directions that are exchanged by as much.")] = 5
    join: Annotated[
        Path | None,
        typer.Option(
            metavar="CIRCUIT.json",
            help="Draw what reads the direction behind this circuit that leads to it (circuits discover --to).",
            show_default=False,
        ),
    ] = None

    def writers(self, direction: "StreamDirection") -> "Circuit | None":
        """Return the circuit to join; raises :class:`UsageError` where it leads elsewhere or nothing follows."""
        from circuits.circuit import Circuit

        if self.join is None:
            return None
        found = Circuit.load(self.join)
        if not self.readers or found.model.target != direction.target:
            raise UsageError(
                f"{self.join} leads to {found.model.target or 'the logits'}, and the direction is of "
                f"{direction.target}, or another one there, or --readers is 0; give the circuit that was found with "
                "--to this direction."
            )
        return found


@command
def mediate(
    behaviour: BehaviourArgument,
    *,
    through: Annotated[
        Path, typer.Option(metavar="DIRECTION.safetensors", help="The direction (circuits direction finds one).")
    ],
    exchanged: Exchanged,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Where to write everything measured (default: outputs/MODEL/BEHAVIOUR/{FILE}).",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: ResumeOption = False,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Measure how much of a behaviour passes through a direction of the residual stream, and what reads it.

    The stream's component along the direction, at its layer and token, is exchanged between the clean and the corrupted
    run of held-out pairs; then every later query, key, value, MLP and the logits read the exchanged component alone.
    """
    output = output_options.output()
    if measurement.to is not None:
        raise UsageError("--to says where circuits lead, and --through what is exchanged; leave --to out.")
    chosen = measurement.behaviour(behaviour)
    options, resources = measurement.options(chosen), model_options.resources()

    from circuits.directions.stream_direction import StreamDirection
    from circuits.files.atomic import write
    from circuits.steering.mediation import PAIRS, mediate

    direction = StreamDirection.load(through)
    writers = exchanged.writers(direction)
    name = model_name(model_options) if model_options.model else direction.origin.model or DEFAULT_MODEL
    file = prepared_file(out or default_folder(name, chosen.name) / FILE, (".json",), FILE)
    line = output.progress(plan=PLANS["mediate"])
    with kept_until_done(file, output, resume=resume) as journal, line as progress:
        model = model_options.load(progress, output, default=direction.origin.model or DEFAULT_MODEL)
        chosen = measurement.with_openings(chosen, model, output)
        more: dict[str, Any] = {"pairs": measurement.pairs or PAIRS, "seed": measurement.seed or 0, "journal": journal}
        more |= {"readers": exchanged.readers, "draws": exchanged.random, "progress": progress}
        found = mediate(model, direction, chosen, options=options, resources=resources, **more)
        write(file, found.to_json(), make_folder=True)
        files = [file]
        if writers is not None:
            files.append(file.with_suffix(PICTURE))
            found.draw(writers, files[1])
    for remark in found.remarks:
        output.warn(remark)
    output.show(*_tables(found), found.describe(), f"written to {', '.join(map(str, files))}")
    output.leave({**found.to_document(), "files": [str(each) for each in files]}, file.parent, files)


def _tables(found: "Mediation") -> "list[Group]":
    tables = [
        ("parts of the stream, as shares of the gap", (*found.parts, *found.random)),
        ("what reads the direction, p-values by Holm", found.readers[:SHOWN]),
        ("paths behind the strongest readers, p-values by Holm", found.paths[:SHOWN]),
    ]
    return [_table(title, rows) for title, rows in tables if rows]


def _table(title: str, found: "Sequence[Mediated]") -> Group:
    rows = [
        [
            each.name,
            *(each.necessity.describe(), f"{each.p_necessity:.2g}"),
            *(each.sufficiency.describe(), f"{each.p_sufficiency:.2g}"),
        ]
        for each in found
    ]
    return table(title, ["", "necessity", "p", "sufficiency", "p"], rows, numbers=(1, 2, 3, 4))
