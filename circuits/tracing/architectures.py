"""Declarative adapters: where each family of decoders reads and writes its residual stream.

An :class:`Architecture` is a table of module names and one layout function; nothing in it computes. To add a family,
add one entry to :data:`ARCHITECTURES`; the guards (:mod:`circuits.tracing.guards`) judge at load whether it is right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from circuits.errors import UnsupportedModelError
from circuits.graph import ModelShape, Slot
from circuits.tracing.plan import Site

Columns = NDArray[np.int64]
"""Which outputs of a projection belong to which unit, shape ``(unit, d_head)``; a unit is a head or key/value head."""

Layout = Callable[[ModelShape, Slot], Columns]


def separate(shape: ModelShape, slot: Slot) -> Columns:
    """Give the columns of a projection that serves one slot only: unit after unit."""
    units = shape.n_heads if slot is Slot.Q else shape.n_kv_heads
    return np.arange(units * shape.d_head).reshape(units, shape.d_head)


def concatenated(shape: ModelShape, slot: Slot) -> Columns:
    """Give the columns of a fused projection that holds all queries, then all keys, then all values."""
    queries, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    first = {Slot.Q: 0, Slot.K: queries, Slot.V: queries + keys}[slot]
    return separate(shape, slot) + first


@dataclass(frozen=True)
class Architecture:
    """Where things are in one family. Paths are relative to the model (``layers`` …) or to one layer (the rest).

    ``attention_norm`` and ``mlp_norm`` are the norms through which a layer reads the residual stream; ``output`` is the
    projection whose input is the concatenation of all head outputs.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    final_norm: str
    attention: str
    attention_norm: str
    mlp: str
    mlp_norm: str
    projections: Mapping[Slot, str]
    output: str
    layout: Layout = separate
    parallel: bool = False

    @property
    def projection_sites(self) -> dict[str, Site]:
        """Every projection module once, with the site at which plans visit it: that of the first slot it serves."""
        sites: dict[str, Site] = {}
        for slot, path in self.projections.items():
            sites.setdefault(path, Site[slot.name])
        return sites


LLAMA = Architecture(
    name="llama",
    model_types=("llama", "mistral", "qwen2"),
    layers="model.layers",
    final_norm="model.norm",
    attention="self_attn",
    attention_norm="input_layernorm",
    mlp="mlp",
    mlp_norm="post_attention_layernorm",
    projections=MappingProxyType({Slot.Q: "self_attn.q_proj", Slot.K: "self_attn.k_proj", Slot.V: "self_attn.v_proj"}),
    output="self_attn.o_proj",
)

GPT2 = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    attention_norm="ln_1",
    mlp="mlp",
    mlp_norm="ln_2",
    projections=MappingProxyType(dict.fromkeys(Slot, "attn.c_attn")),
    output="attn.c_proj",
    layout=concatenated,
)

ARCHITECTURES: tuple[Architecture, ...] = (LLAMA, GPT2)


def architecture_of(model_type: str) -> Architecture:
    """Find the adapter of a model by its ``config.model_type``; raises :class:`UnsupportedModelError`."""
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    known = ", ".join(kind for architecture in ARCHITECTURES for kind in architecture.model_types)
    raise UnsupportedModelError(
        f"models of type '{model_type}' have no adapter yet, so their edges would be measured at the wrong places. "
        f"Supported types: {known}. To add one, describe it in "
        "circuits/tracing/architectures.py; the guards will check it."
    )
