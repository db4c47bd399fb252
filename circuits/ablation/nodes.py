"""Which nodes are acted on: those of a circuit, and as many others of the same depth to hold them against."""

from collections.abc import Sequence

import numpy as np

from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.graph import ComputationalGraph, Node, NodeKind
from circuits.vocabulary import NodeChoice

BANDS = 3
"""Early, middle and late layers."""


def acting_nodes(circuit: Circuit, which: NodeChoice | str = NodeChoice.ALL) -> tuple[Node, ...]:
    """Return the heads and MLPs of a circuit, in graph order: the nodes that put something out.

    Raises :class:`UsageError` where there are none.
    """
    kinds = {NodeChoice.HEADS: (NodeKind.HEAD,), NodeChoice.MLPS: (NodeKind.MLP,)}
    wanted = kinds.get(NodeChoice.parse(which), (NodeKind.HEAD, NodeKind.MLP))
    found = tuple(node for node in circuit.nodes if node.kind in wanted)
    if not found:
        what = "heads or MLPs" if which == NodeChoice.ALL else str(which)
        raise UsageError(f"there are no {what} among the circuit's nodes to act on; choose others with --nodes.")
    return found


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
