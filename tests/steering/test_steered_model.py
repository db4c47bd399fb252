"""Ablating and adding a direction, against plain hooks on a plain model; texts against generation without a cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from circuits.directions.stream_direction import StreamDirection
from circuits.model import Model, load_model
from circuits.steering.recording import auc, common_ending, last_streams
from circuits.steering.steered_model import SteeredModel, shared_beginning
from tests.subjects import random_pairs
from tests.tiny import FAMILIES, tiny_tokenizer

THREE = ("llama", "qwen2", "gpt2")
PROMPTS = [(11, 12, *pair.clean[2:]) for pair in random_pairs(3, 7)] + [p.clean for p in random_pairs(2, 5, seed=8)]
LAYER = 1


@cache
def model(family: str) -> Model:
    return load_model(FAMILIES[family](), tokenizer=tiny_tokenizer(), name=family)


def direction(family: str, size: float = 3.0) -> StreamDirection:
    vector = np.random.default_rng(1).normal(size=model(family).info.d_model)
    return StreamDirection(vector, LAYER, size=size)


def parts(family: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """The blocks, and all that writes to the stream but the embedding."""
    body = model(family).tracer.anatomy.module
    blocks = list(body.transformer.h if family == "gpt2" else body.model.layers)
    return blocks, [
        part for block in blocks for part in ((block.attn if family == "gpt2" else block.self_attn), block.mlp)
    ]


@contextmanager
def hooked(family: str, action: str, scale: float = 1.0) -> Iterator[None]:
    """Arditi et al.'s way: nothing written to the stream has the direction; or it is added in front of one layer."""
    d, (blocks, writers) = torch.tensor(direction(family).vector, dtype=torch.float32), parts(family)

    def without(value: Tensor) -> Tensor:
        return value - (value @ d)[..., None] * d

    def written(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

    added = scale * direction(family).size * d
    if action == "ablate":
        handles = [writer.register_forward_hook(written) for writer in writers]
        handles.append(blocks[0].register_forward_pre_hook(lambda _, args: (without(args[0]), *args[1:])))
    else:
        handles = [blocks[LAYER].register_forward_pre_hook(lambda _, args: (args[0] + added, *args[1:]))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plain(family: str, prompt: Sequence[int]) -> Tensor:
    return model(family).tracer.anatomy.module(torch.tensor([list(prompt)]), use_cache=False).logits[0]


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize("action", ["ablate", "add"])
def test_first_tokens_and_texts_equal_those_of_plain_hooks_without_a_cache(family, action):
    steered = SteeredModel(model(family), direction(family), action, 1.5)
    texts, logits = steered.answers(PROMPTS, 4)
    with hooked(family, action, 1.5):
        torch.testing.assert_close(logits, torch.stack([plain(family, p)[-1] for p in PROMPTS]), atol=1e-4, rtol=1e-4)
        for prompt, text in zip(PROMPTS, texts, strict=True):
            whole = list(prompt)
            for _ in range(4):
                whole.append(int(plain(family, whole)[-1].argmax()))
            expected = whole[len(prompt) :]
            assert list(text) == expected[: expected.index(0)] if 0 in expected else expected
    untouched = torch.stack([plain(family, prompt)[-1] for prompt in PROMPTS])
    assert not torch.allclose(logits, untouched, atol=1e-2)
    torch.testing.assert_close(SteeredModel(model(family)).answers(PROMPTS)[1], untouched, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize("action", ["ablate", "add"])
def test_losses_and_divergences_of_text_equal_those_of_plain_hooks(family, action):
    losses, divergences = SteeredModel(model(family), direction(family), action).compared(
        PROMPTS, SteeredModel(model(family))
    )
    for place, prompt in enumerate(PROMPTS):
        before = plain(family, prompt)[:-1].log_softmax(-1)
        with hooked(family, action):
            after = plain(family, prompt)[:-1].log_softmax(-1)
        expected = -after[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
        np.testing.assert_allclose(losses[place], expected.numpy(), atol=1e-4, rtol=1e-4)
        kl = (before.exp() * (before - after)).sum(-1)
        np.testing.assert_allclose(divergences[place], kl.numpy(), atol=1e-5, rtol=1e-3)
        assert max(divergences[place]) > 1e-3


def test_a_direction_behind_the_last_layer_is_added_to_what_the_final_norm_reads():
    layers = model("llama").info.n_layers
    behind = StreamDirection(direction("llama").vector, layers, size=2.0)
    _, logits = SteeredModel(model("llama"), behind, "add").answers(PROMPTS[:1])
    module = model("llama").tracer.anatomy.module
    added = 2.0 * torch.tensor(behind.vector, dtype=torch.float32)
    hook = module.model.norm.register_forward_pre_hook(lambda _, args: (args[0] + added,))
    expected = plain("llama", PROMPTS[0])[-1]
    hook.remove()
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", THREE)
def test_recorded_streams_are_those_of_plain_hooks_shared_beginnings_or_not(family):
    found = last_streams(model(family), PROMPTS, 2)
    blocks, _ = parts(family)
    module = model(family).tracer.anatomy.module
    norm = module.transformer.ln_f if family == "gpt2" else module.model.norm
    for place, prompt in enumerate(PROMPTS):
        caught: list[Tensor] = []
        hooks = [
            part.register_forward_pre_hook(lambda _, args, caught=caught: caught.append(args[0][0, -2:].clone()))
            for part in (*blocks, norm)
        ]
        plain(family, prompt)
        for hook in hooks:
            hook.remove()
        np.testing.assert_allclose(found[place], torch.stack(caught).numpy(), atol=1e-4, rtol=1e-4)
    assert shared_beginning(torch.tensor(PROMPTS[:3])) == 2


def test_shared_beginnings_leave_the_last_tokens_to_be_run():
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    assert shared_beginning(ids) == 3
    assert shared_beginning(ids, leave=2) == 2
    assert shared_beginning(torch.tensor([[1, 2], [3, 2]])) == 0


def test_common_endings_are_counted_over_both_sides():
    pairs = random_pairs(3, 6, seed=5)
    assert common_ending(pairs, 5) == 1
    ended = [replace(p, clean=(*p.clean, 7, 8, 9), corrupted=(*p.corrupted, 7, 8, 9)) for p in pairs]
    assert common_ending(ended, 5) == 3
    assert common_ending(ended, 2) == 2


def test_the_area_under_the_curve_is_the_share_of_ordered_pairs_with_ties_as_halves():
    value, low, high = auc(np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0, 1.0]))
    assert value == pytest.approx((3 + 1.5 + 2.5) / 9)
    assert low < value < high
    assert auc(np.array([1.0, 2.0]), np.array([-1.0, 0.0])) == (1.0, 1.0, 1.0)
    assert auc(np.array([0.0, 0.0]), np.array([0.0, 0.0]))[0] == 0.5
