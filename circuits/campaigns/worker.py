"""A worker process: runs commands that it is told on its standard input, and answers on its standard output.

:class:`circuits.campaigns.jobs.WorkerProcess` starts it, as ``python -m circuits.campaigns.worker``. What commands
print goes to the job's log; the answer says how the command ended. What no command foresaw ends the process.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import typer
from filelock import FileLock, Timeout

from circuits.campaigns.states import finished
from circuits.cli.app import STOPPED, app
from circuits.errors import CircuitsError
from circuits.files.documents import parse_json

PATIENCE = 60.0
"""Seconds in which an earlier worker, whose starter was killed, lets go of what it was writing."""


def main() -> None:
    """Run jobs until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may be taken for an answer
    jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, jobs), daemon=True).start()
    for stopping in (signal.SIGTERM, signal.SIGINT):  # shells let what runs in the background ignore SIGINT
        signal.signal(stopping, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        while (job := jobs.get()) is not None:
            with suppress(OSError):  # a node that does not have it; paths are absolute then, or the command says so
                os.chdir(job["directory"])
            code, kind, message = run(job["arguments"], Path(job["log"]), Path(job["lock"]), once=job["once"])
            answers.write(json.dumps({"code": code, "kind": kind, "message": message}) + "\n")
            answers.flush()
            if code == STOPPED:
                break


def _listen(told: TextIO, jobs: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    """Take over jobs; when no more can come, stop the command that runs, as Ctrl-C would."""
    for line in told:
        jobs.put(json.loads(line))
    jobs.put(None)
    os.kill(os.getpid(), signal.SIGINT)


def run(arguments: list[str], log: Path, lock: Path, *, once: bool = False) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and, of a failure, the error's class and message.

    Workers of killed drivers end a little later: of those that have the same job one runs it, then the next. With
    ``once`` the next does nothing where the first has ended it.
    """
    printed = StringIO()
    log.parent.mkdir(parents=True, exist_ok=True)
    with _alone_with(log):
        if once and finished(log.parent, arguments):
            return 0, "", ""
        _wait_for(lock)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as said:
            with redirect_stdout(printed), redirect_stderr(said):
                code = _command(arguments)
            return code, *_failure(printed.getvalue(), code)


@contextmanager
def _alone_with(log: Path) -> Generator[None]:
    """Be the one worker that has a job; where another keeps it for long, the command says that its files are locked."""
    mine = FileLock(log.with_suffix(".lock"))
    with suppress(Timeout, OSError):
        mine.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        mine.release()


def _command(arguments: list[str]) -> int:
    sys.argv = ["circuits", *arguments]
    try:
        typer.main.get_command(app)(args=arguments, prog_name="circuits")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        return STOPPED
    return 0


def _failure(printed: str, code: int) -> tuple[str, str]:
    """Return the error's class and message from what a command printed with ``--json``."""
    if code == 0:
        return "", ""
    try:
        error = parse_json(printed, "the answer")["error"]
    except (CircuitsError, TypeError, KeyError):
        return "Exit", f"it ended with exit code {code}."
    return error["kind"], error["message"]


def _wait_for(lock: Path) -> None:
    """Wait until nothing else holds a file that the command locks; if it never lets go, the command says so."""
    with suppress(Timeout, OSError), FileLock(lock, timeout=PATIENCE):
        pass


if __name__ == "__main__":
    main()
