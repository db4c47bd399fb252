"""Circuits of whole nodes: all edges among the nodes kept, everything else at corrupted values."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from circuits.errors import UsageError
from circuits.files.journal import Arrays
from circuits.graph import ComputationalGraph, EdgeIndices, Node
from circuits.memory.batching import in_batches
from circuits.passes.node_gradients import node_gradient
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.recorded_pairs import PairBatch
from circuits.tracing.state import in_own_state

Places = NDArray[np.int64]
"""Nodes by their place among the graph's senders, in ascending order."""


@in_own_state
def node_values(experiment: PatchingExperiment, nodes: Places) -> NDArray[np.float64]:
    """Return the metric of a circuit of nodes on every pair, ``(pair,)``. Cost: one forward pass.

    It is what :meth:`Experiment.circuits` measures of :func:`edges_among` the same nodes.
    """
    return _measured(experiment, nodes, slopes=False)["values"]


@in_own_state
def node_slopes(experiment: PatchingExperiment, nodes: Places) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the metric of a circuit of nodes, ``(pair,)``, and its slope along each weight, ``(pair, sender)``.

    To first order, the slope of a node of the circuit is what leaving it out costs, and that of another what taking it
    in brings, in the metric's unit. Cost: one forward and one backward pass.
    """
    found = _measured(experiment, nodes, slopes=True)
    return found["values"], found["slopes"]


def edges_among(graph: ComputationalGraph, nodes: Places) -> EdgeIndices:
    """Return the edges whose sender and receiver are both kept, those into the end of the graph included.

    A key or value that heads share is kept with any of its heads.
    """
    sending: list[Node] = [graph.senders[place] for place in nodes.tolist()]
    kept = {graph.shape.end, *sending, *map(graph.shape.group_of, sending)}
    reads = np.array([receiver.node in kept for receiver in graph.receivers])
    sends = np.isin(np.arange(len(graph.senders)), nodes)
    return np.flatnonzero(reads[graph.edge_receivers] & sends[graph.edge_senders]).astype(np.int64)


def _measured(experiment: PatchingExperiment, nodes: Places, *, slopes: bool) -> Arrays:
    graph = experiment.graph
    if not len(nodes) or nodes[0] < 0 or nodes[-1] >= len(graph.senders):
        raise UsageError(f"a circuit of nodes keeps some of {len(graph.senders)} senders, got places {nodes.tolist()}.")
    weights = np.zeros(len(graph.senders))
    weights[nodes] = 1

    def make() -> Arrays:
        found: Arrays = {"values": np.empty(experiment.n_pairs)}
        if slopes:
            found["slopes"] = np.empty((experiment.n_pairs, len(weights)))
        for batch in experiment.batches:
            run = partial(_of_rows, experiment, batch, weights, slopes)
            for rows, each in in_batches(np.arange(len(batch.index)), run, experiment.budget(batch), rows_per_item=1):
                for name, part in each.items():
                    found[name][batch.index[rows]] = part
        return found

    return experiment.kept.arrays("circuit of nodes", [nodes.tolist(), slopes], make)


def _of_rows(
    experiment: PatchingExperiment, batch: PairBatch, weights: NDArray[np.float64], slopes: bool, rows: Places
) -> Arrays:
    chosen = batch.rows(slice(int(rows[0]), int(rows[-1]) + 1))
    loss = partial(experiment.single_metric, chosen)
    given = experiment.tracer, experiment.graph, chosen.clean, chosen.base, weights, loss
    values, found = node_gradient(*given, columns=chosen.columns, gradients=slopes)
    arrays = {"values": values.double().cpu().numpy()}
    return arrays | ({"slopes": found.double().cpu().numpy()} if slopes else {})
