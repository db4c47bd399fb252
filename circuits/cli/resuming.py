"""Keeping what a command has measured, and saying so when it is stopped."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.output import Output
from circuits.errors import OutputError
from circuits.files.journal import Journal

STOPPED = 130
"""The exit code of a command that was stopped: 128 + SIGINT, as shells do."""
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped.", rich_help_panel="Output")
]


@contextmanager
def kept_in(path: Path, output: Output, *, resume: bool) -> Generator[Journal]:
    """Open a journal; a command that is stopped meanwhile says what is kept, and ends."""
    with Journal(path, resume=resume) as journal:
        try:
            yield journal
        except KeyboardInterrupt as stop:
            if journal.empty:
                log = path.with_name("run.log").is_file()
                output.warn(f"stopped before anything was finished{f'; the log is in {path.parent}' if log else ''}.")
            else:
                output.warn(f"stopped; what is finished is kept in {_place(path)}, continue with --resume.")
            raise typer.Exit(STOPPED) from stop


@contextmanager
def kept_until_done(file: Path, output: Output, *, resume: bool) -> Generator[Journal]:
    """Keep what a command measures in a journal beside the file that it will write, until it is written."""
    path = file.with_name(f"{file.name}.journal")
    there = path.is_file()
    with kept_in(path, output, resume=resume) as journal:
        if resume and not journal.empty:
            output.say(f"continuing from {path}.")
        elif resume:
            output.say(f"nothing to continue: {path} {journal.problem or 'does not exist'}. Starting afresh.")
        elif there:
            output.say(f"{path} is of an interrupted run, which is started afresh (--resume would have continued it).")
        yield journal
        journal.remove()


@contextmanager
def kept_beside(
    circuit: Path, command: str, file: Path | None, output: Output, *, resume: bool
) -> Generator[Journal | None]:
    """Do as :func:`kept_until_done`, for a command on a circuit that may write no file.

    The journal then lies beside the circuit; and where none can be kept there, the command works without.
    """
    with ExitStack() as stack:
        journal = None
        try:
            beside = file or circuit.with_name(f"{circuit.stem}.{command}")
            journal = stack.enter_context(kept_until_done(beside, output, resume=resume))
        except OutputError as problem:
            if resume or file:
                raise
            output.warn(f"what is measured is not kept, should this be stopped: {problem}")
        yield journal


def _place(path: Path) -> Path:
    return path.parent if path.name == "journal" else path
