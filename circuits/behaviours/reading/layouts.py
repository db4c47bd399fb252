"""The layouts of data sets that other tools were published with, told by their columns and read as they are.

EAP-IG (Hanna et al. 2024, arXiv:2403.17806) writes answers as token ids of one tokenizer, under names of its own for
each task, or as a number that its metric turns into answers: a year, whose answers are all two-digit ends beyond it, or
whether the verb is to be plural. MIB (arXiv:2504.13151) keeps the parts from which prompts and answers are made. A
layout turns a record into a :class:`Pair`, and completes the pair when the tokenizer is known.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from circuits.behaviours.built_in.greater_than import digits_per_token
from circuits.behaviours.pairs import Pair
from circuits.behaviours.reading.columns import Record
from circuits.behaviours.reading.prompt_files import pair_of
from circuits.behaviours.tokens import Tokenizer, answer_tokens, prompt_text, prompt_tokens, single_tokens, token_texts
from circuits.errors import FormatError

VERBS = (
    "is are was were has have does do goes go says say gets get makes make takes take seems seem needs need wants want "
    "likes like knows know sees see looks look comes come gives give finds find thinks think tells tell works work "
    "calls call tries try asks ask feels feel becomes become leaves leave keeps keep lets let begins begin shows show "
    "hears hear plays play runs run moves move lives live believes believe brings bring happens happen writes write"
)
"""Common verbs, each in the singular and the plural; EAP-IG's list, of which this is a part, is not in its data."""

IDS = {
    "country_idx": ("country", "corrupted_country_idx", "corrupted_country"),
    "answers_idx": ("answers", "corrupted_answers_idx", "corrupted_answers"),
    "clean_answer_idx": ("clean_answer", "corrupted_answer_idx", "corrupted_answer"),
}
"""Columns of token ids by other names: of the answers, with their texts; of the wrong answers, with theirs."""


Completed = tuple[Pair | None, str]
"""A pair as a tokenizer can be asked it (None: it cannot), and a remark where that is not as it is written."""


@dataclass(frozen=True)
class Layout:
    """How the records of one layout become pairs: ``read`` without a tokenizer, ``complete`` with it.

    ``read`` returns None for a record that the data set itself leaves out.
    """

    name: str
    read: Callable[[Record, str], Pair | None]
    complete: Callable[[Sequence[Pair], Tokenizer], list[Completed]] | None = None


def layout_of(records: Sequence[tuple[str, Record]]) -> Layout | None:
    """Return the layout that a file's columns tell, or None where they say themselves what is meant."""
    columns = {key for _, record in records for key in record}
    return next((layout for tells, layout in LAYOUTS if tells(columns, records)), None)


# ----------------------------------------------------------------------------------------------------------- token ids


def _read_ids(record: Record, source: str) -> Pair:
    key = next(key for key in IDS if key in record)
    text, wrong_key, wrong_text = IDS[key]
    if wrong_key not in record:
        raise FormatError(
            f"{source}: there is no '{wrong_key}' beside '{key}'; fill in the cell, or leave the row out."
        )
    names = {key: "correct_idx", wrong_key: "incorrect_idx"}
    pair = pair_of({names.get(name, name): value for name, value in record.items() if name not in _TEXTS}, source)
    return replace(pair, answers=_texts(record.get(text)), wrong_answers=_texts(record.get(wrong_text)))


_TEXTS = frozenset(name for text, _, wrong_text in IDS.values() for name in (text, wrong_text))


def _texts(value: Any) -> tuple[str, ...]:
    several = cast("list[Any]", value) if isinstance(value, list) else [value] if value else []
    return tuple(str(text) for text in several)


def _complete_ids(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Completed]:
    """Keep the ids where this tokenizer decodes them to the texts beside them; else take the first tokens of these."""
    return [_with_ids(pair, tokenizer) for pair in pairs]


