"""Prompts of different lengths, padded on either side, score as one prompt at a time."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from circuits.behaviours import TokenPair, pairs_of_batches
from tests.subjects import Floats, random_masks, relative, subject_of
from tests.tiny import VOCABULARY

LENGTHS = (4, 9, 6, 9, 5)
PAD = 7


def prompts() -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(5)
    sides = []
    for length in LENGTHS:
        clean, corrupted = torch.randint(VOCABULARY, (2, length), generator=generator).tolist()
        sides.append((clean, [clean[0], *corrupted[1:]]))
    sides[0][0][1] = sides[1][0][-1] = PAD  # the padding token, also as a token of prompts
    return sides


ANSWERS = [[10, 11], [12], [13], [14], [15]]
WRONG = [[20], [21], [22], [23], [24]]


def batch(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    width = max(LENGTHS) + 2
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, place], mask[row, place] = torch.tensor(tokens), 1
    return {"input_ids": ids, "attention_mask": mask}


def padded(side: str) -> tuple[TokenPair, ...]:
    clean, corrupted = zip(*prompts(), strict=True)
    other = "right" if side == "mixed" else side
    return pairs_of_batches(
        batch([*clean], "left" if side == "mixed" else side), batch([*corrupted], other), ANSWERS, WRONG
    )


def measurements(family: str, pairs: tuple[TokenPair, ...]) -> dict[str, Floats]:
    """One column per pair; attributions are sums, so that parts can be added up."""
    subject = subject_of(family)
    experiment = subject.experiment(pairs)
    edges = subject.some_edges()
    masks = random_masks(subject.graph.n_edges, (0.2, 0.7))
    return {
        "clean": experiment.clean[None],
        "corrupted": experiment.corrupted[None],
        "exact": experiment.edge_effects(edges),
        "circuits": experiment.circuits(masks),
        "eap": experiment.attributions([1.0])[:1].T * len(pairs),
        "eap-ig": experiment.attributions([0.25, 0.75])[:1].T * len(pairs),
    }


def alone(family: str) -> dict[str, Floats]:
    """Every prompt in an experiment of its own."""
    parts = [measurements(family, (pair,)) for pair in padded("left")]
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    return joined | {name: joined[name].sum(1, keepdims=True) for name in ("eap", "eap-ig")}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right", "mixed"])
def test_padded_prompts_of_different_lengths_score_as_one_prompt_at_a_time(family: str, side: str) -> None:
    together, apart = measurements(family, padded(side)), alone(family)
    assert together.keys() == apart.keys()
    for name, expected in apart.items():
        assert relative(together[name], expected) < 2e-5, name
        if name not in ("eap", "eap-ig"):
            assert spread(expected) > 0.1, f"{name} is the same for all prompts, so this proves nothing"


def spread(values: NDArray[np.float64]) -> float:
    return float(values.std(axis=1).max())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_plain_model_run_with_the_same_padding_agrees_on_the_logits(family: str) -> None:
    """What transformers computes itself from ids, mask and positions: the values the pairs must have."""
    subject = subject_of(family)
    experiment = subject.experiment(padded("left"))
    clean = batch([left for left, _ in prompts()], "left")
    positions = (clean["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = subject.module(**clean, position_ids=positions, use_cache=False).logits[:, -1].double()
    right = torch.stack([row[ids].logsumexp(0) for row, ids in zip(logits, ANSWERS, strict=True)])
    wrong = torch.stack([row[ids].logsumexp(0) for row, ids in zip(logits, WRONG, strict=True)])
    assert relative(experiment.clean, (right - wrong).numpy()) < 2e-5
