"""What the columns of prompt files are called, in the data sets of the field and by people."""

import ast
import re
from collections.abc import Mapping
from typing import Any, cast

from circuits.errors import FormatError

Record = Mapping[str, Any]

CLEAN = ("clean", "clean_prompt", "clean_text", "clean_input", "clean_prefix")
CORRUPTED = (
    *("corrupted", "corrupt", "corrupted_prompt", "corrupt_prompt", "corrupted_text", "corrupted_input"),
    *("corrupted_prefix", "patch_prefix", "counterfactual", "counterfactual_prompt"),
)
ANSWERS = (
    *("answers", "answer", "correct", "correct_answer", "correct_answers", "correct_token", "answer_token"),
    *("clean_answer", "clean_answers", "clean_label", "correct_idx", "correct_id", "correct_ids", "correct_token_id"),
    *("answer_id", "answer_ids", "answer_token_id"),
)
WRONG_ANSWERS = (
    *("wrong_answers", "wrong_answer", "incorrect", "incorrect_answer", "incorrect_answers", "incorrect_token"),
    *("wrong", "wrong_token", "corrupted_answer", "corrupted_answers", "corrupt_answer", "corrupt_answers"),
    *("patch_answer", "corrupted_label", "counterfactual_answer", "distractor", "distractors"),
    *("incorrect_idx", "incorrect_id", "incorrect_ids", "incorrect_token_id", "wrong_id", "wrong_ids"),
    *("wrong_answer_id", "wrong_answer_ids"),
)
WEAK = {"clean": ("prompt", "text", "input"), "answers": ("target", "expected")}
"""Names that mean a prompt or an answer only where none of the others is there; otherwise they are tags."""
OF_LAYOUTS = (
    *("country", "country_idx", "corrupted_country", "corrupted_country_idx", "answers_idx", "corrupted_answers_idx"),
    *("clean_answer_idx", "corrupted_answer_idx", "label", "year", "plural", "split", "cluster"),
)
OF_REQUESTS = ("goal", "behavior", "forbidden_prompt", "instruction")
"""Of collections of requests without twins (:mod:`circuits.behaviours.reading.request_files`)."""
_NAMES = frozenset(
    (*CLEAN, *CORRUPTED, *ANSWERS, *WRONG_ANSWERS, *OF_LAYOUTS, *OF_REQUESTS, *WEAK["clean"], *WEAK["answers"])
)
_LISTED = frozenset((*ANSWERS, *WRONG_ANSWERS, *WEAK["answers"]))


def known_column(name: str) -> str:
    """Return a column's name as it is known here, whatever its case and what stands between its words; else as it is.

    ``Clean Prompt`` and ``clean-prompt`` are ``clean_prompt``.
    """
    plain = re.sub(r"[\s-]+", "_", name.strip()).lower()
    return plain if plain in _NAMES else name.strip()


def is_known(name: str) -> bool:
    """Return whether a column's name, or another spelling of it, means something here."""
    return known_column(name) in _NAMES


def holds_answers(column: str) -> bool:
    """Return whether a column holds answers or wrong answers, or token ids of them."""
    return column in _LISTED or _holds_ids(column)


def cell(column: str, value: str, source: str) -> Any:
    """Return a cell's value: columns of token ids hold a number or a list of them, answers text or a list of texts.

    A list is written as JSON or as Python shows it, ``['a', 'b']``. All else is text. Raises :class:`FormatError`.
    """
    if not _holds_ids(column):
        texts = _list(value) if column in _LISTED else None
        return texts if texts and all(isinstance(text, str) for text in texts) else value
    several = _list(value.strip() if value.strip().startswith("[") else f"[{value.strip()}]")
    if not several or not all(type(token) is int for token in several):
        raise FormatError(
            f"{source}, field '{column}': {value!r} is not a token id or a list of them, such as 42 or [42, 43]."
        )
    return several


def _holds_ids(column: str) -> bool:
    return column.endswith("_idx") or (column in _LISTED and column.endswith(("_id", "_ids")))


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
