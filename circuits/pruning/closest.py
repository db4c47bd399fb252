"""A small circuit that follows the model pair by pair, on pairs that it was not fitted to.

1. *Start* with far more edges than are needed, those of largest |score|.
2. *Round*: take the slope of every fit pair's metric along every edge inside the circuit (one gradient), add the
   left-out edges and drop those of the circuit by which the loss is predicted to be smallest
   (:mod:`circuits.pruning.residuals`); of small circuits, take what removing each edge does exactly instead. Several
   such circuits, smaller by more and by less and with more and less trust in the slopes, are measured on *choose*
   pairs; the one with the most edges dropped whose error there is no worse than before goes on.
3. *Stop* where circuits miss the target for good, and take one by the rule of :mod:`circuits.pruning.stopping`.
4. *Prune back*: measure the removal of every single edge on fit pairs, drop the longest run of those that cost least
   with which the target still holds on choose pairs, and again, until none can go.

Nothing is judged on the pairs it was fitted to, and there is no size at which the search changes what it aims at.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from circuits.errors import UsageError
from circuits.graph import EdgeIndices
from circuits.patching.protocol import INTERIM, Experiment, Progress, no_progress
from circuits.pruning.connected import connected
from circuits.pruning.residuals import Residuals, greedily
from circuits.pruning.selection import Selection
from circuits.pruning.stopping import Candidate, candidate, chosen
from circuits.scores import EdgeScores, Floats
from circuits.statistics import error

Report = Callable[[str, Selection], None]
"""Called after each round with what was done and what is left."""

_START = 2400
"""With how many edges the search begins, and twice as many where they do not do the most part of the behaviour."""
_HOPELESS = 0.8
"""An error above which a start is too small, and the end of the search has nothing left to lose."""
_SHARES = (0.25, 0.12, 0.05)
"""Which shares of the edges may go in a round."""
_RIDGES = (1.0, 8.0)
_GROWTH = 0.1
"""How many edges may be added in a round, as a share of those there are."""
_GROWN_BELOW = 1000
"""Larger circuits are not added to, which would need slopes along every edge of the graph."""
_OFFERED = 400
"""How many left-out edges are looked at together: those that alone would help most."""
_EXACT = 160
"""From so many edges on, removals are measured one by one instead of predicted from slopes."""
_MISSES = 3
"""After so many rounds beyond the target the search ends."""
_LEAST = 4


def _no_report(step: str, selection: Selection) -> None:
    """Report nothing."""


def closest(
    fit: Experiment,
    choose: Experiment,
    scores: EdgeScores,
    *,
    target: float = 0.9,
    seconds: float | None = None,
    begin: Selection | None = None,
    report: Report = _no_report,
    progress: Progress = no_progress,
) -> Selection:
    """Return the smallest circuit found whose fidelity on *choose* pairs reaches the target, with f within 0.1 of 1.

    Args:
        fit: The pairs that edges are dropped and added for.
        choose: Other pairs, on which every circuit is judged.
        scores: Which edges to begin with.
        target: The fidelity looked for.
        seconds: After how long the search ends with the best circuit so far; None: when it is done.
        begin: Where an earlier search was, to go on from there.
        report: Told of every round.
        progress: Called with (edges dropped, edges at the start).

    Where no circuit reaches the target, the one by the one-standard-error rule: ``reached`` says which. Cost: about 25
    gradients of the fit pairs, each three forward passes and more, and six circuits on the choose pairs for each;
    below 160 edges as many circuits of the fit pairs as there are edges.
    """
    if not 0 < target < 1:
        raise UsageError(f"the target fidelity must be between 0 and 1, got {target}.")
    search = _Search(fit, choose, scores)
    edges = begin.edges if begin is not None and len(begin.edges) else search.start()
    first, deadline = len(edges), time.monotonic() + (np.inf if seconds is None else seconds)
    search.judge([edges])
    while not search.done(target) and time.monotonic() < deadline:
        search.round()
        report("closer", search.selection(search.path[-1], target))
        progress(first - len(search.edges), first)
    best = chosen(search.tried, target)
    while time.monotonic() < deadline and (shorter := search.pruned(best, target)) is not None:
        best = shorter
        report("pruned", search.selection(best, target))
    return search.finished(best, target)


@dataclass
class _Search:
    """The circuits that the search went through, and all that it tried."""

    fit: Experiment
    choose: Experiment
    scores: EdgeScores
    path: list[Candidate] = field(default_factory=list[Candidate])
    tried: list[Candidate] = field(default_factory=list[Candidate])

    @property
    def edges(self) -> EdgeIndices:
        """The circuit that the search has come to."""
        return self.path[-1].edges

    def start(self) -> EdgeIndices:
        """Return the best edges by |score|, as many as do the most part of the behaviour."""
        ranked, size = self.scores.ranked(by_magnitude=True), _START
        while True:
            edges = connected(self.scores.graph, np.sort(ranked[:size]))
            if size >= len(ranked) or float(error(self.fit, self.fit.circuits([self._mask(edges)])[0])) < _HOPELESS:
                return edges
            size *= 2

    def done(self, target: float) -> bool:
        """Whether going on is of no use: nothing to drop is left, or the target was missed several times on end."""
        last = self.path[-_MISSES:]
        reached = any(each.reaches(target) for each in self.tried)
        missed = not any(each.reaches(target, by=-1) for each in last)
        lost = all(each.error > _HOPELESS for each in last)
        return len(self.edges) <= _LEAST or (len(last) == _MISSES and (lost or (reached and missed)))

    def round(self) -> None:
        """Drop and add edges once, several ways; go on from the smallest circuit that is not worse on choose pairs.

        A journal keeps the ways, not the slopes that they are made from.
        """
        edges, kept = self.edges, self.fit.kept
        ways = kept.arrays("smaller circuits", edges.tolist(), lambda: self._ways(edges))
        kept.forget(INTERIM)
        self.judge([ways[f"{way}"].astype(np.int64) for way in range(len(ways))])

    def _ways(self, edges: EdgeIndices) -> "dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]":
        """Return smaller circuits, by how much and with how much trust in slopes, as ``judge`` expects them."""
        residuals = Residuals(self.fit)
        grown = len(edges) < _GROWN_BELOW
        values, slopes = self._slopes(edges, everywhere=grown)
        rest, added = residuals.of(values), edges[:0]
        if grown:
            added, rest = self._added(residuals, rest, slopes)
        effects = residuals.rows(self._removals(edges, values, slopes))
        ways: list[EdgeIndices] = []
        for share in _SHARES:
            count = max(1, round(share * len(edges))) + len(added)
            for ridge in _RIDGES:
                gone, _ = greedily(rest, effects, count, ridge=ridge)
                kept = np.union1d(np.delete(edges, gone), added).astype(np.int64)
                ways.append(connected(self.scores.graph, kept))
        return {f"{way}": circuit for way, circuit in enumerate(ways)}

    def judge(self, circuits: list[EdgeIndices]) -> None:
        """Measure circuits on choose pairs, and go on from the best of the largest step that makes it no worse there.

        ``circuits`` come by steps, the largest first, each as many ways as there are ridges. Where every step makes it
        worse, the search goes on from the best of the smallest.
        """
        values = self.choose.circuits([self._mask(edges) for edges in circuits])
        found = [candidate(self.choose, *each) for each in zip(circuits, values, strict=True)]
        self.tried += found
        steps = [found[i : i + len(_RIDGES)] for i in range(0, len(found), len(_RIDGES))]
        best = [min(step, key=lambda each: each.error) for step in steps]
        most = self.path[-1].error + self.path[-1].error_se / 2 if self.path else np.inf
        self.path.append(next((each for each in best if each.error <= most), best[-1]))

    def pruned(self, best: Candidate, target: float) -> Candidate | None:
        """Drop the longest run of least useful edges with which a circuit still reaches the target on choose pairs.

        None where no edge can go, or where the circuit does not reach the target surely.
        """
        edges = best.edges
        if not best.reaches(target, by=1):
            return None
        residuals, (values, slopes) = Residuals(self.fit), self._slopes(edges)
        left = residuals.of(values)[:, None] + residuals.rows(self._removals(edges, values, slopes))
        order = edges[np.argsort(np.square(left).sum(axis=0), kind="stable")]
        lengths = np.unique(np.geomspace(1, max(1, len(edges) // 2), 8).round().astype(int))
        shorter = [connected(self.scores.graph, np.sort(order[length:])) for length in lengths]
        values = self.choose.circuits([self._mask(each) for each in shorter])
        found = [candidate(self.choose, *each) for each in zip(shorter, values, strict=True)]
        return min((each for each in found if each.reaches(target, by=1)), key=_size, default=None)

    def finished(self, best: Candidate, target: float) -> Selection:
        """Return a candidate with what removing each of its edges costs on choose pairs, where it is small enough."""
        found, edges = self.selection(best, target), best.edges
        if not 0 < len(edges) <= _EXACT:
            return found
        values = self.choose.circuits(self._without_each(edges))
        without = [candidate(self.choose, edges, each) for each in values]
        return replace(
            found,
            removal=best.faithfulness - np.array([each.faithfulness for each in without]),
            locally_minimal=found.reached and not any(each.reaches(target, by=1) for each in without),
        )

    def selection(self, best: Candidate, target: float) -> Selection:
        """Return a candidate as what a pruner gives back."""
        return Selection(
            best.edges,
            best.faithfulness,
            proposed=len(self.tried[0].edges),
            by_magnitude=True,
            error=best.error,
            pairs=self.choose.n_pairs,
            reached=best.reaches(target),
        )

    def _added(self, residuals: Residuals, rest: Floats, slopes: Floats) -> tuple[EdgeIndices, Floats]:
        """Return left-out edges that are predicted to help by more than they might be off, and the rows left then."""
        out = np.flatnonzero(~self._mask(self.edges))
        effects, ridge = residuals.rows(slopes[:, out]), 2 * _RIDGES[0]
        alone = (1 + ridge) * np.square(effects).sum(axis=0) + 2 * (rest @ effects)
        offered = np.argsort(alone, kind="stable")[:_OFFERED]
        count = max(1, round(_GROWTH * len(self.edges)))
        taken, rest = greedily(rest, effects[:, offered], count, ridge=ridge, only_gains=True)
        added: EdgeIndices = np.sort(out[offered[taken]])
        return added, rest

    def _slopes(self, edges: EdgeIndices, *, everywhere: bool = False) -> tuple[Floats, Floats]:
        """Return a circuit's values on fit pairs, and their slopes along its edges, or along all of the graph's."""
        return self.fit.circuit_gradient(self._mask(edges).astype(np.float64), among=None if everywhere else edges)

    def _removals(self, edges: EdgeIndices, values: Floats, slopes: Floats) -> Floats:
        """Return what removing each edge of a circuit does to every fit pair, exactly where there are few."""
        if len(edges) > _EXACT:
            return -slopes[:, edges]
        return (self.fit.circuits(self._without_each(edges)) - values).T

    def _without_each(self, edges: EdgeIndices) -> "np.ndarray[tuple[int, int], np.dtype[np.bool_]]":
        """Return the masks of a circuit without each of its edges, ``(edge, edge of the graph)``."""
        masks = np.repeat(self._mask(edges)[None], len(edges), axis=0)
        masks[np.arange(len(edges)), edges] = False
        return masks

    def _mask(self, edges: EdgeIndices) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        mask = np.zeros(self.scores.graph.n_edges, dtype=np.bool_)
        mask[edges] = True
        return mask


def _size(candidate: Candidate) -> int:
    return len(candidate.edges)
