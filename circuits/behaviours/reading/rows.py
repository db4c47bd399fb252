"""The rows of a prompt file, whatever its form: JSON Lines, JSON, tables of text, Parquet; packed by gzip or not.

The form is told by what is in the file, not by its name alone: a ``.json`` may hold one object per line, a table may be
parted by commas, semicolons or tabs. A row that cannot be read is a row with a problem; the others are still read.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from circuits.behaviours.reading.columns import CLEAN, Record, cell, holds_answers, is_known, known_column
from circuits.errors import FormatError, MissingFileError, UnknownNameError, border
from circuits.files.documents import MOST_BYTES, exists, parse_json, read_bytes, text_of, too_large

LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv", ".txt")
PARQUET = ".parquet"
SUFFIXES = (".jsonl", ".csv", ".json", ".tsv", ".txt", ".ndjson", PARQUET)
"""What prompt files may end in; each may be packed, with ``.gz`` after it."""
CONTAINERS = ("prompts", "pairs", "examples", "data", "rows", "records")
"""Fields of a JSON document that hold its pairs."""
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")


@dataclass(frozen=True)
class Row:
    """One row: where it is (``pairs.csv, line 3``), its fields by name, and why it cannot be read where it cannot."""

    source: str
    record: Record
    problem: str = ""


@dataclass(frozen=True)
class Rows:
    """All rows of a file, what was read otherwise than it is written, and the behaviour that the file says it is of."""

    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()
    behaviour: str = ""


def read_rows(path: Path) -> Rows:
    """Return the rows of a prompt file.

    Raises :class:`MissingFileError` for a file that is missing, :class:`UnknownNameError` for a suffix that is no
    format, and :class:`FormatError` for a file that as a whole cannot be read, or has no rows.
    """
    if not exists(path, file=True):
        if exists(path):
            raise FormatError(
                f"{path} is a folder, not a prompt file, and no data set that save_to_disk wrote; give the path "
                "of a file in it."
            )
        raise MissingFileError(f"{path} does not exist; give the path of a prompt file ({', '.join(SUFFIXES)}).")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        hint = "Save the sheet as CSV UTF-8." if suffix in SHEETS else "Rename or convert the file."
        raise UnknownNameError("prompt file format", suffix or path.name, SUFFIXES, hint=hint)
    data = _unpacked(read_bytes(path), path)
    if data.startswith(b"PAR1") or suffix == PARQUET:
        found = Rows(tuple(_parquet(data, path.name)))
    else:
        found = _text_rows(text_of(data, path.name), path.name, suffix)
    if not found.rows:
        raise FormatError(f"{path.name} has no prompt pairs; expected one pair per line, record or row.")
    return found


def _unpacked(data: bytes, path: Path) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.open(io.BytesIO(data)) as packed:
            found = packed.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"cannot unpack {path}: {error}. Write it again, or give the unpacked file.") from error
    if len(found) > MOST_BYTES:
        raise too_large(path, len(found))
    return found


def _parquet(data: bytes, name: str) -> Iterator[Row]:
    from pyarrow import parquet

    with border(FormatError, lambda problem: f"cannot read {name} as Parquet: {problem}."):
        file = cast(Any, parquet).ParquetFile(io.BytesIO(data))
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > MOST_BYTES:
            raise too_large(name, size)
        records: list[dict[str, Any]] = file.read().to_pylist()
    for number, record in enumerate(records, start=1):
        yield as_row(f"{name}, row {number}", {key: value for key, value in record.items() if value is not None})


def _text_rows(text: str, name: str, suffix: str) -> Rows:
    if "\0" in text:
        raise FormatError(f"{name} holds zero bytes, as UTF-16 without its mark does; save it as UTF-8.")
    first = next((line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    if suffix in TABLES and not first.startswith(("{", "[")):
        return _table(text, name, suffix) if first else Rows(())
    return _json(text, name, suffix)


# ---------------------------------------------------------------------------------------------------------------- JSON


def _json(text: str, name: str, suffix: str) -> Rows:
    numbered = list(enumerate(text.split("\n"), start=1))
    lines = [(number, line) for number, line in numbered if line.strip() and not line.startswith("#")]
    if not lines:
        return Rows(())
    remarks = _on_comments(name, sum(bool(line.strip()) for _, line in numbered) - len(lines))
    document = _document(lines, name, suffix)
    if document is None:
        return Rows(tuple(_parsed(line, f"{name}, line {number}") for number, line in lines), remarks)
    if isinstance(document, dict) and str(cast(Record, document).get("format", "")).startswith("circuits/prompts"):
        rows = tuple(_with_ids(row) for row in _records(document, name))
        return Rows(rows, remarks, str(cast(Record, document).get("behaviour", "")))
    return Rows(tuple(_records(document, name)), remarks)


def _with_ids(row: Row) -> Row:
    """Return a row of a ``prompts.json`` with the token ids of its answers in place of the texts, where it has them."""
    ids = {"answers": row.record.get("answer_ids"), "wrong_answers": row.record.get("wrong_ids")}
    kept = {key: value for key, value in row.record.items() if key not in ("answer_ids", "wrong_ids")}
    return Row(row.source, {**kept, **{key: value for key, value in ids.items() if value}}, row.problem)


def _document(lines: Sequence[tuple[int, str]], name: str, suffix: str) -> Any:
    """Return the one JSON document that the lines are; None where each of them is one by itself."""
    if len(lines) > 1 and _parses(lines[0][1]):
        return None
    text = "\n".join(line for _, line in lines)
    if suffix in LINES and not (_parses(text) and len(lines) > 1) and not lines[0][1].lstrip().startswith("[{"):
        return None
    return parse_json(text, name)


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(line: str, source: str) -> Row:
    try:
        return as_row(source, parse_json(line, source))
    except FormatError as error:
        return Row(source, {}, str(error))


def _records(document: Any, name: str) -> Iterator[Row]:
    """Return the records of a document: a list, a list in a field such as ``prompts``, lists by column, or one pair."""
    fields: Record = cast(Record, document) if isinstance(document, dict) else {}
    key = next((key for key in CONTAINERS if isinstance(fields.get(key), list)), None)
    if isinstance(document, list) or key is not None:
        what = "record" if key is None else key.removesuffix("s")
        found = cast("list[Any]", document if key is None else fields[key])
        for number, record in enumerate(found, start=1):
            yield as_row(f"{name}, {what} {number}", record)
        return
    columns = _columns(fields)
    if columns:
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
            yield as_row(f"{name}, record {number}", dict(zip(columns, values, strict=True)))
        return
    if not any(is_known(key) for key in fields):
        raise FormatError(
            f'{name} has no list "prompts"; expected {{"prompts": [{{"clean", "corrupted", "answers", '
            '"wrong_answers"}]}, a list of such objects, or one of them per line.'
        )
    yield as_row(f"{name}, record 1", fields)


def _columns(fields: Record) -> dict[str, Sequence[Any]]:
    """Return a document's columns, as lists or as pandas writes them (``{"clean": {"0": ..., "1": ...}}``), if any."""
    by_index = [isinstance(value, dict) for value in fields.values()]
    lists: dict[str, Any] = dict(fields)
    if all(by_index):
        lists = {key: list(cast(Record, value).values()) for key, value in fields.items()}
    clean = next((lists[key] for key in lists if known_column(key) in CLEAN), None)
    if not isinstance(clean, list) or not all(isinstance(text, str) for text in cast("list[Any]", clean)):
        return {}
    lengths = {len(cast("list[Any]", column)) if isinstance(column, list) else -1 for column in lists.values()}
    return cast("dict[str, Sequence[Any]]", lists) if len(lengths) == 1 else {}


