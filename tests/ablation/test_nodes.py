"""Random ablations have the size and depth of what they are held against, on other nodes."""

from collections import Counter

import pytest

from circuits.ablation.nodes import control_nodes
from circuits.builder import build_graph
from circuits.graph import ModelShape, Node, NodeKind

GRAPH = build_graph(ModelShape(n_layers=9, n_heads=4, n_kv_heads=2, d_model=8, d_head=2))


def head(layer: int, index: int) -> Node:
    return Node(NodeKind.HEAD, layer, index)


def mlp(layer: int) -> Node:
    return Node(NodeKind.MLP, layer)


NODES = (head(0, 1), head(1, 0), head(5, 3), head(8, 2), mlp(0), mlp(7), mlp(8))


def profile(nodes: tuple[Node, ...]) -> Counter[tuple[NodeKind, int]]:
    return Counter((node.kind, node.layer // 3) for node in nodes)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_heads_and_mlps_are_drawn_from_every_third_of_the_layers(seed: int) -> None:
    drawn = control_nodes(GRAPH, NODES, seed)
    assert profile(drawn) == profile(NODES) != Counter()
    assert len(set(drawn)) == len(drawn)
    assert list(drawn) == [node for node in GRAPH.senders if node in drawn]


def test_other_nodes_are_drawn_and_only_where_there_are_too_few_the_same() -> None:
    late = {node for node in NODES if node.kind is NodeKind.MLP and node.layer >= 6}
    for seed in range(5):
        shared = set(control_nodes(GRAPH, NODES, seed)) & set(NODES)
        assert len(shared) == 1  # two of the three late MLPs are taken: one other is left
        assert shared <= late
    every = tuple(mlp(layer) for layer in range(9))
    assert control_nodes(GRAPH, every, 0) == every


def test_draws_differ_by_seed_and_repeat_with_it() -> None:
    draws = [control_nodes(GRAPH, NODES, seed) for seed in range(8)]
    assert len(set(draws)) > 4
    assert draws == [control_nodes(GRAPH, NODES, seed) for seed in range(8)]
