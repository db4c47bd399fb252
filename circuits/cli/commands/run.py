"""``circuits run`` and ``circuits cite``: a recorded run, repeated and put into words."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.command import OutputOptions, command
from circuits.cli.tables import facts, table

RecordArgument = Annotated[
    Path, typer.Argument(metavar="RECORD", help="A run.json that a command left, or the folder that holds it.")
]
SHOWN = 20
"""How many differences are listed; --json has all."""


@command
def run(
    record: RecordArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results (default: the record's, with -again)."),
    ] = None,
    *,
    output_options: OutputOptions,
) -> None:
    """Repeat a recorded run, and say what differs. Exit code 1 where figures do.

    The command is typed again in a process of its own, in the folder it was typed in. Compared are all figures that it
    prints with --json, to six digits, its settings, model, data, versions and hardware; times are shown only.
    """
    output = output_options.output()
    from circuits.recording.repeating import run_again

    found = run_again(record, out)
    rows = [("before", f"{record}, {found.before.date}"), ("now", f"{found.path}, {found.now.date}")]
    output.show(facts(f"circuits {' '.join(found.before.arguments)}", rows))
    for title, differences in (("conditions", found.conditions), ("figures", found.figures)):
        if differences:
            more = f", the first {SHOWN} of {len(differences):,}" if len(differences) > SHOWN else ""
            told = [[each.place, f"{each.before}", f"{each.now}"] for each in differences[:SHOWN]]
            output.show(table(f"{title} that differ{more}", ["", "before", "now"], told))
    output.show(found.describe())
    output.finish(found.to_dict())
    if not found.same:
        raise typer.Exit(1)


@command
def cite(record: RecordArgument, *, output_options: OutputOptions) -> None:
    """Print a methods paragraph and BibTeX for a recorded run."""
    output = output_options.output()
    from circuits.recording.citing import cite as cited

    found = cited(record)
    output.show(str(found))
    output.finish({"paragraph": found.paragraph, "bibtex": found.bibtex})
