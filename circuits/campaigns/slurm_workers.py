# pyright: basic, reportMissingImports=false
"""Jobs under Slurm, each as a job of its own in one array; the only module that imports submitit.

Nodes need this package, and the folder of the results under the same path.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from circuits.campaigns.jobs import DIED, Ended, Job, WorkerProcess
from circuits.errors import UsageError, border
from circuits.settings import settle

try:
    import submitit
    from submitit.core.utils import FailedJobError, UncompletedJobError
except ImportError as missing:
    raise UsageError(
        "submitit is not installed; install this package with its extra: pip install 'path-patching-circuits[cluster]'."
    ) from missing

_LOOK = 1.0
"""Seconds between looks at jobs that run."""


@dataclass(frozen=True)
class SlurmWorkers:
    """Slurm jobs, ``count`` at once, in a partition (``auto``: the default one), with cores and GPUs for each.

    ``folder`` is where submitit keeps its own files, ``hours`` the limit after which Slurm ends a job. ``cluster`` is
    ``slurm``; ``local`` runs jobs as processes of this machine, to try out what will run.
    """

    folder: Path
    count: int = 1
    partition: str = "auto"
    threads: int = 1
    gpus: int = 0
    hours: float = 24.0
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        settle(self, least={"count": 1, "threads": 1, "gpus": 0, "hours": 0})

    def run(self, jobs: Sequence[Job]) -> Generator[Ended]:
        """Run all jobs; see :meth:`circuits.campaigns.jobs.Workers.run`. Raises :class:`UsageError` without Slurm."""
        if not jobs:
            return
        with border(
            UsageError, lambda why: f"jobs cannot be submitted ({why}); run this where sbatch is, or without --slurm."
        ):
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(**self._parameters())
            with executor.batch():
                submitted = [executor.submit(in_a_worker, job, self.threads) for job in jobs]
        left = list(zip(submitted, jobs, strict=True))
        try:
            while left:
                for each in [each for each in left if each[0].done()]:
                    left.remove(each)
                    yield _ended(*each)
                time.sleep(_LOOK if left else 0)
        finally:
            for running, _ in left:
                with suppress(OSError):
                    running.cancel()

    def _parameters(self) -> dict[str, object]:
        own: dict[str, object] = {"timeout_min": max(1, int(60 * self.hours)), "cpus_per_task": self.threads}
        own |= {"gpus_per_node": self.gpus} if self.gpus else {}
        if self.cluster == "slurm":
            own["slurm_array_parallelism"] = self.count
            own |= {} if self.partition == "auto" else {"slurm_partition": self.partition}
        return own


def in_a_worker(job: Job, threads: int) -> Ended:
    """Run one job in a worker process of this node."""
    worker = WorkerProcess(threads)
    try:
        return worker.run(job)
    finally:
        worker.stop()


def _ended(running: "submitit.Job[Ended]", job: Job) -> Ended:
    try:
        return running.result()
    except (FailedJobError, UncompletedJobError) as error:
        reason = str(error).strip().splitlines()[0]
        return Ended(job, 1, DIED, f"its Slurm job {running.job_id} ended without a result: {reason}")
