"""Exchanging what whole nodes send between the clean and the corrupted run, one set of nodes at a time.

The *interchange intervention* of causal abstraction (Geiger et al. 2021, arXiv:2106.02997) on heads and MLPs: all that
a set's nodes write takes its value from the other run, and everything downstream of them is recomputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from circuits.errors import UnknownNameError, UsageError
from circuits.files.journal import Arrays
from circuits.graph import ComputationalGraph, Node, NodeKind
from circuits.passes.masked import run_masked
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import Progress, no_progress
from circuits.patching.recorded_pairs import PairBatch, require_noising
from circuits.patching.sequences import of_one_token
from circuits.patching.shards import Piece, measured_together
from circuits.patching.shared_experiment import SharedExperiment
from circuits.tracing.runs import Run, difference, sender_values
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Direction

NodeSet = tuple[Node, ...]
_SETS = 4
"""Sets of one piece of a shared exchange."""


@in_own_state
def interchange_effects(
    experiment: PatchingExperiment | SharedExperiment,
    sets: Sequence[NodeSet],
    direction: Direction | str,
    *,
    held: NodeSet = (),
    directly: bool = False,
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """Measure sets of nodes that take their values from the other run, shape ``(set, pair)``, in the metric's unit.

    Noising: how much the metric of the clean run *loses* when the set alone sends what it sends in the corrupted run
    (with ablation ``zero``: nothing), its necessity. Denoising: how much that of the corrupted run *gains* when the set
    alone sends what it sends in the clean run, its sufficiency. Both are positive where the set serves the behaviour,
    also by metrics where lower is better, and about the gap between the two runs where it is all that does. Nodes
    downstream of others of their set are held at their values too. Nodes that are ``held`` keep what they send in their
    own run; with ``directly`` all other nodes do, so that only the set's own edges into the end of the graph carry the
    exchange. Sets run one by one, so an experiment that is shared gives what one process does to the last bit. Cost: up
    to a forward pass per set, less for sets that begin late.
    """
    direction = Direction.parse(direction)
    if isinstance(experiment, SharedExperiment):
        return _exchanged_together(experiment, sets, direction, held, directly=directly, progress=progress)
    require_noising(experiment.pairs, direction)
    found = np.zeros((len(sets), experiment.n_pairs))
    senders = [sender_places(experiment.graph, nodes) for nodes in sets]
    fixed = sender_places(experiment.graph, held) if held else []
    for number, batch in enumerate(experiment.batches):
        runs = (batch.clean, batch.base) if direction is Direction.NOISING else (batch.base, batch.clean)
        exchange = _Exchange(experiment, batch, runs[0], difference(runs[1], runs[0]))
        for row, places in enumerate(senders):
            what, make = [places, batch.index.tolist()], partial(exchange.changes, places, fixed, directly=directly)
            what += [["held", *fixed]] * bool(fixed) + ["directly"] * directly
            kept = experiment.kept.arrays(f"interchange of nodes, {direction}", what, make)
            found[row, batch.index] = kept["values"]
            progress(number * len(sets) + row + 1, len(sets) * len(experiment.batches))
    return experiment.metric.sign * (found if direction is Direction.DENOISING else -found)


def _exchanged_together(
    experiment: SharedExperiment,
    sets: Sequence[NodeSet],
    direction: Direction,
    held: NodeSet,
    *,
    directly: bool,
    progress: Progress,
) -> NDArray[np.float64]:
    """Measure some of the sets, and leave the others to the processes that this experiment is shared with."""
    alone = of_one_token(experiment.alone, "the exchange of nodes")

    def piece(some: Sequence[NodeSet]) -> Piece:
        def measure() -> Arrays:
            return {"values": interchange_effects(alone, some, direction, held=held, directly=directly)}

        what = [
            [sender_places(alone.graph, nodes) for nodes in (*some, *([held] if held else []))],
            bool(held),
            directly,
        ]
        name = experiment.name_of(f"interchange of nodes, {direction}, {what}".encode())
        return Piece(name, f"{len(some)} sets of nodes", len(some), {"values": (len(some), alone.n_pairs)}, measure)

    pieces = [piece(sets[first : first + _SETS]) for first in range(0, len(sets), _SETS)]
    found = measured_together(pieces, experiment.folder, progress=progress)
    return np.concatenate([each["values"] for each in found]) if found else np.zeros((0, alone.n_pairs))


@dataclass(frozen=True)
class _Exchange:
    """Lets nodes of one batch's current run take the values of the other one."""

    experiment: PatchingExperiment
    batch: PairBatch
    current: Run
    change: Run

    def changes(self, places: list[int], held: list[int], *, directly: bool) -> dict[str, NDArray[np.float64]]:
        """Return by how much the metric rises, ``(pair,)``, when some senders take their values from the other run."""
        experiment, batch = self.experiment, self.batch
        values = sender_values(experiment.tracer.anatomy, self.change, places)
        still = dict.fromkeys(held, torch.zeros_like(values[:, 0]))
        changes = still | {sender: values[:, i] for i, sender in enumerate(places)}
        live = np.ones((1, experiment.graph.n_edges), dtype=np.bool_)
        if directly:
            graph = experiment.graph
            ends = np.array([receiver.node.kind.is_end for receiver in graph.receivers])
            live[0] = ends[graph.edge_receivers] & np.isin(graph.edge_senders, places)
        logits = run_masked(experiment.tracer, experiment.graph, self.current, changes, live, batch.columns)
        exchanged = experiment.measured(batch, logits.flatten(0, 1))
        return {"values": (exchanged - experiment.measured(batch, self.current.logits))[0]}


def sender_places(graph: ComputationalGraph, nodes: NodeSet) -> list[int]:
    """Return the places of heads, MLPs and the input among the graph's senders, in order.

    Raises :class:`UsageError` for an empty set and for nodes that send nothing, ``UnknownNameError`` for those that the
    model does not have.
    """
    if not nodes:
        raise UsageError("a set of nodes to exchange is empty; name heads or MLPs, such as a3.h5 and m3.")
    for node in nodes:
        if node.kind not in (NodeKind.HEAD, NodeKind.MLP, NodeKind.INPUT):
            raise UsageError(f"'{node}' sends nothing of its own; name heads, MLPs or the input, such as a3.h5 or m3.")
        if node not in graph.sender_index:
            raise UnknownNameError("node", str(node), map(str, graph.senders))
    return sorted({graph.sender_index[node] for node in nodes})