def as_row(source: str, record: Any) -> Row:
    """Return a record as a row, its known columns by their usual names; what is no record is a row with a problem."""
    if isinstance(record, dict):
        fields = cast(Record, record)
        known = {key: known_column(key) for key in fields}
        twice = next((name for name in known.values() if list(known.values()).count(name) > 1), None)
        if twice is None:
            return Row(source, {known[key]: value for key, value in fields.items()})
        return Row(source, {}, f"{source}: the field {twice!r} is there twice; keep one of them.")
    return Row(
        source,
        {},
        f'{source}: expected an object such as {{"clean": "...", "corrupted": "...", "answer": " A", '
        f'"wrong_answer": " B"}}, got {json.dumps(record, default=str)[:40]}.',
    )


def _on_comments(name: str, count: int) -> tuple[str, ...]:
    if not count:
        return ()
    what = "lines that begin with # are comments" if count > 1 else "line that begins with # is a comment"
    return (f"{name}: {count} {what}; put a prompt that begins so in double quotes.",)


# ------------------------------------------------------------------------------------------------------ tables of text

_SEPARATORS = {".tsv": ("\t", ",", ";", "|"), ".csv": (",", ";", "\t", "|"), ".txt": ("\t", ",", ";", "|")}
_SPACE = "\ufdd0"
"""A character that no text has; stands for spaces after a separator until the column is known."""


