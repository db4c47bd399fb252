"""Positions that clean and corrupted prompts share: run once, whatever number of pairs begins with them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache

from circuits.behaviours.pairs import TokenPair
from circuits.tracing.prefix import cache_keyword
from tests.subjects import Subject, clean_ids, random_pairs, subject_of
from tests.tiny import tiny_llama


def alike(pairs: Sequence[TokenPair], shared: int) -> list[TokenPair]:
    """Let pairs 0 and 2, and 1 and 3, begin with the same tokens."""
    begun = [pairs[i % 2].clean[:shared] for i in range(len(pairs))]
    return [
        replace(pair, clean=start + pair.clean[shared:], corrupted=start + pair.corrupted[shared:])
        for start, pair in zip(begun, pairs, strict=True)
    ]


def rows_through(module: nn.Module) -> list[int]:
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


def test_prompts_that_begin_alike_are_run_once_and_not_unembedded() -> None:
    subject = Subject("llama", tiny_llama())
    tracer = subject.tracer  # which tries the model before anything is counted
    ids = clean_ids(alike(random_pairs(4, 12, shared=8), 8))[:, :8]
    embedded, unembedded = (
        rows_through(subject.module.get_submodule(path)) for path in ("model.embed_tokens", "lm_head")
    )
    prefix = tracer.prefix_of(ids)
    assert (embedded, unembedded) == ([2], [])
    assert prefix.of[0] == prefix.of[2] != prefix.of[1] == prefix.of[3]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prefix_holds_the_keys_and_values_of_the_models_own_cache(name: str) -> None:
    subject = subject_of(name)
    ids = clean_ids(alike(random_pairs(4, 12, shared=8), 8))[:, :8]
    keyword, own = cache_keyword(subject.module), DynamicCache()
    assert keyword is not None
    with torch.no_grad():
        subject.module(ids, use_cache=True, **{keyword: own})
    made: Any = subject.tracer.prefix_of(ids).cache(8, 0)
    for found, expected in zip(made.layers, cast(Any, own).layers, strict=True):
        torch.testing.assert_close(found.keys, expected.keys.repeat(2, 1, 1, 1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.values, expected.values.repeat(2, 1, 1, 1), atol=1e-5, rtol=1e-5)


def test_pairs_that_begin_alike_are_measured_as_each_alone() -> None:
    subject, pairs = subject_of("llama"), alike(random_pairs(4, 12, shared=8), 8)
    edges, together = subject.some_edges(7), subject.experiment(pairs)
    prefix = together.batches[0].clean.prefix
    assert prefix is not None
    assert len(prefix.keys[0]) == 2
    alone = [subject.experiment([pair]).edge_effects(edges)[:, 0] for pair in pairs]
    np.testing.assert_allclose(together.edge_effects(edges), np.stack(alone, axis=1), atol=2e-5)
    np.testing.assert_allclose(together.part(1, 3).edge_effects(edges), np.stack(alone[1:3], axis=1), atol=2e-5)
