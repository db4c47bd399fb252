"""An experiment on a real model: prompt pairs, a metric and an ablation, everything measured through the tracer."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.files.journal import NOWHERE, Arrays
from circuits.graph import Edges
from circuits.memory.batching import in_batches
from circuits.passes.attribution import attribute
from circuits.passes.conductance import Conductance
from circuits.passes.estimate import EdgeEstimate, Given
from circuits.passes.exact import patched_logits
from circuits.passes.gradients import gradients_at, gradients_by_layer
from circuits.passes.mask_gradients import mask_gradient
from circuits.passes.masked import needed_senders, run_masked
from circuits.patching.keeping import Measured, as_numpy, mask_item, mean_and_spread, shelf_of_pairs, sums_over_pairs
from circuits.patching.protocol import INTERIM, Masks, Progress, no_progress, one_per_edge, stacked_masks
from circuits.patching.recorded_experiment import RecordedExperiment
from circuits.patching.recorded_pairs import (
    PairBatch,
)
from circuits.tracing.prefix import PrefixCache
from circuits.tracing.runs import difference
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Direction

MOST_KEPT = 2_000_000
"""So many slopes of a circuit's edges, one by pair, are kept in a journal; more only while they are still needed."""

_ESTIMATE = "estimate"
"""Under this a journal keeps estimates of all edges."""


