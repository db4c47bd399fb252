"""What two circuits of the same model shape share, and how much of it chance would explain."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison.chance import PairScores, compared_scores
from circuits.comparison.names import names_of
from circuits.comparison.overlap import (
    MATCHED,
    REWIRED,
    Chance,
    Overlap,
    chance_overlap,
    matched_chance,
    sampled_chance,
)
from circuits.comparison.rewiring import rewired, shuffled_within, weighted_jaccard
from circuits.equality import by_content
from circuits.errors import UsageError
from circuits.files.documents import plain
from circuits.graph import ComputationalGraph, EdgeIndices, Node, NodeKind
from circuits.scores import EdgeScores


class Membership(StrEnum):
    """Which of two circuits an edge belongs to."""

    ONLY_A = "only_a"
    ONLY_B = "only_b"
    SHARED = "shared"
    SIGN_FLIP = "sign_flip"
    """In both circuits, with scores of opposite sign."""


@by_content
@dataclass(frozen=True, eq=False)
class CircuitDiff:
    """What two circuits share.

    ``scores.weighted`` is 1 for equal weight on the same edges, 0 for disjoint circuits, unknown where scores are
    missing; ``weighted_chances`` are what circuits of the same weights reach by chance. ``sign_flips`` are shared edges
    whose scores have opposite signs. All edges are positions in graph order.
    """

    a: Circuit
    b: Circuit
    names: tuple[str, str]
    edge_overlap: Overlap
    node_overlap: Overlap
    scores: PairScores
    weighted_chances: tuple[Chance, ...]
    only_a: EdgeIndices
    only_b: EdgeIndices
    shared: EdgeIndices
    sign_flips: EdgeIndices

    @property
    def weighted_jaccard(self) -> float:
        """The overlap of edges by |score|."""
        return self.scores.weighted.value

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation of the scores."""
        return self.scores.ranks.value

    @cached_property
    def union(self) -> EdgeIndices:
        """Edges of either circuit, in graph order."""
        return np.union1d(self.a.edges, self.b.edges)

    @cached_property
    def membership(self) -> tuple[Membership, ...]:
        """For every edge of :attr:`union`, the circuit it belongs to."""
        in_a, in_b = np.isin(self.union, self.a.edges), np.isin(self.union, self.b.edges)
        flipped = np.isin(self.union, self.sign_flips)
        return tuple(
            Membership.SIGN_FLIP
            if flip
            else Membership.SHARED
            if a and b
            else Membership.ONLY_A
            if a
            else Membership.ONLY_B
            for a, b, flip in zip(in_a.tolist(), in_b.tolist(), flipped.tolist(), strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the circuits themselves as plain JSON values; what cannot be computed is ``None``."""
        edge = self.a.graph.edge
        groups = {"only_a": self.only_a, "only_b": self.only_b, "shared": self.shared, "sign_flips": self.sign_flips}
        document = {
            "a": self.names[0],
            "b": self.names[1],
            "edge_overlap": asdict(self.edge_overlap),
            "node_overlap": asdict(self.node_overlap),
            "weighted_overlap": asdict(self.scores.weighted)
            | {"chances": [asdict(each) for each in self.weighted_chances]},
            "rank_correlation": asdict(self.scores.ranks)
            | {"edges": self.scores.n, "of": "union" if self.scores.on_union else "shared"},
            **{name: [str(edge(int(index))) for index in indices] for name, indices in groups.items()},
        }
        return cast("dict[str, Any]", plain(document))

    def sentences(self) -> list[str]:
        """Return in sentences what the numbers do and do not support."""
        (a, b), nodes = self.names, "heads, MLPs and key/value groups"
        sentences = [
            f"{a} ({len(self.a)} edges) and {b} ({len(self.b)} edges) share {self.edge_overlap.describe('edges')}.",
            self.edge_overlap.verdict(),
            f"They share {self.node_overlap.describe(nodes)}.",
            self.node_overlap.verdict("nodes"),
            *self._scores_in_words(),
        ]
        if not self.edge_overlap.size_a + self.edge_overlap.size_b:
            return sentences[:1]
        return sentences

    def describe(self) -> str:
        """Return in sentences what the numbers do and do not support."""
        return "\n".join(self.sentences())

    def draw(self, path: str | Path, *, title: str | None = None, **style: Any) -> None:
        """Draw both circuits into one diagram; the suffix (.svg .pdf .png .dot) says as what.

        ``style`` are fields of :class:`circuits.DiagramStyle`, such as the ``width`` in millimetres.
        """
        from circuits.drawing.pictures import DiagramStyle, draw_difference

        draw_difference(self, path, title=title, style=DiagramStyle(**style))

    def _scores_in_words(self) -> list[str]:
        scores, flips = self.scores, len(self.sign_flips)
        sentences: list[str] = []
        if scores.weighted.known:
            beyond = "more than" if all(each.beaten for each in self.weighted_chances) else "no more than"
            levels = " or ".join(f"{each.expected:.2f} {_SAME[each.kind]}" for each in self.weighted_chances)
            sentences.append(
                f"Weighted by |score|, the overlap of edges is {scores.weighted.describe()}, {beyond} the same weights "
                f"give by chance ({levels})."
            )
        which = "edges of either circuit" if scores.on_union else "shared edges"
        if not scores.ranks.known:
            sentences.append(f"Ranks are not compared: {scores.n} {which} with differing scores are too few.")
        else:
            sentences.append(
                f"Over {scores.n} {which} the ranks of the scores correlate at {scores.ranks.describe()}"
                f"{_ranks_in_words(scores)}."
            )
        if len(self.shared):
            sentences.append(f"{flips} of {len(self.shared)} shared edges have opposite signs.")
        return sentences


_SAME = {MATCHED: "on edges of the same kinds and layers", REWIRED: "on rewired edges"}


def _ranks_in_words(scores: PairScores) -> str:
    ranks, chance = scores.ranks, scores.ranks_chance
    if not math.isfinite(ranks.low):
        return ""
    text, low, high = f" (interval over {ranks.over})", 0.0, 0.0
    if chance is not None:
        low, high = chance.low, chance.high
        text += (
            f"; with one side shuffled among edges of the same kinds and layers at {chance.expected:.2f} (95 %: "
            f"{low:.2f} to {high:.2f}), since each circuit took its own strongest edges"
        )
    if ranks.low > high:
        return f"{text}: they rank edges more alike than chance"
    if ranks.high < low:
        return f"{text}: they rank edges less alike than chance"
    return f"{text}: no evidence that they rank edges alike"


def difference(
    a: Circuit,
    b: Circuit,
    *,
    names: tuple[str, str] | None = None,
    scores_a: EdgeScores | None = None,
    scores_b: EdgeScores | None = None,
    seed: int = 0,
) -> CircuitDiff:
    """Compare two circuits of models of the same shape; :func:`circuits.compare` does more, for any number.

    Ranks are correlated over the union of the circuits where ``scores_a`` and ``scores_b`` (scores of the whole graph)
    are given, else over the shared edges, where both circuits have scores. Raises :class:`UsageError` for different
    shapes: their edges do not correspond.
    """
    require_one_shape((a, b))
    shared, at_a, at_b = np.intersect1d(a.edges, b.edges, assume_unique=True, return_indices=True)
    drawn_a, drawn_b = (
        rewired(a.graph, circuit.edges, np.random.default_rng([seed, side])) for side, circuit in enumerate((a, b))
    )
    counts = np.array([len(np.intersect1d(x, y)) for x, y in zip(drawn_a, drawn_b, strict=True)], dtype=np.float64)
    strata = edge_strata(a.graph)
    scores = compared_scores(a, b, scores_a, scores_b, strata, seed=seed)
    found = names or names_of((a, b))
    return CircuitDiff(
        a=a,
        b=b,
        names=(found[0], found[1]),
        edge_overlap=chance_overlap(
            a.graph.n_edges,
            len(a),
            len(b),
            len(shared),
            matched_chance(strata, strata[a.edges], strata[b.edges], len(shared)),
            sampled_chance(REWIRED, counts, len(shared)),
        ),
        node_overlap=_node_overlap(a, b),
        scores=scores,
        weighted_chances=_weighted_chances(a, b, (drawn_a, drawn_b), strata, scores.weighted.value, seed),
        only_a=np.setdiff1d(a.edges, b.edges, assume_unique=True),
        only_b=np.setdiff1d(b.edges, a.edges, assume_unique=True),
        shared=shared,
        sign_flips=shared[a.scores[at_a] * b.scores[at_b] < 0],
    )


def require_one_shape(circuits: tuple[Circuit, ...]) -> None:
    """Raise :class:`UsageError` for circuits of models of different shapes."""
    first = circuits[0]
    for other in circuits[1:]:
        if other.model.shape != first.model.shape:
            raise UsageError(
                f"circuits of different model shapes have no edges in common to compare: one is of {first.model.id} "
                f"with {first.model.shape.describe()}, one of {other.model.id} with {other.model.shape.describe()}. "
                "Compare circuits of one model, or of models of the same shape; two of other shapes can be compared by "
                "depth and roles alone (circuits.compare_by_depth; circuits compare A.json B.json does so by itself)."
            )


def _weighted_chances(
    a: Circuit, b: Circuit, drawn: tuple[EdgeIndices, EdgeIndices], strata: EdgeIndices, found: float, seed: int
) -> tuple[Chance, ...]:
    """Return what weights give that are shuffled within strata, and those of rewired circuits."""
    if not math.isfinite(found):
        return ()
    sizes_a, sizes_b = np.abs(a.scores), np.abs(b.scores)
    shuffled = shuffled_within(strata, b.edges, np.random.default_rng([seed, 2]), len(drawn[0]))
    matched = [weighted_jaccard(a.edges, sizes_a, edges, sizes_b) for edges in shuffled]
    rewiring = [weighted_jaccard(x, sizes_a, y, sizes_b) for x, y in zip(*drawn, strict=True)]
    return tuple(
        sampled_chance(kind, np.array(values), found) for kind, values in ((MATCHED, matched), (REWIRED, rewiring))
    )


def _node_overlap(a: Circuit, b: Circuit) -> Overlap:
    """Compare nodes without input and logits: those are in almost every circuit and would be counted as overlap."""
    everything, nodes_a, nodes_b = (inner(nodes) for nodes in (a.graph.nodes, a.nodes, b.nodes))
    in_b = frozenset(nodes_b)
    shared = sum(node in in_b for node in nodes_a)
    strata = [
        np.array([3 * node.layer + _KINDS.index(node.kind) for node in nodes], dtype=np.int64)
        for nodes in (everything, nodes_a, nodes_b)
    ]
    matched = matched_chance(strata[0], strata[1], strata[2], shared)
    return chance_overlap(len(everything), len(nodes_a), len(nodes_b), shared, matched)


_KINDS = (NodeKind.HEAD, NodeKind.KV, NodeKind.MLP)


def inner(nodes: tuple[Node, ...]) -> list[Node]:
    """Leave out input and logits."""
    return [node for node in nodes if node.kind in _KINDS]


def edge_strata(graph: ComputationalGraph) -> EdgeIndices:
    """Number the strata of edges: kind and layer of the sender; kind, layer, slot and role of the receiver."""
    senders = _numbered([(node.kind, node.layer) for node in graph.senders])
    receivers = _numbered([(each.node.kind, each.node.layer, each.slot, each.role) for each in graph.receivers])
    return senders[graph.edge_senders] * (int(receivers.max()) + 1) + receivers[graph.edge_receivers]


def _numbered(kinds: Sequence[Hashable]) -> EdgeIndices:
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([numbers[kind] for kind in kinds], dtype=np.int64)
