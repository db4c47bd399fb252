"""Circuits summed up: the edges between two heads or MLPs as one arrow, or those between the parts of two layers."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from circuits.circuit import Circuit
from circuits.diagrams.style import Level
from circuits.graph import Node, NodeKind

_IN_LAYER = {NodeKind.HEAD: 0, NodeKind.MLP: 1}
_LAST = 10**9


class Box(NamedTuple):
    """What stands in a summary for one or several nodes; boxes of one ``row`` stand side by side."""

    row: tuple[int, int]
    kind: NodeKind
    name: str
    label: str


@dataclass(frozen=True)
class Arrow:
    """All edges between two boxes: the sum of their scores (those without one count as nothing), and how many."""

    sender: Box
    receiver: Box
    score: float
    edges: int


def arrows(circuit: Circuit, level: Level) -> tuple[Arrow, ...]:
    """Return the arrows between nodes or layers, in graph order of their senders.

    An edge into keys or values that heads share leads to the circuit's heads of that group, in equal parts. Edges
    between the heads of one layer and its MLP are arrows of their own; none leads from a box to itself.
    """
    boxes, readers = _boxes(circuit, level), _readers(circuit)
    sums: defaultdict[tuple[Box, Box], list[float]] = defaultdict(list)
    for edge, score in zip(circuit.edge_list, circuit.scores.tolist(), strict=True):
        known, targets = score if math.isfinite(score) else 0.0, readers.get(edge.receiver.node, [edge.receiver.node])
        for target in targets:
            sums[boxes[edge.sender], boxes[target]].append(known / len(targets))
    return tuple(Arrow(*ends, sum(scores), len(scores)) for ends, scores in sums.items())


def _boxes(circuit: Circuit, level: Level) -> dict[Node, Box]:
    """Return the box of each node but key/value groups."""
    nodes = [node for node in circuit.nodes if node.kind is not NodeKind.KV]
    if level is not Level.LAYER:
        return {node: Box(_row(node), node.kind, str(node), str(node)) for node in nodes}
    members: defaultdict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in nodes:
        members[_row(node)].append(node)
    return {node: _layer_box(row, group) for row, group in members.items() for node in group}


def _layer_box(row: tuple[int, int], members: Sequence[Node]) -> Box:
    first = members[0]
    if first.kind not in _IN_LAYER:
        return Box(row, first.kind, str(first), str(first))
    if first.kind is NodeKind.MLP:
        return Box(row, first.kind, str(first), f"MLP {first.layer}")
    heads = " ".join(f"h{node.index}" for node in members)
    return Box(row, first.kind, f"a{first.layer}", f"attention {first.layer}: {heads}")


def _row(node: Node) -> tuple[int, int]:
    if node.kind is NodeKind.INPUT:
        return (-1, 0)
    return (_LAST, 0) if node.kind.is_end else (node.layer, _IN_LAYER[node.kind])


def _readers(circuit: Circuit) -> dict[Node, list[Node]]:
    """Return the circuit's heads of each key/value group."""
    per_group = circuit.model.shape.heads_per_group
    heads = [node for node in circuit.nodes if node.kind is NodeKind.HEAD]
    groups = [node for node in circuit.nodes if node.kind is NodeKind.KV]
    return {
        group: [head for head in heads if head.layer == group.layer and head.index // per_group == group.index]
        for group in groups
    }
