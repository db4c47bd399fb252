"""One line that shows how far the whole of a work is, in a terminal and in a notebook."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from circuits.progress import Plan, WholeProgress, plan_of

EVERY = 0.5
"""Seconds between two updates of the line while a stage goes on."""
WIDTH = 24
"""Characters of the bar in a notebook."""


@contextmanager
def show_progress(plan: Plan | str = (), *, console: Console | None = None) -> Generator[WholeProgress]:
    """Show one line with the stage, a bar and the time left while the block runs; yield what to pass as ``progress``.

    In a terminal it goes to stderr and is gone at the end; in a notebook it is a line below the cell; elsewhere nothing
    is shown. ``plan`` names the work (``discover``, ``score``, ``evaluate``, ``patch`` …) or is a plan of your own, see
    :mod:`circuits.progress`; without one the line tells the stages alone. ``console`` is a terminal of your own.

    >>> with show_progress("discover") as progress:                    # doctest: +SKIP
    ...     found = discover(model, behaviour, progress=progress)
    """
    whole = _Shown(plan_of(plan) if isinstance(plan, str) else plan)
    console = console or Console(stderr=True, highlight=False)
    if console.is_terminal:
        with _terminal_line(whole, console) as progress:
            progress.add_task("", total=None)
            whole.show = progress.refresh
            yield whole
    elif (display := _notebook_display()) is not None:
        line, begun = display(whole.line()), time.monotonic()
        whole.show = lambda: line.update(whole.line())
        yield whole
        line.update(_Plain(f"done, {time.monotonic() - begun:.0f} s"))
    else:
        yield whole


class _Plain:
    """A text that a notebook shows as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _Shown(WholeProgress):
    """A progress that shows its line when a stage begins, and while it goes on from time to time."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.show: Callable[[], object] = lambda: None
        self._shown, self._at = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note where the work is, and show it."""
        super().__call__(stage, done, total)
        now = time.monotonic()
        if stage != self._shown or now - self._at >= EVERY:
            self._shown, self._at = stage, now
            self.show()

    def line(self) -> _Plain:
        """Return the line in plain characters."""
        filled = round(self.share * WIDTH)
        bar = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {self.share:.0%}  " if self.stages else ""
        left = f", {told}" if (told := self.left()) else ""
        return _Plain(f"{bar}{self.describe()}{left}")


def _terminal_line(whole: WholeProgress, console: Console) -> Progress:
    columns: list[ProgressColumn] = [SpinnerColumn(), _Told(whole)]
    if whole.stages:
        columns += [_Bar(whole), _Share(whole), _Left(whole)]
    else:
        columns += [TimeElapsedColumn()]
    return Progress(*columns, console=console, transient=True, expand=True)


class _Column(ProgressColumn):
    max_refresh = None

    def __init__(self, whole: WholeProgress, column: Column | None = None) -> None:
        super().__init__(column)
        self._whole = whole


class _Told(_Column):
    """The stage, cut where the terminal is too narrow for it."""

    def __init__(self, whole: WholeProgress) -> None:
        super().__init__(whole, Column(no_wrap=True, overflow="ellipsis", ratio=4))

    def render(self, task: Task) -> Text:
        """Render it."""
        del task
        return Text(self._whole.describe(), no_wrap=True, overflow="ellipsis")


class _Bar(_Column):
    """The share of the whole."""

    def __init__(self, whole: WholeProgress) -> None:
        super().__init__(whole, Column(ratio=1, min_width=6))

    def render(self, task: Task) -> ProgressBar:
        """Render it."""
        del task
        return ProgressBar(total=1, completed=self._whole.share)


class _Share(_Column):
    """The share as a number."""

    def render(self, task: Task) -> Text:
        """Render it."""
        del task
        return Text(f"{int(self._whole.share * 100):2}%")


class _Left(_Column):
    """The time left."""

    def __init__(self, whole: WholeProgress) -> None:
        super().__init__(whole, Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """Render it."""
        del task
        return Text(self._whole.left(), style="cyan")


def _notebook_display() -> Any:
    """Return what shows something in a notebook that can be changed afterwards; None outside of one."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # pyright: ignore

    return lambda shown: display(shown, display_id=True)  # pyright: ignore
