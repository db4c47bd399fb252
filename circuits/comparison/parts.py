"""The parts of circuits that are compared: which circuits an edge or node is in, the core of all, what only one has."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np

from circuits.circuit import Circuit
from circuits.graph import EdgeIndices, Node, NodeKind
from circuits.records import BehaviourInfo, Provenance

CORE = "core"


@dataclass(frozen=True)
class MembershipCount:
    """How many edges and nodes (without input and logits) are in exactly these circuits and in no other."""

    circuits: tuple[str, ...]
    edges: int
    nodes: int


@dataclass(frozen=True)
class Part:
    """Some edges of circuits that are compared, as a circuit of its own.

    ``live`` is the number of its edges that lie on a path from input to logits within the part; only those can change
    anything when the part runs alone.
    """

    name: str
    circuit: Circuit
    live: int


def only(name: str) -> str:
    """Return the name of the part that only one circuit has."""
    return f"only {name}"


def membership_counts(circuits: Sequence[Circuit], names: Sequence[str]) -> tuple[MembershipCount, ...]:
    """Count edges and nodes by the circuits they are in; in most circuits first, then in the circuits' order."""
    edges = Counter(_combinations([circuit.edges.tolist() for circuit in circuits]))
    within = [[n for n in each.nodes if n.kind is not NodeKind.INPUT and not n.kind.is_end] for each in circuits]
    nodes = Counter(_combinations(within))
    found = sorted({*edges, *nodes}, key=lambda members: (-len(members), members))
    return tuple(MembershipCount(tuple(names[i] for i in each), edges[each], nodes[each]) for each in found)


def _combinations(members: Sequence[Sequence[int] | Sequence[Node]]) -> list[tuple[int, ...]]:
    within: dict[int | Node, tuple[int, ...]] = {}
    for i, each in enumerate(members):
        for member in each:
            within[member] = (*within.get(member, ()), i)
    return list(within.values())


def parts_of(circuits: Sequence[Circuit], names: Sequence[str]) -> tuple[Part, ...]:
    """Return the core (edges in every circuit) and for each circuit the edges that no other has, where there are any.

    A core edge's score is the mean of its scores, each relative to the largest |score| of its circuit, since scores of
    different behaviours have no common scale. What only one circuit has keeps its scores.
    """
    core = circuits[0].edges
    for circuit in circuits[1:]:
        core = np.intersect1d(core, circuit.edges, assume_unique=True)
    parts = [_core(circuits, names, core)]
    for i, circuit in enumerate(circuits):
        others = [other.edges for j, other in enumerate(circuits) if j != i]
        own = np.setdiff1d(circuit.edges, np.concatenate(others))
        made = f"edges of {names[i]} that are in none of: {', '.join(n for j, n in enumerate(names) if j != i)}"
        parts.append(_part(only(names[i]), circuit, own, circuit.scores[np.isin(circuit.edges, own)], made))
    return tuple(part for part in parts if len(part.circuit))


def _core(circuits: Sequence[Circuit], names: Sequence[str], core: EdgeIndices) -> Part:
    relative = [
        circuit.scores[np.isin(circuit.edges, core)] / (np.nanmax(np.abs(circuit.scores)) or 1.0)
        for circuit in circuits
        if len(core)
    ]
    scores = np.mean(relative, axis=0) if relative else np.empty(0)
    first = circuits[0]
    behaviours = list(dict.fromkeys(circuit.behaviour.name for circuit in circuits))
    metrics = list(dict.fromkeys(circuit.behaviour.metric for circuit in circuits))
    about = first.behaviour
    if len(behaviours) > 1:
        about = BehaviourInfo(" and ".join(behaviours), " and ".join(metrics), "")
    about = replace(about, unit="share of the largest score")
    part = _part(CORE, first, core, scores, f"edges that are in all of: {', '.join(names)}")
    return replace(part, circuit=replace(part.circuit, behaviour=about))


def _part(name: str, circuit: Circuit, edges: EdgeIndices, scores: np.ndarray, made: str) -> Part:
    made_of = circuit.with_edges(
        edges,
        scores,
        method=replace(circuit.method, pruner=CORE if name == CORE else "difference", target=None),
        provenance=Provenance(made_of=made, versions=circuit.provenance.versions),
    )
    return Part(name, made_of, len(live_edges(made_of)))


def live_edges(circuit: Circuit) -> EdgeIndices:
    """Return the edges that lie on a path from the input to the end of the graph within the circuit."""
    view = circuit.to_networkx()
    source, sink = NodeKind.INPUT.value, str(circuit.model.shape.end)
    if source not in view or sink not in view:
        return circuit.edges[:0]
    downstream, upstream = set(_reached(view, source)), set(_reached(view.reverse(copy=False), sink))
    alive = downstream & upstream
    kept = [str(edge.sender) in alive and str(edge.receiver.node) in alive for edge in circuit.edge_list]
    return circuit.edges[np.array(kept, dtype=np.bool_)]


def _reached(view: "nx.MultiDiGraph[str]", start: str) -> list[str]:
    return [start, *(end for _, end in nx.bfs_edges(view, start))]


def pruned_to_live_paths(part: Part) -> Part:
    """Leave out the edges that lie on no path from the input to the logits."""
    circuit = part.circuit
    kept = np.isin(circuit.edges, live_edges(circuit))
    made = f"{circuit.provenance.made_of}; only the {int(kept.sum())} of {len(circuit)} on a path from input to logits"
    pruned = replace(
        circuit,
        edges=circuit.edges[kept],
        scores=circuit.scores[kept],
        provenance=replace(circuit.provenance, made_of=made),
    )
    return replace(part, circuit=pruned)
