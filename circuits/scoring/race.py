"""A race for the k largest mean effects: edges that are too small for it stop getting prompt pairs.

The leaders (the k edges largest so far) are measured on all pairs, so the k-th largest exact effect found, the
*threshold*, is known without error, and never above that of all edges. Every other edge is measured on 2, 4, 8, ...
pairs until the upper bound of its ``|mean|`` does not reach the threshold, or it has had all pairs and is exact itself.
So the only possible error is that a bound of one of the k true edges was too low in one of the rounds: the bounds are
corrected for these ``k x rounds`` events, not for all edges (successive elimination, Even-Dar et al. 2006; the fixed
threshold instead of pairwise comparison is what the leaders' full measurement buys).
"""

import numpy as np

from circuits.graph import EdgeIndices
from circuits.scores import Floats
from circuits.scoring.bounds import multiples, prior_ratio, upper_bounds
from circuits.scoring.measurements import Measurements

_FIRST_PAIRS = 2


class Race:
    """Keeps which edges entered, which are out, and the threshold."""

    def __init__(self, measured: Measurements, prior: Floats, *, top: int, error: float, seed: int) -> None:
        self._measured, self._prior = measured, prior
        self._top, self._seed = top, seed
        self.rounds = _rounds(measured.n_pairs)
        self._error = error / (top * max(1, len(self.rounds)))
        self._entered = np.zeros(len(prior), dtype=np.bool_)
        self._out = np.zeros(len(prior), dtype=np.bool_)
        self._calibrated_on: EdgeIndices = np.empty(0, dtype=np.int64)
        self._ratio, self._multiples = 1.0, [float("inf")] * len(self.rounds)

    def run(self, edges: EdgeIndices) -> None:
        """Let edges enter, in order of importance, and race until all are decided or the budget is spent."""
        self._measured.measure(edges, self.first_pairs)
        self._entered[edges[self._measured.counts[edges] > 0]] = True
        self._complete_leaders()
        if len(self.best) < self._top:
            return
        self._calibrate()
        for place, n in enumerate(self.rounds):
            alive = self.undecided
            alive = alive[self._measured.counts[alive] == n]
            if not len(alive):
                continue
            bounds = self._bounds(alive, place)
            below = bounds <= self.threshold
            self._out[alive[below]] = True
            going = alive[~below][np.argsort(-bounds[~below], kind="stable")]
            self._measured.measure(going, self._after(place))

    @property
    def first_pairs(self) -> int:
        """On how many pairs every edge is measured that enters."""
        return self.rounds[0] if self.rounds else self._measured.n_pairs

    @property
    def undecided(self) -> EdgeIndices:
        """Edges that are neither out nor measured on all pairs."""
        return np.flatnonzero(self._entered & ~self._out & (self._measured.counts < self._measured.n_pairs))

    @property
    def exact(self) -> EdgeIndices:
        """Edges measured on all pairs, largest ``|effect|`` first; ties in graph order."""
        complete = np.flatnonzero(self._entered & (self._measured.counts == self._measured.n_pairs))
        return complete[np.argsort(-np.abs(self._measured.means(complete)), kind="stable")]

    @property
    def best(self) -> EdgeIndices:
        """The k largest of the edges measured on all pairs; fewer when the budget was spent before."""
        return self.exact[: self._top]

    @property
    def threshold(self) -> float:
        """The k-th largest exact ``|effect|`` found; 0 before there are k."""
        best = self.best
        return float(np.abs(self._measured.means(best[-1:]))[0]) if len(best) == self._top else 0.0

    def _complete_leaders(self) -> None:
        entered = np.flatnonzero(self._entered & ~self._out)
        leaders = entered[np.argsort(-np.abs(self._measured.means(entered)), kind="stable")][: self._top]
        self._measured.measure(leaders, self._measured.n_pairs)

    def _calibrate(self) -> None:
        """Find what bounds the leaders would have needed, unless they are the same as last time."""
        leaders = self.best
        if np.array_equal(leaders, self._calibrated_on) or not self.rounds:
            return
        effects, prior = self._measured.effects[leaders], self._prior[leaders]
        self._calibrated_on, self._ratio = leaders, prior_ratio(effects, prior)
        self._multiples = multiples(effects, self._ratio * prior, self.rounds, self._error, self._seed)

    def _bounds(self, edges: EdgeIndices, place: int) -> Floats:
        effects = self._measured.effects[edges, : self.rounds[place]]
        return upper_bounds(effects, self._ratio * self._prior[edges], self._measured.n_pairs, self._multiples[place])

    def _after(self, place: int) -> int:
        return self.rounds[place + 1] if place + 1 < len(self.rounds) else self._measured.n_pairs


def _rounds(n_pairs: int) -> list[int]:
    """Numbers of pairs before all of them: 2, 4, 8, ..."""
    rounds: list[int] = []
    n = _FIRST_PAIRS
    while n < n_pairs:
        rounds.append(n)
        n *= 2
    return rounds
