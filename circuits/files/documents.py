"""Text and JSON that comes from a file of unknown origin: one guard for all of it.

JSON is read more strictly than by :mod:`json`: what two readers would understand in two ways (a field given twice,
NaN, numbers too large for a float) or what cannot be written again (half a character) is refused, not guessed.
"""

import codecs
import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn, cast

from circuits.errors import FormatError, MissingFileError

MOST_BYTES = 1 << 28
"""Larger text files are refused, about 40 times the largest circuit, prompt file or configuration that is known."""
MOST_DIGITS = 300
"""Longer numbers are refused: no float is as large, and no count of anything here."""
MOST_LEVELS = 100
"""Deeper documents are refused: those that are written here have less than 10 levels."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark; errors as :func:`read_bytes`."""
    return text_of(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """Return what a file holds.

    Raises :class:`MissingFileError` for what is missing, and :class:`FormatError` for what is no plain file (a folder,
    a pipe), larger than :data:`MOST_BYTES`, or cannot be read.
    """
    path = Path(path)
    try:
        # The system reads no pipe or device here: one that nobody writes to would wait for ever.
        if path.exists() and not path.is_file():
            raise FormatError(f"cannot read {path}: it is no plain file; expected the path of one.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise too_large(path, size)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"cannot read {path}: {error.strerror}. Check the path.") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:  # a name with a zero byte
        raise FormatError(f"cannot read {str(path)!r}: {error}.") from error


def too_large(path: str | Path, size: int) -> FormatError:
    """Return the error for a file of more than :data:`MOST_BYTES` bytes."""
    return FormatError(
        f"cannot read {path}: it has {size / 1e6:,.0f} MB, and at most {MOST_BYTES / 1e6:,.0f} MB are expected. Split "
        "it, or check that it is the file you mean."
    )


_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def text_of(data: bytes, name: str) -> str:
    """Return bytes as text: UTF-8, or UTF-16 with the byte order mark that tells it (as spreadsheets write it).

    ``name`` says in messages what it is of. Raises :class:`FormatError` for bytes that are neither.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        what = encoding.removesuffix("-sig").upper()
        raise FormatError(
            f"{name} is not {what} text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error


def exists(path: Path, *, file: bool = False) -> bool:
    """Return whether there is such a path (or ``file``); a text that can be no path, being too long, is none."""
    try:
        return path.is_file() if file else path.exists()
    except (OSError, ValueError):
        return False


def local_path(text: str | Path) -> Path:
    """Return a text as a path, ``~`` and ``~user`` expanded where there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds; raises :class:`FormatError` as :func:`read_text` and :func:`parse_json` do."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, name: str) -> Any:
    """Return what a JSON text holds; ``name`` says in messages what it is of.

    Raises :class:`FormatError` for what is not JSON; for NaN, Infinity and numbers beyond a float or of more than
    :data:`MOST_DIGITS` digits; for a field that is given twice; for nesting beyond :data:`MOST_LEVELS` levels; and for
    lone surrogates, halves of a character that no file can hold.
    """
    try:
        found: Any = json.loads(
            text, parse_constant=_constant, parse_float=_float, parse_int=_integer, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise FormatError(f"{name}: not valid JSON at {at} ({error.msg}).") from error
    except ValueError as error:
        raise FormatError(f"{name}: not usable JSON: {error}") from error
    except RecursionError as error:
        raise FormatError(f"{name}: not usable JSON: {_TOO_DEEP}") from error
    problem = _problem(found)
    if problem:
        raise FormatError(f"{name}: not usable JSON: {problem}")
    return found


_TOO_DEEP = f"lists or objects lie more than {MOST_LEVELS} levels deep in each other; expected a plain document."


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON; write null where there is none.")


def _float(text: str) -> float:
    value = float(text) if len(text) <= MOST_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {_shortened(text)} is beyond what can be calculated with.")
    return value


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {_shortened(text)} has {len(text)} digits; at most {MOST_DIGITS} are read.")
    return int(text)


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice in one object; keep one of them.")
    return found


def _problem(document: object) -> str | None:
    """Return what is wrong inside a document, level by level."""
    level: list[object] = [document]
    for _ in range(MOST_LEVELS):
        texts = [value for value in level if isinstance(value, str) and not value.isascii()]
        broken = next((text for text in texts if _SURROGATE.search(text)), None)
        if broken is not None:
            return f"{_shortened(broken)!r} holds half of a character (a lone surrogate); write the whole character."
        level = [part for value in level for part in _parts(value)]
        if not level:
            return None
    return _TOO_DEEP


def _parts(value: Any) -> list[object]:
    fields = _fields(value)
    if fields is not None:
        return [*fields, *fields.values()]
    return cast("list[object]", value) if isinstance(value, list) else []


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}…"


def first_change(given: Any, written: Any, place: str = "") -> str | None:
    """Return where and how a document would change by being read and written again; None where it would not.

    ``given`` may lack what ``written`` has (fields that have a default), not the other way round. Truth values, texts
    and numbers are told apart, floats are compared to six significant digits.
    """
    before, after = _fields(given), _fields(written)
    if before is not None and after is not None:
        unknown = next((name for name in before if name not in after), None)
        if unknown is not None:
            return f"{place or 'the document'} has an unknown field {unknown!r}; known: {', '.join(sorted(after))}."
        pairs = [(before[name], after[name], f"{place}.{name}".lstrip(".")) for name in before]
    elif isinstance(given, list) and isinstance(written, list) and len(_parts(given)) == len(_parts(written)):
        pairs = [
            (one, other, f"{place}.{i}")
            for i, (one, other) in enumerate(zip(_parts(given), _parts(written), strict=True))
        ]
    elif _same(given, written):
        return None
    else:
        return f"{place} is {_told(given)}, which would be read as {_told(written)}."
    return next((found for each in pairs if (found := first_change(*each))), None)


def _fields(value: Any) -> dict[str, object] | None:
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _same(given: Any, written: Any) -> bool:
    if _is_number(given) and _is_number(written):
        before, after = cast(float, given), cast(float, written)
        return before == after or f"{before:.6g}" == f"{after:.6g}"
    return type(given) is type(written) and given == written


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} …"


def json_text(document: Any, *, sort_keys: bool = False) -> str:
    """Return the text of a JSON file: :func:`plain` values, one space of indentation, a line break at the end."""
    return json.dumps(plain(document), indent=1, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any, *, digits: int | None = None) -> Any:
    """Return a value as JSON can hold it, at any depth: the one place that cleans what is written.

    What is no finite number (NaN, Infinity) is None, halves of characters are replaced, keys are text, tuples lists;
    with ``digits``, numbers have so many significant ones.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    if isinstance(value, str):
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {plain(str(key)): plain(item, digits=digits) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item, digits=digits) for item in cast("list[Any]", value)]
    return value
