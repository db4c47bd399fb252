"""A locally minimal circuit: attribution proposes, joint measurement selects, exact prune-back minimises.

Effects of single edges do not compose, so a circuit is only ever judged as a whole, by its faithfulness ``f``; it
reaches the target when ``|1 - f| <= 1 - target``.

1. *Propose*: the smallest number of best-ranked edges that reaches the target, on a geometric grid and then by
   bisection; by score and by |score|, whichever needs fewer.
2. *Thin out*: remove edges in blocks of neighbouring rank. What the removal of each block changes is estimated on a
   few pairs, only to put blocks in order; how many of them go is decided by the target, on all pairs. Blocks get
   smaller, down to single edges.
3. *Prune back*: measure the removal of every single edge inside the circuit on all pairs; drop the longest run of
   least useful edges with which the target still holds; measure again, until no single edge can go.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from circuits.errors import BehaviourNotShownError, UsageError
from circuits.evaluation.faithfulness import faithfulness
from circuits.graph import EdgeIndices
from circuits.pruning.connected import connected
from circuits.pruning.selection import Selection
from circuits.scores import EdgeScores, Floats
from circuits.tracing.protocol import Experiment, Progress, no_progress

Report = Callable[[str, Selection], None]
"""Called after each step with what was done and what is left."""

_GRID_STEP = 1.4
_SIZES_AT_ONCE = 6
_BLOCKS = 48
"""How many blocks a circuit is thinned out by at the most, before blocks are single edges."""
_SCOUTS = 8
"""On how many pairs the order of blocks is estimated."""


def minimal(
    experiment: Experiment,
    scores: EdgeScores,
    *,
    target: float = 0.9,
    limit: int = 400,
    begin: Selection | None = None,
    report: Report = lambda _step, _selection: None,
    progress: Progress = no_progress,
) -> Selection:
    """Find a circuit that reaches the target and from which no single edge can be removed without missing it.

    A circuit of more than ``limit`` edges is thinned out while that removes a twentieth of it at a time, but not pruned
    edge by edge, which would take that many circuits a round: the result then is not ``locally_minimal``.

    ``begin`` continues from what an earlier, interrupted search reported last instead of proposing anew; should it
    miss the target here, the search starts afresh. Cost: a few dozen circuits to propose; then, per round, as many as
    the circuit has edges, each a fraction of a forward pass.
    """
    if not 0 < target < 1:
        raise UsageError(f"the target faithfulness must be between 0 and 1, got {target}.")
    judge = _Judge(experiment, 1 - target, progress)
    if begin is None or not judge.reaches(judge.many([begin.edges]))[0]:
        begin = _propose(judge, scores)
    edges = judge.tidied(begin.edges)

    def reached(step: str) -> Selection:
        found = Selection(edges, judge.one(edges), begin.proposed, begin.by_magnitude)
        report(step, found)
        return found

    found = reached("proposed")
    scouts = replace(judge, experiment=experiment.part(0, _SCOUTS))
    smallest = 1 if experiment.n_pairs > 2 * _SCOUTS else 2  # with few pairs, single edges are measured on all at once
    size = max(1, len(edges) // _BLOCKS)
    while size >= (smallest if len(edges) <= limit else 2):
        shorter = _thin_out(judge, scouts, edges, _blocks(scores, edges, size))
        if shorter is None:
            size //= 2
            continue
        before, edges = len(edges), judge.tidied(shorter)
        found = reached("thinned out")
        if len(edges) > limit and len(edges) > 0.95 * before:
            break
        size = min(size, max(1, len(edges) // _BLOCKS))
    while len(edges) <= limit:
        without = judge.removals(edges, _blocks(scores, edges, 1))
        shorter = _drop(judge, edges, without)
        if shorter is None:
            return replace(found, removal=found.faithfulness - without, locally_minimal=True)
        edges = judge.tidied(shorter)
        found = reached("pruned")
    return found


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

    def removals(self, edges: EdgeIndices, blocks: list[EdgeIndices]) -> Floats:
        """Give the faithfulness of the circuit without each block of edges."""
        return self.many([np.setdiff1d(edges, block) for block in blocks])

    def tidied(self, edges: EdgeIndices) -> EdgeIndices:
        """Drop edges on no path from input to logits, unless (zero ablation and biases) they matter all the same."""
        shorter = connected(self.experiment.graph, edges)
        return shorter if len(shorter) < len(edges) and self.reaches(self.one(shorter)) else edges

    def reaches(self, f: Floats | float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.abs(1 - f) <= self.tolerance


def _propose(judge: _Judge, scores: EdgeScores) -> Selection:
    """Find the smallest number of best-ranked edges that reaches the target, by score or by |score|."""
    rankings = {False: scores.ranked(), True: scores.ranked(by_magnitude=True)}
    sizes = list(_grid(len(rankings[False])))
    last: dict[bool, tuple[int, float]] = dict.fromkeys(rankings, (0, 0.0))
    for first in range(0, len(sizes), _SIZES_AT_ONCE):
        tried = sizes[first : first + _SIZES_AT_ONCE]
        hits: list[tuple[int, bool]] = []
        for kind, ranked in rankings.items():
            known = [last[kind], *zip(tried, judge.many([ranked[:n] for n in tried]).tolist(), strict=True)]
            last[kind] = known[-1]
            size = _smallest(judge, ranked, known)
            hits += [] if size is None else [(size, kind)]
        if hits:
            size, kind = min(hits)
            edges = np.sort(rankings[kind][:size])
            return Selection(edges, judge.one(edges), proposed=size, by_magnitude=kind)
    raise BehaviourNotShownError(
        f"no number of best-ranked edges ({scores.scorer}) reaches a faithfulness within {judge.tolerance:.2f} of 1, "
        "not even all of them. Use another scorer (--scorer), more pairs (--pairs), or a lower --target."
    )


def _smallest(judge: _Judge, ranked: EdgeIndices, known: list[tuple[int, float]]) -> int | None:
    """Find where faithfulness first reaches the target, or leaps past it, among known sizes; narrow it down."""
    for (low, before), (high, after) in pairwise(known):
        reached = bool(judge.reaches(after))
        if reached or (before < 1) != (after < 1):
            size = _bisect(judge, ranked, low, high, rising=before < 1, found=high if reached else None)
            if size is not None:
                return size
    return None


def _bisect(judge: _Judge, ranked: EdgeIndices, low: int, high: int, *, rising: bool, found: int | None) -> int | None:
    while high - low > (1 if found is None else max(1, high // 50)):
        middle = (low + high) // 2
        f = judge.one(ranked[:middle])
        if judge.reaches(f):
            found = high = middle
        elif (f < 1) == rising:
            low = middle
        else:
            high = middle
    return found


def _grid(limit: int) -> Iterator[int]:
    size = 8.0
    while size < limit:
        yield round(size)
        size *= _GRID_STEP
    yield limit


def _blocks(scores: EdgeScores, edges: EdgeIndices, size: int) -> list[EdgeIndices]:
    """Cut a circuit into blocks of neighbouring rank, in graph order of their first edge."""
    ranked = edges[np.argsort(np.abs(scores.values[edges]), kind="stable")]
    blocks = [np.sort(ranked[first : first + size]) for first in range(0, len(edges), size)]
    return sorted(blocks, key=lambda block: int(block[0]))


def _thin_out(judge: _Judge, scouts: _Judge, edges: EdgeIndices, blocks: list[EdgeIndices]) -> EdgeIndices | None:
    """Drop the longest run of least useful blocks with which the target holds; None when not even the first can go."""
    change = scouts.removals(edges, blocks) - scouts.one(edges)
    orders = [np.argsort(key, kind="stable") for key in (np.abs(change), -change)]
    return _longest(judge, edges, [[blocks[i] for i in order] for order in orders])


def _drop(judge: _Judge, edges: EdgeIndices, without: Floats) -> EdgeIndices | None:
    """Drop the longest run of least useful edges with which the target holds; None when no single edge can go.

    Runs are taken in three orders: least change of faithfulness first, largest gain first, and largest loss last of
    those that alone keep the target.
    """
    removable = np.flatnonzero(judge.reaches(without))
    if not len(removable):
        return None
    change = without - judge.one(edges)
    orders = [
        removable[np.argsort(key[removable], kind="stable")] for key in (np.abs(change), -change, np.abs(1 - without))
    ]
    return _longest(judge, edges, [[edges[i : i + 1] for i in order] for order in orders])


def _longest(judge: _Judge, edges: EdgeIndices, orders: list[list[EdgeIndices]]) -> EdgeIndices | None:
    """Drop the first blocks of one order, as many as the target allows; None when it allows none.

    (Single removals that just reached the target may miss it by rounding when measured again.)
    """
    lengths = sorted({max(1, round(len(orders[0]) * share)) for share in np.geomspace(1 / len(orders[0]), 1, 8)})
    attempts = [np.concatenate(order[:length]) for order in orders for length in lengths]
    reached = judge.reaches(judge.removals(edges, attempts)) if attempts else np.zeros(0, dtype=np.bool_)
    dropped = [(len(attempt), -i) for i, attempt in enumerate(attempts) if reached[i]]
    return np.setdiff1d(edges, attempts[-max(dropped)[1]]) if dropped else None
