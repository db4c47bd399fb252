"""Prompt files: JSON Lines, the CSV layouts of EAP-IG and MIB, and the JSON layout of auto-circuit.

Every reader turns one record into one :class:`Pair`; what it does not know becomes a tag. Errors name file, line and
field.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Message, Prompt
from circuits.documents import exists, parse_json, read_text
from circuits.errors import FormatError, UnknownNameError

Record = Mapping[str, Any]

CORRUPTED = ("corrupted", "corrupt")
ANSWERS = ("answers", "answer", "correct", "correct_idx")
WRONG_ANSWERS = ("wrong_answers", "wrong_answer", "incorrect", "incorrect_idx")


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Return all pairs of a prompt file whose columns say what is meant; errors as :func:`read_records`."""
    return tuple(pair_of(record, source) for source, record in read_records(path))


def read_records(path: Path) -> tuple[tuple[str, Record], ...]:
    """Return where each record of a prompt file is (``pairs.csv, line 3``), and its fields; the suffix is the format.

    Raises :class:`FormatError` for a file that is missing, empty or malformed, and :class:`UnknownNameError` for a
    suffix that is no format.
    """
    if not exists(path, file=True):
        what = "is a folder, not a prompt file" if exists(path) else "does not exist"
        raise FormatError(f"{path} {what}; give the path of a prompt file ({', '.join(READERS)}).")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UnknownNameError(
            "prompt file format", path.suffix or path.name, READERS, hint="Rename or convert the file."
        )
    records = tuple(reader(read_text(path), path.name))
    if not records:
        raise FormatError(f"{path.name} has no prompt pairs; expected one pair per line or record, and at least eight.")
    return records