class PatchingExperiment(RecordedExperiment):
    """Implements :class:`~circuits.patching.protocol.Experiment` on a model; making one costs two forward passes."""

    @in_own_state
    def circuits(self, masks: Masks, *, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Measure circuits; see :meth:`Experiment.circuits`."""
        if not len(masks):
            return np.empty((0, self.n_pairs))
        stacked = stacked_masks(self.graph, masks)
        # Kept by list, since the last digits of what is measured depend on what else is measured with it.
        name = b"" if self.kept is NOWHERE else mask_item(stacked)
        items = [name + place.to_bytes(4, "little") for place in range(len(stacked))]
        measured = self._measured("circuit", items, progress)
        for batch in self.batches:
            change = {0: batch.clean.stream[0] - batch.base.stream[0]}
            run = partial(self._circuit_values, batch, change, stacked)
            senders = needed_senders(self.graph, np.any(stacked, axis=0), (0,), recorded=batch.base.recorded)
            with measured.missing(batch.index) as missing:
                budget = self.budget(batch, senders=len(senders))
                for members, values in in_batches(missing, run, budget, rows_per_item=len(batch.index)):
                    measured.add(members, batch.index, values)
        return measured.values

    def _measured(self, kind: str, items: Sequence[bytes], progress: Progress) -> Measured:
        return Measured(self.kept, kind, items, self.n_pairs, parts=len(self.batches), progress=progress)

    def _circuit_values(
        self, batch: PairBatch, change: dict[int, Tensor], masks: NDArray[np.bool_], members: NDArray[np.int64]
    ) -> Float[Tensor, "circuit pair"]:
        given = self.tracer, self.graph, batch.base, change, masks[members], batch.columns
        logits = run_masked(*given, roles=batch.roles)
        return self._metric(batch, logits.flatten(0, 1))

    @in_own_state
    def circuit_gradient(
        self, weights: NDArray[np.float64], *, among: Edges | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measure one weighted circuit and its slope along each weight; see :meth:`Experiment.circuit_gradient`."""
        weights = one_per_edge(self.graph, weights)
        wanted = weights != 0
        wanted[slice(None) if among is None else self.graph.indices(among)] = True
        values, slopes = np.empty(self.n_pairs), np.zeros((self.n_pairs, self.graph.n_edges))
        names = [mask_item(weights).hex(), mask_item(wanted).hex()]
        interim = self.n_pairs * int(wanted.sum()) > MOST_KEPT
        for batch in self.batches:
            senders = needed_senders(self.graph, wanted, (0,), recorded=batch.base.recorded)
            needs = self._needs(batch)
            budget = self._rows(batch, needs.gradient(len(senders)), beside=needs.weights())
            run = partial(self._kept_gradient, batch, weights, wanted, names, interim)
            for pairs, found in in_batches(np.arange(len(batch.index)), run, budget, rows_per_item=1):
                values[batch.index[pairs]] = found["values"]
                slopes[np.ix_(batch.index[pairs], np.flatnonzero(wanted))] = found["slopes"]
        return values, slopes

    def _kept_gradient(
        self,
        batch: PairBatch,
        weights: NDArray[np.float64],
        wanted: NDArray[np.bool_],
        names: list[str],
        interim: bool,
        pairs: NDArray[np.int64],
    ) -> Arrays:
        """Return the metric and the wanted slopes of some pairs, from the journal where they are kept."""

        def make() -> Arrays:
            values, slopes = self._mask_gradient(batch, weights, wanted, pairs)
            return {"values": as_numpy(values), "slopes": as_numpy(slopes)[:, wanted]}

        what = [*names, batch.index[pairs].tolist()]
        return self.kept.arrays(INTERIM if interim else "gradient", what, make, interim=interim)

    def _mask_gradient(
        self, batch: PairBatch, weights: NDArray[np.float64], wanted: NDArray[np.bool_], pairs: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        chosen = batch.rows(slice(int(pairs[0]), int(pairs[-1]) + 1))
        change = {0: chosen.clean.stream[0] - chosen.base.stream[0]}
        loss = partial(self.single_metric, chosen)
        given = self.tracer, self.graph, chosen.base, change, weights, loss
        return mask_gradient(*given, among=wanted, columns=chosen.columns, roles=chosen.roles)

    @in_own_state
    def edge_effects(self, edges: Edges, *, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Measure single edges exactly; see :meth:`Experiment.edge_effects`."""
        noising = self.options.direction is Direction.NOISING
        edges, place_of = np.unique(self.graph.indices(edges), return_inverse=True)
        items = [int(edge).to_bytes(8, "little") for edge in edges]
        measured = self._measured(f"effect of an edge, {self.options.direction}", items, progress)
        for batch in self.batches:
            current, other = (batch.clean, batch.base) if noising else (batch.base, batch.clean)
            plain = self._metric(batch, current.logits)
            with measured.missing(batch.index) as missing:
                given = self.tracer, self.graph, current, other, edges[missing], self.budget(batch)
                for members, logits in patched_logits(*given, columns=batch.columns, roles=batch.roles):
                    patched = plain if logits is None else self._metric(batch, logits.flatten(0, 1))
                    change = (plain - patched).expand(len(members), -1)
                    measured.add(np.searchsorted(edges, members), batch.index, change)
        return measured.values[place_of] * self.metric.sign * (1 if noising else -1)

    @in_own_state
    def attributions(
        self,
        points: Sequence[float],
        *,
        stepwise: bool = False,
        rules: BackwardRules = PLAIN,
        progress: Progress = no_progress,
    ) -> NDArray[np.float64]:
        """Estimate all edges to first order; see :meth:`Experiment.attributions`."""
        if stepwise:
            return self.estimates(Conductance(tuple(points)), rules=rules, progress=progress)
        if not rules.plain:
            return self.ruled(rules).attributions(points, progress=progress)
        kind, sums = self._attribution_kind, partial(self._attribution_sums, points=points)
        found = self._kept_sums(kind, list(points), sums, progress)
        return np.stack([found["mean"] * self.metric.sign, found["spread"]])

    @in_own_state
    def estimates(
        self, estimate: EdgeEstimate, *, rules: BackwardRules = PLAIN, progress: Progress = no_progress
    ) -> NDArray[np.float64]:
        """Estimate all edges some other way; see :meth:`Experiment.estimates`."""
        if not rules.plain:
            return self.ruled(rules).estimates(estimate, progress=progress)
        measuring = self._with_whole_prompts() if estimate.whole_prompts else self
        sums = partial(measuring._estimate_sums, estimate=estimate)
        found = measuring._kept_sums(_ESTIMATE, [self.options.direction, estimate.name], sums, progress)
        return np.stack([found["mean"] * (self.metric.sign if estimate.of_metric else 1), found["spread"]])

    def _with_whole_prompts(self) -> "PatchingExperiment":
        """Return the same experiment without a prefix cache; where there is one, the pairs are recorded again."""
        if not self.prefix_cache.on:
            return self
        other = copy(self)
        other.prefix_cache = PrefixCache("whole prompts are needed")
        other._begin(self.pairs)
        return other

    def ruled(self, rules: BackwardRules) -> "PatchingExperiment":
        """Return the same experiment with gradients by other rules; raises :class:`UnsupportedModelError`."""
        other = copy(self)
        other.tracer, other._taps, other._shelf = self.tracer.ruled(rules), [], self._shelf.under(rules=asdict(rules))
        other._kept = shelf_of_pairs(other._shelf, self.pairs, self.metric, self.options.ablation)
        return other

    @property
    def _attribution_kind(self) -> str:
        return f"attribution, {self.options.direction}"

    def forget_attributions(self) -> None:
        """Throw away the attributions that the journal keeps of these pairs: they were summed up elsewhere."""
        self.kept.forget(self._attribution_kind)
        self.kept.forget(_ESTIMATE)

    def _kept_sums(
        self, kind: str, what: list[Any], sums_of: Callable[[PairBatch], Arrays], progress: Progress
    ) -> Arrays:
        """Return mean and spread over pairs of what batches sum up, from the journal where they are kept."""
        part = f"{kind}, part"

        def make() -> Arrays:
            total, squares = np.zeros(self.graph.n_edges), np.zeros(self.graph.n_edges)
            for done, batch in enumerate(self.batches):
                sums = self.kept.arrays(part, [what, batch.index.tolist()], partial(sums_of, batch))
                total += sums["sum"]
                squares += sums["squares"]
                progress(done + 1, len(self.batches))
            return mean_and_spread(total, squares, self.n_pairs)

        found = self.kept.arrays(kind, what, make)
        self.kept.forget(part)
        return found

    def _attribution_sums(self, batch: PairBatch, points: Sequence[float]) -> Arrays:
        def at(point: float) -> Tensor:
            if self.kept is NOWHERE:
                return self._attribution(batch, point)
            what, kind = [point, batch.index.tolist()], f"{self._attribution_kind}, part"
            found = self.kept.arrays(
                kind, what, lambda: {"values": self._attribution(batch, point).cpu().numpy()}, interim=True
            )
            return torch.as_tensor(found["values"], device=self.tracer.anatomy.device)

        return sums_over_pairs(torch.stack([at(point) for point in points]).mean(0))

    def _estimate_sums(self, batch: PairBatch, estimate: EdgeEstimate) -> Arrays:
        return sums_over_pairs(estimate(self.given(batch)))

    def given(self, batch: PairBatch) -> Given:
        """Return what estimates are made from, for one batch of pairs."""
        return Given(
            self.tracer,
            self.graph,
            batch.clean,
            batch.base,
            partial(self.single_metric, batch),
            denoising=self.options.direction is Direction.DENOISING,
            tile=self.plan.attribution_tile,
            checkpointing=self.plan.checkpointing,
            roles=batch.roles,
        )

    def _attribution(self, batch: PairBatch, point: float) -> Float[Tensor, "pair edge"]:
        change, loss, plan = difference(batch.clean, batch.base), partial(self._metric, batch), self.plan
        if point == 1 and self._taps:
            gradients = self._taps.pop().of_loss(loss)
        else:
            from_base = 1 - point if self.options.direction is Direction.DENOISING else point
            embedding = batch.base.stream[0] + from_base * change.stream[0]
            run = gradients_by_layer if plan.checkpointing else gradients_at
            gradients = run(self.tracer, batch.clean, embedding, loss)
        return attribute(self.tracer, self.graph, change, gradients, tile=plan.attribution_tile, roles=batch.roles)
