"""Random ablations to hold an ablation against: as many heads and MLPs of the same depth, but others."""

from collections.abc import Sequence

import numpy as np

from circuits.graph import ComputationalGraph, Node, NodeKind

BANDS = 3
"""Early, middle and late layers."""


def control_nodes(
    graph: ComputationalGraph, nodes: Sequence[Node], seed: int | np.random.Generator
) -> tuple[Node, ...]:
    """Draw as many heads and as many MLPs as there are of each among ``nodes`` in each third of the layers.

    Nodes that are not among ``nodes`` come first: only where a third has too few of them do some of ``nodes`` fill up
    the number (a circuit with every MLP of the model leaves no others). In graph order.
    """
    generator = np.random.default_rng(seed)
    taken, drawn = frozenset(nodes), set[Node]()
    for kind in (NodeKind.HEAD, NodeKind.MLP):
        for band in range(BANDS):
            members = [node for node in graph.senders if node.kind is kind and _band(graph, node) == band]
            count = sum(node in taken for node in members)
            others, same = ([node for node in members if (node in taken) is own] for own in (False, True))
            mixed = [group[int(i)] for group in (others, same) for i in generator.permutation(len(group))]
            drawn.update(mixed[:count])
    return tuple(node for node in graph.senders if node in drawn)


def _band(graph: ComputationalGraph, node: Node) -> int:
    return node.layer * BANDS // graph.shape.n_layers
