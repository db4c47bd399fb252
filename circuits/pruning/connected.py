"""Dropping edges that no longer lie on a path from the input to the logits."""

import networkx as nx
import numpy as np

from circuits.graph import ComputationalGraph, EdgeIndices, Node, NodeKind


def connected(graph: ComputationalGraph, edges: EdgeIndices) -> EdgeIndices:
    """Keep the edges that lie on a path from the input to the logits; the others change nothing in any run."""
    view: nx.DiGraph[Node] = nx.DiGraph()
    ends = [(graph.edge(int(edge)).sender, graph.edge(int(edge)).receiver.node) for edge in edges]
    view.add_edges_from(ends)
    per_group = graph.shape.heads_per_group
    for node in [node for node in view if node.kind is NodeKind.KV]:
        heads = range(node.index * per_group, (node.index + 1) * per_group)
        view.add_edges_from((node, Node(NodeKind.HEAD, node.layer, head)) for head in heads)
    source, sink = Node(NodeKind.INPUT), Node(NodeKind.LOGITS)
    if source not in view or sink not in view:
        return edges[:0]
    alive = (nx.descendants(view, source) | {source}) & (nx.ancestors(view, sink) | {sink})
    return edges[np.array([sender in alive and receiver in alive for sender, receiver in ends], dtype=np.bool_)]
