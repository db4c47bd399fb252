"""``circuits prompts``: what is in a prompt file, as a model's tokenizer reads it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.cli.arguments import DEFAULT_MODEL, then_loading
from circuits.cli.command import OutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import prepared_file
from circuits.cli.prompting import AlignOption
from circuits.cli.tables import facts, table
from circuits.errors import UsageError
from circuits.vocabulary import Metric

if TYPE_CHECKING:
    from circuits.behaviours.survey import PromptRow, Prompts

EXAMPLES, SHOWN = 5, 20
"""How many pairs, and how many unusable rows, are shown; ``--json`` and ``--out`` have all."""


@command
def prompts(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A prompt file, a data set (hf:OWNER/NAME:SPLIT, or a saved folder), or a built-in behaviour.",
        ),
    ],
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Whose tokenizer reads it; weights are not needed.")
    ] = DEFAULT_MODEL,
    metric: Annotated[
        str | None,
        typer.Option(metavar="|".join(Metric), help="What they are to be measured by; sequence takes long answers."),
    ] = None,
    align: AlignOption = None,
    harmless: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the first file for a collection of harmful requests (HarmBench, AdvBench, JailbreakBench, "
            "StrongREJECT, XSTest, OR-Bench …) and pair each with one of this file of as many tokens; the same file "
            "where it has both.",
            show_default=False,
        ),
    ] = None,
    over_refusal: Annotated[
        bool,
        typer.Option(
            "--over-refusal",
            help="Pair harmless prompts (the corrupted ones) that the model refuses with those it answers; runs it.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the usable pairs as JSON Lines, and what is left out beside them."),
    ] = None,
    output_options: OutputOptions,
) -> None:
    """Look into a prompt file: decoded answers, lengths, splits, duplicates, and every row that cannot be used."""
    output = output_options.output()
    place = prepared_file(out, (".jsonl",), "prompts.jsonl") if out else None

    if over_refusal:
        if harmless is not None or metric is not None or align is not None:
            raise UsageError(
                "--over-refusal takes the harmless prompts of FILE; leave --harmless, --metric and --align out."
            )
        _over_refused(file, model, place, output)
        return
    if harmless is not None:
        if metric is not None or align is not None:
            raise UsageError("--metric and --align are for pairs, and --harmless only makes pairs; leave them out.")
        _pair(Path(file), harmless, model, place, output)
        return

    _read(file, model, metric, align, place, output)


def _read(file: str, model: str, metric: str | None, align: str | None, place: Path | None, output: Output) -> None:
    """Read pairs, show them, and write those that can be used."""
    from circuits.prompt_reading import read_prompts

    with output.progress() as progress:
        found = read_prompts(file, model, metric=metric, align=align, progress=then_loading(progress))
    files = found.write(place) if place else (None, None)
    _show(found, output)
    for path, what in zip(files, ("usable pairs", "rows that are left out, with reasons"), strict=True):
        if path is not None:
            output.show(f"{what}: {path}")
    output.finish(found.document() | {"files": [str(path) for path in files if path is not None]})


def _pair(harmful: Path, harmless: Path, model: str, place: Path | None, output: Output) -> None:
    """Pair requests, show what became of them, and write the pairs."""
    from circuits.prompt_reading import pair_requests

    with output.progress() as progress:
        found = pair_requests(harmful, harmless, model, progress=then_loading(progress))
    files = [str(path) for path in found.write(place) if path] if place else []
    differ = [twins.differ for twins in found.pairs]
    title = f"{len(found.pairs):,} pairs; twins differ at {min(differ)} to {max(differ)} tokens"
    headings = ["file", "collection", "kind", "requests", "in pairs", "dropped"]
    output.show(table(title, headings, [[*map(str, row)] for row in found.table], numbers=(3, 4)))
    if files:
        output.show(f"Pairs: {files[0]}; next: circuits direction {files[0]} --openings auto")
    rows = [dict(zip(headings, row, strict=True)) for row in found.table]
    output.finish({"pairs": len(found.pairs), "table": rows, "files": files})


def _over_refused(file: str, name: str, place: Path | None, output: Output) -> None:
    """Pair what the model refuses of harmless prompts with what it answers, show that and write the pairs."""
    from circuits.behaviours import load_behaviour
    from circuits.behaviours.survey import survey
    from circuits.model import load_model
    from circuits.steering.over_refusal import over_refusal

    with output.progress() as progress:
        model = load_model(name, progress=then_loading(progress))
        progress("answering harmless prompts", 0, 0)
        found = over_refusal(model, load_behaviour(file))
    pairs = survey(found.behaviour, model.tokenizer, model=model.info.id)
    _show(pairs, output)
    output.show(found.describe())
    written = pairs.write(place)[0] if place else None
    if written is not None:
        output.show(f"Pairs: {written}; next: circuits direction {written}")
    counts = {"requests": found.requests, "refused": found.refused, "paired": found.paired}
    output.finish(pairs.document() | counts | {"files": [str(written)] if written else []})


def _show(found: "Prompts", output: Output) -> None:
    lengths = ", ".join(f"{length} ({count})" for length, count in found.lengths.items())
    output.show(
        facts(
            f"{found.name}, read by the tokenizer of {found.model}",
            [
                ("usable pairs", f"{len(found.pairs):,}"),
                ("unusable rows", f"{len(found.unusable):,}"),
                ("duplicates", f"{len(found.duplicates):,}"),
                ("splits", ", ".join(f"{count:,} {split}" for split, count in found.splits.items())),
                ("tokens (pairs)", lengths),
            ],
        ),
        table(
            f"the first {min(EXAMPLES, len(found.pairs))} pairs, with answers as the model would write them",
            ["row", "text"],
            [line for row in found.pairs[:EXAMPLES] for line in _lines(row)],
        ),
    )
    for title, rows in (("unusable", found.unusable), ("duplicates", found.duplicates)):
        if rows:
            more = f", the first {SHOWN} of {len(rows):,}" if len(rows) > SHOWN else ""
            output.show(table(f"{title}{more}", ["row", "why"], [[row.source, row.reason] for row in rows[:SHOWN]]))
    for remark in found.remarks:
        output.warn(remark)


def _lines(row: "PromptRow") -> list[tuple[str, str]]:
    return [
        (row.source, repr(row.clean)),
        ("corrupted", repr(row.corrupted)),
        ("answers", ", ".join(map(repr, row.answers))),
        ("wrong answers", ", ".join(map(repr, row.wrong_answers))),
        ("", ""),
    ]
