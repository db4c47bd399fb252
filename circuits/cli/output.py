"""What the commands write: results on stdout, everything else on stderr."""

import re
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from circuits.errors import OutputError
from circuits.files.documents import json_text
from circuits.patching.protocol import StageProgress
from circuits.progress import Plan
from circuits.progress_line import show_progress
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

    @property
    def shows_progress(self) -> bool:
        """Whether the line of :meth:`progress` is seen."""
        return not self.quiet and self._messages.is_terminal

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
                _print(self._results, _Printable(Text(result) if plain else result), words=plain)

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
    def progress(self, *listeners: StageProgress, plan: Plan = ()) -> Generator[StageProgress]:
        """Show one line with the time left while work goes on; on a terminal only. ``plan`` is what it consists of."""
        listeners = (*listeners, self.recorder)
        if not self.shows_progress:
            yield _told(listeners)
            return
        with show_progress(plan, console=self._messages) as whole:
            yield _told((*listeners, whole))


def _told(listeners: tuple[StageProgress, ...]) -> StageProgress:
    """Return what tells all of them, with nothing in a stage's name that acts on the terminal."""

    def told(stage: str, done: int, total: int) -> None:
        for listener in listeners:
            listener(printable(stage), done, total)

    return told


def _message(console: Console, label: str, style: str, text: str) -> None:
    _print(console, Text(label, style=style) + Text(printable(text)), words=True)


def _print(console: Console, shown: RenderableType, *, words: bool) -> None:
    """Write something; ``words`` are broken between words on a terminal, and left to other readers as one line."""
    console.print(shown, soft_wrap=words and not console.is_terminal)
