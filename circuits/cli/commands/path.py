"""``circuits path``: what named paths carry."""

from pathlib import Path as FilePath
from typing import Annotated

import typer

from circuits.cli.arguments import BehaviourArgument, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.session import Recorded, Session, model_name, recorded
from circuits.cli.tables import facts, table
from circuits.errors import UsageError
from circuits.files.atomic import write
from circuits.files.documents import json_text
from circuits.patching.protocol import gaps
from circuits.progress import PLANS
from circuits.scores import Floats

PATHS = "paths.json"


@command
def path(
    behaviour: BehaviourArgument,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help='Such as "a9.h8->a11.h2<q>->logits" (quote it: > redirects).')
    ],
    *,
    out: Annotated[
        FilePath | None,
        typer.Option("--out", "-o", help="A .json file for what was measured.", rich_help_panel="Output"),
    ] = None,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Measure paths of several hops: corrupt the first node, freeze what is not on the path."""
    output = output_options.output()
    for text in paths:
        if "->" not in text:
            raise UsageError(
                f"'{text}' is not a path; expected nodes joined by ->, in quotes, such as \"a9.h8->a11.h2<q>->logits\"."
            )
    chosen = measurement.behaviour(behaviour)
    options, resources = measurement.options(chosen), model_options.resources()

    from circuits.patching.paths import Path, path_effects

    file = prepared_file(out or default_folder(model_name(model_options), chosen.name) / PATHS, (".json",), PATHS)
    with output.progress(plan=PLANS["path"]) as progress:
        begun = recorded(Session(model_options, resources, measurement, output, file.parent), chosen, options, progress)
        parsed = [Path.parse(text, begun.model.graph) for text in paths]
        progress("measuring paths", 0, 0)
        effects = path_effects(begun.experiment, parsed)
    _report(begun, [str(one) for one in parsed], effects, output, file)


def _report(begun: Recorded, paths: list[str], effects: Floats, output: Output, file: FilePath) -> None:
    experiment, options = begun.experiment, begun.experiment.options
    gap = float(gaps(experiment).mean())
    found = [
        {
            "path": one,
            "effect": float(row.mean()),
            "sd": float(row.std(ddof=1)) if len(row) > 1 else None,
            "share": float(row.mean()) / gap,
        }
        for one, row in zip(paths, effects, strict=True)
    ]
    for warning in begun.warnings:
        output.warn(warning)
    output.show(
        facts(
            f"{begun.behaviour} in {begun.model.info.id}",
            [
                (
                    str(options.metric),
                    f"clean {experiment.clean.mean():.3f}, corrupted {experiment.corrupted.mean():.3f}",
                ),
                ("prompt pairs", str(experiment.n_pairs)),
                ("written to", str(file)),
                ("effect", "what corrupting the path costs; positive hurts the behaviour"),
            ],
        ),
        table(
            f"paths (effect in {options.metric.unit}, share of the gap between clean and corrupted)",
            ["path", "effect", "sd", "share"],
            [
                [
                    str(row["path"]),
                    f"{row['effect']:.4f}",
                    "" if row["sd"] is None else f"{row['sd']:.4f}",
                    f"{row['share']:.1%}",
                ]
                for row in found
            ],
            numbers=(1, 2, 3),
        ),
    )
    document = {
        "metric": options.metric,
        "n": experiment.n_pairs,
        "metric_clean": float(experiment.clean.mean()),
        "metric_corrupted": float(experiment.corrupted.mean()),
        "prefix_cache": str(experiment.prefix_cache),
        "paths": found,
        "warnings": list(begun.warnings),
    }
    write(file, json_text(document), make_folder=True)
    output.leave(document | {"file": str(file)}, file.parent, [file])
