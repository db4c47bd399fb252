"""Exchanging one component of the residual stream between the clean and the corrupted run, and who reads it.

At one layer and token the two runs' streams differ by some vector. A *part* of that difference, such as its component
along a direction, is added to the stream of one run, with everything after it recomputed: what the behaviour gains or
loses by it is what the part mediates. A reader's share is what is gained or lost where it alone reads the changed
stream, exactly (:mod:`circuits.passes.exact`); readers' effects also pass through later readers, so shares do not add
up to the whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.errors import UnknownNameError
from circuits.files.journal import Arrays
from circuits.graph import ComputationalGraph, Edge, EdgeIndices, Node, NodeKind, Receiver
from circuits.passes.exact import logits_by_change
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.recorded_pairs import PairBatch, require_noising
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.runs import Recorder, Run, unembed
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Direction

Difference = Float[Tensor, "pair d_model"]
Part = Callable[[Difference], Difference]
"""Returns of the difference of two streams the part that is exchanged."""


def whole(difference: Difference) -> Difference:
    """Return all of the difference."""
    return difference


@dataclass(frozen=True)
class Along:
    """The part along a unit vector; with ``instead``, another unit vector, as much along that one."""

    vector: NDArray[np.float64]
    instead: NDArray[np.float64] | None = None

    def __call__(self, difference: Difference) -> Difference:
        """Return the part."""
        vector, other = (
            torch.as_tensor(np.array(each), dtype=difference.dtype, device=difference.device)
            for each in (self.vector, self.vector if self.instead is None else self.instead)
        )
        return (difference @ vector)[:, None] * other


@dataclass(frozen=True)
class AllBut:
    """What is left of the difference without its part along a unit vector."""

    vector: NDArray[np.float64]

    def __call__(self, difference: Difference) -> Difference:
        """Return the rest."""
        return difference - Along(self.vector)(difference)


@dataclass(frozen=True)
class Place:
    """A token, counted from the end (-1 is the last), of the stream that enters a layer (the last: the final norm)."""

    layer: int
    position: int = -1

    @property
    def node(self) -> Node:
        """The place as a node that sends."""
        return Node(NodeKind.RESID, self.layer)

    def readers(self, graph: ComputationalGraph) -> EdgeIndices:
        """Return the edges that stand for what reads the stream from there on: the input's into these receivers."""
        last = graph.shape.n_layers
        layers = [last if receiver.node.kind.is_end else receiver.node.layer for receiver in graph.receivers]
        return graph.offsets[:-1][np.array(layers) >= self.layer].astype(np.int64)

    def indices(self, graph: ComputationalGraph, edges: Sequence[Edge]) -> EdgeIndices:
        """Return the positions of edges from the place, or between nodes behind it, in the graph.

        Raises :class:`UnknownNameError` for a sender before the place, which is not changed by it.
        """
        found: list[int] = []
        for edge in edges:
            sender = Node(NodeKind.INPUT) if edge.sender == self.node else edge.sender
            if edge.sender != self.node and edge.sender.layer < self.layer:
                later = [str(node) for node in graph.senders if node.layer >= self.layer]
                raise UnknownNameError("sender behind the direction", str(edge.sender), [str(self.node), *later])
            found.append(graph.index(Edge(sender, edge.receiver)))
        return np.array(found, dtype=np.int64)

    def edge(self, receiver: Receiver) -> Edge:
        """Return the edge from the place into a receiver."""
        return Edge(self.node, receiver)


@in_own_state
def part_effects(
    experiment: PatchingExperiment, place: Place, part: Part, direction: Direction | str, *, name: object
) -> NDArray[np.float64]:
    """Measure the exchange of a part of the stream at a place, ``(pair,)``, in the metric's unit.

    Noising: what the clean run *loses* when its stream there has the part of the corrupted run (necessity). Denoising:
    what the corrupted run *gains* by that of the clean one (sufficiency). Positive where the part serves the behaviour.
    ``name`` is what a journal keeps it under. Cost: a forward pass from the layer on.
    """
    direction = Direction.parse(direction)
    require_noising(experiment.pairs, direction)
    found = np.zeros(experiment.n_pairs)
    for batch in experiment.batches:
        make = partial(_of_part, experiment, batch, place, part, direction)
        what = [name, place.layer, place.position, batch.index.tolist()]
        found[batch.index] = experiment.kept.arrays(f"part of the stream, {direction}", what, make)["values"]
    return experiment.metric.sign * (found if direction is Direction.DENOISING else -found)


