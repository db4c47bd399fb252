"""Tables of unknown origin (CSV or Parquet), and columns of a kind; what is not as it should be is named by its line.

Nothing is guessed: a text is no truth value, an empty cell is no number.
"""

import csv
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from circuits.errors import FormatError, border
from circuits.files.documents import MOST_BYTES, read_text
from circuits.scores import Flags, Floats

if TYPE_CHECKING:
    import pandas as pd

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_TRUTH = {"True": True, "False": False}


def read_table(path: Path, *, most: int) -> "tuple[pd.DataFrame, dict[str, str]]":
    """Return the rows of a ``.csv`` (all cells text) or ``.parquet`` file, and the metadata of the latter.

    Raises :class:`FormatError` for what cannot be read, has a column twice, or has more than ``most`` rows.
    """
    table, metadata = _csv(path) if path.suffix == ".csv" else _parquet(path, most)
    if len(table) > most:
        raise FormatError(f"{path} has {len(table):,} rows; this model has only {most:,} edges.")
    names = [str(name) for name in table.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FormatError(f"{path} has the column {twice!r} twice; keep one of them.")
    return table, metadata


def _csv(path: Path) -> "tuple[pd.DataFrame, dict[str, str]]":
    import pandas as pd

    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        header = next(reader, list[str]())
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise FormatError(
                    f"{path}, line {reader.line_num}: expected {len(header)} columns as in the header, got {len(row)}."
                )
            rows.append(row)
    except csv.Error as error:
        raise FormatError(f"cannot read {path}, line {reader.line_num}: {error}; check the double quotes.") from error
    if not header:
        raise FormatError(f"cannot read {path}: it is empty; expected a header with edge, score, measured.")
    return pd.DataFrame(rows, columns=cast(Any, header), dtype=str), {}


def _parquet(path: Path, most: int) -> "tuple[pd.DataFrame, dict[str, str]]":
    from pyarrow import parquet

    with border(FormatError, lambda problem: f"cannot read {path}: {problem}."):
        file = cast(Any, parquet).ParquetFile(path)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if file.metadata.num_rows > most or size > MOST_BYTES:
            raise FormatError(
                f"{path} has {file.metadata.num_rows:,} rows of {size / 1e6:,.0f} MB in all; this model has only "
                f"{most:,} edges."
            )
        arrow = file.read()
        arrow.validate(full=True)  # texts are decoded only when they are looked at, which is too late
        raw: dict[bytes, bytes] = arrow.schema.metadata or {}
        return arrow.to_pandas(), {key.decode(): value.decode() for key, value in raw.items()}


def numbers(path: Path, table: "pd.DataFrame", column: str, *, least: float = -math.inf) -> Floats:
    """Return a column of finite numbers, NaN where a cell is empty; raises :class:`FormatError` naming the line."""
    cells: list[object] = table[column].tolist()
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell not in ("", None) and cell == cell:  # noqa: PLR0124 - what is not equal to itself is NaN, no number
            found[row] = _number(cell)
            if not least <= found[row] < math.inf:
                expected = "expected numbers only" if least < 0 else f"expected numbers from {least:g} up"
                raise _unfit(path, row, column, cells, expected)
    return found


def _number(cell: object) -> float:
    """Return a cell as a number; NaN where it is none. What only Python takes for one (``1_000``, ``٣``) is none."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return math.nan
    if isinstance(cell, str) and not _NUMBER.fullmatch(cell):
        return math.nan
    value = float(cell)
    return value if math.isfinite(value) else math.nan


def flags(path: Path, table: "pd.DataFrame", column: str) -> Flags:
    """Return a column of truth values (in CSV: True or False); raises :class:`FormatError` naming the line."""
    cells: list[object] = table[column].tolist()
    found = [_TRUTH.get(cell) if isinstance(cell, str) else cell for cell in cells]
    wrong = next((row for row, value in enumerate(found) if not isinstance(value, bool)), None)
    if wrong is not None:
        raise _unfit(path, wrong, column, cells, "expected True or False")
    return np.array(found, dtype=np.bool_)


def one_count(path: Path, table: "pd.DataFrame", column: str) -> int:
    """Return the whole number from 0 up that every row of a column has (0 without rows)."""
    found = numbers(path, table, column, least=0)
    wrong = np.flatnonzero((found != found[:1]) | (found != np.round(found)))  # NaN is not equal to itself
    if len(wrong):
        raise _unfit(path, int(wrong[0]), column, table[column].tolist(), "expected the same whole number in every row")
    return int(found[0]) if len(found) else 0


def _unfit(path: Path, row: int, column: str, cells: list[object], expected: str) -> FormatError:
    return FormatError(f"{path}, line {row + 2}, column {column}: {cells[row]!r}; {expected}.")
