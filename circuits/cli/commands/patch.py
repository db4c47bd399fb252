"""``circuits patch``: activation patching, the classic first look, as a table and a picture."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Group

from circuits.cli.arguments import PATCHING_PAIRS, BehaviourArgument, DirectionOption, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import Recorded, Session, model_name, recorded
from circuits.cli.tables import facts, table
from circuits.errors import UsageError
from circuits.files.atomic import write
from circuits.progress import PLANS
from circuits.settings import Choice
from circuits.vocabulary import Direction, Site

if TYPE_CHECKING:
    from circuits.patching.sites import SitePatching


class Axes(Choice):
    """What a picture of patching spans."""

    LAYER_POSITION = "layer,position"
    LAYER = "layer"

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "value of --by"


@command
def patch(
    behaviour: BehaviourArgument,
    *,
    site: Annotated[
        str,
        typer.Option(metavar="|".join(Site), help="Which activation: residual stream, attention, MLP or each head."),
    ] = Site.RESID,
    by: Annotated[
        str | None,
        typer.Option(metavar="|".join(Axes), help="Each position by itself, or all at once.", show_default=False),
    ] = None,
    direction: DirectionOption = Direction.DENOISING,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .svg, .png or .pdf file.", rich_help_panel="Output")
    ] = None,
    resume: ResumeOption = False,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Put activations of the clean run into the corrupted run (or the reverse), layer by layer: what comes back?"""
    output = output_options.output()
    place, by_position = Site.parse(site), _by_position(Site.parse(site), by)
    chosen = measurement.behaviour(behaviour)
    if by_position and place is not Site.HEAD and chosen.usable_only:
        chosen = replace(chosen, one_length=True)  # positions of prompts of several lengths have nothing in common
    options = measurement.options(chosen, direction=direction or Direction.DENOISING)
    resources = model_options.resources()
    file = out or default_folder(model_name(model_options), chosen.name) / f"patch-{place}.svg"
    file = prepared_file(file, (".svg", ".png", ".pdf"), f"patch-{place}.svg")

    from circuits.patching.sites import patch_sites, position_labels

    session = Session(model_options, resources, measurement, output, file.parent)
    with kept_until_done(file, output, resume=resume) as journal, output.progress(plan=PLANS["patch"]) as progress:
        begun = recorded(session, chosen, options, progress, pairs=PATCHING_PAIRS, journal=journal)
        tokens = position_labels(begun.model.tokenizer, begun.pairs) if by_position else None
        found = patch_sites(
            begun.experiment,
            place,
            tokens,
            progress=lambda done, total: progress(f"patching ({place})", done, total),
        )
        progress("drawing", 0, 0)
        files = _write(begun, found, file)
    _report(begun, found, files, output)


def _write(begun: Recorded, found: "SitePatching", file: Path) -> dict[str, Path]:
    """Write the picture, and all values beside it."""
    found.draw(file, title=f"{begun.behaviour} in {begun.model.info.id}")
    values = file.with_suffix(".csv")
    write(values, found.to_csv())
    return {"picture": file, "values": values}


def _report(begun: Recorded, found: "SitePatching", files: dict[str, Path], output: Output) -> None:
    warnings = (*begun.warnings, *([found.remark] if found.remark else []))
    for warning in warnings:
        output.warn(warning)
    output.show(
        facts(
            f"{begun.behaviour} in {begun.model.info.id}",
            [
                ("patched", found.action),
                ("measured", found.measured_on),
                ("picture", str(files["picture"])),
                ("all values", str(files["values"])),
            ],
        ),
        _table(found, output),
    )
    if any("‹" in column for column in found.columns):
        output.show("‹…›: the prompts differ here, so the first pair's token is shown; with ≠ the two sides differ.")
    more = {"n": len(begun.pairs), "prefix_cache": str(begun.experiment.prefix_cache)}
    document = {**_document(found, warnings, files), **more}
    output.leave(document, files["picture"].parent, files.values())


def _by_position(site: Site, by: str | None) -> bool:
    if by is None:
        return site is not Site.HEAD
    axes = Axes.parse(by.replace(" ", ""))
    if site is Site.HEAD:
        raise UsageError(
            f"--site head patches every head at all positions at once; leave out --by {by}, or use --site attn."
        )
    return axes is Axes.LAYER_POSITION


def _table(found: "SitePatching", output: Output) -> Group:
    """Return all shares where the terminal is wide enough, else the largest of every layer with its interval."""
    restored = found.restored
    widths = [max(5, len(column)) + 2 for column in found.columns]
    if not found.by_layer and sum(widths) + 7 <= output.width:
        rows = [[str(layer), *(_rounded(share) for share in row)] for layer, row in enumerate(restored.tolist())]
        return table(found.share, ["layer", *found.columns], rows, numbers=tuple(range(len(found.columns) + 1)))
    best = [int(place) for place in np.argmax(np.abs(restored), axis=1)]
    rows = [
        [
            str(layer),
            found.columns[place],
            f"{found.values[layer, place]:.3f}",
            _rounded(float(restored[layer, place])),
            _interval(found.intervals[layer, place].tolist()),
        ]
        for layer, place in enumerate(best)
    ]
    title = found.share if found.by_layer else f"the strongest place of every layer; {found.share}"
    return table(title, ["layer", "at", "metric", "share", "95 % interval"], rows, numbers=(0, 2, 3, 4))


def _interval(bounds: Sequence[float]) -> str:
    return f"[{', '.join(map(_rounded, bounds))}]" if all(map(math.isfinite, bounds)) else ""


def _rounded(share: float) -> str:
    return f"{round(share, 2) + 0.0:.2f}"  # -0.0 becomes 0.0


def _document(found: "SitePatching", warnings: tuple[str, ...], files: dict[str, Path]) -> dict[str, Any]:
    return {
        "site": found.site,
        "direction": found.direction,
        "columns": list(found.columns),
        "metric_clean": float(found.clean.mean()),
        "metric_corrupted": float(found.corrupted.mean()),
        "metric": found.values.tolist(),
        "share": found.restored.tolist(),
        "share_interval": found.intervals.tolist(),
        "warnings": list(warnings),
        "files": {name: str(path) for name, path in files.items()},
    }
