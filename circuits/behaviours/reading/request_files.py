"""Requests as the field's collections hold them: one by one, harmful or harmless, without twins and answers.

Recognised by their columns, whatever the case: HarmBench, AdvBench, JailbreakBench, StrongREJECT, XSTest, OR-Bench, the
splits of refusal_direction, and files with a column ``prompt``. Which rows are harmful is taken from the file where it
says so; JailbreakBench, OR-Bench and refusal_direction have a file for each kind, with the same columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.behaviours.reading.columns import Record
from circuits.behaviours.reading.rows import Row, read_rows
from circuits.behaviours.reading.unusable import Unusable
from circuits.errors import FormatError

SAME = "the same request as"


@dataclass(frozen=True)
class Request:
    """One request: where it is, what is asked, its category, and whether it is harmful (None: unknown)."""

    source: str
    text: str
    category: str = ""
    harmful: bool | None = None


@dataclass(frozen=True)
class Requests:
    """What a file holds: the collection it is of, how many rows it has, its requests, and rows that are none."""

    name: str
    collection: str
    rows: int
    requests: tuple[Request, ...]
    dropped: tuple[Unusable, ...]


@dataclass(frozen=True)
class _Layout:
    """How a collection is told by its ``columns``, and which of them hold the request and its category."""

    collection: str
    columns: tuple[str, ...]
    text: str
    category: str = "category"
    harmful: Callable[[Record], bool | None] = lambda _: None


def _harmful(_: Record) -> bool:
    return True


def _labelled_unsafe(record: Record) -> bool:
    """Return whether a row of XSTest is unsafe: by its label, or in files without one by its type."""
    label = _text(record, "label")
    return label == "unsafe" if label else _text(record, "type").startswith("contrast")


LAYOUTS = (
    _Layout("HarmBench", ("behavior", "functionalcategory"), "behavior", "semanticcategory", _harmful),
    _Layout("JailbreakBench", ("goal", "target", "behavior", "category"), "goal"),
    _Layout("AdvBench", ("goal", "target"), "goal", harmful=_harmful),
    _Layout("StrongREJECT", ("forbidden_prompt",), "forbidden_prompt", harmful=_harmful),
    _Layout("XSTest", ("prompt", "type", "focus"), "prompt", "type", _labelled_unsafe),
    _Layout("OR-Bench", ("prompt", "category"), "prompt"),
    _Layout("refusal_direction", ("instruction",), "instruction"),
    _Layout("requests", ("prompt",), "prompt"),
)
"""In the order in which they are tried."""


def layout_of(record: Record) -> _Layout | None:
    """Return the layout that a row has the columns of; None for other rows."""
    names = {name.lower() for name in record}
    return next((layout for layout in LAYOUTS if names.issuperset(layout.columns)), None)


def read_requests(path: str | Path) -> Requests:
    """Read a file of requests; rows that hold none, need a context or were there before are dropped, with the reason.

    Raises as :func:`circuits.behaviours.reading.rows.read_rows`, and :class:`FormatError` for columns of no collection.
    """
    file = Path(path)
    rows = read_rows(file).rows
    layout = next((found for row in rows if (found := layout_of(row.record))), None)
    if layout is None:
        known = "; ".join(f"{each.collection} {', '.join(each.columns)}" for each in LAYOUTS)
        raise FormatError(
            f"{file.name} has the columns {', '.join(rows[0].record) or 'none'}, which are those of no collection of "
            f"requests; expected one of: {known}. Rename the column that holds the requests to prompt."
        )
    requests, dropped, seen = list[Request](), list[Unusable](), dict[str, str]()
    for row, text in ((row, _text(row.record, layout.text)) for row in rows):
        plain = " ".join(text.lower().split())
        problem = _problem(row, layout, text) or (f"{row.source}: {SAME} {seen[plain]}" if plain in seen else "")
        if problem:
            dropped.append(Unusable(row.source, problem))
            continue
        seen[plain] = row.source
        harmful = layout.harmful({key.lower(): value for key, value in row.record.items()})
        requests.append(Request(row.source, text, _text(row.record, layout.category), harmful))
    return Requests(file.name, layout.collection, len(rows), tuple(requests), tuple(dropped))


def _problem(row: Row, layout: _Layout, text: str) -> str:
    if row.problem:
        return row.problem
    if not text:
        return f"{row.source}: the column {layout.text} is empty"
    if _text(row.record, "contextstring"):
        return f"{row.source}: the request is about a context given beside it (ContextString)"
    return ""


def _text(record: Record, column: str) -> str:
    return next(_texts(record, column), "")


def _texts(record: Record, column: str) -> Iterator[str]:
    value: Any
    for name, value in record.items():
        if name.lower() == column and isinstance(value, str):
            yield value.strip()
