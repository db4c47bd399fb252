"""What two circuits of the same model shape share, and how much of it chance would explain.

Overlap is given as Jaccard index, as a count, and weighted by |score|. The chance level is hypergeometric: two sets of
these sizes drawn at random from all edges (or all heads, MLPs and key/value groups) of the model.
"""

import math
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Self, cast

import numpy as np

from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.graph import EdgeIndices, Node, NodeKind
from circuits.overlap import Overlap, chance_overlap
from circuits.records import RandomBaseline
from circuits.scores import EdgeScores, Floats

MIN_FOR_RANKS = 5
"""Fewer shared scores than this give no rank correlation."""


class Membership(StrEnum):
    """Which of two circuits an edge belongs to."""

    ONLY_A = "only_a"
    ONLY_B = "only_b"
    SHARED = "shared"
    SIGN_FLIP = "sign_flip"
    """In both circuits, with scores of opposite sign."""


@dataclass(frozen=True)
class Transferred:
    """Faithfulness of one behaviour's circuit on the other behaviour's held-out prompts, beside random circuits'."""

    faithfulness: float
    faithfulness_ci: tuple[float, float]
    n: int
    random_baseline: RandomBaseline | None = None


@dataclass(frozen=True)
class Transfer:
    """Both directions of cross-transfer; ``random_baseline`` is of random circuits of the same size."""

    a_on_b: Transferred
    b_on_a: Transferred


