"""Options of what many processes work on: how many there are, and where."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circuits.campaigns.jobs import Workers

PANEL = "Workers"


@dataclass(frozen=True)
class Working:
    """Which processes do the work."""

    workers: Annotated[int, typer.Option(help="How many processes work at once.", min=1, rich_help_panel=PANEL)] = 1
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of each process (default: this machine's cores, shared evenly).",
            min=1,
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None

    def asked(self) -> "Workers":
        """Return what runs jobs."""
        from circuits.campaigns.jobs import Processes

        return Processes(self.workers, self.threads)
