"""Attention weights are measured through any kernel; where a head's output is no weighted sum, that is noticed."""

import pytest
import torch
from torch import nn

from circuits.adapters.anatomy import Anatomy
from circuits.errors import GuardError
from circuits.heads.attention import attention_weights, require_weighted_sum
from circuits.tracing.runs import record
from circuits.tracing.tracer import Tracer
from tests.tiny import tiny_llama
from tests.zoo import WINDOW, ZOO

IDS = torch.randint(320, (2, 15), generator=torch.Generator().manual_seed(0))
"""More positions than the 8 or 12 that one pass measures."""
HEADS = [0, 1, 2, 3]


def measured(module: nn.Module, layer: int) -> torch.Tensor:
    tracer = Tracer(Anatomy(module))
    run = record(tracer, IDS)
    weights = attention_weights(tracer, run, layer, HEADS)
    require_weighted_sum(tracer, run, layer, HEADS, weights)
    return weights


QUICK = (
    *("gpt2", "gpt_neo", "gptj", "gpt_neox", "gpt_bigcode", "bloom", "falcon_new", "falcon_rw", "mpt", "opt", "phi3"),
    *("qwen3", "gemma2", "gpt_oss", "cohere2", "olmo_clipped", "olmo2"),
)
"""Families that differ in what makes the weights: positions, windows, caps, sinks, fused projections, norms."""


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ZOO)]
)
def test_weights_are_those_of_the_eager_kernel(family: str) -> None:
    # Falcon with ALiBi puts other biases into sdpa than into its eager code, so that even its logits differ.
    module = ZOO[family](attn_implementation="eager") if family == "falcon_rw" else ZOO[family]()
    eager = ZOO[family](attn_implementation="eager")
    with torch.no_grad():
        expected = eager(IDS, output_attentions=True, use_cache=False).attentions
    assert expected is not None
    for layer in (0, 2):
        torch.testing.assert_close(measured(module, layer), expected[layer], atol=2e-5, rtol=1e-4)


def test_weights_of_another_layer_or_head_differ() -> None:
    weights = measured(tiny_llama(), 1)
    assert (weights[:, 0] - weights[:, 1]).abs().max() > 0.1
    assert (weights - measured(tiny_llama(), 2)).abs().max() > 0.1


def test_some_heads_only_are_given_in_the_order_asked_for() -> None:
    tracer = Tracer(Anatomy(tiny_llama()))
    run = record(tracer, IDS)
    both = attention_weights(tracer, run, 1, [3, 1])
    torch.testing.assert_close(both, attention_weights(tracer, run, 1, HEADS)[:, [3, 1]])


def test_a_window_is_seen() -> None:
    weights = measured(ZOO["mistral"](), 1)
    far = torch.ones(15, 15).tril(-WINDOW).bool()
    assert float(weights[:, :, far].abs().max()) < 1e-6
    assert float(measured(tiny_llama(), 1)[:, :, far].max()) > 0.1


def test_half_precision_is_measured_too() -> None:
    weights = measured(tiny_llama().to(torch.bfloat16), 1)
    assert weights.dtype is torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 15), atol=0.03, rtol=0)


def test_values_that_are_changed_behind_their_projection_are_refused() -> None:
    clipped = ZOO["olmo_clipped"](clip_qkv=0.25)
    with pytest.raises(GuardError, match=r"the heads of layer 1 do not put out their values weighted by attention"):
        measured(clipped, 1)


def test_weights_that_are_not_those_of_the_run_are_refused() -> None:
    tracer = Tracer(Anatomy(tiny_llama()))
    run = record(tracer, IDS)
    weights = attention_weights(tracer, run, 1, HEADS)
    with pytest.raises(GuardError, match="expected"):
        require_weighted_sum(tracer, run, 1, HEADS, weights[:, [1, 0, 2, 3]])