def _json_lines(text: str, name: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            source = f"{name}, line {number}"
            yield source, _record(parse_json(line, source), source)


def _auto_circuit(text: str, name: str) -> Iterator[tuple[str, Record]]:
    content = parse_json(text, name) if text.strip() else None
    prompts = cast(Record, content).get("prompts") if isinstance(content, dict) else None
    if not isinstance(prompts, list):
        raise FormatError(
            f'{name} has no list "prompts"; expected {{"prompts": [{{"clean", "corrupt", "answers", '
            '"wrong_answers"}]}. A file with one JSON object per line ends in .jsonl.'
        )
    for number, prompt in enumerate(cast(list[Any], prompts), start=1):
        source = f"{name}, prompt {number}"
        yield source, _record(prompt, source)


def _csv(text: str, name: str) -> Iterator[tuple[str, Record]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        twice = next((key for key in names if names.count(key) > 1), None)
        if twice is not None:
            raise FormatError(f"{name}, line 1: the column {twice!r} is there twice; keep one of them.")
        for row in reader:
            source = f"{name}, line {reader.line_num}"
            if None in row or None in row.values():
                count = len(names)
                raise FormatError(
                    f"{source}: expected {count} columns as in the header, got {'more' if None in row else 'fewer'}; "
                    "put text that holds commas in double quotes."
                )
            # A column without a name is the row number that other tools write first.
            yield source, {key: _cell(key, value, source) for key, value in row.items() if key and value}
    except csv.Error as error:
        raise FormatError(f"{name}, line {reader.line_num}: {error}; check the double quotes.") from None


def _cell(key: str, value: str, source: str) -> Any:
    """Return a cell's value: columns of token ids hold a number or a list of them, answers text or a list of texts.

    A list is written as JSON or as Python shows it, ``['a', 'b']``. All else is text.
    """
    if not key.endswith("_idx"):
        texts = _list(value) if key in (*ANSWERS, *WRONG_ANSWERS, "corrupted_answers") else None
        return texts if texts and all(isinstance(text, str) for text in texts) else value
    several = _list(value if value.startswith("[") else f"[{value}]")
    if not several or not all(type(token) is int for token in several):
        raise FormatError(
            f"{source}, field '{key}': {value!r} is not a token id or a list of them, such as 42 or [42, 43]."
        )
    return several


_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d{1,18})"""
_LIST = re.compile(rf"\[\s*{_ITEM}(?:\s*,\s*{_ITEM})*\s*\]")


def _list(text: str) -> list[Any] | None:
    """Return a flat list of texts or whole numbers that a cell holds; None if it holds something else."""
    if not _LIST.fullmatch(text):
        return None
    try:
        return cast("list[Any]", ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return None


READERS: dict[str, Callable[[str, str], Iterator[tuple[str, Record]]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".json": _auto_circuit,
}


def _record(value: object, source: str) -> Record:
    if not isinstance(value, dict):
        raise FormatError(
            f'{source}: expected an object such as {{"clean": "...", "corrupted": "...", "answer": " A", '
            f'"wrong_answer": " B"}}, got {json.dumps(value)[:40]}.'
        )
    return cast(Record, value)


def pair_of(record: Record, source: str) -> Pair:
    """Turn one record into a pair; unknown keys become tags. Raises :class:`FormatError` naming the field."""
    clean_key, clean = _field(record, ("clean",), source)
    corrupted_key, corrupted = _field(record, CORRUPTED, source)
    prompts = _prompt(clean, clean_key, source), _prompt(corrupted, corrupted_key, source)
    if isinstance(prompts[0], str) != isinstance(prompts[1], str):
        raise FormatError(
            f"{source}, field '{corrupted_key}': one side is text, the other a list of chat messages; write both alike."
        )
    answer_key, answers = _field(record, ANSWERS, source)
    texts, ids = _answers(answers, answer_key, source)
    wrong_key, wrong = _field(record, WRONG_ANSWERS, source, needed=False)
    wrong_texts, wrong_ids = ((), ()) if wrong is None or wrong == [] else _answers(wrong, wrong_key, source)
    known = {clean_key, corrupted_key, answer_key, *((wrong_key,) if wrong_key else ())}
    tags = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items() if key not in known
    }
    return Pair(*prompts, texts, wrong_texts, tags, ids, wrong_ids, source)


def _field(record: Record, names: tuple[str, ...], source: str, *, needed: bool = True) -> tuple[str, Any]:
    present = [name for name in names if name in record]
    if len(present) > 1 and not present[1].endswith("_idx"):
        raise FormatError(f"{source}: both '{present[0]}' and '{present[1]}' are given; keep one of them.")
    if present:
        return present[0], record[present[0]]
    if needed:
        raise FormatError(f"{source}: there is no '{names[0]}'; the fields are {', '.join(record) or 'none'}.")
    return "", None


def _prompt(value: Any, key: str, source: str) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        return tuple(_message(message, key, source) for message in cast(list[Any], value))
    raise FormatError(
        f"{source}, field '{key}': expected a text or a list of chat messages, got {json.dumps(value)[:40]}."
    )


def _message(value: Any, key: str, source: str) -> Message:
    if isinstance(value, int | list):
        raise FormatError(
            f"{source}, field '{key}': prompts of token ids or numbers are not read, since another tokenizer "
            "would read other words in them; write the text, or make pairs of token ids in Python (TokenPair)."
        )
    if isinstance(value, dict):
        fields = cast(Record, value)
        role, content = fields.get("role"), fields.get("content")
        if isinstance(role, str) and isinstance(content, str) and len(fields) == 2:
            return Message(role, content)
    raise FormatError(
        f'{source}, field \'{key}\': a chat message is {{"role": "user", "content": "..."}} and no more, got '
        f"{json.dumps(value)[:60]}."
    )


def _answers(value: Any, key: str, source: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Give the answers as (texts, token ids); one of the two is empty."""
    several: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    if several and all(isinstance(answer, str) and answer for answer in several):
        return tuple(several), ()
    if several and all(type(answer) is int for answer in several):
        return (), tuple(several)
    raise FormatError(
        f"{source}, field '{key}': expected an answer or a list of answers (text with its leading space, or token "
        f"ids), got {json.dumps(value)[:40]}."
    )
