"""A locally minimal circuit: attribution proposes, joint measurement selects, exact prune-back minimises.

Effects of single edges do not compose, so a circuit is only ever judged as a whole, by its faithfulness ``f``; it
reaches the target when ``|1 - f| <= 1 - target``.

1. *Propose*: the smallest number of best-ranked edges that reaches the target, on a geometric grid and then by
   bisection; by score and by |score|, whichever needs fewer.
2. *Prune iteratively*: begin with several times as many edges, attribute *inside* that circuit, drop those that
   matter least there, attribute again, for as long as the target holds (:mod:`circuits.pruning.iterative`); kept where
   that needs fewer edges than were proposed.
3. *Thin out*: attribute inside the circuit once more, and drop the longest run of edges with the smallest slopes with
   which the target still holds; repeat while that removes a twentieth at a time and many are left.
4. *Prune back*: measure the removal of every single edge inside the circuit on all pairs; drop the longest run of
   least useful edges with which the target still holds; measure again, until no single edge can go.
5. *Swap*: add the edges that would help most, by their slopes inside the circuit, and shrink the result again; kept
   where that ends with fewer edges, and repeated until it does not.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from circuits.errors import BehaviourNotShownError, UsageError
from circuits.graph import EdgeIndices
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.pruning.iterative import dispensable_first, grown_and_pruned, pruned_iteratively
from circuits.pruning.judge import Judge
from circuits.pruning.selection import Selection
from circuits.scores import EdgeScores, Floats

Report = Callable[[str, Selection], None]
"""Called after each step with what was done and what is left."""

_GRID_STEP = 1.4
_SIZES_AT_ONCE = 6
_ABUNDANCE = 4
"""With how many times the proposed edges iterative pruning begins."""
_PROSPECT = 2
"""Up to how many times the limit circuits are pruned iteratively. Larger ones would stay above it, and fit their
prompts rather than the behaviour: refusal's 1,829 edges become 1,200, and 0.72 on new prompts becomes 0.53."""
_FEW = 100
"""With so many edges or fewer, measuring every removal is better than slopes, and cheap."""


def _no_report(step: str, selection: Selection) -> None:
    """Report nothing."""


def minimal(
    experiment: Experiment,
    scores: EdgeScores,
    *,
    target: float = 0.9,
    limit: int = 400,
    begin: Selection | None = None,
    report: Report = _no_report,
    progress: Progress = no_progress,
) -> Selection:
    """Find a circuit that reaches the target and from which no single edge can be removed without missing it.

    A circuit of more than ``limit`` edges is thinned out, but neither pruned edge by edge, which would take that many
    circuits a round, nor swapped (nor pruned iteratively, from twice as many on): it then is not ``locally_minimal``.

    ``begin`` continues from what an earlier, interrupted search reported last instead of proposing anew; should it
    miss the target here, the search starts afresh. Cost: a few dozen circuits to propose, a dozen gradients of circuits
    to prune iteratively; then, per round, as many circuits as there are edges, each a fraction of a forward pass.
    """
    if not 0 < target < 1:
        raise UsageError(f"the target faithfulness must be between 0 and 1, got {target}.")
    judge = Judge(experiment, 1 - target, progress)
    if begin is None or not judge.reaches(judge.one(begin.edges)):
        begin = _propose(judge, scores)
        if begin.proposed <= _PROSPECT * limit:
            begin = _pruned_iteratively(judge, scores, begin)
    edges = judge.tidied(begin.edges)
    found = replace(begin, edges=edges, faithfulness=judge.one(edges), removal=None, locally_minimal=False)
    report("proposed", found)
    found = _shrunk(judge, found, limit, report)
    while found.locally_minimal and (smaller := _swapped(judge, found, limit)) is not None:
        found = smaller
        report("swapped", found)
    return found


