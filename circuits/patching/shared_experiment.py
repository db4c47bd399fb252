"""An experiment that many processes measure together: each does the same work, and measures a part of it.

Scorers, pruners and evaluation ask an experiment for effects of edges, circuits and slopes of a circuit; here each such
question is cut into pieces (:mod:`circuits.patching.shards`). Every process gets the same numbers, comes to the same
decisions, and asks the same next question, so that nobody has to lead. Processes whose numbers differ in the last digit
(other machines) may ask other questions; they find fewer answers of others, and their results are right all the same.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.errors import UsageError
from circuits.files.journal import NOWHERE, Arrays, Shelf
from circuits.graph import ComputationalGraph, EdgeIndices, Edges
from circuits.passes.estimate import EdgeEstimate
from circuits.patching.keeping import mask_item
from circuits.patching.measurement import Options
from circuits.patching.protocol import Experiment, Masks, Progress, no_progress, one_per_edge, stacked_masks
from circuits.patching.sequences import AnyExperiment, of_one_token
from circuits.patching.shards import Piece, edges_at_once, measured_together, shards_of
from circuits.vocabulary import Metric

Floats = NDArray[np.float64]
_CIRCUITS = 4
"""Circuits of one piece: enough to fill a pass."""
_PARTS = 16
"""Into about so many parts the pairs are cut for slopes, for as many workers."""


def share(experiment: Experiment, folder: str | Path) -> "SharedExperiment":
    """Return the same experiment, measured together with other processes that do the same in the same folder.

    Args:
        experiment: What is measured, made with a journal: by that it is known what belongs together.
        folder: Where processes meet and leave what they measured; all must see it, under a path of their own.

    Single edges, circuits, slopes of a circuit and exchanges of nodes (:func:`interchange_effects`) are shared;
    attributions, a pass or a few, every process makes itself. Effects of nodes are those of one process to the last
    bit, and so are those of edges where the memory plan is the same; circuits and slopes differ from these by rounding,
    since other circuits or pairs run beside them. Raises :class:`UsageError` for an experiment without journal.
    """
    if isinstance(experiment, SharedExperiment):
        return share(experiment.alone, folder)
    if experiment.kept is NOWHERE or not isinstance(experiment, AnyExperiment):
        raise UsageError(
            "shards are known by what they are measured from; make the experiment with a journal: "
            "model.experiment(pairs, journal=circuits.Journal(path))."
        )
    return SharedExperiment(experiment, Path(folder))


class SharedExperiment:
    """Implements :class:`~circuits.patching.protocol.Experiment` together with other processes; see :func:`share`.

    ``alone`` is the experiment as one process measures it, ``folder`` where the processes meet.
    """

    def __init__(self, alone: AnyExperiment, folder: Path) -> None:
        self.alone, self.folder = alone, folder

    @property
    def graph(self) -> ComputationalGraph:
        """The model's graph."""
        return self.alone.graph

    @property
    def options(self) -> Options:
        """What is measured."""
        return self.alone.options

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.alone.metric

    @property
    def n_pairs(self) -> int:
        """How many prompt pairs there are."""
        return self.alone.n_pairs

    @property
    def clean(self) -> Floats:
        """Metric of the clean run, shape ``(pair,)``."""
        return self.alone.clean

    @property
    def corrupted(self) -> Floats:
        """Metric with every edge corrupted, shape ``(pair,)``."""
        return self.alone.corrupted

    @property
    def kept(self) -> Shelf:
        """Where this process keeps what it measures."""
        return self.alone.kept

    def part(self, begin: int, end: int) -> "SharedExperiment":
        """Return the same experiment on some of its pairs; see :meth:`Experiment.part`."""
        return SharedExperiment(self.alone.part(begin, end), self.folder)

    def with_metric(self, metric: Metric) -> "SharedExperiment":
        """Return the same experiment by another metric; raises :class:`UsageError` for answers of several tokens."""
        return SharedExperiment(of_one_token(self.alone, "another metric").with_metric(metric), self.folder)

    def edge_effects(self, edges: Edges, *, progress: Progress = no_progress) -> Floats:
        """Measure single edges exactly; see :meth:`Experiment.edge_effects`."""
        edges, place_of = np.unique(self.graph.indices(edges), return_inverse=True)
        shards = shards_of(self.graph, edges, at_once=edges_at_once(self.alone))
        pieces = [self._effects(shard.edges) for shard in shards]
        effects = np.empty((len(edges), self.n_pairs))
        for shard, found in zip(shards, measured_together(pieces, self.folder, progress=progress), strict=True):
            effects[np.searchsorted(edges, shard.edges)] = found["effects"]
        return effects[place_of]

    def _effects(self, edges: EdgeIndices) -> Piece:
        def measure() -> Arrays:
            return {"edges": edges, "effects": self.alone.edge_effects(edges)}

        shapes = {"edges": edges.shape, "effects": (len(edges), self.n_pairs)}
        name = self.name_of(np.ascontiguousarray(edges, dtype="<i8").tobytes())
        return Piece(name, f"{len(edges)} edges", len(edges), shapes, measure)

    def circuits(self, masks: Masks, *, progress: Progress = no_progress) -> Floats:
        """Measure circuits; see :meth:`Experiment.circuits`."""
        if not len(masks):
            return np.empty((0, self.n_pairs))
        stacked = stacked_masks(self.graph, masks)
        blocks = [stacked[first : first + _CIRCUITS] for first in range(0, len(stacked), _CIRCUITS)]
        found = measured_together([self._circuits(block) for block in blocks], self.folder, progress=progress)
        return np.concatenate([each["values"] for each in found])

    def _circuits(self, block: NDArray[np.bool_]) -> Piece:
        def measure() -> Arrays:
            return {"values": self.alone.circuits(block)}

        name = self.name_of(b"circuits", mask_item(block))
        return Piece(name, f"{len(block)} circuits", len(block), {"values": (len(block), self.n_pairs)}, measure)

    def circuit_gradient(self, weights: Floats, *, among: Edges | None = None) -> tuple[Floats, Floats]:
        """Measure one weighted circuit and its slope along each weight; see :meth:`Experiment.circuit_gradient`."""
        weights = one_per_edge(self.graph, weights)
        wanted = weights != 0
        wanted[slice(None) if among is None else self.graph.indices(among)] = True
        size = math.ceil(self.n_pairs / _PARTS)
        parts = [self.part(first, first + size) for first in range(0, self.n_pairs, size)]
        pieces = [part._slopes(weights, wanted) for part in parts]
        found = measured_together(pieces, self.folder, progress=no_progress)
        slopes = np.zeros((self.n_pairs, self.graph.n_edges))
        slopes[:, wanted] = np.concatenate([each["slopes"] for each in found])
        return np.concatenate([each["values"] for each in found]), slopes

    def _slopes(self, weights: Floats, wanted: NDArray[np.bool_]) -> Piece:
        def measure() -> Arrays:
            values, slopes = self.alone.circuit_gradient(weights, among=np.flatnonzero(wanted))
            return {"values": values, "slopes": slopes[:, wanted]}

        shapes = {"values": (self.n_pairs,), "slopes": (self.n_pairs, int(wanted.sum()))}
        name = self.name_of(b"slopes", mask_item(weights), mask_item(wanted))
        return Piece(name, f"the slopes of {self.n_pairs} pairs", self.n_pairs, shapes, measure)

    def attributions(
        self,
        points: Sequence[float],
        *,
        stepwise: bool = False,
        rules: BackwardRules = PLAIN,
        progress: Progress = no_progress,
    ) -> Floats:
        """Estimate all edges to first order, in this process; see :meth:`Experiment.attributions`."""
        return self.alone.attributions(points, stepwise=stepwise, rules=rules, progress=progress)

    def estimates(
        self, estimate: EdgeEstimate, *, rules: BackwardRules = PLAIN, progress: Progress = no_progress
    ) -> Floats:
        """Estimate all edges some other way, in this process; see :meth:`Experiment.estimates`."""
        return self.alone.estimates(estimate, rules=rules, progress=progress)

    def name_of(self, *what: bytes) -> bytes:
        """Return the name of a piece of these measurements (:class:`~circuits.patching.shards.Piece`)."""
        return b"".join([self.kept.of, self.options.direction.encode(), *what])
