"""``circuits sweep``: many discoveries as one job."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import prepared_folder
from circuits.cli.resuming import STOPPED
from circuits.cli.tables import table
from circuits.cli.working import Working

if TYPE_CHECKING:
    from circuits.report.report import Table

_LEFT_OUT = ("name", "message", "clean", "corrupted", "code")
"""Columns that the terminal has no room for; the files have all."""
_ALIKE = ("model", "state", "seeds")
"""Columns that stand in the title where all rows have the same."""


@command
def sweep(
    campaign: Annotated[
        Path, typer.Argument(metavar="CAMPAIGN.toml", help="Behaviours, models, seeds and options of discover.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the results (default: outputs/CAMPAIGN).",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a run is tried again whose process died or that computed no number.")
    ] = 2,
    working: Working,
    output_options: RecordedOutputOptions,
) -> None:
    """Find the circuits of many behaviours, models and seeds as one job that goes on where it was stopped.

    Every run is one of circuits discover in a folder of its own; then the circuits of each model run on each other's
    prompts. One table has all (CSV, LaTeX, a page). Exit code 1 where runs failed; the same command tries these again.
    """
    output = output_options.output()
    from circuits.campaigns.campaign import Campaign
    from circuits.campaigns.outcome import FILES
    from circuits.campaigns.running import run_campaign

    chosen = Campaign.load(campaign)
    folder = prepared_folder(out or Path("outputs", campaign.stem))
    workers = working.on(folder)
    try:
        with output.progress(*(() if output.shows_progress else (partial(_say, output),))) as progress:
            found = run_campaign(chosen, folder, workers=workers, retries=retries, progress=progress)
    except KeyboardInterrupt as stop:
        output.warn(f"stopped; what is finished is kept in {folder}, the same command goes on.")
        raise typer.Exit(STOPPED) from stop
    for each in found.tables():
        output.show(_shown(each))
    output.show("", f"Every run has a folder in {folder / 'runs'}; tables and a page of all are in {folder}/")
    for remark in found.remarks:
        output.warn(remark)
    for failure in found.failures:
        output.warn(f"{failure.name} failed: {failure.message}")
    files = {name: folder / name for name in FILES}
    output.leave(found.to_dict() | {"files": {name: str(file) for name, file in files.items()}}, folder, files.values())
    if found.failures:
        raise typer.Exit(1)


def _say(output: Output, stage: str, done: int, total: int) -> None:
    """Write how far it is where no line shows it, such as in a log."""
    output.say(f"{stage}: {done} of {total}")


def _shown(found: "Table") -> RenderableType:
    """Return a table as the terminal has room for it."""
    names = found.columns
    alike = [
        name for place, name in enumerate(names) if name in _ALIKE and len({row[place] for row in found.rows}) == 1
    ]
    columns = [place for place, name in enumerate(names) if name not in (*_LEFT_OUT, *alike)]
    told = [f"{name} {found.rows[0][names.index(name)]}" for name in alike]
    rows = [[row[place] for place in columns] for row in found.rows]
    return table(", ".join([found.title, *told]), [names[place] for place in columns], rows)
