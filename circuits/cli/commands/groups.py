"""``circuits groups``: one mechanism or several?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from circuits.cli.arguments import Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import model_name
from circuits.cli.tables import facts, table
from circuits.progress import PLANS

if TYPE_CHECKING:
    from circuits.certainty.pair_groups import PairGroups

FILE = "groups.json"

ByOption = Annotated[
    str | None,
    typer.Option(metavar="TAG", help="Take the groups from a tag of the pairs, such as category or template."),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Edges of the circuits that groups are judged by (default: from 200 on, as many as one circuit for all "
        "needs for a fidelity of 0.8).",
    ),
]


@command
def groups(
    behaviours: Annotated[
        list[str], typer.Argument(metavar="BEHAVIOUR...", help="A built-in name or a prompt file; several are mixed.")
    ],
    *,
    count: Annotated[
        int | None, typer.Option("--groups", "-k", min=2, help="How many groups (default: 2 to 6, by silhouette).")
    ] = None,
    by: ByOption = None,
    size: SizeOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Where to write everything (default: outputs/MODEL/BEHAVIOUR/{FILE}).",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: ResumeOption = False,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Group a behaviour's pairs by the edges they hang on: is it one mechanism or several?

    Groups are found in any data. Whether they matter is measured on held-out pairs: is the circuit of a pair's own
    group closer to the model than one circuit of equal size for all?
    """
    output = output_options.output()
    chosen = [measurement.behaviour(name) for name in behaviours]
    options = None if measurement.metric is None and measurement.ablation is None else measurement.options(chosen[0])
    name = "-and-".join(each.name for each in chosen)
    file = prepared_file(out or default_folder(model_name(model_options), name) / FILE, (".json",), FILE)

    from circuits.certainty.pair_groups import PAIRS, group_pairs
    from circuits.files.atomic import write

    line = output.progress(plan=PLANS["groups"])
    with kept_until_done(file, output, resume=resume) as journal, line as progress:
        model = measurement.led(model_options.load(progress, output))
        found = group_pairs(
            model,
            [measurement.with_openings(each, model, output) for each in chosen],
            count=count,
            by=by,
            size=size,
            options=options,
            resources=model_options.resources(),
            pairs=measurement.pairs or PAIRS,
            seed=measurement.seed or 0,
            progress=progress,
            journal=journal,
        )
        write(file, found.to_json(), make_folder=True)
    for remark in found.remarks:
        output.warn(remark)
    output.show(*_tables(found, file))
    output.leave({**found.to_document(), "file": str(file)}, file.parent, [file])


def _tables(found: "PairGroups", file: Path) -> list[RenderableType]:
    tried = ", ".join(f"{count}: {value:.2f}" for count, value in found.silhouettes.items())
    rows = [
        ("silhouettes", tried),
        ("one circuit for all", f"{found.size:,} edges, fidelity {found.fidelity:.2f} on held-out pairs"),
        ("circuits of their own", f"{found.gain.describe()} less wrong than that, as many edges each"),
    ]
    if found.rand is not None:
        rows.append(("groups and behaviours", f"adjusted Rand index {found.rand:.3f}"))
    if found.tags:
        agree = ", ".join(f"{tag} {value:.2f}" for tag, value in found.tags.items())
        rows.append(("groups and tags", f"adjusted Rand index (1 the same, 0 chance): {agree}"))
    rows += [("verdict", found.verdict), ("written to", str(file))]
    return [
        facts(f"groups of pairs of {', '.join(found.behaviours)} in {found.model}", rows),
        table(
            "groups: pairs, held-out pairs and the errors on these of their own circuit and of the one for all",
            ["pairs", "held out", "own", "for all", "of", "such as"],
            [
                [
                    str(group.pairs),
                    str(group.heldout),
                    "" if group.own is None else f"{group.own:.3f}",
                    "" if group.shared is None else f"{group.shared:.3f}",
                    group.name or ", ".join(f"{name} {count}" for name, count in group.behaviours.items()),
                    group.examples[0],
                ]
                for group in found.groups
            ],
            numbers=(0, 1, 2, 3),
        ),
    ]
