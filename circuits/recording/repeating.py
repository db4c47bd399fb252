"""Doing a recorded run again, in a process of its own, and saying what differs."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from circuits.errors import CircuitsError, OutputError, UsageError
from circuits.files.documents import read_json
from circuits.recording.run_record import NAME, RunRecord, sha256_of

IGNORED = ("wall_seconds", "command", "file", "files", "folder", "record", "date", "versions")
"""Fields that say when, where or for how long, not what came out."""
SAME = 1e-6
"""Figures are the same up to this share of the larger one: files keep six digits."""
_UNSAID = ("out", "resume")
Runner = Callable[[Sequence[str], Path], int]
"""Runs ``circuits`` with arguments in a folder; returns its exit code."""


@dataclass(frozen=True)
class Difference:
    """What was ``before`` and what is ``now``, of the record or the figures; ``place`` says of what."""

    place: str
    before: Any
    now: Any

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.place}: {_displayed(self.before)} before, {_displayed(self.now)} now"


@dataclass(frozen=True)
class Repetition:
    """A run and the same run again.

    ``conditions`` are the differences of what it ran on and with, ``figures`` those of what came out, of ``compared``
    figures; ``files`` are the outputs with other content, of those that hold figures.
    """

    before: RunRecord
    now: RunRecord
    path: Path
    conditions: tuple[Difference, ...]
    figures: tuple[Difference, ...]
    files: tuple[str, ...]
    compared: int

    @property
    def same(self) -> bool:
        """Whether every figure is the same."""
        return not self.figures

    def describe(self) -> str:
        """Return in a few sentences what differs."""
        came = (
            f"All {self.compared:,} figures are the same."
            if self.same
            else f"{len(self.figures):,} of {self.compared:,} figures differ, the largest by {_largest(self.figures)}."
        )
        files = f" Other content in: {', '.join(self.files)}." if self.files else ""
        ran = f" It ran on or with something else: {len(self.conditions)} differences." if self.conditions else ""
        return f"{came}{files}{ran} It took {self.now.seconds:.0f} s; before {self.before.seconds:.0f} s."

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "same": self.same,
            "compared": self.compared,
            "figures": [asdict(each) for each in self.figures],
            "conditions": [asdict(each) for each in self.conditions],
            "files": list(self.files),
            "seconds": [self.before.seconds, self.now.seconds],
            "record": str(self.path),
            "summary": self.describe(),
        }


def run_again(record: str | Path, out: str | Path | None = None, *, runner: Runner | None = None) -> Repetition:
    """Repeat a recorded command in a process of its own, and compare what comes out.

    Args:
        record: A ``run.json``, or the folder that holds it.
        out: Where the results go; default: the record's folder with ``-again`` behind its name.
        runner: What runs the command, in place of a process.

    Times are not compared. Raises :class:`UsageError` for a run that was no command, or whose results would be
    overwritten, :class:`OutputError` where the command fails. Cost: that of the command.
    """
    path = Path(record)
    path = (path / NAME if path.is_dir() else path).absolute()
    before = RunRecord.load(path)
    if not before.arguments:
        raise UsageError(f"{record} is of a run from Python ({before.command!r}), not of a command; repeat it there.")
    folder = Path(out).absolute() if out else path.parent.with_name(f"{path.parent.name}-again")
    if folder == path.parent:
        raise UsageError(f"the results in {folder} would be overwritten; give another folder with --out.")
    there = Path(before.directory)
    place = folder / NAME
    code = (runner or in_a_process)(arguments_again(before, folder), there if there.is_dir() else Path.cwd())
    if code:
        raise OutputError(f"'circuits {' '.join(before.arguments)}' ended with exit code {code}; its message is above.")
    return compared(before, RunRecord.load(place), path, place)


def arguments_again(record: RunRecord, folder: Path) -> list[str]:
    """Return a command's arguments with its results, and the record, going to another folder."""
    given = [text for text in record.arguments if text not in ("--resume", "--json")]
    end = given.index("--") if "--" in given else len(given)
    out = _out(record, folder)
    return [*given[:end], *(["--out", str(out)] if out else []), "--record", str(folder / NAME), *given[end:]]


