"""Options of what many processes work on: how many there are, and where."""

from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.cli.output import Output
from circuits.errors import UsageError
from circuits.patching.protocol import StageProgress

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


@dataclass(frozen=True)
class Sharing(Working):
    """Which processes share what is measured, and where they meet."""

    share: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which processes meet that share the work: any number of them, on any machines that see it. "
            "With --workers they are started here.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None

    def meeting(self, file: Path) -> Path | None:
        """Return where processes meet that make a file; None where there is but one."""
        return self.share or (file.with_name(f"{file.name}.shards") if self.several else None)

    def share_out(self, file: Path, output: Output, progress: StageProgress, *, resume: bool) -> None:
        """Let the workers that are asked for, if any, do their parts; what they leave is left to this process."""
        folder = self.meeting(file)
        if not self.several or folder is None:
            return
        from circuits.campaigns.sharing import share_out

        if self.share is None and not resume:
            rmtree(folder, ignore_errors=True)
        for failed in share_out(output.recorder.arguments, folder, self.on(folder), name=file.name, progress=progress):
            output.warn(f"{failed.job.name} failed, and others do its part: {failed.message}")

    def end(self, file: Path) -> None:
        """Remove where processes met, once the file is written; a folder that was given stays."""
        folder = self.meeting(file)
        if folder is not None and self.share is None:
            rmtree(folder, ignore_errors=True)
