"""Jobs, and the processes that run them: one command after the other in each, with the packages loaded once.

A worker process reads jobs from its standard input, a line of JSON each, and answers with how each ended. It stops when
that input ends: a worker never outlives what started it by more than the step it is in.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from circuits.settings import settle

DIED = "Died"
"""The kind of the end of a job whose worker ended with it: killed, out of memory, or broken by what nobody foresaw."""
_PATIENCE = 30.0
"""Seconds in which a worker that is told to stop writes what it has measured; then it is killed."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A command: what is typed after ``circuits``, its name, where its messages go, and the file that it locks.

    ``directory`` is where it is typed. With ``once`` it is not run where its results are beside its messages already:
    a worker whose driver was killed may have ended it since it was planned.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    lock: Path
    directory: Path = field(default_factory=Path.cwd)
    once: bool = False


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code (minus a signal's number), and of a failure the error's class and message."""

    job: Job
    code: int
    kind: str = ""
    message: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def died(self) -> bool:
        """Whether its worker ended with it."""
        return self.kind == DIED


class Workers(Protocol):
    """What runs jobs: processes here, on a Ray cluster or under Slurm."""

    @property
    def count(self) -> int:
        """How many jobs run at once."""
        ...

    def run(self, jobs: Sequence[Job]) -> Generator[Ended]:
        """Run all jobs, and yield how each ended, in the order in which they end.

        Where the iterator is closed, workers stop as at Ctrl-C: commands write what they have measured.
        """
        ...


class WorkerProcess:
    """One worker process, which is started when there is a job for it, and again where it died.

    Args:
        threads: Of each process, so that several do not fight for the same cores.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._stopped, self._starting = threads, False, threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: Job) -> Ended:
        """Run a job to its end."""
        begun = time.monotonic()
        try:
            answer = self._answer(job)
        except OSError as error:  # no process can be started
            return Ended(job, 1, DIED, f"no process could be started for it: {error.strerror}.")
        seconds = time.monotonic() - begun
        if answer is not None:
            return Ended(job, answer["code"], answer["kind"], answer["message"], seconds)
        code = _end(self._process) if self._process else -signal.SIGINT
        self._process = None
        message = f"its process ended with {_ending(code)}; its messages are in {job.log}."
        return Ended(job, code or 1, DIED, message, seconds)

    def _answer(self, job: Job) -> dict[str, Any] | None:
        """Hand a job over and wait for the answer; None where the process ends before it has given one."""
        process = self._running()
        if process is None or process.stdin is None or process.stdout is None:
            return None
        told: dict[str, object] = {"arguments": job.arguments, "once": job.once, "directory": str(job.directory)}
        told |= {"log": str(job.log.absolute()), "lock": str(job.lock.absolute())}
        line = ""
        with suppress(BrokenPipeError, ValueError):  # the process has died, or the pipe was closed by :meth:`stop`
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def _running(self) -> "subprocess.Popen[str] | None":
        with self._starting:
            if self._stopped:
                return None
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "circuits.campaigns.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | dict.fromkeys(_THREADS, str(self._threads)),
                    start_new_session=True,  # Ctrl-C is for what started it, which then tells it to stop
                )
            return self._process

    def stop(self) -> None:
        """End the process, after it has written what it has measured; it is not started again."""
        with self._starting:
            self._stopped = True
        process = self._process
        if process is None:
            return
        with suppress(OSError):
            if process.stdin:
                process.stdin.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        _end(process)


def _end(process: "subprocess.Popen[str]") -> int:
    """Wait for a process that ends, close the pipes to it, and return its exit code."""
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was not read any more
            if pipe:
                pipe.close()
    return process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@dataclass(frozen=True)
class Processes:
    """Worker processes on this machine, which share its cores evenly unless told how many ``threads`` each has."""

    count: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        settle(self, least={"count": 1, "threads": 1})

    def run(self, jobs: Sequence[Job]) -> Generator[Ended]:
        """Run all jobs; see :meth:`Workers.run`."""
        threads = self.threads or max(1, cores() // self.count)
        workers = [WorkerProcess(threads) for _ in range(min(self.count, len(jobs)))]
        yield from run_with(workers, jobs)


class Worker(Protocol):
    """What runs one job at a time."""

    def run(self, job: Job) -> Ended:
        """Run a job to its end."""
        ...

    def stop(self) -> None:
        """End."""
        ...


def run_with(workers: Sequence[Worker], jobs: Sequence[Job]) -> Generator[Ended]:
    """Run jobs with some workers, each of which takes the next job when it has ended one."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
    threads = [threading.Thread(target=_work, args=(worker, waiting, ended), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            yield ended.get()
    finally:
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        with ThreadPoolExecutor(len(workers) or 1) as stopping:
            for done in as_completed([stopping.submit(worker.stop) for worker in workers]):
                done.result()


def _work(worker: Worker, waiting: "queue.SimpleQueue[Job]", ended: "queue.SimpleQueue[Ended]") -> None:
    with suppress(queue.Empty):
        while True:
            ended.put(worker.run(waiting.get_nowait()))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
