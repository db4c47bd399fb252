"""What an adapter says about a family of decoders: where it reads and writes its residual stream.

An :class:`Architecture` is a table of module names and one layout function; nothing in it computes. All sizes are read
from the modules it names, and the guards (:mod:`circuits.guards.checks`) judge at load whether it fits a model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from circuits.graph import ModelShape, Slot
from circuits.tracing.plan import LayerSite

Columns = NDArray[np.int64]
"""Which outputs of a projection belong to which unit, shape ``(unit, d_head)``; a unit is a head or key/value head."""

Layout = Callable[[ModelShape, Slot], Columns]


def separate(shape: ModelShape, slot: Slot) -> Columns:
    """Return the columns of a projection that serves one slot only: unit after unit."""
    units = shape.n_heads if slot is Slot.Q else shape.n_kv_heads
    return np.arange(units * shape.d_head).reshape(units, shape.d_head)


def concatenated(shape: ModelShape, slot: Slot) -> Columns:
    """Return the columns of a fused projection that holds all queries, then all keys, then all values."""
    queries, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    first = {Slot.Q: 0, Slot.K: queries, Slot.V: queries + keys}[slot]
    return separate(shape, slot) + first


def by_group(shape: ModelShape, slot: Slot) -> Columns:
    """Return the columns of a fused projection that holds, group after group, its queries, its key and its value.

    With plain multi-head attention a group is one head, and this is the layout query, key, value of each head.
    """
    size = shape.heads_per_group
    group = np.arange(shape.n_kv_heads)[:, None] * (size + 2)
    place = {Slot.Q: np.arange(size), Slot.K: np.array([size]), Slot.V: np.array([size + 1])}[slot]
    return (group + place).reshape(-1, 1) * shape.d_head + np.arange(shape.d_head)


@dataclass(frozen=True)
class Architecture:
    """Where things are in one family. Paths are relative to the model (``layers``, ``final_norm``) or to one layer.

    Attributes:
        name: What the family is called.
        model_types: The ``config.model_type`` of the models that are of this family.
        when: Values of the configuration that choose this entry among several of the same model type.
        layers: The list of layers.
        final_norm: The norm through which the logits are read; None: the output embedding reads the stream itself.
        attention: The attention of a layer.
        projections: For each slot the projection that makes it; a fused one is named three times.
        layout: Which outputs of a projection belong to which head.
        output: The projection whose input is the concatenation of all head outputs.
        attention_norm: The norm through which the attention reads the stream; None: it reads the stream itself.
        mlp: The MLP of a layer, or the first module of one that is no module of its own; None: a layer is its
            attention alone, and no path of an MLP is given.
        mlp_output: The last module of such an MLP, or of one that adds the stream to what it returns.
        mlp_norm: The norm through which the MLP reads; in a parallel block it may be the attention's.
        attention_post_norm: A norm between the attention's output projection and the stream (sandwich).
        mlp_post_norm: A norm between the MLP and the stream.
        projection_norms: Norms over all heads of a slot at once, after its projection (norms of single heads are part
            of the attention and need no mention).
        parallel: Whether the MLP reads what the attention of its own layer reads.
        attention_adds_stream: Whether the attention returns the stream plus its own output.
        residual_scale: The attribute of the configuration that multiplies what every block adds to the stream.
        heads: How many query heads a layer has: a number, or where the model keeps it, such as ``layers.0.attn.heads``.
        unembedding: The module that makes the logits; None: that which a model of transformers says it has. A decoder
            of one's own needs it where there is no ``final_norm``; elsewhere a plain linear layer saves the logits of
            all positions but the last.
    """

    name: str
    layers: str
    final_norm: str | None
    attention: str
    projections: Mapping[Slot, str]
    output: str
    attention_norm: str | None
    mlp: str | None
    mlp_norm: str | None
    mlp_output: str | None = None
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    projection_norms: Mapping[Slot, str] = field(default_factory=dict[Slot, str])
    layout: Layout = separate
    parallel: bool = False
    attention_adds_stream: bool = False
    residual_scale: str | None = None
    heads: str | int = "config.num_attention_heads"
    unembedding: str | None = None
    model_types: tuple[str, ...] = ()
    when: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def slot_modules(self) -> dict[Slot, str]:
        """The module whose output holds a slot's queries, keys or values: the projection, or the norm after it."""
        return {slot: self.projection_norms.get(slot, path) for slot, path in self.projections.items()}

    @property
    def slot_sites(self) -> dict[str, LayerSite]:
        """Every module of :attr:`slot_modules` once, with the site at which plans visit it: its first slot's."""
        sites: dict[str, LayerSite] = {}
        for slot, path in self.slot_modules.items():
            sites.setdefault(path, LayerSite[slot.name])
        return sites

    @property
    def layer_paths(self) -> tuple[str, ...]:
        """Every path within a layer that is declared."""
        optional = (
            self.mlp,
            self.attention_norm,
            self.mlp_norm,
            self.mlp_output,
            self.attention_post_norm,
            self.mlp_post_norm,
        )
        named = (self.attention, self.output, *self.projections.values(), *self.projection_norms.values())
        return tuple(dict.fromkeys([*named, *(path for path in optional if path is not None)]))


def each_slot(query: str, key: str | None = None, value: str | None = None) -> Mapping[Slot, str]:
    """Name the projection of each slot; one name alone is a fused projection."""
    return {Slot.Q: query, Slot.K: key or query, Slot.V: value or query}