@in_own_state
def reader_effects(
    experiment: PatchingExperiment,
    place: Place,
    part: Part,
    edges: EdgeIndices,
    direction: Direction | str,
    *,
    name: object,
) -> NDArray[np.float64]:
    """Measure exactly what single edges behind a place carry of a part of its stream, shape ``(edge, pair)``.

    ``edges`` are those of :meth:`Place.readers` and :meth:`Place.indices`: of the place itself, one reader alone reads
    the changed stream; of a later node, one reader alone sees what that node sends when the stream is changed. Signs as
    in :func:`part_effects`. Cost: of each edge, up to a forward pass from its reader on.
    """
    direction = Direction.parse(direction)
    require_noising(experiment.pairs, direction)
    edges, place_of = np.unique(edges, return_inverse=True)
    found = np.zeros((len(edges), experiment.n_pairs))
    for batch in experiment.batches:
        make = partial(_of_readers, experiment, batch, place, part, edges, direction)
        what = [name, place.layer, place.position, batch.index.tolist(), edges.tolist()]
        found[:, batch.index] = experiment.kept.arrays(f"readers of the stream, {direction}", what, make)["values"]
    return experiment.metric.sign * (found if direction is Direction.DENOISING else -found)[place_of]


def _of_part(
    experiment: PatchingExperiment, batch: PairBatch, place: Place, part: Part, direction: Direction
) -> Arrays:
    current, _, logits = _carried(experiment, batch, place, part, direction)
    return {"values": (experiment.measured(batch, logits) - experiment.measured(batch, current.logits))[0]}


def _of_readers(
    experiment: PatchingExperiment,
    batch: PairBatch,
    place: Place,
    part: Part,
    edges: EdgeIndices,
    direction: Direction,
) -> Arrays:
    current, change, _ = _carried(experiment, batch, place, part, direction)
    plain, values = experiment.measured(batch, current.logits), np.zeros((len(edges), len(batch.index)))
    given = experiment.tracer, experiment.graph, current, change, edges, experiment.budget(batch)
    for members, logits in logits_by_change(*given, columns=batch.columns):
        if logits is not None:
            values[np.searchsorted(edges, members)] = experiment.measured(batch, logits.flatten(0, 1)) - plain
    return {"values": values}


def _carried(
    experiment: PatchingExperiment, batch: PairBatch, place: Place, part: Part, direction: Direction
) -> tuple[Run, Run, Tensor]:
    """Return the run that is changed, the changes of what is sent behind the place, and the logits of all of them.

    The change of the stream itself stands where that of the input does, which does not change.
    """
    noising = direction is Direction.NOISING
    current, other = (batch.clean, batch.base) if noising else (batch.base, batch.clean)
    stream, shape = current.stream[place.layer], experiment.graph.shape
    added = torch.zeros_like(stream)
    if -place.position <= stream.shape[1]:  # earlier tokens are those that all prompts share
        added[:, place.position] = part((other.stream[place.layer] - stream)[:, place.position])
    recorder = Recorder()
    layers, sites = range(place.layer, shape.n_layers), (LayerSite.Z, *([LayerSite.MLP_OUT] if shape.mlps else []))
    if layers:
        visits: dict[tuple[int, LayerSite], Visit] = {
            (layer, s): recorder.at(layer, s) for layer in layers for s in sites
        }
        plan = Plan(start=place.layer, stream=stream + added, visits=visits, logits=recorder.keep_logits)
        experiment.tracer.run(current.ids, plan, prefix=current.prefix)
        logits = recorder.logits
    else:
        logits = unembed(experiment.tracer, current.ids, (stream + added)[:, -1:])
    sent = recorder.values

    def changes(values: tuple[Tensor, ...], site: LayerSite) -> tuple[Tensor, ...]:
        return tuple(
            sent[i, site] - each if (i, site) in sent else torch.zeros_like(each) for i, each in enumerate(values)
        )

    change = replace(
        current,
        stream=(added, *current.stream[1:]),
        z=changes(current.z, LayerSite.Z),
        mlp=changes(current.mlp, LayerSite.MLP_OUT),
    )
    return current, change, logits
