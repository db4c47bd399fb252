"""How much of a circuit other prompt pairs would have chosen: resampling, and a certificate by subsampling.

A whole search takes too long to be repeated a hundred times. What is repeated is its last part: from *candidates* (the
last circuit of the search with half as many edges again) as many edges as the circuit has are selected anew, as the
search selects (:mod:`circuits.pruning.residuals`), from slopes of every pair that are measured once. ``reproduced``
says how much of the circuit this gives on the pairs themselves. What other pairs would have put among the candidates is
not seen, so that this is an upper bound of the stability of the whole search.

The certificate (after arXiv:2602.22968) is of the selection by majority over random subsamples of few pairs. When any
``r`` of ``n`` pairs are replaced by whatever others, a subsample of size ``k`` holds none of them with the probability
``C(n - r, k) / C(n, k)``, and is then what it was; so no edge is selected more or less often by more than one minus
that. An edge whose share of selections is further from one half, with a bound that allows for how many subsamples were
drawn and for all edges at once, keeps its place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.graph import ComputationalGraph, EdgeIndices
from circuits.patching.protocol import Experiment
from circuits.pruning.residuals import Residuals, greedily
from circuits.pruning.steps import RIDGE
from circuits.records import FEWEST_RESAMPLED, MOST_RESAMPLED, Stability
from circuits.scores import EdgeScores, Floats
from circuits.statistics import CONFIDENCE

RESAMPLES, SUBSAMPLES = 100, 400
CANDIDATES = 1.5
"""So many candidates of a ranking there are for every edge of the circuit."""
_SHARE = 4
"""A subsample has this fraction of the pairs: fewer withstand more, and select more at random."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Resampled:
    """How often each edge of a circuit is selected; ``withstands`` is how many pairs may be replaced by any others.

    Both have an entry for each edge of the circuit, in its order; -1 where the certificate abstains.
    """

    inclusion: Floats
    withstands: NDArray[np.int64]
    summary: Stability


def ranked_candidates(scores: EdgeScores, edges: EdgeIndices, *, by_magnitude: bool) -> EdgeIndices:
    """Return the best edges of a ranking, half as many again as a circuit has, and the circuit's own."""
    best = scores.ranked(by_magnitude=by_magnitude)[: round(CANDIDATES * len(edges))]
    return np.union1d(best, edges)