def _with_ids(pair: Pair, tokenizer: Tokenizer) -> Completed:
    sides = (pair.answers, pair.answer_ids), (pair.wrong_answers, pair.wrong_ids)
    plain = replace(pair, answers=(), wrong_answers=())
    if not all(texts for texts, _ in sides) or all(_decode_to(tokenizer, *side) for side in sides):
        return plain, ""
    shown = ", ".join(map(repr, token_texts(tokenizer, _known(tokenizer, pair.answer_ids)))) or "no token"
    answers, wrong = (_first_tokens(pair, texts, tokenizer) for texts, _ in sides)
    remark = (
        f"{pair.source}: token ids that this tokenizer decodes to {shown} stand beside the text "
        f"{', '.join(map(repr, pair.answers))}: they are of another tokenizer, so the texts' first tokens are taken"
    )
    return replace(plain, answer_ids=answers, wrong_ids=wrong), remark


def _known(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [token for token in ids if 0 <= token < len(tokenizer)]


def _decode_to(tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[int]) -> bool:
    if len(texts) != len(ids) or len(_known(tokenizer, ids)) < len(ids):
        return False
    pieces = [piece.strip() for piece in token_texts(tokenizer, ids)]
    return all(piece and text.strip().startswith(piece) for text, piece in zip(texts, pieces, strict=True))


def _first_tokens(pair: Pair, texts: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    prompt = prompt_text(tokenizer, pair.clean)
    rendered = not isinstance(pair.clean, str)
    ids = prompt_tokens(tokenizer, prompt, rendered=rendered)
    words = [text if text.startswith(" ") or prompt.endswith(" ") else f" {text}" for text in texts]
    found = [answer_tokens(tokenizer, prompt, ids, word, rendered=rendered) for word in words]
    return tuple(dict.fromkeys(tokens[0] for tokens in found if tokens))


def occur(pair: Pair, texts: Sequence[str]) -> bool:
    """Return whether some of the texts are words of one of a pair's prompts."""
    both = " ".join(part for part in (pair.clean, pair.corrupted) if isinstance(part, str))
    return any(text.strip() and re.search(rf"\b{re.escape(text.strip())}\b", both) for text in texts)


# --------------------------------------------------------------------------------------------------------------- years


def _year_column(record: Record) -> str | None:
    """Return the column that holds the year of a prompt which ends with the year's century; None if there is none."""
    if any(name in record for name in ("incorrect_idx", "incorrect", "wrong_answer", "wrong_answers")):
        return None
    return next((name for name in ("correct_idx", "label", "year") if _year_in(record, name) is not None), None)


def _year_in(record: Record, column: str) -> int | None:
    clean, value = record.get("clean"), record.get(column)
    if isinstance(value, list):
        value = cast("list[Any]", value)[0] if len(cast("list[Any]", value)) == 1 else None
    if not isinstance(clean, str) or not isinstance(value, int | str) or not re.fullmatch(r"\d{1,4}", str(value)):
        return None
    end = re.search(r"(?<!\d)(\d\d)$", clean)
    year = str(value)[-2:].zfill(2)
    found = end and re.search(rf"(?<!\d){end[1]}{year}(?!\d)", clean[: end.start()])
    return int(year) if found else None


def _read_year(record: Record, source: str) -> Pair:
    column = _year_column(record)
    if column is None:
        raise FormatError(
            f"{source}: the other rows hold the two last digits of a year in the prompt, whose century ends the "
            "prompt; this one holds something else. Correct the row or leave it out."
        )
    year = _year_in(record, column)
    return pair_of({**record, "answer": "?", column: f"{year:02d}"}, source)


def _tells_years(columns: set[str], records: Sequence[tuple[str, Record]]) -> bool:
    found = sum(_year_column(record) is not None for _, record in records)
    return bool(columns & {"correct_idx", "label", "year"}) and 2 * found > len(records)


def _complete_years(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Completed]:
    """Fill in all ends beyond the year, against the year and all before it.

    A tokenizer that splits digits singly is asked for the tens: those beyond the year's against those before them.
    """
    width = digits_per_token(tokenizer)
    return [_with_ends(pair, width) for pair in pairs]


def _with_ends(pair: Pair, width: int) -> Completed:
    year = next(int(pair.tags[name]) for name in ("correct_idx", "label", "year") if name in pair.tags)
    last = year if width == 2 else year // 10
    ends = range(10**width) if width else ()
    later = tuple(str(end).zfill(width) for end in ends if end > last)
    earlier = tuple(str(end).zfill(width) for end in ends if end < last or (end == last and width == 2))
    if not later or not earlier:
        return None, f"{pair.source}: this tokenizer has no single tokens for ends on both sides of the year {year:02d}"
    return replace(pair, answers=later, wrong_answers=earlier), ""


# --------------------------------------------------------------------------------------------------------------- verbs


def _read_number(record: Record, source: str) -> Pair:
    if str(record.get("plural")) not in ("0", "1"):
        raise FormatError(f"{source}, field 'plural': expected 0 or 1, got {record.get('plural')!r}.")
    return pair_of({**record, "answer": "?"}, source)


def _complete_numbers(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Completed]:
    """Fill in all verbs of :data:`VERBS` that are one token in both numbers, as EAP-IG does with its list."""
    words = VERBS.split()
    single = set(single_tokens(tokenizer, VERBS))
    both = [(one, many) for one, many in zip(words[::2], words[1::2], strict=True) if {one, many} <= single]
    if not both:
        why = "this tokenizer has no verb whose singular and plural are one token each"
        return [(None, f"{pair.source}: {why}") for pair in pairs]
    sides = tuple(tuple(f" {verb}" for verb in side) for side in zip(*both, strict=True))
    answers = {"0": (sides[0], sides[1]), "1": (sides[1], sides[0])}
    found: list[Completed] = []
    for pair in pairs:
        right, wrong = answers[pair.tags["plural"]]
        found.append((replace(pair, answers=right, wrong_answers=wrong), ""))
    return found


# ----------------------------------------------------------------------------------------------------------------- MIB

COUNTERFACTUALS = ("s2_io_flip_counterfactual", "symbol_counterfactual", "random_counterfactual")
"""Which of a record's counterfactual prompts MIB uses, by the task."""


def _read_mib(record: Record, source: str) -> Pair | None:
    key = next(key for key in COUNTERFACTUALS if key in record)
    other = record[key]
    if other is None:
        return None
    try:
        answer, wrong = _mib_answers(record, cast(Record, other))
        prompts = {"clean": record["prompt"], "corrupted": cast(Record, other)["prompt"]}
    except (KeyError, IndexError, TypeError) as error:
        raise FormatError(
            f"{source}: the record has '{key}', as MIB's data have, but what belongs to it is missing or of another "
            f"form ({error}); expected it as MIB publishes it, or clean, corrupted, answer and wrong_answer."
        ) from error
    kept = {name: value for name, value in record.items() if isinstance(value, str | int) and name != "prompt"}
    return pair_of({**kept, **prompts, "answer": answer, "wrong_answer": wrong}, source)


def _mib_answers(record: Record, other: Record) -> tuple[str, str]:
    if "metadata" in record:
        people = cast(Mapping[str, Any], record["metadata"])
        return f" {people['indirect_object']}", f" {people['subject']}"
    if "choices" in record:
        right, wrong = (each["choices"]["label"][int(each["answerKey"])] for each in (record, other))
        return str(right), str(wrong)
    return str(record["label"]), str(other["label"])


LAYOUTS: tuple[tuple[Callable[[set[str], Sequence[tuple[str, Record]]], bool], Layout], ...] = (
    (lambda columns, _: bool(columns & set(COUNTERFACTUALS)), Layout("MIB's records", _read_mib)),
    (lambda columns, _: bool(columns & set(IDS)), Layout("EAP-IG's token ids", _read_ids, _complete_ids)),
    (_tells_years, Layout("years", _read_year, _complete_years)),
    (
        lambda columns, _: "plural" in columns and not columns & {"answer", "answers", "correct", "correct_idx"},
        Layout("EAP-IG's numbers of verbs", _read_number, _complete_numbers),
    ),
)
"""Every layout with what tells it, most telling first."""
