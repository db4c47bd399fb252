"""A small circuit that follows the model pair by pair, on pairs that it was not fitted to.

1. *Start* with far more edges than are needed, those of largest |score|.
2. *Round*: take the slope of every fit pair's metric along every edge inside the circuit (one gradient), and drop the
   share of edges by which the loss is predicted to be smallest (:mod:`circuits.pruning.steps`); in small circuits, some
   edges are exchanged first for others that were dropped not long ago. What is left is measured on *choose* pairs. The
   smaller the circuit, the smaller the share: a round mends what the one before it did to the pairs. Where there are
   more pairs, every round takes others: what it mends is then not peculiar to a few.
3. *Stop* where circuits miss the target for good, and take one by the rule of :mod:`circuits.pruning.stopping`. Where
   none reached the target, go the same way once more from all edges among few nodes that do
   (:mod:`circuits.pruning.closest_nodes`): of an induction circuit the best 2,400 edges are too few, and of the best
   ones by score it takes 12,800.
4. *Begin to prune back* with that one; where it is much larger than the smallest that a standard error keeps from the
   target, with this one, after edges of the start were added to it until it reaches the target. Errors of 72 to 461 ioi
   edges (seed 2), 0.345 to 0.315, were within one another's standard error of 0.02, and the one of 461 alone had the
   target of 0.316: from there pruning got to 360 edges, from the one of 115 and others added to it to 123.
5. *Prune back*: drop the longest run of edges that cost least by their slopes with which the target still holds on
   choose pairs, and again; where none can go, exchange some for edges of the start, and prune again, until neither
   gets any further.
6. *Confirm*: of the circuits that pruning went through take the smallest that reaches the target on the fresh pairs
   too. The last one is the luckiest of many that choose pairs allowed: an ioi circuit of 58 edges with an error of 0.30
   on 128 choose pairs had 0.34 on 192 fresh and 0.35 on 384 held-out ones.

Nothing is judged on the pairs it was fitted to, and there is no size at which the search changes what it aims at.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from circuits.errors import UsageError
from circuits.graph import EdgeIndices
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import INTERIM, Experiment, Progress, no_progress
from circuits.pruning.closest_nodes import nodes
from circuits.pruning.connected import connected
from circuits.pruning.selection import Selection
from circuits.pruning.steps import Prices, dropped, exchanged, extended, in_turn, losses_without_each, rounds, without
from circuits.pruning.stopping import Candidate, allowed, candidate, chosen, ratio
from circuits.scores import EdgeScores, Floats
from circuits.statistics import error

Report = Callable[[str, Selection], None]
"""Called after each round with what was done and what is left."""

EXTENDED, BACK = "extended", "pruned back"
"""What is reported of the circuits that adding edges and pruning back come by."""
_START = 2400
"""With how many edges the search begins, and twice as many where they do not do the most part of the behaviour."""
_HOPELESS = 0.8
"""An error above which a start is too small, and the end of the search has nothing left to lose."""
_POOL = 300
"""The edges of the first circuit with no more than so many are offered again later."""
_OFFERED_BELOW = 130
"""Only small circuits are: above, edges that are dropped are hardly missed."""
_MISSES = 4
"""After so many rounds beyond what is allowed the search ends."""
_IDLE = 3
"""After so many exchanges in a row with which no edge can go pruning back ends."""
_FAR = 2.0
"""Pruning back begins with the smallest allowed circuit up to so many times the size of the smallest nearly allowed."""
_ADDED = 0.1
"""Which share of a circuit's edges is added at a time."""
_VAIN = 3
"""After so many additions in a row that bring no circuit closer than before nothing more is added."""
_LEAST = 4
_USUAL = 40
"""About this small are the last circuits of most searches."""
_CANDIDATES = 1.5
_COUNTED = 160
"""Of circuits with no more edges the removal of each is measured in the end."""


def no_report(step: str, selection: Selection) -> None:
    """Report nothing."""


