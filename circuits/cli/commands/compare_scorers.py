"""``circuits scorers``: which scorer to believe on this behaviour of this model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from circuits.cli.arguments import BehaviourArgument, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import model_name
from circuits.cli.tables import facts, table
from circuits.progress import PLANS
from circuits.vocabulary import ELIMINATION_IN_BRIEF, ScorerName

if TYPE_CHECKING:
    from circuits.certainty.scorer_comparison import ScorerComparison

FILE = "scorers.json"


@dataclass(frozen=True)
class Compared:
    """Which scorers are compared, and on how much."""

    scorer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(ScorerName),
            help="A scorer to compare, several times; default: all estimates of few passes. Of the others, "
            f"{ELIMINATION_IN_BRIEF}.",
        ),
    ] = None
    sample: Annotated[int, typer.Option(min=2, help="How many edges are measured exactly.")] = 128
    top: Annotated[int, typer.Option(min=1, help="Of how many best edges halves of the pairs are compared.")] = 200
    steps: Annotated[int, typer.Option(help="Steps of eap-ig and conductance.", min=1)] = 5
    heldout: Annotated[
        int, typer.Option(help="Pairs to measure circuits on.", min=4, rich_help_panel="Measurement")
    ] = 32


@command
def scorers(
    behaviour: BehaviourArgument,
    *,
    compared: Compared,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Where to write everything (default: outputs/MODEL/BEHAVIOUR/{FILE}); the picture lies beside it.",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: ResumeOption = False,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Compare scorers: how far each agrees with exact effects, and what the circuits it selects are worth."""
    output = output_options.output()
    names = [ScorerName.parse(name) for name in compared.scorer or ()]
    chosen = measurement.behaviour(behaviour)
    options = measurement.options(chosen)
    file = prepared_file(out or default_folder(model_name(model_options), chosen.name) / FILE, (".json",), FILE)

    from circuits.certainty.scorer_comparison import COMPARED, PAIRS, compare_scorers
    from circuits.files.atomic import write

    line = output.progress(plan=PLANS["scorers"])
    with kept_until_done(file, output, resume=resume) as journal, line as progress:
        model = measurement.led(model_options.load(progress, output))
        found = compare_scorers(
            model,
            measurement.with_openings(chosen, model, output),
            scorers=names or COMPARED,
            options=options,
            resources=model_options.resources(),
            sample=compared.sample,
            top=compared.top,
            steps=compared.steps,
            pairs=measurement.pairs or PAIRS,
            heldout=compared.heldout,
            seed=measurement.seed or 0,
            progress=progress,
            journal=journal,
        )
        write(file, found.to_json(), make_folder=True)
        picture = file.with_suffix(".svg")
        write(picture, found.to_svg())
    for remark in (*found.remarks, *(f"{name} is left out: {reason}" for name, reason in found.left_out.items())):
        output.warn(remark)
    output.show(*_tables(found, file))
    output.leave({**found.to_document(), "file": str(file)}, file.parent, [file, picture])


def _tables(found: "ScorerComparison", file: Path) -> list[RenderableType]:
    from circuits.certainty.scorer_comparison import SIZES

    def shown(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    edges = found.rows[0].agreement.n
    about = f"{found.discovery} pairs, circuits on {found.heldout} held out"
    return [
        facts(
            f"scorers on {found.behaviour} in {found.model}",
            [("measured", f"{edges} edges exactly, {about}"), ("written to", str(file))],
        ),
        table(
            "agreement with exact effects; how far two halves of the pairs agree on the best edges; cost in forward "
            "passes of the pairs",
            ["scorer", "Spearman", "Pearson", "wrong signs", "top tenth found", "halves", "forwards"],
            [
                [
                    row.scorer,
                    shown(row.agreement.spearman),
                    shown(row.agreement.pearson),
                    f"{row.agreement.sign_errors:.0%}",
                    f"{row.agreement.top_found:.0%}",
                    shown(row.jaccard),
                    shown(row.forwards, 1),
                ]
                for row in found.rows
            ],
            numbers=range(1, 7),
        ),
        table(
            "fidelity of the best edges by |score| on held-out pairs, by share of all edges, and CMD (0 is perfect)",
            ["scorer", *(f"{share:.1%}" for share in SIZES), "CMD"],
            [
                [row.scorer, *(shown(row.at(share).fidelity) for share in SIZES), shown(row.cmd, 3)]
                for row in found.rows
            ],
            numbers=range(1, 2 + len(SIZES)),
        ),
    ]
