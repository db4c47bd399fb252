"""Automatic circuit discovery by removal: every edge once, from the end of the graph back (ACDC).

Conmy et al. 2023, arXiv:2304.14997, algorithm 1: receivers from the end to the input, and of each its senders from the
latest to the input; an edge is removed for good where that costs less of the metric than the threshold, all that was
removed before staying removed. With the metric ``kl`` that is the paper's divergence from the model.

Most edges go. So several steps are measured in one forward pass as if each of them went; up to the first that stays
they are what the sweep is one by one, and from there it goes on anew. Edges into what no longer leads to the end cost
nothing and are not run.
"""

import numpy as np
from numpy.typing import NDArray

from circuits.errors import UsageError
from circuits.graph import ComputationalGraph, EdgeIndices
from circuits.numbering import reads_of_senders
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.pruning.selection import Selection
from circuits.scores import Floats
from circuits.statistics import faithfulness

_MOST = 64
"""How many steps are measured at once, at most; half as many after a step that stays early, twice where all go."""


def acdc(experiment: Experiment, threshold: float, *, progress: Progress = no_progress) -> Selection:
    """Remove every edge whose removal costs less of the metric than ``threshold``, in the metric's unit.

    Raises :class:`UsageError` for a threshold that is not positive. Cost: a circuit for every edge, and up to twice as
    many where many stay.
    """
    if not threshold > 0:
        gap = float(abs(experiment.clean.mean() - experiment.corrupted.mean()))
        raise UsageError(
            f"acdc removes edges that cost less than a threshold above 0, got {threshold:g}; a hundredth of what all "
            f"edges do together is {gap / 100:.3g} here (--threshold)."
        )
    graph = experiment.graph
    kept, order = np.ones(graph.n_edges, dtype=np.bool_), sweep_order(graph)
    value, at, width = _mean(experiment, kept[None])[0], 0, _MOST
    while True:
        idle = _idle(graph, kept)[graph.edge_receivers[order[at:]]]
        kept[order[at:][idle]] = False
        places = at + np.flatnonzero(~idle)[:width]
        if not len(places):
            break
        steps = order[places]
        values = _mean(experiment, _without_more_and_more(kept, steps))
        costs = np.concatenate([[value], values[:-1]]) - values
        stays = np.flatnonzero(experiment.metric.sign * costs >= threshold)
        gone = int(stays[0]) if len(stays) else len(steps)
        kept[steps[:gone]] = False
        value = values[gone - 1] if gone else value
        at = int(places[min(gone, len(steps) - 1)]) + 1
        width = min(_MOST, 2 * width) if gone == len(steps) else max(2, 2 * (gone + 1))
        progress(at, len(order))
    edges = np.flatnonzero(kept)
    found = float(faithfulness(experiment, experiment.circuits([kept])[0]))
    return Selection(edges, found, proposed=graph.n_edges, by_magnitude=False)


def sweep_order(graph: ComputationalGraph) -> EdgeIndices:
    """Return all edges, those into later receivers first, and of each receiver those from later senders."""
    return np.lexsort((-graph.edge_senders, -graph.edge_receivers))


def _mean(experiment: Experiment, masks: NDArray[np.bool_]) -> Floats:
    return experiment.circuits(masks).mean(axis=1)


def _without_more_and_more(kept: NDArray[np.bool_], steps: EdgeIndices) -> NDArray[np.bool_]:
    """Return circuits without the first step, without the first two, and so on."""
    masks = np.repeat(kept[None], len(steps), axis=0)
    for row, edge in enumerate(steps):
        masks[row:, edge] = False
    return masks


def _idle(graph: ComputationalGraph, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return, for every receiver but the end, whether no kept edge leads on from what reads it."""
    sends = np.zeros(len(graph.senders), dtype=np.bool_)
    sends[graph.edge_senders[kept]] = True
    idle, reads = np.ones(len(graph.receivers), dtype=np.bool_), reads_of_senders(graph.shape)
    idle[-1] = False
    for sender in np.flatnonzero(sends):
        idle[reads[sender]] = False
    return idle
