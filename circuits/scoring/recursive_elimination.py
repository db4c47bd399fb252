"""Recursive elimination: which edges go first when they are dropped in rounds, each by slopes inside what is left.

A score of single edges knows nothing of what is left of the others when a circuit is made of the best ones. Here edges
are dropped as :mod:`circuits.pruning.closest` does (:mod:`circuits.pruning.steps`), but from all of them on and down to
none: in every round the slope of each pair's metric along every edge that is left is taken anew, and those go by which
the circuit is predicted to stay closest to the model. Edges that are then on no path go with them. What is ranked is
when an edge goes, as in recursive feature elimination (Guyon et al. 2002, doi:10.1023/A:1012487302797).
"""

import numpy as np

from circuits.errors import UsageError
from circuits.files.journal import Arrays
from circuits.graph import EdgeIndices
from circuits.patching.protocol import INTERIM, Experiment, Progress, gaps, no_progress
from circuits.pruning.connected import connected
from circuits.pruning.steps import dropped, in_turn, leaving, rounds
from circuits.scores import Floats


def recursive_elimination(experiment: Experiment, *, progress: Progress = no_progress) -> Floats:
    """Return for each edge which share of the edges had gone when it went, itself included; without unit.

    The first edge to go has ``1 / edges``, the last one 1; no two have the same. The sign is that of what dropping the
    edge was predicted to change on average, at that time: positive where it hurts the behaviour. Raises
    :class:`UsageError` where the metric does not tell clean from corrupted on average, so that nothing is to be kept.
    Cost: a forward and a backward pass of a circuit for each of the rounds, of which the first dozen has most of the
    edges; they see one half of the pairs in turn where there are at least 32.
    """
    if not gaps(experiment).mean():
        raise UsageError(
            "clean and corrupted runs do not differ on average by this metric, so no edge keeps the behaviour and all "
            "would be dropped alike. Use prompts that differ in the behaviour, or another metric."
        )
    graph = experiment.graph
    scores, edges, turn = np.zeros(graph.n_edges), np.arange(graph.n_edges), 0
    while len(edges):
        order, changes = _round(in_turn(experiment, len(edges), turn), edges)
        gone = graph.n_edges - len(edges) + 1 + np.arange(len(order))
        scores[order] = gone / graph.n_edges * np.where(experiment.metric.sign * changes < 0, -1, 1)
        edges, turn = np.setdiff1d(edges, order, assume_unique=True), turn + 1
        progress(turn, turn + rounds(len(edges), 0))
    return scores


def _round(fit: Experiment, edges: EdgeIndices) -> tuple[EdgeIndices, Floats]:
    """Return the edges that go, the first one first, and what dropping each is predicted to change on average."""
    found = fit.kept.arrays("eliminated edges", edges.tolist(), lambda: _made(fit, edges))
    fit.kept.forget(INTERIM)
    return found["edges"].astype(np.int64), found["changes"]


def _made(fit: Experiment, edges: EdgeIndices) -> Arrays:
    gone, changes = leaving(fit, edges, dropped(len(edges)))
    rest = np.delete(edges, gone)
    places = np.concatenate([gone, np.flatnonzero(np.isin(edges, np.setdiff1d(rest, connected(fit.graph, rest))))])
    return {"edges": edges[places], "changes": changes[places]}
