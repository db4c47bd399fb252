"""Dropping edges that no longer lie on a path from the input to the end of the graph."""

from collections.abc import Iterator

import networkx as nx
import numpy as np

from circuits.graph import ComputationalGraph, EdgeIndices, Node, NodeKind


def connected(graph: ComputationalGraph, edges: EdgeIndices) -> EdgeIndices:
    """Keep the edges that lie on a path from the input to the end; the others change nothing in any run."""
    ends = [(graph.edge(int(edge)).sender, graph.edge(int(edge)).receiver.node) for edge in edges]
    view = nx.DiGraph([*ends, *_group_edges(graph, [receiver for _, receiver in ends])])
    source, sink = Node(NodeKind.INPUT), graph.shape.end
    if source not in view or sink not in view:
        return edges[:0]
    downstream, upstream = nx.bfs_tree(view, source), nx.bfs_tree(view, sink, reverse=True)
    alive = {node for node in downstream if node in upstream}
    return edges[np.array([sender in alive and receiver in alive for sender, receiver in ends], dtype=np.bool_)]


def _group_edges(graph: ComputationalGraph, receivers: list[Node]) -> Iterator[tuple[Node, Node]]:
    """Lead from every key/value group that is read to the heads that share it."""
    size = graph.shape.heads_per_group
    for group in dict.fromkeys(node for node in receivers if node.kind is NodeKind.KV):
        for head in range(group.index * size, (group.index + 1) * size):
            yield group, Node(NodeKind.HEAD, group.layer, head)
