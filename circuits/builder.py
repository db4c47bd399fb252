"""The only place that decides which edges exist."""

from dataclasses import replace

import numpy as np

from circuits.graph import ComputationalGraph, EdgeIndices, ModelShape, Node, NodeKind, Receiver, Slot


def build_graph(shape: ModelShape) -> ComputationalGraph:
    """Build the graph of every sender, receiver and edge that a model of this shape has.

    Attention of layer ``l`` reads the input and everything earlier layers wrote. The MLP of a sequential block also
    reads the heads of its own layer, that of a parallel block does not. Key and value receivers are per key/value head,
    because that is the unit the model computes; without grouping they carry the head's own name. With roles every
    receiver is there once for each.

    >>> graph = build_graph(ModelShape(n_layers=12, n_heads=12, n_kv_heads=12, d_model=768, d_head=64))
    >>> len(graph.nodes), graph.n_edges
    (158, 32491)
    """
    senders = [Node(NodeKind.INPUT)]
    receivers: list[Receiver] = []
    fan_in: list[int] = []
    for layer in range(shape.n_layers):
        heads = [Node(NodeKind.HEAD, layer, head) for head in range(shape.n_heads)]
        mlp = Node(NodeKind.MLP, layer)
        readers = _attention_receivers(shape, layer)
        before = len(senders)
        receivers += readers
        fan_in += [before] * len(readers)
        senders += heads
        if shape.has_mlp(layer):
            receivers.append(Receiver(mlp))
            fan_in.append(before if shape.parallel else before + len(heads))
            senders.append(mlp)
    receivers.append(Receiver(shape.end))
    fan_in.append(len(senders))
    in_roles = [replace(receiver, role=role) for receiver in receivers for role in shape.roles or ("",)]
    return ComputationalGraph(shape, tuple(senders), tuple(in_roles), tuple(np.repeat(fan_in, shape.n_roles).tolist()))


def per_query_head(graph: ComputationalGraph) -> tuple[ComputationalGraph, EdgeIndices]:
    """Return the graph with keys and values for every query head, and the edge of ``graph`` that each edge copies.

    This is how EAP-IG and MIB count edges. Without grouped queries it is the same graph.
    """
    shape = graph.shape
    ungrouped = build_graph(replace(shape, n_kv_heads=shape.n_heads))
    copied: list[EdgeIndices] = []
    for receiver, fan_in in zip(ungrouped.receivers, ungrouped.fan_in, strict=True):
        shared = receiver.slot in (Slot.K, Slot.V)
        node = shape.group_of(receiver.node) if shared else receiver.node
        place = graph.receiver_index[replace(receiver, node=node)]
        copied.append(graph.offsets[place] + np.arange(fan_in))
    return ungrouped, np.concatenate(copied)


def _attention_receivers(shape: ModelShape, layer: int) -> list[Receiver]:
    kind = NodeKind.KV if shape.grouped else NodeKind.HEAD
    queries = [Receiver(Node(NodeKind.HEAD, layer, head), Slot.Q) for head in range(shape.n_heads)]
    keys_values = [
        Receiver(Node(kind, layer, group), slot) for slot in (Slot.K, Slot.V) for group in range(shape.n_kv_heads)
    ]
    return queries + keys_values
