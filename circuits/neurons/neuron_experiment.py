"""Measuring sets of neurons on recorded pairs: those of a set carry this run's values, all others replacement values.

Everything else is as it is: in the whole model heads and norms see what follows from that, in a circuit what reaches
them along its edges.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.behaviours.pairs import TokenPair
from circuits.errors import UsageError
from circuits.graph import EdgeIndices
from circuits.memory.batching import in_batches
from circuits.neurons.neuron_names import Neuron
from circuits.neurons.neuron_replacements import neuron_replacements
from circuits.passes.mask_gradients import mask_gradient
from circuits.passes.masked import needed_senders, run_masked
from circuits.passes.neuron_runs import (
    WeightedNeurons,
    neuron_gradient,
    record_neurons,
    run_neurons,
    without_neurons,
)
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import Progress, no_progress
from circuits.patching.recorded_pairs import PairBatch
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer

Places = NDArray[np.int64]
"""Neurons by their place among all of the layers, layer by layer, in ascending order."""
Floats = NDArray[np.float64]


class NeuronExperiment:
    """Sets of neurons of some layers' MLPs on the pairs of an experiment; its two ends are all of them and none.

    ``clean`` is the metric with all neurons as they are, ``corrupted`` with none, both ``(pair,)``. With ``edges`` all
    is measured inside that circuit, else in the whole model. It keeps the replacement values, pairs x positions x
    neurons of numbers. Cost: one forward pass of the corrupted prompts (or of the ``reference`` pairs, over which
    means are taken, and to which optimal constants are fitted), and two more. Raises :class:`UsageError` for
    means without reference pairs, and :class:`UnsupportedModelError` where neurons cannot be told apart.
    """

    @in_own_state
    def __init__(
        self,
        experiment: PatchingExperiment,
        layers: Sequence[int],
        *,
        edges: EdgeIndices | None = None,
        reference: Sequence[TokenPair] = (),
    ) -> None:
        _ = experiment.tracer.down_projections
        self.experiment, self.layers, self.edges = experiment, tuple(layers), edges
        self.n_pairs = experiment.n_pairs
        self._base = neuron_replacements(experiment, layers, reference)
        self.widths = tuple(self._base[0][layer].shape[-1] for layer in self.layers)
        self.offsets: Places = np.concatenate([[0], np.cumsum(self.widths)]).astype(np.int64)
        ends = self.sets([self.everything, self.everything[:0]])
        self.clean, self.corrupted = ends[0], ends[1]

    @property
    def n_neurons(self) -> int:
        """How many neurons there are."""
        return int(self.offsets[-1])

    @property
    def everything(self) -> Places:
        """All neurons."""
        return np.arange(self.n_neurons)

    def neuron(self, place: int) -> Neuron:
        """Return the neuron at a place."""
        block = int(np.searchsorted(self.offsets, place, side="right")) - 1
        return Neuron(self.layers[block], place - int(self.offsets[block]))

    @in_own_state
    def sets(self, chosen: Sequence[Places], *, progress: Progress = no_progress) -> Floats:
        """Return the metric with each set of neurons as it is and all others replaced, ``(set, pair)``.

        Cost: for each set a forward pass from the first layer on in which a neuron is replaced; in a circuit, what the
        circuit takes. Kept in the experiment's journal.
        """
        what = [None if self.edges is None else self.edges.tolist(), self.layers, [each.tolist() for each in chosen]]
        make = partial(self._measured, chosen, progress)
        return self.experiment.kept.arrays("sets of neurons", what, lambda: {"values": make()})["values"]

    def _measured(self, chosen: Sequence[Places], progress: Progress) -> Floats:
        found = np.empty((len(chosen), self.n_pairs))
        masks = np.zeros((len(chosen), self.n_neurons), dtype=np.bool_)
        for row, places in enumerate(chosen):
            masks[row, places] = True
        for batch, base in zip(self.experiment.batches, self._base, strict=True):
            run, budget = partial(self._values, batch, base, masks), self.experiment.budget(batch)
            if self.edges is not None:
                needed = needed_senders(self.experiment.graph, self._mask, (0,), recorded=batch.base.recorded)
                budget = self.experiment.budget(batch, senders=len(needed))
            for members, values in in_batches(np.arange(len(chosen)), run, budget, rows_per_item=len(batch.index)):
                found[np.ix_(members, batch.index)] = values
                progress(int(members[-1]) + 1, len(chosen))
        return found

    @property
    def _mask(self) -> NDArray[np.bool_]:
        return self.experiment.graph.mask(np.zeros(0, dtype=np.int64) if self.edges is None else self.edges)

    def _values(self, batch: PairBatch, base: dict[int, Tensor], masks: NDArray[np.bool_], members: Places) -> Floats:
        rows, experiment, tracer = masks[members], self.experiment, self.experiment.tracer
        like = batch.clean.stream[0]
        weights = {
            layer: torch.as_tensor(block, dtype=like.dtype, device=like.device)[:, None, None]
            for layer, block in zip(self.layers, np.split(rows, self.offsets[1:-1], axis=1), strict=True)
            if not block.all()
        }
        neurons = WeightedNeurons(base, weights)
        if self.edges is not None:
            same = np.repeat(self._mask[None], len(rows), axis=0)
            given = tracer, experiment.graph, batch.base, self._change(batch), same, batch.columns
            return experiment.measured(batch, run_masked(*given, within=neurons.visits()).flatten(0, 1))
        if not weights:
            return np.repeat(experiment.measured(batch, batch.clean.logits), len(rows), axis=0)
        return experiment.measured(batch, run_neurons(tracer, batch.clean, neurons, batch.columns))

    @staticmethod
    def _change(batch: PairBatch) -> dict[int, Tensor]:
        return {0: batch.clean.stream[0] - batch.base.stream[0]}

    def slopes(
        self, places: Places, *, share: float = 1.0, rules: BackwardRules = PLAIN
    ) -> tuple[Floats, NDArray[np.float32]]:
        """Return the metric of a set, ``(pair,)``, and its slope along every neuron's weight, ``(pair, neuron)``.

        To first order, the slope of a neuron of the set is what replacing it costs, and that of another what taking it
        in brings. The set's neurons have the weight ``share``. ``rules`` take the place of plain derivatives, in the
        whole model alone. Cost: one forward and one backward pass.
        """
        weights = np.zeros(self.n_neurons)
        weights[places] = share
        return self.slopes_of_weights(weights, rules=rules)

    @in_own_state
    def slopes_of_weights(self, weights: Floats, *, rules: BackwardRules = PLAIN) -> tuple[Floats, NDArray[np.float32]]:
        """Return what :meth:`slopes` returns where every neuron has a weight of its own, ``(neuron,)``."""
        if not rules.plain and self.edges is not None:
            raise UsageError("rules of a backward pass are for the whole model; score neurons before the circuit.")
        tracer = self.experiment.tracer.ruled(rules)
        values, slopes = np.empty(self.n_pairs), np.empty((self.n_pairs, self.n_neurons), dtype=np.float32)
        for batch, base in zip(self.experiment.batches, self._base, strict=True):
            run = partial(self._slopes, tracer, batch, base, weights)
            budget = self.experiment.budget(batch)
            for rows, (found, along) in in_batches(np.arange(len(batch.index)), run, budget, rows_per_item=1):
                values[batch.index[rows]] = found.double().cpu().numpy()
                slopes[batch.index[rows]] = along.float().cpu().numpy()
        return values, slopes

    def _slopes(
        self, tracer: Tracer, batch: PairBatch, base: dict[int, Tensor], weights: Floats, rows: Places
    ) -> tuple[Tensor, Tensor]:
        own = slice(int(rows[0]), int(rows[-1]) + 1)
        chosen, like = batch.rows(own), batch.clean.stream[0]
        leaves = {
            layer: torch.as_tensor(block, dtype=like.dtype, device=like.device)
            .repeat(len(rows), 1)[None, :, None]
            .requires_grad_(True)
            for layer, block in zip(self.layers, np.split(weights, self.offsets[1:-1]), strict=True)
        }
        neurons = WeightedNeurons({layer: values[own] for layer, values in base.items()}, leaves)
        loss = partial(self.experiment.single_metric, chosen)
        if self.edges is None:
            values, found = neuron_gradient(tracer, chosen.clean, neurons, loss, chosen.columns)
            return values, torch.cat([found[layer] for layer in self.layers], dim=1)
        mask = self._mask
        given = tracer, self.experiment.graph, chosen.base, self._change(chosen), mask.astype(np.float64), loss
        values, _ = mask_gradient(
            *given, among=mask, columns=chosen.columns, within=neurons.visits(), inputs=tuple(leaves.values())
        )
        parts = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves.values()]
        return values, torch.cat([part[0, :, 0] for part in parts], dim=1)

    @in_own_state
    def effects(self, places: Places, *, progress: Progress = no_progress) -> Floats:
        """Return what the behaviour loses when one neuron alone carries its replacement value, ``(neuron, pair)``.

        Exact, in the metric's unit; all other neurons follow from that one. The sign is turned for metrics where lower
        is better. Cost: for each neuron the layers from its own on, many neurons in one pass; in a circuit, a circuit.
        """
        sign = self.experiment.metric.sign
        if self.edges is not None:
            others = [np.setdiff1d(self.everything, [place]) for place in places]
            return sign * (self.clean - self.sets(others, progress=progress))
        found = np.empty((len(places), self.n_pairs))
        block = np.searchsorted(self.offsets, places, side="right") - 1
        for batch, base in zip(self.experiment.batches, self._base, strict=True):
            plain, budget = self.experiment.measured(batch, batch.clean.logits)[0], self.experiment.budget(batch)
            current = record_neurons(self.experiment.tracer, batch.clean, self.layers)
            for each in map(int, np.unique(block)):
                layer, own = self.layers[each], np.flatnonzero(block == each)
                run = partial(self._without, batch, layer, (current[layer], base[layer]), places - self.offsets[each])
                for members, values in in_batches(own, run, budget, rows_per_item=len(batch.index)):
                    found[np.ix_(members, batch.index)] = plain - values
                    progress(int(members[-1]) + 1, len(places))
        return sign * found

    def _without(
        self, batch: PairBatch, layer: int, ends: tuple[Tensor, Tensor], indices: Places, members: Places
    ) -> Floats:
        given = self.experiment.tracer, batch.clean, layer, ends, indices[members].tolist(), batch.columns
        return self.experiment.measured(batch, without_neurons(*given))
