"""What the benchmarks share: costs as multiples of a plain forward pass, peak memory, models, tables and files."""

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """What something took: seconds on the clock, and seconds of processor time over all threads."""

    wall: float
    processor: float

    def __truediv__(self, other: "Cost") -> "Cost":
        return Cost(self.wall / other.wall, self.processor / other.processor)

    def per(self, items: float) -> "Cost":
        """Return the cost of one of several items."""
        return Cost(self.wall / items, self.processor / items)


def stopwatch(run: Callable[[], object]) -> Cost:
    """Run something once. On an accelerator, work that was only queued is waited for."""
    _wait()
    wall, processor = time.perf_counter(), time.process_time()
    run()
    _wait()
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(c.wall for c in costs), statistics.median(c.processor for c in costs))


@dataclass
class Meter:
    """Measures costs as multiples of a plain forward pass, which is repeated before and after everything measured."""

    forward: Callable[[], object]
    repeats: int = 5
    forwards: list[Cost] = field(default_factory=list[Cost])

    def __post_init__(self) -> None:
        self.forward()

    def once(self, run: Callable[[], object]) -> Cost:
        """Return the seconds of one run, with plain forward passes around it."""
        self._plain()
        cost = stopwatch(run)
        self._plain()
        return cost

    def multiple(self, run: Callable[[], object], items: float = 1) -> Cost:
        """Return the median of repeated runs after one to warm up, per item, as a multiple of the passes among them."""
        run()
        before = len(self.forwards)
        taken = median([self.once(run) for _ in range(self.repeats)])
        return (taken / median(self.forwards[before:])).per(items)

    def plain(self) -> Cost:
        """Return the seconds of a plain forward pass: the median of all so far."""
        return median(self.forwards)

    def _plain(self) -> None:
        self.forwards.append(stopwatch(self.forward))


def plain_forward(module: nn.Module, ids: Tensor) -> Callable[[], object]:
    """Return the model's own forward pass of prompts: no gradients, no cache, logits at all positions."""

    @torch.no_grad()
    def forward() -> None:
        module(ids, use_cache=False)

    return forward


def peak_megabytes() -> float:
    """Return the most memory this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone; getrusage counts what started it too
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """Return where figures were measured."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(named)} x {named[0]}" if named else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Figures:
    """A table of results, for the screen and for a file."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def show(self) -> None:
        """Print the table."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 150, highlight=False).print(table)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = "|".join("---" if place == 0 else "---:" for place in range(len(self.columns)))
        head, *lines = [f"| {' | '.join(row)} |" for row in (self.columns, *self.rows)]
        return "\n".join([f"**{self.title}**", "", head, f"|{rule}|", *lines])


def report(name: str, folder: Path, results: dict[str, Any], *figures: Figures) -> None:
    """Print tables, and write them with all results as ``NAME.json`` and ``NAME.md``."""
    for table in figures:
        table.show()
    folder.mkdir(parents=True, exist_ok=True)
    described = {"benchmark": name, "machine": machine()} | results
    (folder / f"{name}.json").write_text(json.dumps(described, indent=1) + "\n")
    where = ", ".join(f"{key} {value}" for key, value in machine().items() if value is not None)
    parts = [*(table.markdown() for table in figures), f"Measured on: {where}."]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n")
    print(f"written: {folder / name}.json and .md")


def tell(text: str) -> None:
    """Print on stderr what is being measured."""
    Console(stderr=True, highlight=False).print(f"{text} ...", style="dim")


def number(value: float) -> str:
    """Write a multiple with about three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.3f}"