def _out(record: RunRecord, folder: Path) -> Path | None:
    """Return where the results go; of a command that writes one file under a name of its choice, that name."""
    if not record.outputs:
        return None
    given = record.settings.get("out")
    name = Path(record.outputs[0].path).name
    return folder / name if given is not None and Path(str(given)).name == name else folder


def in_a_process(arguments: Sequence[str], folder: Path) -> int:
    """Run ``circuits`` as a process that talks on stderr; return its exit code."""
    command = [sys.executable, "-m", "circuits", *arguments]
    return subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode


def compared(before: RunRecord, now: RunRecord, path: Path, place: Path) -> Repetition:
    """Return what differs between two records, whose files are ``path`` and ``place``."""
    pairs = [(name, of_one, of_other) for name, of_one, of_other in _figures(before.results, now.results)]
    differing = tuple(Difference(*each) for each in pairs if not _same(*each[1:]))
    conditions = tuple(Difference(*each) for each in _conditions(before, now) if each[1] != each[2])
    return Repetition(before, now, place, conditions, differing, _other_content(now, path, place), len(pairs))


def _conditions(before: RunRecord, now: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """Walk over what a run depends on."""
    for name in before.settings.keys() | now.settings.keys():
        if name not in _UNSAID:
            yield f"setting {name}", before.settings.get(name), now.settings.get(name)
    for kind, name in (("model", "models"), ("prompts", "prompts")):
        for i, (one, other) in enumerate(zip(getattr(before, name), getattr(now, name), strict=False)):
            for key, value in asdict(one).items():
                yield f"{kind} {i + 1} {key}", value, getattr(other, key)
    digests = {file.path: file.sha256 for file in now.inputs}
    for file in before.inputs:
        yield f"contents of {file.path}", file.sha256, digests.get(file.path, file.sha256)
    if before.environment and now.environment:
        one, other = asdict(before.environment), asdict(now.environment)
        packages = one.pop("packages"), other.pop("packages")
        yield from ((name, one[name], other[name]) for name in one)
        yield from ((name, version, packages[1].get(name)) for name, version in packages[0].items())


def _figures(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Walk over two documents at once: every value of either with its place; None where one has nothing there."""
    if isinstance(one, dict) and isinstance(other, dict):
        first, second = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        for name in dict.fromkeys([*first, *second]):
            if name not in IGNORED:
                yield from _figures(first.get(name), second.get(name), f"{place}.{name}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list):
        first, second = cast("list[Any]", one), cast("list[Any]", other)
        if len(first) != len(second):
            yield f"{place} (length)", len(first), len(second)
        for i, (left, right) in enumerate(zip(first, second, strict=False)):
            yield from _figures(left, right, f"{place}[{i}]")
    else:
        yield place, one, other


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=SAME, abs_tol=1e-12)
    return one == other


def _other_content(now: RunRecord, path: Path, place: Path) -> tuple[str, ...]:
    """Return the outputs with figures (JSON and tables) whose content differs from the earlier run's."""
    before = RunRecord.load(path)
    names = {Path(file.path).name: path.parent / file.path for file in before.outputs}
    found: list[str] = []
    for file in now.outputs:
        name = Path(file.path).name
        earlier, later = names.get(name), place.parent / file.path
        if earlier is None or not earlier.is_file() or sha256_of(earlier) == file.sha256:
            continue
        if later.suffix == ".json" and _same_documents(earlier, later):
            continue
        if later.suffix in (".json", ".csv", ".parquet", ".safetensors"):
            found.append(name)
    return tuple(found)


def _same_documents(one: Path, other: Path) -> bool:
    try:
        pairs = list(_figures(read_json(one), read_json(other)))
    except CircuitsError:
        return False
    return all(_same(before, now) for _, before, now in pairs)


def _largest(figures: Sequence[Difference]) -> str:
    """Return the largest relative difference of numbers in words."""
    shares = [
        abs(each.before - each.now) / max(abs(each.before), abs(each.now))
        for each in figures
        if isinstance(each.before, int | float) and isinstance(each.now, int | float) and each.before != each.now
    ]
    return f"{max(shares):.2g} of its size" if shares else "what is no number"


def _displayed(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
