"""Where queries, keys, values and head outputs pass through each implementation of attention.

Most families hand all of them, already sliced into heads, normalised and rotated, to an exchangeable attention
function; that is where this module stands. The others are entered through a method of theirs. Nothing here knows how
a projection is laid out: a fused, interleaved or grouped projection is unpacked by the family's own code.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

VisitInputs = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Gets queries, keys and values, each (pair, head or group, pos, d_head), and gives those to be used instead."""

VisitOutputs = Callable[[Tensor], Tensor]
"""Gets the outputs of all heads, (pair, head, pos, d_head), and gives those to be used instead."""


@contextmanager
def replaced(owner: Any, name: str, new: object) -> Iterator[None]:
    """Set an attribute of a module or class, and put back what was there."""
    own = vars(owner).get(name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        delattr(owner, name) if own is None else setattr(owner, name, own)


@contextmanager
def visited(attention: nn.Module, inputs: VisitInputs, outputs: VisitOutputs) -> Iterator[None]:
    """Let the visitors see, and change, what passes through one attention module."""
    with ExitStack() as stack:
        for owner, name, new in _changes(attention, inputs, outputs):
            stack.enter_context(replaced(owner, name, new))
        yield


def _changes(attention: nn.Module, inputs: VisitInputs, outputs: VisitOutputs) -> list[tuple[Any, str, object]]:
    match type(attention).__name__:
        case "GPTNeoAttention":
            return _through_attn(attention.attention, inputs, outputs)
        case "BloomAttention":
            return _through_bloom(attention, inputs, outputs)
        case "FalconAttention":
            return _through_falcon(attention, inputs, outputs)
        case "MptAttention":
            return _through_mpt(attention, inputs, outputs)
        case _ if hasattr(attention, "_attn"):  # GPT-J before transformers 5.24, CodeGen
            return _through_attn(attention, inputs, outputs)
        case _:
            return _through_attention_function(attention, inputs, outputs)


def _through_attention_function(
    attention: nn.Module, inputs: VisitInputs, outputs: VisitOutputs
) -> list[tuple[Any, str, object]]:
    original = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, *names: Any) -> Callable[..., tuple[Tensor, Any]]:
        function = original(self, *names)

        def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Any:
            if module is not attention:
                return function(module, q, k, v, *args, **options)
            mixed, weights = function(module, *inputs(q, k, v), *args, **options)
            return outputs(mixed.transpose(1, 2)).transpose(1, 2), weights

        return attend

    return [(AttentionInterface, "get_interface", get_interface)]


def _through_attn(attention: nn.Module, inputs: VisitInputs, outputs: VisitOutputs) -> list[tuple[Any, str, object]]:
    original = attention._attn

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Any]:
        mixed, weights = original(*inputs(q, k, v), *args, **options)
        return outputs(mixed), weights

    return [(attention, "_attn", attend)]


def _through_bloom(attention: nn.Module, inputs: VisitInputs, outputs: VisitOutputs) -> list[tuple[Any, str, object]]:
    split, merge = attention._reshape, attention._merge_heads
    return [
        (attention, "_reshape", lambda fused: inputs(*split(fused))),
        (
            attention,
            "_merge_heads",
            lambda mixed: merge(outputs(mixed.unflatten(0, (-1, attention.num_heads))).flatten(0, 1)),
        ),
    ]


def _through_falcon(attention: nn.Module, inputs: VisitInputs, outputs: VisitOutputs) -> list[tuple[Any, str, object]]:
    """Falcon's larger models repeat the keys and values of a group for each of its heads, which is undone here."""
    split, dense = attention._split_heads, attention.dense.forward
    repeats = attention.num_heads // attention.num_kv_heads if attention.new_decoder_architecture else 1

    def split_heads(fused: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (x.transpose(1, 2) for x in split(fused))
        q, k, v = inputs(q, k[:, ::repeats], v[:, ::repeats])
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        return tuple(x.transpose(1, 2) for x in (q, k, v))

    return [
        (attention, "_split_heads", split_heads),
        (attention.dense, "forward", lambda mixed: dense(_merged(outputs(_split(mixed, attention.num_heads))))),
    ]


def _through_mpt(attention: nn.Module, inputs: VisitInputs, outputs: VisitOutputs) -> list[tuple[Any, str, object]]:
    project, heads = attention.Wqkv.forward, attention.n_heads
    out = attention.out_proj.forward

    def project_visited(x: Tensor) -> Tensor:
        return torch.cat([_merged(y) for y in inputs(*(_split(y, heads) for y in project(x).chunk(3, dim=-1)))], dim=-1)

    return [
        (attention.Wqkv, "forward", project_visited),
        (attention.out_proj, "forward", lambda mixed: out(_merged(outputs(_split(mixed, heads))))),
    ]


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
