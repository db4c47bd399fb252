"""The records of prompt files as pairs: which field is which, and what each may hold.

What a record has in addition to its prompts and answers becomes a tag. Errors name file, line and field.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from circuits.behaviours.pairs import Pair
from circuits.behaviours.reading.columns import ANSWERS, CLEAN, CORRUPTED, WEAK, WRONG_ANSWERS, Record
from circuits.behaviours.reading.request_files import layout_of
from circuits.behaviours.tokens import Message, Prompt
from circuits.errors import FormatError, PromptError

ROLES = "roles"
"""The field that names token positions, ``{"subject": [3, 4]}``."""
CORRUPTED_ROLES, ALIGNMENT = "corrupted_roles", "alignment"
"""The fields that name those of the corrupted prompt, and that hold the counterpart of every position."""


def pair_of(record: Record, source: str) -> Pair:
    """Turn one record into a pair; unknown keys become tags. Raises :class:`FormatError` naming the field."""
    clean_key, clean = _field(record, CLEAN, source, weak=WEAK["clean"])
    corrupted_key, corrupted = _field(record, CORRUPTED, source)
    prompts = _prompt(clean, clean_key, source), _prompt(corrupted, corrupted_key, source)
    if isinstance(prompts[0], str) != isinstance(prompts[1], str):
        raise FormatError(
            f"{source}, field '{corrupted_key}': one side is text, the other a list of chat messages; write both alike."
        )
    answer_key, answers = _field(record, ANSWERS, source, weak=WEAK["answers"])
    texts, ids = _answers(answers, answer_key, source)
    wrong_key, wrong = _field(record, WRONG_ANSWERS, source, needed=False)
    wrong_texts, wrong_ids = ((), ()) if wrong is None or wrong == [] else _answers(wrong, wrong_key, source)
    # A text is a tag, as in files that say something else by these words.
    named = {key: record[key] for key in (ROLES, CORRUPTED_ROLES) if isinstance(record.get(key), Mapping)}
    alignment = record.get(ALIGNMENT)
    numbered = {ALIGNMENT: tuple(cast("list[Any]", alignment))} if isinstance(alignment, list) else {}
    known = {clean_key, corrupted_key, answer_key, *((wrong_key,) if wrong_key else ()), *named, *numbered}
    tags = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items() if key not in known
    }
    positions: dict[str, Any] = {**named, **numbered}
    try:
        return Pair(*prompts, texts, wrong_texts, tags, ids, wrong_ids, source, **positions)
    except PromptError as error:
        raise FormatError(f"{source}, fields {', '.join(map(repr, positions))}: {error}") from error


def _field(
    record: Record, names: tuple[str, ...], source: str, *, weak: tuple[str, ...] = (), needed: bool = True
) -> tuple[str, Any]:
    present = [name for name in names if name in record] or [name for name in weak if name in record][:1]
    if len(present) > 1 and not present[1].endswith(("_idx", "_id", "_ids")):
        raise FormatError(f"{source}: both '{present[0]}' and '{present[1]}' are given; keep one of them.")
    if present:
        return present[0], record[present[0]]
    if needed:
        fields, layout = ", ".join(record) or "none", layout_of(record)
        if layout is not None:
            raise FormatError(
                f"{source}: there is no '{names[0]}'; the fields {fields} are those of requests without twins "
                f"({layout.collection}). Pair them with harmless ones: circuits prompts FILE --harmless OTHER --out "
                "pairs.jsonl"
            )
        raise FormatError(
            f"{source}: there is no '{names[0]}'; the fields are {fields}. Write it as {_or(names)}. "
            "See: circuits guide prompts"
        )
    return "", None


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:3])} or {names[3]}"


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
    """Return the answers as (texts, token ids); one of the two is empty."""
    several: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    if several and all(isinstance(answer, str) and answer for answer in several):
        return tuple(several), ()
    if several and all(type(answer) is int for answer in several):
        return (), tuple(several)
    raise FormatError(
        f"{source}, field '{key}': expected an answer or a list of answers (text with its leading space, or token "
        f"ids), got {json.dumps(value)[:40]}."
    )
