"""The legend below a diagram: one HTML-like table, drawn by Graphviz as the label of the whole graph."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from circuits.diagrams.markup import html_text, one_line
from circuits.diagrams.palette import INK

WRAP = 92
"""Longest line of the legend in characters; longer text is wrapped so that it never sets the figure's width."""


@dataclass(frozen=True)
class Key:
    """One sample and what it means; ``shape`` is ``line``, ``dashes``, ``dots``, ``box``, ``round``."""

    shape: str
    colour: str
    text: str
    border: str = INK


def legend(
    title: str,
    lines: Sequence[str],
    keys: Sequence[Sequence[Key]],
    notes: Sequence[str],
    *,
    letters: float = 1.0,
) -> str:
    """Return the table: a bold title, lines of facts, rows of keys, notes in small type.

    ``letters`` makes them so much larger, and lines shorter.
    """
    wrap = round(WRAP / letters)
    rows = [_text_row(f"<B>{part}</B>", 11 * letters) for part in _wrapped(title, wrap - 20)]
    rows += [_text_row(part, 9 * letters) for line in lines for part in _wrapped(line, wrap)]
    rows.append(_key_grid(keys, letters))
    rows += [_text_row(part, 8 * letters) for line in notes for part in _wrapped(line, wrap + 10)]
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2" CELLPADDING="1">{"".join(rows)}</TABLE>>'


def _wrapped(text: str, width: int) -> list[str]:
    return [html_text(part) for part in textwrap.wrap(one_line(text), width) or [""]]


def _text_row(markup: str, size: float) -> str:
    return f'<TR><TD ALIGN="LEFT"><FONT POINT-SIZE="{size:g}">{markup}</FONT></TD></TR>'


def _key_grid(rows: Sequence[Sequence[Key]], letters: float) -> str:
    """Lay the keys out in columns: Graphviz stretches inner tables, a grid stays tidy when it does."""
    if letters > 1:
        rows = [row[i : i + 2] for row in rows for i in range(0, len(row), 2)]
    cells = "".join(
        "<TR>" + "".join(f"<TD>{_sample(key)}</TD>{_caption(key, letters)}" for key in row) + "</TR>" for row in rows
    )
    table = f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{cells}</TABLE>'
    return f'<TR><TD ALIGN="LEFT">{table}</TD></TR>'


def _caption(key: Key, letters: float) -> str:
    return f'<TD ALIGN="LEFT"><FONT POINT-SIZE="{9 * letters:g}">{html_text(key.text)}&#160;&#160;</FONT></TD>'


def _sample(key: Key) -> str:
    match key.shape:
        case "line":
            cells = _block(22, 3, key.colour)
        case "dashes":
            gap = _block(3, 3, None)
            cells = gap.join([_block(6, 3, key.colour)] * 3)
        case "dots":
            gap = _block(3, 3, None)
            cells = gap.join([_block(3, 3, key.colour)] * 4)
        case "box" | "round":
            style = ' STYLE="ROUNDED"' if key.shape == "round" else ""
            cells = (
                f'<TD BORDER="1"{style} COLOR="{key.border}" BGCOLOR="{key.colour}" WIDTH="20" HEIGHT="11" '
                'FIXEDSIZE="TRUE"></TD>'
            )
        case unknown:
            raise ValueError(f"no sample is drawn as '{unknown}'.")
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{cells}</TR></TABLE>'


def _block(width: int, height: int, colour: str | None) -> str:
    background = f' BGCOLOR="{colour}"' if colour else ""
    return f'<TD WIDTH="{width}" HEIGHT="{height}" FIXEDSIZE="TRUE"{background}></TD>'