def closest(
    fit: Experiment,
    choose: Experiment,
    scores: EdgeScores,
    *,
    target: float = 0.9,
    seconds: float | None = None,
    begin: Selection | None = None,
    fresh: Sequence[Callable[[], Experiment]] = (),
    prices: Prices | None = None,
    report: Report = no_report,
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
        fresh: Record further fit pairs, one group each; rounds take ``fit`` and these in turn.
        prices: What keeping each edge of the graph costs beside the loss (:mod:`circuits.pruning.residuals`), where
            some are to be done without; None: nothing.
        report: Told of every round.
        progress: Called with (rounds, rounds expected); with (0, 0) while it prunes back.

    Where no circuit reaches the target, the one by the one-standard-error rule: ``reached`` says which. Cost: about 30
    gradients, the first ones each ten forward passes of half the fit pairs, those of a hundred edges one of all, and as
    many again where edges are added, pruned and exchanged; a circuit on the choose pairs for each and six to prune; in
    the end as many circuits on the choose pairs as there are edges, and a few on the fresh ones, which every round
    records.
    """
    free = np.zeros(scores.graph.n_edges)
    search = _Search(fit, choose, scores, fresh, free if prices is None else prices)
    return search.run(target, begin=begin, seconds=seconds, report=report, progress=progress)


class _Ends(NamedTuple):
    clean: Floats
    corrupted: Floats


@dataclass
class _Search:
    """The circuits that a search went through, and all that it tried."""

    fit: Experiment
    choose: Experiment
    scores: EdgeScores
    fresh: Sequence[Callable[[], Experiment]]
    prices: Prices
    turn: int = 0
    path: list[Candidate] = field(default_factory=list[Candidate])
    tried: list[Candidate] = field(default_factory=list[Candidate])
    pool: EdgeIndices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def run(
        self,
        target: float,
        *,
        begin: Selection | None = None,
        seconds: float | None = None,
        report: Report = no_report,
        progress: Progress = no_progress,
    ) -> Selection:
        """Search as :func:`closest` does, and return what was found."""
        if not 0 < target < 1:
            raise UsageError(f"the target fidelity must be between 0 and 1, got {target}.")
        edges = begin.edges if begin is not None and len(begin.edges) else self.start()
        deadline = time.monotonic() + (np.inf if seconds is None else seconds)
        self.narrow(edges, target, deadline, report, progress)
        if time.monotonic() < deadline and not any(each.reaches(target) for each in self.tried):
            edges = self.among_nodes(target)
            if len(edges):
                self.narrow(edges, target, deadline, report, progress)
        best, idle = self.begun(target, deadline, report, progress), 0
        pruned = [best]
        report(BACK, self.selection(best, target))
        while idle < _IDLE and time.monotonic() < deadline:
            progress(0, 0)
            shorter = self.pruned(best, target)
            idle = idle + 1 if shorter is None else 0
            better = shorter or self.mended(best, target)
            if better is not None:
                best = better
                pruned.append(best)
                report(BACK, self.selection(best, target))
        return self.finished(self.confirmed(pruned, target), target)

    def begun(self, target: float, deadline: float, report: Report, progress: Progress) -> Candidate:
        """Return the circuit to prune back from: one that is allowed, and not far larger than one that nearly is."""
        sure = chosen(self.tried, target)
        near = (each for each in self.path if each.within(allowed(self.tried, target), by=1))
        best = min(near, key=_size, default=sure)
        if len(sure.edges) <= _FAR * len(best.edges):
            return sure
        errors = [best.error]
        while len(best.edges) < len(sure.edges) and time.monotonic() < deadline:
            if best.within(allowed(self.tried, target)):
                return best
            progress(0, 0)
            before, best = best, self.extended(best)
            report(EXTENDED, self.selection(best, target))
            errors.append(best.error)
            in_vain = min(errors[-_VAIN:]) >= min(errors[:-_VAIN], default=math.inf)
            if in_vain or len(best.edges) <= len(before.edges):
                break
        return sure

    def extended(self, best: Candidate) -> Candidate:
        """Add a few edges of the start to a circuit, and measure it on choose pairs."""
        fit, pool, count = self._fit_pairs(), self.path[0].edges, max(1, round(_ADDED * len(best.edges)))
        what = [best.edges.tolist(), pool.tolist(), count, *self._priced]
        edges = _kept(fit, "extended circuit", what, lambda: extended(fit, best.edges, pool, count, self.prices))
        return self.judged([edges])[0]

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

    def narrow(self, edges: EdgeIndices, target: float, deadline: float, report: Report, progress: Progress) -> None:
        """Go from these edges through ever smaller circuits."""
        expected, self.path, self.pool = max(1, rounds(len(edges), _USUAL)), self.judged([edges]), edges[:0]
        while not self.done(target) and time.monotonic() < deadline:
            self.round()
            report("closer", self.selection(self.path[-1], target))
            progress(len(self.path) - 1, max(expected, len(self.path)))

    def among_nodes(self, target: float) -> EdgeIndices:
        """Return all edges among few nodes that reach the target; none where nodes cannot be searched, or none do."""
        if not isinstance(self.fit, PatchingExperiment):
            return self.pool[:0]
        found = nodes(self.fit, self.choose, target=target, fresh=self.fresh)
        return found.edges if found.reached else self.pool[:0]

    def done(self, target: float) -> bool:
        """Whether going on is of no use: nothing to drop is left, or circuits have been worse than allowed for long."""
        last, error = self.path[-_MISSES:], allowed(self.tried, target)
        beyond = [each for each in last if not each.within(error, by=1) and len(each.edges) < len(self._best.edges)]
        return len(self.edges) <= _LEAST or len(beyond) == _MISSES

    @property
    def _priced(self) -> tuple[object, ...]:
        """What prices there are, by which what was kept is known; nothing where edges are free."""
        where = np.flatnonzero(self.prices)
        return (where.tolist(), self.prices[where].tolist()) if len(where) else ()

    @property
    def _best(self) -> Candidate:
        return min(self.tried, key=lambda each: each.error)

    def round(self) -> None:
        """Go on to a smaller circuit, and measure it on choose pairs."""
        edges, fit = self.edges, self._fit_pairs()
        if not len(self.pool) and len(edges) <= _POOL:
            self.pool = edges
        fit = in_turn(fit, len(edges), self.turn // (1 + len(self.fresh)))
        what = [edges.tolist(), self.pool.tolist(), *self._priced]
        self.path += self.judged([_kept(fit, "smaller circuit", what, lambda: self._next(fit, edges))])

    def _fit_pairs(self) -> Experiment:
        """Return the fit pairs whose turn it is."""
        group = self.turn % (1 + len(self.fresh))
        self.turn += 1
        return self.fresh[group - 1]() if group else self.fit

    def _next(self, fit: Experiment, edges: EdgeIndices) -> EdgeIndices:
        if len(edges) <= _OFFERED_BELOW:
            edges = exchanged(fit, edges, self.pool, self.prices)
        return without(fit, edges, dropped(len(edges)), self.prices)

    def judged(self, circuits: list[EdgeIndices]) -> list[Candidate]:
        """Measure circuits on choose pairs."""
        values = self.choose.circuits([self._mask(edges) for edges in circuits])
        found = [candidate(self.choose, *each) for each in zip(circuits, values, strict=True)]
        self.tried += found
        return found

    def pruned(self, best: Candidate, target: float) -> Candidate | None:
        """Drop the longest run of least useful edges with which a circuit still reaches the target on choose pairs.

        None where no edge can go, or where the circuit does not reach the target.
        """
        error = allowed(self.tried, target)
        if not best.within(error):
            return None
        edges = best.edges
        order = edges[np.argsort(losses_without_each(self._fit_pairs(), edges, self.prices), kind="stable")]
        lengths = np.unique(np.geomspace(1, max(1, len(edges) // 8), 6).round().astype(int))
        found = self.judged([connected(self.scores.graph, np.sort(order[length:])) for length in lengths])
        return min((each for each in found if each.within(error)), key=_size, default=None)

    def mended(self, best: Candidate, target: float) -> Candidate | None:
        """Exchange a few edges for others of the start; None where that makes no circuit that is closer or allowed."""
        fit, pool = self._fit_pairs(), self.path[0].edges
        what = [best.edges.tolist(), pool.tolist(), *self._priced]
        edges = _kept(fit, "exchanged circuit", what, lambda: exchanged(fit, best.edges, pool, self.prices))
        if np.array_equal(edges, best.edges):
            return None
        (other,) = self.judged([edges])
        return other if other.error < best.error or other.within(allowed(self.tried, target)) else None

    def confirmed(self, pruned: Sequence[Candidate], target: float) -> Candidate:
        """Return the smallest circuit whose fidelity on the fresh pairs is a standard error above the target.

        Where none is, one by the rule of :mod:`circuits.pruning.stopping`; the last one where there are no fresh pairs,
        or where it misses the target on choose pairs already. Cost: a pass of the fresh pairs for each, from the
        smallest on.
        """
        if not self.fresh or not pruned[-1].reaches(target):
            return pruned[-1]
        groups = [record() for record in self.fresh]
        ends = _Ends(*(np.concatenate([getattr(each, side) for each in groups]) for side in _Ends._fields))
        before = [each for each in self.path if len(each.edges) > len(pruned[0].edges) and each.reaches(target)]
        ways, seen = sorted([*before, *pruned], key=_size), list[Candidate]()
        for way in ways:
            values = np.concatenate([each.circuits([self._mask(way.edges)])[0] for each in groups])
            seen.append(candidate(ends, way.edges, values))
            if seen[-1].within(math.sqrt(1 - target) - seen[-1].error_se):
                return way
        best = chosen(seen, target)
        return next(way for way, each in zip(ways, seen, strict=True) if each is best)

    def finished(self, best: Candidate, target: float) -> Selection:
        """Return a candidate with what removing each of its edges costs on choose pairs, where it is small enough."""
        found, edges = self.selection(best, target), best.edges
        if not 0 < len(edges) <= _COUNTED:
            return found
        kept, *values = self.choose.circuits([self._mask(edges), *self._without_each(edges)])
        shorter, error = [candidate(self.choose, edges, each) for each in values], allowed(self.tried, target)
        losses = [ratio(kept - each, self.choose.clean - self.choose.corrupted) for each in values]
        return replace(
            found,
            removal=np.array([loss for loss, _ in losses]),
            removal_se=np.array([spread for _, spread in losses]),
            locally_minimal=found.reached and not any(each.within(error) for each in shorter),
        )

    def selection(self, best: Candidate, target: float) -> Selection:
        """Return a candidate as what a pruner gives back."""
        return Selection(
            best.edges,
            best.faithfulness,
            proposed=len(self.path[0].edges),
            by_magnitude=True,
            error=best.error,
            pairs=self.choose.n_pairs,
            reached=best.reaches(target),
            candidates=self._candidates(best.edges),
        )

    def _candidates(self, edges: EdgeIndices) -> EdgeIndices:
        """Return the smallest circuit on the way with half as many edges as these again, and these."""
        larger = (each.edges for each in self.path if len(each.edges) >= _CANDIDATES * len(edges))
        return np.union1d(min(larger, key=len, default=edges), edges)

    def _without_each(self, edges: EdgeIndices) -> "np.ndarray[tuple[int, int], np.dtype[np.bool_]]":
        """Return the masks of a circuit without each of its edges, ``(edge, edge of the graph)``."""
        masks = np.repeat(self._mask(edges)[None], len(edges), axis=0)
        masks[np.arange(len(edges)), edges] = False
        return masks

    def _mask(self, edges: EdgeIndices) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        mask = np.zeros(self.scores.graph.n_edges, dtype=np.bool_)
        mask[edges] = True
        return mask


def _kept(fit: Experiment, kind: str, what: list[object], change: Callable[[], EdgeIndices]) -> EdgeIndices:
    """Return edges that a change of a circuit leads to: as an interrupted run kept them, else computed."""
    found = fit.kept.arrays(kind, what, lambda: {"edges": change()})
    fit.kept.forget(INTERIM)
    return found["edges"].astype(np.int64)


def _size(candidate: Candidate) -> int:
    return len(candidate.edges)
