"""The places that are computed from a model's shape are those of its graph."""

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.graph import ModelShape, Node, NodeKind, Receiver, Slot
from circuits.numbering import (
    blocks_of_senders,
    first_sender,
    head_senders,
    mlp_receiver,
    mlp_sender,
    slot_receivers,
)

SHAPES = [
    ModelShape(3, 4, 4, 8, 2),
    ModelShape(3, 4, 2, 8, 2, parallel=True),
    ModelShape(2, 3, 1, 6, 2, mlps=False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=["sequential", "parallel, grouped", "attention only"])
def test_places_are_those_of_the_graph(shape: ModelShape) -> None:
    graph = build_graph(shape)
    kind = NodeKind.KV if shape.grouped else NodeKind.HEAD
    for layer in range(shape.n_layers):
        heads = [Node(NodeKind.HEAD, layer, head) for head in range(shape.n_heads)]
        groups = [Node(kind, layer, group) for group in range(shape.n_kv_heads)]
        assert [graph.senders[place] for place in head_senders(shape, layer)] == heads
        for slot in Slot:
            units = heads if slot is Slot.Q else groups
            found = [graph.receivers[place] for place in slot_receivers(shape, layer, slot)]
            assert found == [Receiver(unit, slot) for unit in units]
        assert all(node.layer < layer for node in graph.senders[: first_sender(shape, layer)])
        assert graph.senders[first_sender(shape, layer)] == heads[0]
        mlp = Node(NodeKind.MLP, layer)
        if shape.mlps:
            assert graph.senders[mlp_sender(shape, layer)] == mlp
            assert graph.receivers[mlp_receiver(shape, layer)] == Receiver(mlp)
        else:
            assert mlp_sender(shape, layer) == first_sender(shape, layer + 1)
    assert first_sender(shape, shape.n_layers) == len(graph.senders)


@pytest.mark.parametrize("shape", SHAPES, ids=["sequential", "parallel, grouped", "attention only"])
def test_every_sender_is_sorted_into_its_block(shape: ModelShape) -> None:
    senders = build_graph(shape).senders
    layers, heads = blocks_of_senders(shape, np.arange(len(senders)))
    assert layers.tolist() == [node.layer for node in senders]
    assert heads.tolist() == [node.index if node.kind is NodeKind.HEAD else -1 for node in senders]
