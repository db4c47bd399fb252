"""The circuit of the largest total score among all connected ones of a size: an integer linear program.

A binary number for every edge, and for every sender and every node that receives one that says whether it is used. An
edge needs its sender, which needs a kept edge that it reads (the input needs none), and its receiver, which needs a
kept edge that it sends. Edges lead from earlier to later nodes, so every kept edge then is on a path from the input to
the end. The solver is HiGHS, through scipy. With a share of positive edges and stable signs as in the circuits of
arXiv:2510.25786.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.errors import CircuitsError, UsageError
from circuits.graph import ComputationalGraph, EdgeIndices, NodeKind
from circuits.numbering import reads_of_senders
from circuits.patching.protocol import Experiment
from circuits.pruning.greedy import grown
from circuits.pruning.selection import Selection, require_size
from circuits.scores import EdgeScores, Floats
from circuits.statistics import faithfulness

_TIMES, _LEAST = 8, 1500
"""Of larger graphs the program chooses among the strongest edges, so many times the size and at least so many."""
SECONDS = 600.0
"""After so long the best circuit so far is taken."""


class UnsolvedError(CircuitsError, RuntimeError):
    """The program has no circuit."""


@dataclass(frozen=True)
class Quotas:
    """What circuits are chosen among.

    Attributes:
        positive: Which share of the edges, at least, has a positive score (within one edge); None: any.
        stable: With which probability, at least, the mean over resampled pairs has the sign of the score, by the normal
            approximation of the bootstrap; None: edges are not asked. The scores need standard deviations.
    """

    positive: float | None = None
    stable: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("positive", 0.0), ("stable", 0.5)):
            share = getattr(self, name)
            if share is not None and not least <= share < 1 + (name == "positive") * 1e-9:
                raise UsageError(f"the share '{name}' is from {least:g} to 1, got {share:g}.")


def ilp(
    experiment: Experiment, scores: EdgeScores, size: int, quotas: Quotas | None = None, *, seconds: float = SECONDS
) -> Selection:
    """Take the connected circuit of at most ``size`` edges with the largest sum of |score|.

    It is the best among the edges of largest |score|, eight times ``size`` and at least 1,500, and those that greedy
    growth takes: so never worse than :mod:`circuits.pruning.greedy`. In graphs with no more edges it is the best of
    all.

    Raises :class:`UnsolvedError` where there is no such circuit, or none was found in time. Cost: one circuit; seconds
    to minutes for the program.
    """
    require_size(scores, size)
    edges = best_edges(scores, size, quotas or Quotas(), seconds=seconds)
    found = float(faithfulness(experiment, experiment.circuits([scores.graph.mask(edges)])[0]))
    return Selection(edges, found, proposed=size, by_magnitude=True)


def best_edges(scores: EdgeScores, size: int, quotas: Quotas, *, seconds: float = SECONDS) -> EdgeIndices:
    """Return the edges of the best circuit, in graph order; errors as :func:`ilp`."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    allowed = _strongest(scores, _allowed(scores, quotas), size)
    values = np.abs(scores.values[allowed])
    program = _Program(scores.graph, allowed)
    constraints: list[Any] = [LinearConstraint(program.matrix(), -np.inf, 0)]
    constraints.append(LinearConstraint(program.over_edges(np.ones(len(allowed))), 0, size))
    if quotas.positive is not None:
        lacking = quotas.positive - (scores.values[allowed] > 0).astype(np.float64)
        constraints.append(LinearConstraint(program.over_edges(lacking), -np.inf, 1 - 1e-6))
    whole = np.concatenate([np.ones(len(allowed)), np.zeros(program.n_uses)])
    solve: Any = milp
    found = solve(
        np.concatenate([-values, np.zeros(program.n_uses)]),
        integrality=whole,
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if found.x is None or not (chosen := found.x[: len(allowed)] > 0.5).any():
        raise UnsolvedError(
            f"no connected circuit of at most {size} edges was found ({found.message}). Allow more edges (--size), or "
            "ask for less of them."
        )
    return allowed[chosen]


def _allowed(scores: EdgeScores, quotas: Quotas) -> EdgeIndices:
    edges = scores.scored
    if quotas.stable is None:
        return edges
    if scores.sd is None or scores.n < 2:
        raise UsageError(
            f"the scorer {scores.scorer} gives no standard deviation over pairs, so nothing is known of its signs. "
            "Leave `stable` out, or use a scorer by gradients, such as eap-ig, on several pairs."
        )
    from scipy import stats

    spread = np.maximum(scores.sd[edges] / np.sqrt(scores.n), np.finfo(np.float64).tiny)
    return edges[stats.norm.cdf(np.abs(scores.values[edges]) / spread) >= quotas.stable]


def _strongest(scores: EdgeScores, edges: EdgeIndices, size: int) -> EdgeIndices:
    """Return the edges that the program chooses among: the largest |score|, and what greedy growth takes of them."""
    most = max(_LEAST, _TIMES * size)
    if len(edges) <= most:
        return edges
    values = np.full(scores.graph.n_edges, np.nan)
    values[edges] = scores.values[edges]
    asked = EdgeScores(scores.graph, values, scores.scorer, measured=False)
    return np.union1d(asked.ranked(by_magnitude=True)[:most], grown(asked, size))


class _Program:
    """The rows that make circuits connected; unknowns are edges, then uses of senders, then of nodes that receive."""

    def __init__(self, graph: ComputationalGraph, edges: EdgeIndices) -> None:
        self.edges, self._graph = edges, graph
        self._senders: NDArray[np.int64] = graph.edge_senders[edges].astype(np.int64)
        self._receivers: NDArray[np.int64] = graph.edge_receivers[edges].astype(np.int64)
        self.n_senders, self.n_receivers = len(graph.senders), len(graph.receivers)

    @property
    def n_uses(self) -> int:
        """How many unknowns there are beside edges."""
        return self.n_senders + self.n_receivers

    def over_edges(self, weights: Floats) -> Any:
        """Return one row with a weight for every edge."""
        from scipy import sparse

        return sparse.csr_array(np.concatenate([weights, np.zeros(self.n_uses)])[None])

    def matrix(self) -> Any:
        """Return the rows, each of which is to be at most 0."""
        from scipy import sparse

        n, reads = len(self.edges), reads_of_senders(self._graph.shape)
        places, ones = np.arange(n), np.ones(n)
        use, read = n + self._senders, n + self.n_senders + self._receivers
        needs = [self._rows(places, ones, use), self._rows(places, ones, read)]
        readers = sparse.coo_array(
            (np.ones(sum(map(len, reads))), _pairs(reads)), shape=(self.n_senders, self.n_receivers)
        ).tocsr()
        into = self._counted(self._receivers, self.n_receivers)  # (receiver, unknown): its kept edges
        out = self._counted(self._senders, self.n_senders)  # (sender, unknown): its kept edges
        fed = self._unit(self.n_senders, n) - readers @ into
        sent = self._unit(self.n_receivers, n + self.n_senders) - readers.T @ out
        end = self._graph.receivers[-1]
        assert end.node.kind is not NodeKind.INPUT
        return sparse.vstack([*needs, fed[1:], sent[:-1]]).tocsr()

    def _rows(self, places: NDArray[np.int64], ones: Floats, needed: NDArray[np.int64]) -> Any:
        """Return, for every edge, the row ``edge - what it needs``."""
        from scipy import sparse

        index = np.concatenate([places, places]), np.concatenate([places, needed])
        return sparse.coo_array((np.concatenate([ones, -ones]), index), shape=(len(places), len(places) + self.n_uses))

    def _counted(self, of: NDArray[np.int64], count: int) -> Any:
        from scipy import sparse

        n = len(self.edges)
        return sparse.coo_array((np.ones(n), (of, np.arange(n))), shape=(count, n + self.n_uses)).tocsr()

    def _unit(self, count: int, first: int) -> Any:
        from scipy import sparse

        index = np.arange(count), first + np.arange(count)
        return sparse.coo_array((np.ones(count), index), shape=(count, len(self.edges) + self.n_uses)).tocsr()


def _pairs(reads: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (sender, receiver) of every read."""
    rows = [(sender, receiver) for sender, own in enumerate(reads) for receiver in own]
    both = np.array(rows, dtype=np.int64)
    return both[:, 0], both[:, 1]
