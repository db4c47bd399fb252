"""Circuits of models of different shapes: no edges correspond, so shares of their effect by depth and role do.

An edge's size, its |score|, is counted with the sender that it leaves: an attention head or MLP in a tenth of the
model's depth, or the input. Shares are of the circuit's sum, so circuits with other metrics or units can be set beside
each other. Beside them stands what the same model would have if all its edges were of one size. Where edges have token
roles, and heads the names that their evidence gives them, shares by these stand below.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison.names import names_of
from circuits.errors import UsageError
from circuits.files.documents import json_text, plain
from circuits.graph import EdgeIndices, Node, NodeKind
from circuits.scores import Floats

FORMAT, VERSION = "circuits/depth-comparison", 1
TENTHS = 10
INPUT, HEADS, MLPS = "input", "heads", "MLPs"
UNNAMED = "no name"
_PARTS = {NodeKind.INPUT: INPUT, NodeKind.HEAD: HEADS, NodeKind.MLP: MLPS}
NO_EDGES = (
    "The models have different shapes, so no edge of one is an edge of the other: edges, nodes and diagrams are not "
    "compared, and no circuit is run on the other's model."
)


@dataclass(frozen=True)
class DepthProfile:
    """How a circuit's effect is spread, as shares of the sum of |score|; each mapping adds up to 1.

    Attributes:
        name: What the circuit is called.
        model: Its model.
        layers: How many layers that has.
        edges: How many edges the circuit has.
        depths: By part and tenth of depth: ``heads 3/10`` holds the heads of layers up to three tenths of the way.
        spread: The same of the model's whole graph, every edge counted alike.
        token_roles: By the token role of the receiver; empty where edges have none.
        head_roles: By the name of the sender, of what heads send; empty where no evidence on them was given.
    """

    name: str
    model: str
    layers: int
    edges: int
    depths: Mapping[str, float]
    spread: Mapping[str, float]
    token_roles: Mapping[str, float]
    head_roles: Mapping[str, float]


@dataclass(frozen=True)
class DepthComparison:
    """What :func:`compare_by_depth` found; ``overlap`` is what two distributions by depth share, 1 if they are equal.

    ``overlap_spread`` is what each circuit shares with the other model's graph, every edge counted alike: no more than
    this says nothing of the circuits.
    """

    a: DepthProfile
    b: DepthProfile
    overlap: float
    overlap_spread: tuple[float, float]

    def rows(self) -> list[list[str]]:
        """Return the table by depth: where either circuit has any, the shares of it and of all edges, of both."""
        names = [*self.a.depths, *(name for name in self.b.depths if name not in self.a.depths)]
        shares = self.a.depths, self.a.spread, self.b.depths, self.b.spread
        return [[name, *(f"{each.get(name, 0.0):.2f}" for each in shares)] for name in sorted(names, key=_order)]

    def role_rows(self) -> list[list[str]]:
        """Return the table by token role and by the names of heads; empty where neither circuit has any."""
        rows = list[list[str]]()
        for what in ("token_roles", "head_roles"):
            first, second = (cast("Mapping[str, float]", getattr(each, what)) for each in (self.a, self.b))
            for name in dict.fromkeys([*first, *second]):
                shares = [f"{each.get(name, 0.0):.2f}" if each else "not known" for each in (first, second)]
                rows.append([f"tokens: {name}" if what == "token_roles" else f"heads: {name}", *shares])
        return rows

    def sentences(self) -> list[str]:
        """Return in sentences what was compared and what was not."""
        a, b = self.a, self.b
        said = [NO_EDGES]
        said += [
            f"{each.name}: {each.edges:,} edges in {each.model} ({each.layers} layers); {_parts(each.depths)} of the "
            f"sum of |score|, half of it up to {_median(each.depths):.0%} of the depth."
            for each in (a, b)
        ]
        first, second = self.overlap_spread
        verdict = "more alike than" if self.overlap > max(self.overlap_spread) else "no more alike than"
        said.append(
            f"By depth and part they share {self.overlap:.2f} (1: the same). {a.name} shares {first:.2f} with all "
            f"edges of {b.model}, {b.name} {second:.2f} with those of {a.model}: the circuits are {verdict} each is to "
            "the other model's edges at large. That they are alike in depth does not show that they work alike."
        )
        return said

    def describe(self) -> str:
        """Return the sentences as one text."""
        return "\n".join(self.sentences())

    def to_document(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        document = cast("dict[str, Any]", plain(asdict(self)))
        return {"format": FORMAT, "version": VERSION, **document, "sentences": self.sentences()}

    def to_json(self) -> str:
        """Return the text of ``comparison.json``."""
        return json_text(self.to_document(), sort_keys=True)


def compare_by_depth(
    a: Circuit, b: Circuit, *, roles: Sequence[Mapping[Node, str]] = ({}, {}), names: tuple[str, str] | None = None
) -> DepthComparison:
    """Compare two circuits by where in the depth of their models their effect is, whatever shapes these have.

    ``roles`` are the names of the heads of each (:func:`circuits.interchange.sidecars.beside`). Raises
    :class:`UsageError` for a circuit without edges or without scores. Runs no model.
    """
    called = names or cast("tuple[str, str]", names_of((a, b)))
    first, second = (_profile(*each) for each in zip(called, (a, b), roles, strict=True))
    crossed = _shared(first.depths, second.spread), _shared(second.depths, first.spread)
    return DepthComparison(first, second, _shared(first.depths, second.depths), crossed)


def of_other_shapes(circuits: Sequence[Circuit]) -> bool:
    """Return whether these are two circuits of models of different shapes."""
    return len(circuits) == 2 and circuits[0].model.shape != circuits[1].model.shape


def _profile(name: str, circuit: Circuit, roles: Mapping[Node, str]) -> DepthProfile:
    sizes = np.abs(circuit.scores)
    if not len(sizes) or not np.isfinite(sizes).all() or not sizes.sum():
        raise UsageError(
            f"the circuit '{name}' has no edges, or edges without scores, so there is no share of its effect; give one "
            "with scores, as circuits discover writes it."
        )
    graph, sized = circuit.graph, list(zip(circuit.edge_list, sizes.tolist(), strict=True))
    heads = [(roles.get(edge.sender, UNNAMED), size) for edge, size in sized if edge.sender.kind is NodeKind.HEAD]
    tokens = [(edge.receiver.role, size) for edge, size in sized]
    return DepthProfile(
        name=name,
        model=circuit.model.id,
        layers=circuit.model.n_layers,
        edges=len(circuit),
        depths=_by_depth(circuit, circuit.edges, sizes),
        spread=_by_depth(circuit, np.arange(graph.n_edges), np.ones(graph.n_edges)),
        token_roles=_shares(tokens) if circuit.model.roles else {},
        head_roles=_shares(heads) if roles else {},
    )


def _by_depth(circuit: Circuit, edges: EdgeIndices, sizes: Floats) -> dict[str, float]:
    """Return shares by the part and tenth of the senders; depth is that of the whole model, wherever the graph ends."""
    senders, layers = circuit.graph.senders, circuit.model.n_layers
    sums = np.bincount(circuit.graph.edge_senders[edges], weights=sizes, minlength=len(senders))
    named = [(_place(node, layers), float(size)) for node, size in zip(senders, sums, strict=True)]
    return dict(sorted(_shares(named).items(), key=lambda each: _order(each[0])))


def _place(node: Node, layers: int) -> str:
    part = _PARTS[node.kind]
    return part if part == INPUT else f"{part} {node.layer * TENTHS // layers + 1}/{TENTHS}"


def _order(name: str) -> tuple[int, str]:
    part, _, place = name.partition(" ")
    return (int(place.partition("/")[0]) if place else 0, part)


def _shares(named: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for name, size in named:
        sums[name] += float(size)
    total = sum(sums.values()) or 1.0
    return {name: value / total for name, value in sorted(sums.items(), key=lambda each: -each[1]) if value}


def _shared(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    return sum(min(value, second.get(name, 0.0)) for name, value in first.items())


def _parts(depths: Mapping[str, float]) -> str:
    sums = _shares((name.partition(" ")[0], value) for name, value in depths.items())
    return ", ".join(f"{name} {value:.2f}" for name, value in sums.items())


def _median(depths: Mapping[str, float]) -> float:
    """Return by which tenth of the depth half of the sum has been reached."""
    reached = 0.0
    for name, value in sorted(depths.items(), key=lambda each: _order(each[0])):
        reached += value
        if reached >= 0.5:
            return _order(name)[0] / TENTHS
    return 1.0
