"""Where senders and receivers stand in the canonical order, from a model's shape alone.

Senders are the input, then layer by layer the heads and the MLP; receivers are layer by layer the queries, keys, values
and the MLP, then the end (:func:`circuits.builder.build_graph`). Passes over whole layers go by these numbers. In a
graph with token roles every place of a receiver is there once for each role; what is said of *places* here counts it
once, and of its edges the ones of all roles follow each other (:func:`edges_into`).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from circuits.graph import ComputationalGraph, ModelShape, Node, NodeKind, Slot


def first_sender(shape: ModelShape, layer: int) -> int:
    """Return the place of a layer's first sender, which is how many senders come before the layer."""
    return 1 + layer * shape.senders_per_layer


def head_senders(shape: ModelShape, layer: int) -> range:
    """Return the places of a layer's heads among the senders."""
    first = first_sender(shape, layer)
    return range(first, first + shape.n_heads)


def mlp_sender(shape: ModelShape, layer: int) -> int:
    """Return the place of a layer's MLP among the senders; of a model without MLPs, that of no sender of the layer."""
    return first_sender(shape, layer) + shape.n_heads


def blocks_of_senders(
    shape: ModelShape, senders: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the layer of each sender (-1: the input) and which head of it that is (-1: its MLP, or the input)."""
    layer, unit = np.divmod(np.asarray(senders, dtype=np.int64) - 1, shape.senders_per_layer)
    return layer, np.where((layer >= 0) & (unit < shape.n_heads), unit, -1)


def slot_receivers(shape: ModelShape, layer: int, slot: Slot) -> range:
    """Return the places of a layer's queries, keys or values among the receivers, one per head or key/value group."""
    before = {Slot.Q: 0, Slot.K: shape.n_heads, Slot.V: shape.n_heads + shape.n_kv_heads}[slot]
    first = layer * shape.receivers_per_layer + before
    return range(first, first + (shape.n_heads if slot is Slot.Q else shape.n_kv_heads))


def last_receiver(shape: ModelShape, layer: int) -> int:
    """Return the place of a layer's last receiver, which no receiver of the layer reads more senders than."""
    return (layer + 1) * shape.receivers_per_layer - 1


def mlp_receiver(shape: ModelShape, layer: int) -> int:
    """Return the place of a layer's MLP among the receivers; for models that have MLPs."""
    return last_receiver(shape, layer)


def end_receiver(graph: ComputationalGraph) -> int:
    """Return the place of the end among the receivers."""
    return len(graph.receivers) // graph.shape.n_roles - 1


def fan_in_of(graph: ComputationalGraph, place: int) -> int:
    """Return how many senders the receiver at a place can read."""
    return graph.fan_in[place * graph.shape.n_roles]


def edges_into(graph: ComputationalGraph, place: int, places: int = 1) -> "slice[int, int]":
    """Return the edges into the receivers at some places from ``place`` on: by receiver, role (if any) and sender."""
    first, last = (each * graph.shape.n_roles for each in (place, place + places))
    return slice(int(graph.offsets[first]), int(graph.offsets[last]))


def edges_into_layer(graph: ComputationalGraph, layer: int) -> "slice[int, int]":
    """Return the edges into a layer's receivers, and for the number of layers those into the end."""
    if layer == graph.shape.n_layers:
        return edges_into(graph, end_receiver(graph))
    return edges_into(graph, layer * graph.shape.receivers_per_layer, graph.shape.receivers_per_layer)


def idle_edges(graph: ComputationalGraph) -> NDArray[np.bool_] | None:
    """Return which edges carry nothing to the end, where it reads one head alone; None where every edge may."""
    shape = graph.shape
    if shape.only is None:
        return None
    head = Node(NodeKind.HEAD, shape.n_layers - 1, shape.only)
    own, kinds = (head, shape.group_of(head)), (NodeKind.HEAD, NodeKind.KV)
    nodes = [receiver.node for receiver in graph.receivers]
    others = np.array([node.layer == head.layer and node.kind in kinds and node not in own for node in nodes])
    ends = np.array([node.kind.is_end for node in nodes])
    beside = graph.edge_senders != graph.sender_index[head]
    return others[graph.edge_receivers] | (ends[graph.edge_receivers] & beside)


def reads_of_senders(shape: ModelShape) -> list[list[int]]:
    """Return, for every sender, the receivers through which it reads; heads of a group share its keys and values."""
    reads: list[list[int]] = [[]]
    for layer in range(shape.n_layers):
        queries, keys, values = (slot_receivers(shape, layer, slot) for slot in Slot)
        for head in range(shape.n_heads):
            group = head // shape.heads_per_group
            reads.append([queries[head], keys[group], values[group]])
        if shape.has_mlp(layer):
            reads.append([mlp_receiver(shape, layer)])
    return reads
