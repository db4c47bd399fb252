"""Faithfulness as a function of circuit size, and the areas under it by the rule of MIB (arXiv:2504.13151).

MIB takes the best ``int(share * edges)`` edges at ten shares, measures ``f = (m(circuit) - m(corrupted)) / (m(clean) -
m(corrupted))`` of means over pairs, and sums trapezoids over the *shares*, from the first one on (there is no point at
0). CPR is the area under f of the ranking by score, CMD that under |1 - f| of the ranking by |score|. Its graph has
keys and values for every query head; where heads share them, an edge into a group stands for one edge per head, each
with an equal part of the score. Those are tied, so they are taken together or not at all: where the last group does not
fit, the circuit has up to one group fewer edges than asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from circuits.graph import EdgeIndices
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.records import Areas, CurvePoint
from circuits.scores import EdgeScores
from circuits.statistics import error, faithfulness
from circuits.vocabulary import BY_CIRCUITS, Universe

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which the curve is measured."""


def curve(
    experiment: Experiment,
    scores: EdgeScores,
    *,
    by_magnitude: bool = False,
    universes: Sequence[Universe] = (),
    progress: Progress = no_progress,
) -> tuple[tuple[CurvePoint, ...], tuple[Areas, ...]]:
    """Return the curve over the best edges by score (or |score|) at shares of MIB's edges, and areas by MIB's rule.

    The curve's ranking alone gives one of the areas: CPR by score, CMD by |score|. Both are measured in the
    ``universes`` asked for. Without a score for every edge there are none. Cost: up to three forward passes per point;
    10 points, up to 9 more for each further ranking in each universe.
    """
    drawn = (Universe.QUERY_HEAD, by_magnitude)
    complete = len(scores.scored) == experiment.graph.n_edges
    asked = [(universe, magnitude) for universe in universes for magnitude in (False, True)] if complete else []
    circuits = {key: best_edges(scores, key[0], by_magnitude=key[1]) for key in (drawn, *asked)}
    measured = _Measured(experiment, len({edges.tobytes() for each in circuits.values() for edges in each}), progress)
    values = {key: [measured.point(edges) for edges in each] for key, each in circuits.items()}
    heights = {key: np.array([point.faithfulness for point in each]) for key, each in values.items()}
    points = tuple(replace(point, requested=share) for point, share in zip(values[drawn], SHARES, strict=True))
    areas = tuple(_areas(scores, universe, heights) for universe in dict.fromkeys((drawn[0], *universes)) if complete)
    return points, areas


def _areas(
    scores: EdgeScores, universe: Universe, values: Mapping[tuple[Universe, bool], NDArray[np.float64]]
) -> Areas:
    by_score, by_magnitude = values.get((universe, False)), values.get((universe, True))
    return Areas(
        universe.value,
        count_edges(scores, universe),
        cpr=None if by_score is None else area(by_score),
        cmd=None if by_magnitude is None else area(np.abs(1 - by_magnitude)),
    )


def area(heights: NDArray[np.float64]) -> float:
    """Return the area under values at :data:`SHARES`, by trapezoids over the shares."""
    return float(np.trapezoid(heights, SHARES))


def count_edges(scores: EdgeScores, universe: Universe) -> int:
    """Return how many edges a graph has, counted one way or the other."""
    return int(scores.graph.copies.sum()) if universe is Universe.QUERY_HEAD else scores.graph.n_edges


def best_edges(scores: EdgeScores, universe: Universe, *, by_magnitude: bool) -> list[EdgeIndices]:
    """Return the circuits of a ranking at :data:`SHARES`, each with its edges in graph order.

    Where keys and values count once per query head, a score is divided among these copies, unless it is of
    :data:`circuits.vocabulary.BY_CIRCUITS`.
    """
    copies = scores.graph.copies if universe is Universe.QUERY_HEAD else np.ones(scores.graph.n_edges, dtype=np.int64)
    each = scores.values / (1 if scores.scorer in BY_CIRCUITS else copies)
    ranked = replace(scores, values=each).ranked(by_magnitude=by_magnitude)
    taken = np.cumsum(copies[ranked])
    sizes = [int(share * count_edges(scores, universe)) for share in SHARES]
    return [np.sort(ranked[: int(np.searchsorted(taken, size, side="right"))]) for size in sizes]


@dataclass
class _Measured:
    """Measures circuits, each once."""

    experiment: Experiment
    total: int
    progress: Progress
    known: dict[bytes, CurvePoint] = field(default_factory=dict[bytes, CurvePoint])

    def point(self, edges: EdgeIndices) -> CurvePoint:
        mask = self.experiment.graph.mask(edges)
        key = edges.tobytes()
        if key not in self.known:
            values, ends = self.experiment.circuits([mask])[0], self.experiment
            self.known[key] = CurvePoint(
                len(edges), float(faithfulness(ends, values)), error=float(error(ends, values))
            )
            self.progress(len(self.known), self.total)
        return self.known[key]
