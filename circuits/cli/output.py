"""What the commands write: results on stdout, everything else on stderr."""

import math
import re
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from circuits.errors import OutputError
from circuits.files.documents import json_text
from circuits.patching.protocol import StageProgress
from circuits.recording.recorder import RunRecorder

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, marks that turn the direction of writing, and halves of characters."""


def printable(text: str) -> str:
    """Return a text that a terminal shows as it is: what would act on the terminal is written as its escape."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class _Printable:
    """What is shown, with no text in it that acts on the terminal; colours and widths are the console's own."""

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it, and clean its texts."""
        for segment in console.render(self._shown, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def error(text: str) -> None:
    """Write an error on stderr."""
    _message(Console(stderr=True, highlight=False), "error: ", "bold red", text)


class Output:
    """Where a command writes.

    ``as_json``: one JSON object on stdout instead of tables; ``quiet``: no messages and no bars. ``recorder`` follows
    the run; its record goes to the file ``record``, or beside the results.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        recorder: RunRecorder | None = None,
        record: Path | None = None,
    ) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.recorder, self._record = recorder or RunRecorder(), record
        self._results = Console(highlight=False)
        self._messages = Console(stderr=True, highlight=False)

    @property
    def width(self) -> int:
        """How many columns the terminal has."""
        return self._results.width

    @property
    def is_terminal(self) -> bool:
        """Whether results are read in a terminal, rather than by another program."""
        return self._results.is_terminal

    def say(self, text: str) -> None:
        """Write a message, unless quiet."""
        if not self.quiet:
            _message(self._messages, "", "", text)

    def warn(self, text: str) -> None:
        """Write a warning, and note it in the record."""
        self.recorder.warned(text)
        _message(self._messages, "warning: ", "yellow", text)

    def show(self, *results: RenderableType) -> None:
        """Write results for people."""
        if not self.as_json:
            for result in results:
                plain = isinstance(result, str)
                self._results.print(_Printable(Text(result) if plain else result), soft_wrap=plain)

    def leave(self, document: dict[str, Any], folder: Path, files: Iterable[Path] = ()) -> None:
        """Leave the record of this run beside its results, and write the result for programs.

        A record that cannot be written is warned of: the results are there.
        """
        try:
            _, path = self.recorder.save(self._record or folder, files, document)
        except OutputError as problem:
            self.warn(f"there is no record of this run: {problem}")
            self.finish(document)
        else:
            self.finish(document | {"record": str(path)})

    def finish(self, document: dict[str, Any]) -> None:
        """Write the result for programs, where that was asked for."""
        if self.as_json:
            sys.stdout.write(json_text(document))

    @contextmanager
    def progress(self, *listeners: StageProgress) -> Generator[StageProgress]:
        """Show a bar with the time left while work goes on; on a terminal only."""
        listeners = (*listeners, self.recorder)
        if self.quiet or not self._messages.is_terminal:
            yield _Bars(None, listeners)
            return
        columns: tuple[ProgressColumn, ...] = (
            SpinnerColumn(),
            TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=3)
            ),
            BarColumn(bar_width=None, table_column=Column(ratio=2)),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            _TimeLeft(),
        )
        with Progress(*columns, console=self._messages, transient=True, expand=True) as progress:
            yield _Bars(progress, listeners)


class _TimeLeft(ProgressColumn):
    """The time left of a stage, in words; nothing where it cannot be told."""

    def render(self, task: Task) -> Text:
        """Render it."""
        left = task.time_remaining
        return Text("" if left is None else f"{_duration(left)} left", style="cyan")


class _Bars:
    """Follows stages: one bar at a time. Stages that differ only after a colon are one stage."""

    def __init__(self, progress: Progress | None, listeners: tuple[StageProgress, ...]) -> None:
        self._progress, self._listeners = progress, listeners
        self._head: str | None = None
        self._task: TaskID | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        stage = printable(stage)
        for listener in self._listeners:
            listener(stage, done, total)
        if self._progress is None:
            return
        head = stage.partition(":")[0]
        if self._task is None or head != self._head:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._head, self._task = head, self._progress.add_task(stage, total=None, count="")
        count = f"{done / total:.0%}" if total else ""
        self._progress.update(self._task, description=stage, completed=done, total=total or None, count=count)


def _duration(seconds: float) -> str:
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _message(console: Console, label: str, style: str, text: str) -> None:
    console.print(Text(label, style=style) + Text(printable(text)), soft_wrap=True)
