"""Prompt pairs from batches of token ids, padded on either side as tokenizers give them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokenizer, Tokens
from circuits.errors import PromptError

Rows = Sequence[Sequence[int]]
Answers = Sequence[int] | Rows


def pairs_of_batches(
    clean: Mapping[str, Any],
    corrupted: Mapping[str, Any],
    answers: Any = None,
    wrong_answers: Any = None,
    *,
    tokenizer: Tokenizer | None = None,
) -> tuple[TokenPair, ...]:
    """Turn padded batches of clean and corrupted prompts into pairs without padding.

    The padding goes, so scores are those of one prompt at a time: nothing is measured at, or averaged over, padding.

    Args:
        clean: What ``tokenizer(texts, padding=True)`` gives: ``input_ids`` and ``attention_mask`` (0 at padding, which
            may be on either side), as lists, arrays or tensors. Without a mask every token counts.
        corrupted: The same for the corrupted prompts; row by row as many tokens as the clean ones.
        answers: For each row the token that should follow the clean prompt, or several; None only with the metric kl.
        wrong_answers: For each row the token or tokens that should not; None: there are none.
        tokenizer: Gives the pairs their texts; without it a text is the list of its token ids.

    Raises:
        PromptError: It names the pair: padding between tokens, sides of unequal length, sides that are the same.
    """
    clean_rows, corrupted_rows = _unpadded(clean, "clean"), _unpadded(corrupted, "corrupted")
    count = len(clean_rows)
    right, wrong = _per_row(answers, count, "answers"), _per_row(wrong_answers, count, "wrong answers")
    if len(corrupted_rows) != count:
        raise PromptError(
            f"there are {count} clean and {len(corrupted_rows)} corrupted prompts; expected one for each."
        )
    rows = enumerate(zip(clean_rows, corrupted_rows, right, wrong, strict=True))
    return tuple(_pair(number, *row, tokenizer) for number, row in rows)


def _pair(
    number: int, clean: Tokens, corrupted: Tokens, answers: Tokens, wrong: Tokens, tokenizer: Tokenizer | None
) -> TokenPair:
    if len(clean) != len(corrupted):
        raise PromptError(
            f"pair {number} has {len(clean)} clean and {len(corrupted)} corrupted tokens without padding; patching "
            "replaces activations position by position, so both sides need the same length. Choose words of the same "
            "number of tokens."
        )
    if clean == corrupted:
        raise PromptError(
            f"pair {number} has the same clean and corrupted prompt, so patching changes nothing; change the token "
            "that the answer depends on in the corrupted prompt."
        )
    both = sorted(set(answers) & set(wrong))
    if both:
        raise PromptError(f"pair {number} has token {both[0]} as answer and as wrong answer; remove it from one.")
    return TokenPair(clean, corrupted, answers, wrong, _text(clean, tokenizer), _text(corrupted, tokenizer))


def _text(tokens: Tokens, tokenizer: Tokenizer | None) -> str:
    return str(list(tokens)) if tokenizer is None else str(tokenizer.decode(list(tokens)))


def _unpadded(batch: Mapping[str, Any], side: str) -> list[Tokens]:
    ids = _rows(batch["input_ids"])
    masks = _rows(batch["attention_mask"]) if "attention_mask" in batch else [[1] * len(row) for row in ids]
    if [len(row) for row in ids] != [len(row) for row in masks]:
        raise PromptError(
            f"the {side} batch's attention_mask has another shape than its input_ids; expected one number per token."
        )
    rows = enumerate(zip(ids, masks, strict=True))
    return [_tokens(row, mask, f"{side} prompt of pair {number}") for number, (row, mask) in rows]


def _tokens(row: Sequence[int], mask: Sequence[int], where: str) -> Tokens:
    places = [place for place, kept in enumerate(mask) if kept]
    if not places:
        raise PromptError(f"the {where} is empty or all padding; both sides need at least one token.")
    first, last = places[0], places[-1] + 1
    if len(places) != last - first:
        hole = next(place for place in range(first, last) if not mask[place])
        raise PromptError(
            f"the {where} has padding between its tokens (position {hole}); expected it on the left or the right only. "
            "Join the tokens first: models number positions in different ways across a gap."
        )
    return tuple(int(token) for token in row[first:last])


def _per_row(given: Any, count: int, what: str) -> list[Tokens]:
    if given is None:
        return [()] * count
    values = _plain(given)
    if len(values) != count:
        raise PromptError(
            f"there are {count} clean prompts and {len(values)} {what}; expected a token or a list of tokens for each."
        )
    tokens = [tuple(int(token) for token in _plain(row)) if hasattr(row, "__len__") else (int(row),) for row in values]
    if () in tokens:
        raise PromptError(f"pair {tokens.index(())} has no {what}; expected at least one token.")
    return tokens


def _rows(values: Any) -> Rows:
    return cast("Rows", [_plain(row) for row in _plain(values)])


def _plain(values: Any) -> list[Any]:
    """Return lists as they are, and arrays and tensors as lists."""
    return values.tolist() if hasattr(values, "tolist") else list(values)
