"""Attribution inside the circuit: from far more edges than are needed down to those that matter to each other.

What an edge is worth depends on which others are there: scores of the whole model rank it among all of them. So the
slopes of the metric along the weight of every edge (:mod:`circuits.passes.mask_gradients`) are taken again inside each
circuit on the way, and the edges with the smallest go first. Edges with a negative slope, without which the circuit
would do better, count as a quarter of their size: they go earlier than others, but not all at once, because slopes hold
for small changes only (dropping the most harmful sixth together can destroy a circuit).
"""

import numpy as np

from circuits.graph import EdgeIndices
from circuits.pruning.connected import connected
from circuits.pruning.judge import Judge
from circuits.scores import Floats

_SHARE = 0.15
"""Which share of a circuit goes between two attributions."""
_GROWTH = 0.2
"""How many edges are added at once, as a share of a circuit."""
_HARMFUL = 0.25
"""What the slope of an edge that hurts counts, against one that helps."""


def pruned_iteratively(judge: Judge, edges: EdgeIndices, *, below: int, share: float = _SHARE) -> EdgeIndices | None:
    """Shrink a circuit for as long as it keeps the target, or more; None where ``below`` edges do not suffice.

    On the way the circuit may do better than the model, which is not better in the end: only a circuit that reaches
    the target is given back. Cost: a forward and a backward pass for each sixth that goes.
    """
    least = 1 - judge.tolerance
    f, slopes = judge.slopes(edges)
    while f >= least and len(edges) > 1:
        order = edges[np.argsort(dispensable_first(slopes), kind="stable")]
        most = max(1, round(share * len(edges)))
        shorter = _without(judge, order, most)
        after, slopes = judge.slopes(shorter) if len(shorter) else (0.0, slopes)
        if after < least:
            return edges if judge.reaches(f) and len(edges) < below else _last_step(judge, order, most, below)
        edges, f = shorter, after
    return edges if len(edges) < below and judge.reaches(f) else None


def grown_and_pruned(judge: Judge, edges: EdgeIndices) -> EdgeIndices | None:
    """Add the left-out edges whose slopes are largest, a fifth as many as there are, and shrink the circuit again.

    None where it cannot be brought back to the target, or not to about the same size. Cost: a dozen gradients.
    """
    slopes = judge.all_slopes(edges)
    slopes[edges] = 0.0
    helpful = np.argsort(-slopes, kind="stable")[: max(1, round(_GROWTH * len(edges)))]
    grown = np.union1d(edges, helpful[slopes[helpful] > 0])
    return pruned_iteratively(judge, grown, below=len(grown), share=_GROWTH / 4)


def dispensable_first(slopes: Floats) -> Floats:
    """Return a key by which edges are sorted in the order in which they go."""
    return np.where(slopes < 0, -_HARMFUL * slopes, slopes)


def _without(judge: Judge, order: EdgeIndices, count: int) -> EdgeIndices:
    return connected(judge.experiment.graph, np.sort(order[count:]))


def _last_step(judge: Judge, order: EdgeIndices, most: int, below: int) -> EdgeIndices | None:
    """Drop as many of the edges that come first, ``most`` at most, as the target allows."""
    counts = np.unique(np.linspace(0, most, 12).round().astype(int))[::-1]
    attempts = [_without(judge, order, int(count)) for count in counts]
    reached = judge.reaches(judge.many(attempts))
    found = next((attempt for attempt, fine in zip(attempts, reached, strict=True) if fine), None)
    return found if found is not None and len(found) < below else None
