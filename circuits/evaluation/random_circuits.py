"""Random circuits to hold a circuit against: the same wiring on other nodes of the model."""

import numpy as np
from numpy.typing import NDArray

from circuits.graph import ComputationalGraph, Edge, EdgeIndices, Node, NodeKind, Receiver


def transplanted(graph: ComputationalGraph, edges: EdgeIndices, seed: int | np.random.Generator) -> NDArray[np.bool_]:
    """Give the mask of a random circuit with the same number of edges and the same degrees, on other nodes.

    The layers that the circuit uses become random layers in the same order, the key/value groups of a layer other
    groups of the new layer, and the heads of a group other heads of the new group; input and logits stay. Every path
    stays a path: only the nodes it leads through are others. A circuit that uses every layer's MLP keeps those.
    """
    generator = np.random.default_rng(seed)
    shape = graph.shape
    ends = list(graph.edges(edges))
    nodes = [node for edge in ends for node in (edge.sender, edge.receiver.node) if node.layer >= 0]
    used = sorted({node.layer for node in nodes})
    drawn = np.sort(generator.choice(shape.n_layers, size=len(used), replace=False)).tolist()
    layers: dict[int, int] = dict(zip(used, drawn, strict=True))
    groups = {layer: generator.permutation(shape.n_kv_heads) for layer in used}
    members = {layer: generator.permutation(shape.heads_per_group) for layer in used}

    def moved(node: Node) -> Node:
        if node.layer < 0:
            return node
        index = node.index
        if node.kind is NodeKind.KV:
            index = int(groups[node.layer][index])
        elif node.kind is NodeKind.HEAD:
            group, member = divmod(index, shape.heads_per_group)
            index = int(groups[node.layer][group]) * shape.heads_per_group + int(members[node.layer][member])
        return Node(node.kind, layers[node.layer], index)

    mask = np.zeros(graph.n_edges, dtype=np.bool_)
    for edge in ends:
        receiver = Receiver(moved(edge.receiver.node), edge.receiver.slot)
        mask[graph.index(Edge(moved(edge.sender), receiver))] = True
    return mask
