"""Long prompts: memory that grows with their length and not with its square, and the same numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from circuits.memory.needs import ModelSizes, Needs, PromptSize
from circuits.passes import attribution
from circuits.patching.experiment import PatchingExperiment
from circuits.tracing.after_prefix import AttentionAfterPrefix
from tests.memory.test_memory_plan import peak, total
from tests.subjects import Floats, Subject, random_pairs, relative, subject_of
from tests.tiny import tiny_llama

LENGTH = 600
"""Long enough for the mask to be done without, with the first token or 400 shared."""


def long_subject() -> Subject:
    return Subject("llama", tiny_llama(max_position_embeddings=4 * LENGTH))


def operations(made: PatchingExperiment) -> dict[str, Callable[[], Floats]]:
    graph = made.graph
    mask = np.random.default_rng(0).random((2, graph.n_edges)) < 0.5
    return {
        "eap": lambda: made.attributions([1.0])[0],
        "exact": lambda: made.edge_effects(np.arange(0, graph.n_edges, 13)),
        "circuits": lambda: made.circuits(mask),
        "gradient": lambda: made.circuit_gradient(np.where(mask[0], 1.0, 0.4))[1],
    }


# ------------------------------------------------------------------------------------------------------------- memory


def test_memory_of_twice_as_many_positions_is_hardly_more_than_twice_as_much() -> None:
    """All that is left of the square is the model's own: truth values of the mask that it makes, a byte each."""
    subject, sizes = long_subject(), list[dict[str, int]]()
    for length in (LENGTH, 2 * LENGTH):
        pairs, kept = random_pairs(1, length, shared=1), list[PatchingExperiment]()

        def record(pairs: Any = pairs, kept: list[PatchingExperiment] = kept) -> None:
            kept.append(subject.experiment(pairs, batch_size=1))

        recording = peak(record)
        assert kept[0].batches[0].clean.prefix is not None
        own = (length - 1) * length
        peaks = {name: peak(run) - own for name, run in operations(kept[0]).items()}
        sizes.append({"record": recording} | peaks)
    ratios = {name: sizes[1][name] / sizes[0][name] for name in sizes[0]}
    assert all(ratio < 2.2 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("shared", [1, 400])
def test_the_formula_knows_what_a_prefix_takes(shared: int) -> None:
    subject = long_subject()
    made = subject.experiment(random_pairs(1, LENGTH, shared=shared), batch_size=1)
    sizes = ModelSizes.of(made.tracer.anatomy)
    need = Needs(ModelSizes(sizes.shape, sizes.mlp, sizes.vocabulary), PromptSize(LENGTH - shared, shared))
    predicted = {
        "eap": total(need.attribution(sizes.n_senders)),
        "exact": total(need.differences()) + total(need.exact()),
        "circuits": total(need.circuits(sizes.n_senders)),
    }
    measured = {name: peak(run) for name, run in operations(made).items() if name in predicted}
    ratios = {name: predicted[name] / measured[name] for name in predicted}
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios


def test_the_mask_of_positions_after_a_prefix_is_a_term_of_theirs() -> None:
    """A byte for every number of it, and four more where attention adds them: a longer prefix, or a small mask."""
    sizes = ModelSizes.of(subject_of("llama").tracer.anatomy)
    keys_and_values = 2 * 3 * 2 * 12 * 4
    for positions, prefix, each in ((300, 300, 1), (300, 400, 5), (100, 50, 5)):
        need = Needs(ModelSizes(sizes.shape, sizes.mlp, sizes.vocabulary), PromptSize(positions, prefix))
        mask = need.exact()["prefix"] - keys_and_values * (positions + prefix)
        assert mask == each * positions * (positions + prefix)
    eager = Needs(ModelSizes(sizes.shape, sizes.mlp, sizes.vocabulary, scores=True), PromptSize(300, 300))
    assert eager.exact()["prefix"] == keys_and_values * 600


# ------------------------------------------------------------------------------------------------------- same numbers


@pytest.mark.parametrize("shared", [1, 400])
def test_long_prompts_after_a_prefix_are_measured_as_without_it(shared: int) -> None:
    subject, pairs = long_subject(), random_pairs(2, LENGTH, shared=shared)
    found, expected = (
        operations(subject.experiment(pairs, batch_size=2, prefix_cache=cached)) for cached in (True, False)
    )
    for name in found:
        assert relative(found[name](), expected[name]()) < 1e-4, name


def test_attribution_of_positions_in_turn_is_that_of_all_at_once(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subject.experiment()
    at_once = made.attributions([0.3, 1.0])
    monkeypatch.setattr(attribution, "PULLED_BACK_AT_ONCE", 2)
    in_turn = made.attributions([0.3, 1.0])
    assert relative(in_turn[0], at_once[0]) < 1e-6
    assert not np.array_equal(in_turn[0], at_once[0])  # so that it did go through several sums


# ------------------------------------------------------------------------------------------------ attention by itself

Attended = tuple[Tensor, Tensor, Tensor, Tensor]


def attended(mask: Tensor, queries: int, prefix: int, *, mode: bool) -> Attended:
    """What attention of 3 rows with 4 heads in 2 groups makes, and its gradients, under the mode or without it."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, weights = (
        torch.randn(3, heads, length, 8, generator=generator, dtype=torch.float64)
        for heads, length in ((4, queries), (2, queries + prefix), (2, queries + prefix), (4, queries))
    )
    leaves = [each.requires_grad_(True) for each in (query, key, value)]
    if mode:
        with AttentionAfterPrefix():
            made = functional.scaled_dot_product_attention(*leaves, attn_mask=mask, enable_gqa=True)
    else:
        made = functional.scaled_dot_product_attention(*leaves, attn_mask=mask, enable_gqa=True)
    found = torch.autograd.grad((made * weights).sum(), leaves)
    return made.detach(), found[0], found[1], found[2]


def looking_back(queries: int, prefix: int) -> Tensor:
    keys = torch.arange(queries + prefix)
    return (keys <= torch.arange(queries)[:, None] + prefix).expand(3, 1, queries, queries + prefix)


def hidden_once(mask: Tensor, row: int) -> Tensor:
    changed = mask.clone()
    changed[row, 0, -1, 0] = False
    return changed


MASKS = {
    "long": (looking_back(300, 20), 300, 20),
    "longer prefix": (looking_back(20, 300), 20, 300),
    "one row hides a key": (hidden_once(looking_back(300, 20), 2), 300, 20),
    "sees the future": (looking_back(300, 21)[..., :320], 300, 20),
    "numbers": (torch.zeros(3, 1, 300, 320, dtype=torch.float64).masked_fill(~looking_back(300, 20), -9.0), 300, 20),
}


@pytest.mark.parametrize("name", MASKS)
def test_attention_after_a_prefix_is_what_its_mask_says(name: str) -> None:
    mask, queries, prefix = MASKS[name]
    for found, expected in zip(
        attended(mask, queries, prefix, mode=True), attended(mask, queries, prefix, mode=False), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_only_a_mask_that_hides_what_comes_later_is_done_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, queries, prefix = MASKS[name]
    given, own = list[Any](), functional.scaled_dot_product_attention

    def seen(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        given.append(attn_mask)
        return own(query, key, value, attn_mask, **rest)

    with AttentionAfterPrefix() as mode:
        monkeypatch.setattr(functional, "scaled_dot_product_attention", seen)
        mode.attend(
            *(
                torch.ones(3, 4, length, 8, dtype=torch.float64)
                for length in (queries, queries + prefix, queries + prefix)
            ),
            mask,
        )
    expected = {"long": None, "longer prefix": torch.float64}
    assert (None if given[0] is None else given[0].dtype) == expected.get(name, mask.dtype)
