"""``circuits patch``: activation patching, the classic first look, as a table and a heatmap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Group

from circuits.behaviours.behaviour import TokenPair
from circuits.behaviours.tokens import Tokenizer, token_texts
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
    """What a heatmap of patching spans."""

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

    from circuits.patching.sites import patch_sites

    session = Session(model_options, resources, measurement, output, file.parent)
    with kept_until_done(file, output, resume=resume) as journal, output.progress(plan=PLANS["patch"]) as progress:
        begun = recorded(session, chosen, options, progress, pairs=PATCHING_PAIRS, journal=journal)
        tokens = position_labels(begun.model.tokenizer, begun.pairs)
        found = patch_sites(
            begun.experiment,
            place,
            tokens,
            by_position=by_position,
            progress=lambda done, total: progress(f"patching ({place})", done, total),
        )
        progress("drawing", 0, 0)
        files = _write(begun, found, file)
    _report(begun, found, files, output)


def _write(begun: Recorded, found: "SitePatching", file: Path) -> dict[str, Path]:
    """Write the heatmap, and all values beside it."""
    from circuits.drawing.heatmap import heatmap

    words = _Words.of(found)
    heatmap(
        found.restored,
        rows=[str(layer) for layer in range(len(found.values))],
        columns=found.columns,
        title=f"{begun.behaviour} in {begun.model.info.id}: {words.action}, {len(begun.pairs)} pairs",
        colour_label=words.share,
        path=file,
        row_label="layer",
        column_label="head" if found.site is Site.HEAD else "token position",
    )
    values = file.with_suffix(".csv")
    write(values, _csv(found))
    return {"heatmap": file, "values": values}


def _report(begun: Recorded, found: "SitePatching", files: dict[str, Path], output: Output) -> None:
    words, metric = _Words.of(found), begun.experiment.metric
    for warning in begun.warnings:
        output.warn(warning)
    output.show(
        facts(
            f"{begun.behaviour} in {begun.model.info.id}",
            [
                ("patched", words.action),
                (str(metric), f"clean {found.clean:.3f}, corrupted {found.corrupted:.3f} {metric.unit}"),
                ("prompt pairs", str(len(begun.pairs))),
                ("heatmap", str(files["heatmap"])),
                ("all values", str(files["values"])),
            ],
        ),
        _table(found, words, output),
    )
    if any("‹" in column for column in found.columns):
        output.show("‹…›: the prompts differ here, so the first pair's token is shown; with ≠ the two sides differ.")
    more = {"n": len(begun.pairs), "prefix_cache": str(begun.experiment.prefix_cache)}
    document = {**_document(found, begun.warnings, files), **more}
    output.leave(document, files["heatmap"].parent, files.values())


def _by_position(site: Site, by: str | None) -> bool:
    if by is None:
        return site is not Site.HEAD
    axes = Axes.parse(by.replace(" ", ""))
    if site is Site.HEAD:
        raise UsageError(
            f"--site head patches every head at all positions at once; leave out --by {by}, or use --site attn."
        )
    return axes is Axes.LAYER_POSITION


def position_labels(tokenizer: Tokenizer, pairs: Sequence[TokenPair]) -> list[str]:
    """Name token positions: by the token that is there in all prompts, else by the first pair's, in ``‹…›``.

    Where clean and corrupted prompts differ the label has both: ``‹John≠Paul›``.
    """
    length = len(pairs[0].clean)
    labels: list[str] = []
    for position in range(length):
        members = [pair for pair in pairs if len(pair.clean) > position]
        here = {(pair.clean[position], pair.corrupted[position]) for pair in members}
        texts = token_texts(tokenizer, (pairs[0].clean[position], pairs[0].corrupted[position]))
        clean, corrupted = (text.strip() or repr(text)[1:-1] for text in texts)
        if any(one != other for one, other in here):
            labels.append(f"‹{clean}≠{corrupted}›")
        else:
            labels.append(clean if len(here) == 1 else f"‹{clean}›")
    return labels


@dataclass(frozen=True)
class _Words:
    """What the numbers mean, in words."""

    action: str
    share: str

    @classmethod
    def of(cls, found: "SitePatching") -> "_Words":
        """Choose the words for a direction."""
        source, run = ("clean", "corrupted") if found.direction is Direction.DENOISING else ("corrupted", "clean")
        share = "restored" if found.direction is Direction.DENOISING else "lost"
        return cls(
            f"{found.site} of the {source} run put into the {run} run ({found.direction})",
            f"share of the gap {share} (0: the {run} run, 1: the {source} run)",
        )


def _table(found: "SitePatching", words: _Words, output: Output) -> Group:
    """Return all shares where the terminal is wide enough, else the place with the largest in every layer."""
    restored = found.restored
    widths = [max(5, len(column)) + 2 for column in found.columns]
    if sum(widths) + 7 <= output.width:
        rows = [[str(layer), *(_rounded(share) for share in row)] for layer, row in enumerate(restored.tolist())]
        numbers = tuple(range(len(found.columns) + 1))
        return table(words.share, ["layer", *found.columns], rows, numbers=numbers)
    best = [int(place) for place in np.argmax(np.abs(restored), axis=1)]
    rows = [
        [
            str(layer),
            str(place),
            found.columns[place],
            f"{found.values[layer, place]:.3f}",
            _rounded(float(restored[layer, place])),
        ]
        for layer, place in enumerate(best)
    ]
    title = f"the strongest place of every layer; {words.share}"
    return table(title, ["layer", "at", "token", "metric", "share"], rows, numbers=(0, 1, 3, 4))


def _rounded(share: float) -> str:
    return f"{round(share, 2) + 0.0:.2f}"  # -0.0 becomes 0.0


def _csv(found: "SitePatching") -> str:
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["layer", "column", "label", "metric", "share"])
    for (layer, column), value in np.ndenumerate(found.values):
        share = found.restored[layer, column]
        writer.writerow([layer, column, found.columns[column], f"{value:.6g}", f"{share:.6g}"])
    return buffer.getvalue()


def _document(found: "SitePatching", warnings: tuple[str, ...], files: dict[str, Path]) -> dict[str, Any]:
    return {
        "site": found.site,
        "direction": found.direction,
        "columns": list(found.columns),
        "metric_clean": found.clean,
        "metric_corrupted": found.corrupted,
        "metric": found.values.tolist(),
        "share": found.restored.tolist(),
        "warnings": list(warnings),
        "files": {name: str(path) for name, path in files.items()},
    }