@dataclass(frozen=True)
class CircuitDiff:
    """What two circuits share.

    ``weighted_jaccard`` is ``sum min / sum max`` of the circuits' |score|, each normalised to sum 1: 1 for equal weight
    on the same edges, 0 for disjoint circuits, NaN where scores are missing. ``rank_correlation`` (Spearman) is over
    ``rank_edges`` edges that have a score in both; NaN with fewer than five. ``sign_flips`` are shared edges whose
    scores have opposite signs. All edges are positions in graph order.
    """

    a: Circuit
    b: Circuit
    edge_overlap: Overlap
    node_overlap: Overlap
    weighted_jaccard: float
    rank_correlation: float
    rank_edges: int
    rank_on_union: bool
    only_a: EdgeIndices
    only_b: EdgeIndices
    shared: EdgeIndices
    sign_flips: EdgeIndices
    transfer: Transfer | None = None

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

    def with_transfer(self, transfer: Transfer) -> Self:
        """Give the same comparison with measured cross-transfer."""
        return replace(self, transfer=transfer)

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the circuits themselves as plain JSON values; what could not be computed is ``None``."""
        edge = self.a.graph.edge
        groups = {"only_a": self.only_a, "only_b": self.only_b, "shared": self.shared, "sign_flips": self.sign_flips}
        document = {
            "a": {"model": self.a.model.id, "behaviour": self.a.behaviour.name, "edges": len(self.a)},
            "b": {"model": self.b.model.id, "behaviour": self.b.behaviour.name, "edges": len(self.b)},
            "edge_overlap": asdict(self.edge_overlap),
            "node_overlap": asdict(self.node_overlap),
            "weighted_jaccard": self.weighted_jaccard,
            "rank_correlation": {
                "spearman": self.rank_correlation,
                "edges": self.rank_edges,
                "over": "union" if self.rank_on_union else "shared",
            },
            **{name: [str(edge(int(index))) for index in indices] for name, indices in groups.items()},
            "transfer": asdict(self.transfer) if self.transfer else None,
        }
        return cast("dict[str, Any]", _finite(document))

    def describe(self) -> str:
        """Say in sentences what the numbers do and do not support."""
        edges, nodes = self.edge_overlap, self.node_overlap
        sentences = [
            f"Circuit A ({self.a.behaviour.name}, {len(self.a)} edges) and circuit B ({self.b.behaviour.name}, "
            f"{len(self.b)} edges) share {edges.describe('edges')}.",
            f"They share {nodes.describe('heads, MLPs and key/value groups')}.",
            *self._scores_in_words(),
            edges.verdict(),
            *self._transfer_in_words(),
        ]
        if self.a.model.id != self.b.model.id:
            sentences.insert(0, f"The models differ: A is of {self.a.model.id}, B of {self.b.model.id}.")
        return "\n".join(sentences)

    def _scores_in_words(self) -> list[str]:
        which = "edges of either circuit" if self.rank_on_union else "shared edges"
        if math.isnan(self.rank_correlation):
            ranks = f"Ranks are not compared: {self.rank_edges} {which} with differing scores are too few."
        else:
            ranks = f"Over {self.rank_edges} {which} the ranks of the scores correlate at {self.rank_correlation:.2f}."
        flips = f"{len(self.sign_flips)} of {len(self.shared)} shared edges have opposite signs."
        if math.isnan(self.weighted_jaccard):
            return [ranks, flips]
        return [f"Weighted by |score|, the overlap of edges is {self.weighted_jaccard:.2f}.", ranks, flips]

    def _transfer_in_words(self) -> list[str]:
        if self.transfer is None:
            return [
                "Whether one circuit can do the other's work was not measured (cross-transfer); overlap does not tell."
            ]
        a_on_b, b_on_a = self.transfer.a_on_b, self.transfer.b_on_a
        return [
            f"A's circuit on B's prompts: {_transferred(a_on_b)}.",
            f"B's circuit on A's prompts: {_transferred(b_on_a)}.",
        ]


def compare(
    a: Circuit, b: Circuit, *, scores_a: EdgeScores | None = None, scores_b: EdgeScores | None = None
) -> CircuitDiff:
    """Compare two circuits of models of the same shape.

    Ranks are correlated over the union of the circuits where ``scores_a`` and ``scores_b`` (scores of the whole graph)
    are given, else over the shared edges, where both circuits have scores. Raises :class:`UsageError` for different
    shapes: their edges do not correspond.
    """
    if a.model.shape != b.model.shape:
        raise UsageError(
            f"circuits of different model shapes have no edges in common to compare: A is of {a.model.id} with "
            f"{a.model.shape.describe()}, B of {b.model.id} with {b.model.shape.describe()}. Compare circuits of one "
            "model, or of models of the same shape."
        )
    shared, at_a, at_b = np.intersect1d(a.edges, b.edges, assume_unique=True, return_indices=True)
    union = np.union1d(a.edges, b.edges)
    on_union = scores_a is not None and scores_b is not None
    pair = (
        (scores_a.values[union], scores_b.values[union])
        if scores_a is not None and scores_b is not None
        else (a.scores[at_a], b.scores[at_b])
    )
    correlation, n_ranked = _spearman(*pair)
    return CircuitDiff(
        a=a,
        b=b,
        edge_overlap=chance_overlap(a.graph.n_edges, len(a), len(b), len(shared)),
        node_overlap=_node_overlap(a, b),
        weighted_jaccard=_weighted_jaccard(a, b),
        rank_correlation=correlation,
        rank_edges=n_ranked,
        rank_on_union=on_union,
        only_a=np.setdiff1d(a.edges, b.edges, assume_unique=True),
        only_b=np.setdiff1d(b.edges, a.edges, assume_unique=True),
        shared=shared,
        sign_flips=shared[a.scores[at_a] * b.scores[at_b] < 0],
    )


def _node_overlap(a: Circuit, b: Circuit) -> Overlap:
    """Compare nodes without input and logits: those are in almost every circuit and would be counted as overlap."""
    nodes_a, nodes_b = _inner(a.nodes), _inner(b.nodes)
    in_b = frozenset(nodes_b)
    return chance_overlap(len(_inner(a.graph.nodes)), len(nodes_a), len(nodes_b), sum(node in in_b for node in nodes_a))


def _inner(nodes: tuple[Node, ...]) -> list[Node]:
    return [node for node in nodes if node.kind not in (NodeKind.INPUT, NodeKind.LOGITS)]


def _weighted_jaccard(a: Circuit, b: Circuit) -> float:
    union = np.union1d(a.edges, b.edges)
    weights: list[Floats] = []
    for circuit in (a, b):
        sizes = np.abs(circuit.scores)
        total = float(sizes.sum())
        if not math.isfinite(total) or total == 0:
            return math.nan
        weight = np.zeros(len(union))
        weight[np.searchsorted(union, circuit.edges)] = sizes / total
        weights.append(weight)
    return float(np.minimum(*weights).sum() / np.maximum(*weights).sum())


def _spearman(a: Floats, b: Floats) -> tuple[float, int]:
    from scipy.stats import spearmanr

    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < MIN_FOR_RANKS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, len(a)
    return float(spearmanr(a, b).statistic), len(a)


def _transferred(result: Transferred) -> str:
    low, high = result.faithfulness_ci
    text = f"faithfulness {result.faithfulness:.2f}, interval [{low:.2f}, {high:.2f}], n = {result.n}"
    random = result.random_baseline
    if random is None:
        return f"{text}; without random circuits of the same size beside it, this cannot be told from chance"
    inside = random.q05 <= result.faithfulness <= random.q95
    return (
        f"{text}; {random.n} random circuits of the same size: median {random.median:.2f}, 5-95 % "
        f"[{random.q05:.2f}, {random.q95:.2f}]" + (", so no more than chance" if inside else "")
    )


def _finite(value: Any) -> Any:
    """Write what is not a number as ``None``, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("list[Any]", value)]
    return value