def resampled(
    experiment: Experiment, edges: EdgeIndices, candidates: EdgeIndices, clusters: NDArray[np.int64], *, seed: int = 0
) -> Resampled | None:
    """Select a circuit's edges anew on resampled pairs.

    None for large circuits and few pairs (:data:`~circuits.records.MOST_RESAMPLED`).

    Args:
        experiment: The pairs that the circuit was fitted to.
        edges: The circuit.
        candidates: What is selected from; holds the circuit's edges.
        clusters: A number for each pair; pairs with the same number are drawn and replaced together.
        seed: Draws the resamples.

    Cost: one gradient along the candidates, and some seconds without the model.
    """
    groups = [np.flatnonzero(clusters == number) for number in range(int(clusters.max()) + 1)]
    if not 0 < len(edges) <= MOST_RESAMPLED or len(groups) < FEWEST_RESAMPLED:
        return None
    weights = experiment.graph.mask(candidates).astype(np.float64)
    values, slopes = experiment.circuit_gradient(weights, among=candidates)
    selector = _Selector(experiment.clean, experiment.corrupted, values, slopes[:, candidates], len(edges))
    generator, size = np.random.default_rng(seed), max(1, len(groups) // _SHARE)
    own = np.isin(candidates, edges)
    draws = _selections(selector, groups, RESAMPLES, lambda: generator.integers(len(groups), size=len(groups)))
    few = _selections(selector, groups, SUBSAMPLES, lambda: generator.choice(len(groups), size, replace=False))
    kept = withstood(few, pairs=len(groups), size=size)
    inclusion = draws.mean(axis=0)
    unchosen = [str(experiment.graph.edge(int(edge))) for edge in candidates[~own & (inclusion > 0.5)]]
    summary = Stability(
        resamples=RESAMPLES,
        candidates=len(candidates),
        reproduced=_jaccard(np.stack([own, selector.selected(np.arange(experiment.n_pairs))])),
        jaccard_edges=_jaccard(draws),
        jaccard_nodes=_jaccard(draws.astype(np.int64) @ _incidence(experiment.graph, candidates) > 0),
        left_out=tuple(unchosen),
        pairs=len(groups),
        subsample=size,
        subsamples=SUBSAMPLES,
        error=1 - CONFIDENCE,
    )
    return Resampled(inclusion[own], kept[own], summary)


@dataclass(frozen=True)
class _Selector:
    """Selects ``size`` of the candidates for some pairs, from what was measured of all."""

    clean: Floats
    corrupted: Floats
    values: Floats
    slopes: Floats
    size: int

    def selected(self, pairs: NDArray[np.int64]) -> Flags:
        """Return which candidates are selected, ``(candidate,)``."""
        residuals = Residuals(_Ends(self.clean[pairs], self.corrupted[pairs]))
        count = self.slopes.shape[1] - self.size
        rest, losses = residuals.of(self.values[pairs]), -residuals.rows(self.slopes[pairs])
        gone, _ = greedily(rest, losses, count, ridge=RIDGE)
        selected = np.ones(self.slopes.shape[1], dtype=np.bool_)
        selected[gone] = False
        return selected


@dataclass(frozen=True)
class _Ends:
    clean: Floats
    corrupted: Floats


def _selections(
    selector: _Selector, groups: Sequence[NDArray[np.int64]], count: int, draw: Callable[[], NDArray[np.int64]]
) -> Flags:
    """Return what is selected for each draw of groups of pairs, ``(draw, candidate)``."""
    return np.array([selector.selected(np.concatenate([groups[int(i)] for i in draw()])) for _ in range(count)])


def withstood(selections: Flags, *, pairs: int, size: int) -> NDArray[np.int64]:
    """Return how many of ``pairs`` may be replaced before an edge could leave, ``(edge,)``; -1: it may not be in.

    ``selections``, ``(subsample, edge)``, are of random subsamples of ``size`` pairs. An edge with 0 or more is
    selected by most subsamples; all such statements hold at once, but for a chance of 5 %. The bound of each share is
    Clopper's and Pearson's (1934).
    """
    from scipy import stats

    count, edges = selections.shape
    hits = selections.sum(axis=0)
    level = (1 - CONFIDENCE) / edges
    low: Floats = np.nan_to_num(np.asarray(stats.beta.ppf(level, hits, count - hits + 1), dtype=np.float64))
    touched = np.array([1 - stats.hypergeom.pmf(0, pairs, r, size) for r in range(pairs + 1)])
    return (low[:, None] - touched[None, :] > 0.5).sum(axis=1) - 1


def _jaccard(selections: Flags) -> float:
    """Return the mean overlap of selections, two by two: shared over all of both."""
    rows = selections.astype(np.int64)
    shared, sizes = rows @ rows.T, rows.sum(axis=1)
    overlap = shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    return float(overlap[np.triu_indices(len(rows), 1)].mean())


def _incidence(graph: ComputationalGraph, edges: EdgeIndices) -> NDArray[np.int64]:
    """Return which nodes edges have as ends, ``(edge, node)``."""
    ends = [(edge.sender, edge.receiver.node) for edge in graph.edges(edges)]
    place = {node: i for i, node in enumerate(dict.fromkeys(node for both in ends for node in both))}
    incidence = np.zeros((len(ends), len(place)), dtype=np.int64)
    for row, both in enumerate(ends):
        incidence[row, [place[node] for node in both]] = 1
    return incidence
