"""A locally minimal circuit: attribution proposes, joint measurement selects, exact prune-back minimises.

Effects of single edges do not compose, so a circuit is only ever judged as a whole, by its faithfulness ``f``; it
reaches the target when ``|1 - f| <= 1 - target``.

1. *Propose*: the smallest number of best-ranked edges that reaches the target, on a geometric grid and then by
   bisection; by score and by |score|, whichever needs fewer.
2. *Prune back*: measure the removal of every single edge inside the circuit; drop the longest run of least useful edges
   with which the target still holds; measure again, until no single edge can go.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from circuits.errors import BehaviourNotShownError, UsageError
from circuits.evaluation.faithfulness import faithfulness
from circuits.graph import EdgeIndices
from circuits.pruning.connected import connected
from circuits.pruning.selection import Selection
from circuits.scores import EdgeScores, Floats
from circuits.tracing.protocol import Experiment, Progress, no_progress

Report = Callable[[str, EdgeIndices, float], None]
"""Called after each step with what was done, the edges that are left and their faithfulness."""

_GRID_STEP = 1.4
_SIZES_AT_ONCE = 6


def minimal(
    experiment: Experiment,
    scores: EdgeScores,
    *,
    target: float = 0.9,
    begin: EdgeIndices | None = None,
    report: Report = lambda _step, _edges, _f: None,
    progress: Progress = no_progress,
) -> Selection:
    """Find a circuit that reaches the target and from which no single edge can be removed without missing it.

    ``begin`` continues from the edges of an earlier, interrupted search instead of proposing anew. Cost: a few dozen
    circuits to propose; then, per round, as many as the circuit has edges, each a fraction of a forward pass.
    """
    if not 0 < target < 1:
        raise UsageError(f"the target faithfulness must be between 0 and 1, got {target}.")
    judge = _Judge(experiment, 1 - target, progress)
    proposal = _propose(judge, scores) if begin is None else _Proposal(begin, len(begin), by_magnitude=False)
    edges = judge.tidied(proposal.edges)
    report("proposed", edges, judge.one(edges))
    while True:
        losses = judge.removals(edges)
        shorter = _drop(judge, edges, losses)
        if shorter is None:
            break
        edges = judge.tidied(shorter)
        report("pruned", edges, judge.one(edges))
    found = judge.one(edges)
    return Selection(edges, found, proposal.size, proposal.by_magnitude, found - losses, locally_minimal=True)


@dataclass(frozen=True)
class _Proposal:
    edges: EdgeIndices
    size: int
    by_magnitude: bool


@dataclass(frozen=True)
class _Judge:
    """Measures circuits given as edges, and says which reach the target."""

    experiment: Experiment
    tolerance: float
    progress: Progress

    def many(self, circuits: list[EdgeIndices]) -> Floats:
        masks: list[np.ndarray[tuple[int], np.dtype[np.bool_]]] = []
        for edges in circuits:
            mask = np.zeros(self.experiment.graph.n_edges, dtype=np.bool_)
            mask[edges] = True
            masks.append(mask)
        return faithfulness(
            self.experiment, self.experiment.circuits(masks, progress=self.progress if len(masks) > 1 else no_progress)
        )

    def one(self, edges: EdgeIndices) -> float:
        return float(self.many([edges])[0])

    def removals(self, edges: EdgeIndices) -> Floats:
        """Give the faithfulness of the circuit without each single edge."""
        return self.many([np.delete(edges, i) for i in range(len(edges))])

    def tidied(self, edges: EdgeIndices) -> EdgeIndices:
        """Drop edges on no path from input to logits, unless (zero ablation and biases) they matter all the same."""
        shorter = connected(self.experiment.graph, edges)
        return shorter if len(shorter) < len(edges) and self.reaches(np.array(self.one(shorter))) else edges

    def reaches(self, f: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.abs(1 - f) <= self.tolerance


def _propose(judge: _Judge, scores: EdgeScores) -> _Proposal:
    """Find the smallest number of best-ranked edges that reaches the target."""
    rankings = {False: scores.ranked(), True: scores.ranked(by_magnitude=True)}
    sizes = list(_grid(len(rankings[False])))
    for first in range(0, len(sizes), _SIZES_AT_ONCE):
        tried = sizes[first : first + _SIZES_AT_ONCE]
        found = {kind: judge.reaches(judge.many([ranked[:n] for n in tried])) for kind, ranked in rankings.items()}
        hits = {kind: int(np.argmax(reached)) for kind, reached in found.items() if reached.any()}
        if hits:
            kind = min(hits, key=lambda kind: (hits[kind], kind))
            place = first + hits[kind]
            low = sizes[place - 1] if place else 0
            size = _bisect(judge, rankings[kind], low, sizes[place])
            return _Proposal(np.sort(rankings[kind][:size]), size, kind)
    raise BehaviourNotShownError(
        f"no number of best-ranked edges ({scores.scorer}) reaches a faithfulness within {judge.tolerance:.2f} of 1, "
        "not even all of them. Use another scorer (--scorer), more pairs (--pairs), or a lower --target."
    )


def _grid(limit: int) -> Iterator[int]:
    size = 8.0
    while size < limit:
        yield round(size)
        size *= _GRID_STEP
    yield limit


def _bisect(judge: _Judge, ranked: EdgeIndices, low: int, high: int) -> int:
    """Narrow down between a size that misses the target and one that reaches it."""
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        if judge.reaches(judge.many([ranked[:middle]]))[0]:
            high = middle
        else:
            low = middle
    return high


def _drop(judge: _Judge, edges: EdgeIndices, without: Floats) -> EdgeIndices | None:
    """Drop the longest run of least useful edges with which the target holds; None when no single edge can go.

    Runs are taken in three orders: least change of faithfulness first, largest gain first, and largest loss last of
    those that alone keep the target.
    """
    whole = judge.one(edges)
    removable = np.flatnonzero(judge.reaches(without))
    if not len(removable):
        return None
    change = without - whole
    orders = [
        removable[np.argsort(key[removable], kind="stable")] for key in (np.abs(change), -change, np.abs(1 - without))
    ]
    lengths = sorted({max(1, round(len(removable) * share)) for share in np.geomspace(1 / len(removable), 1, 8)})
    attempts = [order[:length] for order in orders for length in lengths]
    reached = judge.reaches(judge.many([np.delete(edges, attempt) for attempt in attempts]))
    longest = max((len(attempt), -i) for i, attempt in enumerate(attempts) if reached[i])
    return np.delete(edges, attempts[-longest[1]])