def _shrunk(judge: Judge, found: Selection, limit: int, report: Report) -> Selection:
    """Thin out a circuit, then prune it back edge by edge unless it is too large for that."""

    def reached(step: str, shorter: EdgeIndices) -> Selection:
        edges = judge.tidied(shorter)
        smaller = replace(found, edges=edges, faithfulness=judge.one(edges))
        report(step, smaller)
        return smaller

    while len(found.edges) > _FEW and (shorter := _thin_out(judge, found.edges)) is not None:
        before, found = len(found.edges), reached("thinned out", shorter)
        if len(found.edges) > 0.95 * before:
            break
    while len(found.edges) <= limit:
        without = judge.removals(found.edges, list(found.edges[:, None]))
        shorter = _drop(judge, found.edges, without)
        if shorter is None:
            return replace(found, removal=found.faithfulness - without, locally_minimal=True)
        found = reached("pruned", shorter)
    return found


def _swapped(judge: Judge, found: Selection, limit: int) -> Selection | None:
    """Add the left-out edges of largest slope, shrink the circuit again; None where that ends with no fewer edges."""
    edges = grown_and_pruned(judge, found.edges)
    if edges is None:
        return None
    begun = replace(found, edges=edges, faithfulness=judge.one(edges), removal=None, locally_minimal=False)
    smaller = _shrunk(judge, begun, limit, _no_report)
    return smaller if len(smaller.edges) < len(found.edges) else None


def _propose(judge: Judge, scores: EdgeScores) -> Selection:
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


def _pruned_iteratively(judge: Judge, scores: EdgeScores, proposal: Selection) -> Selection:
    """Look for a smaller circuit inside a larger proposal of the same ranking."""
    ranked = scores.ranked(by_magnitude=proposal.by_magnitude)
    abundant = np.sort(ranked[: _ABUNDANCE * proposal.proposed])
    edges = pruned_iteratively(judge, abundant, below=len(judge.tidied(proposal.edges)))
    return proposal if edges is None else replace(proposal, edges=edges, proposed=len(abundant))


def _smallest(judge: Judge, ranked: EdgeIndices, known: list[tuple[int, float]]) -> int | None:
    """Find where faithfulness first reaches the target, or leaps past it, among known sizes; narrow it down."""
    for (low, before), (high, after) in pairwise(known):
        reached = bool(judge.reaches(after))
        if reached or (before < 1) != (after < 1):
            size = _bisect(judge, ranked, low, high, rising=before < 1, found=high if reached else None)
            if size is not None:
                return size
    return None


def _bisect(judge: Judge, ranked: EdgeIndices, low: int, high: int, *, rising: bool, found: int | None) -> int | None:
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


def _thin_out(judge: Judge, edges: EdgeIndices) -> EdgeIndices | None:
    """Drop the longest run of edges with the smallest slopes with which the target holds; None when none can go."""
    _, slopes = judge.slopes(edges)
    orders = [np.argsort(key, kind="stable") for key in (dispensable_first(slopes), np.abs(slopes))]
    return _longest(judge, edges, [[edges[i : i + 1] for i in order] for order in orders])


def _drop(judge: Judge, edges: EdgeIndices, without: Floats) -> EdgeIndices | None:
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


def _longest(judge: Judge, edges: EdgeIndices, orders: list[list[EdgeIndices]]) -> EdgeIndices | None:
    """Drop the first blocks of one order, as many as the target allows; None when it allows none.

    (Single removals that just reached the target may miss it by rounding when measured again.)
    """
    lengths = sorted({max(1, round(len(orders[0]) * share)) for share in np.geomspace(1 / len(orders[0]), 1, 8)})
    attempts = [np.concatenate(order[:length]) for order in orders for length in lengths]
    reached = judge.reaches(judge.removals(edges, attempts)) if attempts else np.zeros(0, dtype=np.bool_)
    dropped = [(len(attempt), -i) for i, attempt in enumerate(attempts) if reached[i]]
    return np.setdiff1d(edges, attempts[-max(dropped)[1]]) if dropped else None