def _table(text: str, name: str, suffix: str) -> Rows:
    lines = io.StringIO(text, newline="").readlines()
    at = next(place for place, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    separator = max(_SEPARATORS[suffix], key=lambda mark: _names_found(lines[at], mark))
    spaced = bool(re.search(rf"{re.escape(separator)} +\S", lines[at]))
    body = list(_without_comments(lines))
    if not any(line.strip() for line in body[at + 1 :]):
        body = lines  # every prompt begins with #
    left_out = sum(before != after for before, after in zip(lines, body, strict=True))
    whole = "".join(body)
    if spaced:
        whole = _spaces_marked(whole, separator)
    remarks = [*_on_comments(name, left_out)]
    if spaced:
        remarks.append(f"{name}: spaces after separators are left out, but for one at the start of an answer.")
    return Rows(tuple(_cells(whole, name, separator)), tuple(remarks))


def _names_found(header: str, separator: str) -> tuple[int, int]:
    names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), list[str]())
    return sum(is_known(name) for name in names), len(names)


def _without_comments(lines: Sequence[str]) -> Iterator[str]:
    """Return the lines, blank ones in place of comments so that they keep their numbers; quoted text is no comment."""
    quoted = False
    for line in lines:
        if not quoted and line.startswith("#"):
            yield "\n"
        else:
            quoted ^= line.count('"') % 2 == 1
            yield line


def _spaces_marked(text: str, separator: str) -> str:
    """Leave out spaces between separators and quotes; mark those before other text, which an answer may begin with."""

    def marked(found: re.Match[str]) -> str:
        if found[0].startswith('"'):
            return found[0]
        return "" if text.startswith('"', found.end()) else _SPACE

    return re.sub(rf'"(?:[^"]|"")*"|(?<={re.escape(separator)}) +', marked, text)


def _cells(text: str, name: str, separator: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            source = f"{name}, line {reader.line_num}"
            yield Row(source, {}, f"{source}: {error}; check the double quotes.")
            continue
        if cells is None:
            return
        if not any(part.strip(f" {_SPACE}") for part in cells):
            continue
        if names is None:
            names = _header(cells, name)
        else:
            yield _row_of(cells, names, f"{name}, line {reader.line_num}")


def _header(cells: Sequence[str], name: str) -> list[str]:
    names = [known_column(part.strip(f" {_SPACE}")) for part in cells]
    twice = next((key for key in names if key and names.count(key) > 1), None)
    if twice is not None:
        raise FormatError(f"{name}, line 1: the column {twice!r} is there twice; keep one of them.")
    if not any(is_known(key) for key in names):
        raise FormatError(
            f"{name}, line 1: the columns are {', '.join(map(repr, names[:6]))}; expected a line with their names "
            "before the pairs, such as clean,corrupted,answer,wrong_answer."
        )
    return names


def _row_of(cells: Sequence[str], names: Sequence[str], source: str) -> Row:
    extra = cells[len(names) :]
    if len(cells) < len(names) or any(part.strip() for part in extra):
        problem = (
            f"{source}: expected {len(names)} columns as in the header, got {'more' if extra else 'fewer'}; put text "
            "that holds separators in double quotes."
        )
        return Row(source, {}, problem)
    record: dict[str, Any] = {}
    try:
        # A column without a name is the row number that other tools write first.
        for key, part in zip(names, cells, strict=False):
            value = part.replace(_SPACE, " " if holds_answers(key) else "", 1)
            if key and value and part != _SPACE:
                record[key] = cell(key, value, source)
    except FormatError as error:
        return Row(source, {}, str(error))
    return Row(source, record)
