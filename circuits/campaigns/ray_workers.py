# pyright: basic, reportMissingImports=false
"""Jobs on a Ray cluster: one actor per worker, each with a worker process on its node.

The only module that imports Ray. Nodes need this package, and the folder of the results under the same path.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from circuits.campaigns.jobs import DIED, Ended, Job, WorkerProcess, run_with
from circuits.errors import UsageError, border
from circuits.settings import settle

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
except ImportError as missing:
    raise UsageError(
        "Ray is not installed; install this package with its extra: pip install 'path-patching-circuits[cluster]'."
    ) from missing

LOCAL = "local"
"""The address of a cluster that is started on this machine for the campaign."""
_PATIENCE = 40.0
"""Seconds in which an actor stops its process."""


@dataclass(frozen=True)
class RayWorkers:
    """Workers on a Ray cluster.

    ``address`` is ``auto`` for the cluster that this machine belongs to, ``local`` for one that is started here, or a
    cluster's address. Every worker takes ``threads`` of the cluster's CPUs and ``gpus`` of its GPUs.
    """

    count: int = 1
    address: str = "auto"
    threads: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        settle(self, least={"count": 1, "threads": 1, "gpus": 0})

    def run(self, jobs: Sequence[Job]) -> Generator[Ended]:
        """Run all jobs; see :meth:`circuits.campaigns.jobs.Workers.run`. Raises :class:`UsageError` without cluster."""
        if not jobs:
            return
        if not ray.is_initialized():
            self._join()
        yield from run_with([_RayWorker(self.threads, self.gpus) for _ in range(min(self.count, len(jobs)))], jobs)

    def _join(self) -> None:
        cpus = self.count * self.threads if self.address == LOCAL else None
        advice = "give the address of a cluster, or --ray local to start one on this machine."
        with border(UsageError, lambda why: f"no Ray cluster at {self.address!r} ({why}); {advice}"):
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False, num_cpus=cpus)


class _Actor:
    """Holds a worker process on its node."""

    def __init__(self, threads: int) -> None:
        self._worker = WorkerProcess(threads)

    def run(self, job: Job) -> Ended:
        """Run a job."""
        return self._worker.run(job)

    def stop(self) -> None:
        """End the process."""
        self._worker.stop()


class _RayWorker:
    """One worker: an actor, which is started again on another node where its own is lost."""

    def __init__(self, threads: int, gpus: float) -> None:
        # Two at a time, so that the second can stop the first.
        self._make = ray.remote(_Actor).options(num_cpus=threads, num_gpus=gpus, max_concurrency=2)
        self._threads, self._lock, self._stopped = threads, threading.Lock(), False
        self._actor: Any = None

    def run(self, job: Job) -> Ended:
        """Run a job to its end."""
        with self._lock:
            if self._stopped:
                return Ended(job, 1, DIED, "it was stopped.")
            self._actor = actor = self._actor or self._make.remote(self._threads)
        try:
            return ray.get(actor.run.remote(job))
        except RayError as error:
            self._actor = None
            reason = str(error).strip().splitlines()[0]
            return Ended(job, 1, DIED, f"its Ray actor was lost: {reason}; its messages are in {job.log}.")

    def stop(self) -> None:
        """End the actor and its process."""
        with self._lock:
            self._stopped, actor = True, self._actor
        if actor is not None:
            with suppress(RayError, GetTimeoutError):
                ray.get(actor.stop.remote(), timeout=_PATIENCE)
            ray.kill(actor)
