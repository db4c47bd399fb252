"""Padded batches become pairs without padding."""

import copy

import numpy as np
import pytest

from circuits.behaviours import TokenPair, pairs_of_batches
from circuits.errors import PromptError

CLEAN = [[5, 6, 7], [5, 8, 9, 10, 11], [5, 6]]
CORRUPTED = [[5, 6, 3], [5, 8, 1, 10, 11], [5, 2]]
ANSWERS, WRONG = [[20, 21], [22], [23]], [[30], [31], [32]]


def padded(rows, side, width=6, pad=0):
    batch = {"input_ids": [], "attention_mask": []}
    for row in rows:
        padding = width - len(row)
        ids, mask = [pad] * padding, [0] * padding
        batch["input_ids"].append([*ids, *row] if side == "left" else [*row, *ids])
        batch["attention_mask"].append([*mask, *[1] * len(row)] if side == "left" else [*[1] * len(row), *mask])
    return batch


def expected():
    rows = zip(CLEAN, CORRUPTED, ANSWERS, WRONG, strict=True)
    return tuple(TokenPair(*(tuple(part) for part in row), str(row[0]), str(row[1])) for row in rows)


@pytest.mark.parametrize("clean_side", ["left", "right"])
@pytest.mark.parametrize("corrupted_side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 7, 5])
def test_padding_goes_whatever_its_side_and_its_token(clean_side, corrupted_side, pad):
    """Also a padding token that prompts contain, or begin or end with."""
    batches = padded(CLEAN, clean_side, pad=pad), padded(CORRUPTED, corrupted_side, width=9, pad=pad)
    assert pairs_of_batches(*batches, ANSWERS, WRONG) == expected()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_arrays_and_tensors_are_read_like_lists(kind):
    import torch

    make = np.array if kind == "numpy" else torch.tensor
    batches = [{key: make(rows) for key, rows in padded(side, "left").items()} for side in (CLEAN, CORRUPTED)]
    pairs = pairs_of_batches(*batches, make([20, 22, 23]), [make([30]), make([31]), make([32])])
    assert [pair.clean for pair in pairs] == [tuple(row) for row in CLEAN]
    assert [pair.answers for pair in pairs] == [(20,), (22,), (23,)]
    assert all(type(token) is int for pair in pairs for part in (pair.corrupted, pair.answers) for token in part)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_tokenizer_pads_is_what_it_gives_for_one_text_alone(bos_tokenizer, side):
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.pad_token, tokenizer.padding_side = "<s>", side
    texts = ["When Mary went to the store", "When Mary and John went to the park, John gave a", "Mary went"]
    corrupted = [text.replace("Mary", "Anna") for text in texts]
    pairs = pairs_of_batches(
        tokenizer(texts, padding=True), tokenizer(corrupted, padding=True, return_tensors="pt"), [9, 9, 9],
        tokenizer=tokenizer,
    )  # fmt: skip
    assert [list(pair.clean) for pair in pairs] == [tokenizer(text).input_ids for text in texts]
    assert [list(pair.corrupted) for pair in pairs] == [tokenizer(text).input_ids for text in corrupted]
    assert [pair.clean.count(0) for pair in pairs] == [1, 1, 1]
    assert [pair.clean_text for pair in pairs] == [f"<s>{text}" for text in texts]


def test_without_masks_every_token_counts():
    (pair,) = pairs_of_batches({"input_ids": [[0, 1, 0]]}, {"input_ids": [[0, 2, 0]]}, [5])
    assert (pair.clean, pair.corrupted, pair.wrong_answers) == ((0, 1, 0), (0, 2, 0), ())


def test_prompts_without_answers_are_for_kl():
    assert pairs_of_batches({"input_ids": [[0, 1]]}, {"input_ids": [[0, 2]]})[0].answers == ()


def batch(*rows, mask=None):
    return {"input_ids": rows} | ({} if mask is None else {"attention_mask": mask})


@pytest.mark.parametrize(
    ("clean", "corrupted", "answers", "wrong", "message"),
    [
        (batch([1, 2, 3, 4], mask=[[1, 0, 1, 1]]), batch([1, 2, 3]), [5], None, r"clean prompt of pair 0 has padding "
         r"between its tokens \(position 1\)"),
        (batch([1, 2, 3]), batch([0, 0], mask=[[0, 0]]), [5], None, "corrupted prompt of pair 0 is empty or all"),
        (batch([1, 2], [1, 2, 3]), batch([1, 3], [1, 2]), [5, 5], None, "pair 1 has 3 clean and 2 corrupted tokens"),
        (batch([1, 2]), batch([1, 2]), [5], None, "pair 0 has the same clean and corrupted prompt"),
        (batch([1, 2]), batch([1, 3], [1, 4]), [5], None, "1 clean and 2 corrupted prompts"),
        (batch([1, 2]), batch([1, 3]), [5, 6], None, "1 clean prompts and 2 answers"),
        (batch([1, 2]), batch([1, 3]), [5], [[]], "pair 0 has no wrong answers"),
        (batch([1, 2]), batch([1, 3]), [[5, 6]], [6], "pair 0 has token 6 as answer and as wrong answer"),
        (batch([1, 2], mask=[[1]]), batch([1, 3]), [5], None, "attention_mask has another shape"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_measured_are_refused_and_the_pair_is_named(clean, corrupted, answers, wrong, message):
    with pytest.raises(PromptError, match=message):
        pairs_of_batches(clean, corrupted, answers, wrong)
