"""Random circuits to hold a circuit against: the same layers, MLPs and wiring, with other heads.

A control must be able to do well, or beating it says nothing. Circuits moved to other layers cannot: most lose an edge
that every circuit needs (in SmolLM2 the one from the input to the first MLP) and have nothing of any behaviour.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from circuits.graph import ComputationalGraph, Edge, EdgeIndices, Node, NodeKind


def random_circuits(graph: ComputationalGraph, edges: EdgeIndices, count: int, seed: int) -> NDArray[np.bool_]:
    """Return masks of ``count`` circuits with other heads, ``(circuit, edge)``; none where there is no head to swap.

    The same ones for the same edges and seed. A model with one head per layer has nothing to swap either.
    """
    kinds = {node.kind for edge in graph.edges(edges) for node in (edge.sender, edge.receiver.node)}
    swappable = graph.shape.n_heads > 1 and bool(kinds & {NodeKind.HEAD, NodeKind.KV})
    generator = np.random.default_rng(seed)
    masks = [heads_swapped(graph, edges, generator) for _ in range(count if swappable else 0)]
    return np.array(masks, dtype=np.bool_).reshape(len(masks), graph.n_edges)


def heads_swapped(graph: ComputationalGraph, edges: EdgeIndices, seed: int | np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of a circuit of the same size, degrees and layers on other heads.

    In every layer the key/value groups change places, and within them their heads; input, MLPs and logits stay. Every
    path stays a path: only the heads it leads through are others.
    """
    generator = np.random.default_rng(seed)
    shape = graph.shape
    groups = generator.permuted(np.tile(np.arange(shape.n_kv_heads), (shape.n_layers, 1)), axis=1)
    members = generator.permuted(
        np.tile(np.arange(shape.heads_per_group), (shape.n_layers, shape.n_kv_heads, 1)), axis=2
    )

    if shape.only is not None:  # of the last layer this head alone leads to the end
        groups[-1], members[-1] = np.arange(shape.n_kv_heads), np.arange(shape.heads_per_group)

    def moved(node: Node) -> Node:
        if node.kind is NodeKind.KV:
            return Node(node.kind, node.layer, int(groups[node.layer, node.index]))
        if node.kind is NodeKind.HEAD:
            group, member = divmod(node.index, shape.heads_per_group)
            first = int(groups[node.layer, group]) * shape.heads_per_group
            return Node(node.kind, node.layer, first + int(members[node.layer, group, member]))
        return node

    mask = np.zeros(graph.n_edges, dtype=np.bool_)
    for edge in graph.edges(edges):
        receiver = replace(edge.receiver, node=moved(edge.receiver.node))
        mask[graph.index(Edge(moved(edge.sender), receiver))] = True
    return mask
