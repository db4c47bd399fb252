"""Options of what many processes work on: how many there are, and where."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.errors import UsageError

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
            help="Threads of each process (default: this machine's cores, shared evenly; on a cluster 1).",
            min=1,
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(metavar="auto|local|ADDRESS", help="Work on a Ray cluster.", rich_help_panel=PANEL),
    ] = None
    slurm: Annotated[
        str | None,
        typer.Option(metavar="auto|PARTITION", help="Work in jobs of Slurm.", rich_help_panel=PANEL),
    ] = None
    gpus: Annotated[int, typer.Option(help="GPUs of each process on a cluster.", min=0, rich_help_panel=PANEL)] = 0
    hours: Annotated[
        float, typer.Option(help="Limit after which Slurm ends a job.", min=0.1, rich_help_panel=PANEL)
    ] = 24.0

    @property
    def several(self) -> bool:
        """Whether more than this process is to work."""
        return self.workers > 1 or self.ray is not None or self.slurm is not None

    def on(self, folder: Path) -> "Workers":
        """Return what runs jobs whose results go to a folder; raises :class:`UsageError` for two clusters at once."""
        from circuits.campaigns.jobs import Processes

        if self.ray is not None and self.slurm is not None:
            raise UsageError("jobs run either on Ray or under Slurm; give one of --ray and --slurm.")
        if self.ray is not None:
            from circuits.campaigns.ray_workers import RayWorkers

            return RayWorkers(self.workers, self.ray, self.threads or 1, self.gpus)
        if self.slurm is not None:
            from circuits.campaigns.slurm_workers import SlurmWorkers

            place = folder / "slurm"
            return SlurmWorkers(place, self.workers, self.slurm, self.threads or 1, self.gpus, self.hours)
        return Processes(self.workers, self.threads)
