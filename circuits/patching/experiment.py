"""An experiment on a real model: prompt pairs, a metric and an ablation, everything measured through the tracer."""

import logging
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.behaviours.behaviour import TokenPair
from circuits.files.journal import NOWHERE, Arrays, Shelf
from circuits.graph import ComputationalGraph, Edges
from circuits.guards.checks import PrefixDiffersError, RecordedRuns
from circuits.memory.batching import RowBudget, budget_of, in_batches
from circuits.memory.memory_plan import MemoryPlan, plan_memory
from circuits.memory.needs import ModelSizes, Needs, PromptSize, Terms
from circuits.memory.offload import Kept, kept_on_host
from circuits.metrics import AnswerTokens, measure
from circuits.passes.attribution import attribute
from circuits.passes.conductance import conductance
from circuits.passes.exact import patched_logits
from circuits.passes.gradients import gradients_at, gradients_by_layer
from circuits.passes.mask_gradients import mask_gradient
from circuits.passes.masked import needed_senders, run_masked
from circuits.patching.keeping import Measured, as_numpy, mask_item, mean_and_spread, shelf_of_pairs, sums_over_pairs
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import INTERIM, Masks, Progress, no_progress, one_per_edge, stacked_masks
from circuits.patching.recorded_pairs import (
    PairBatch,
    first_difference,
    means_of,
    replacements,
    roles_of,
    wanted_prefix_cache,
)
from circuits.tracing.prefix import PrefixCache
from circuits.tracing.requirements import require_pairs
from circuits.tracing.runs import difference, record
from circuits.tracing.state import in_own_state
from circuits.tracing.taps import Taps
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Direction, Metric

_LOGGER = logging.getLogger(__name__)

MOST_KEPT = 2_000_000
"""So many slopes of a circuit's edges, one by pair, are kept in a journal; more only while they are still needed."""


class PatchingExperiment:
    """Implements :class:`~circuits.patching.protocol.Experiment` on a model; making one costs two forward passes."""

    @in_own_state
    def __init__(
        self,
        tracer: Tracer,
        graph: ComputationalGraph,
        pairs: Sequence[TokenPair],
        options: Options,
        *,
        resources: Resources | None = None,
        reference: Sequence[TokenPair] = (),
        shelf: Shelf = NOWHERE,
    ) -> None:
        require_pairs(tracer.anatomy, pairs, options.metric)
        self.tracer, self.graph, self.options = tracer, graph, options
        self.resources = resources or Resources()
        self.n_pairs, self.pairs, self._shelf = len(pairs), tuple(pairs), shelf
        self._kept = shelf_of_pairs(shelf, pairs, options.metric, options.ablation)
        self.prefix_cache = wanted_prefix_cache(tracer, options, self.resources)
        self._means = means_of(tracer, reference, options)
        try:
            self._begin(pairs)
        except PrefixDiffersError as differs:
            self.prefix_cache = PrefixCache(str(differs))
            _LOGGER.warning(
                "the prefix cache is %s; all positions are run each time, which takes longer", self.prefix_cache
            )
            self._begin(pairs)

    def _begin(self, pairs: Sequence[TokenPair]) -> None:
        """Record all pairs, and check the recorded runs against plain ones of the model."""
        self.plan = self._planned(pairs)
        self._taps: list[Taps] = []
        self._recorded_runs = RecordedRuns(self.tracer)
        recorded = self._record(pairs)
        self.batches = kept_on_host(recorded, self.tracer.anatomy.device) if self.plan.offload else Kept(recorded)
        self.clean = self._gather([self._metric(batch, batch.clean.logits) for batch in self.batches])[0]
        self.corrupted = self._gather([self._metric(batch, batch.base.logits) for batch in self.batches])[0]
        _LOGGER.info("prefix cache %s", self.prefix_cache)

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.options.metric

    def _planned(self, pairs: Sequence[TokenPair]) -> MemoryPlan:
        anatomy, runs = self.tracer.anatomy, 2 if self.options.ablation.by_runs else 3
        prompts = [PromptSize(len(pair.clean) - shared, shared) for pair in pairs for shared in (self._shared([pair]),)]
        return plan_memory(
            ModelSizes.of(anatomy),
            prompts,
            budget_of(anatomy.device, self.resources.memory, alone=anatomy.one_device),
            runs=runs,
            batch_size=self.resources.batch_size,
            checkpointing=self.resources.checkpointing,
        )

    def _shared(self, pairs: Sequence[TokenPair]) -> int:
        """Return how many positions of some pairs are read from the prefix cache."""
        return min(first_difference(pair) for pair in pairs) if self.prefix_cache.on else 0

    def _record(self, pairs: Sequence[TokenPair]) -> Iterator[PairBatch]:
        """Record pairs in batches of one token length, so that nothing is ever padded."""
        by_length: dict[int, list[int]] = {}
        for i, pair in enumerate(pairs):
            by_length.setdefault(len(pair.clean), []).append(i)
        for length, members in by_length.items():
            positions = length - self._shared([pairs[i] for i in members])
            size = self.resources.batch_size or self.plan.pairs(positions)
            # Pairs that begin to differ at the same position share a batch: no position before it is run again.
            members.sort(key=lambda i: first_difference(pairs[i]))
            for first in range(0, len(members), size):
                index = np.sort(members[first : first + size])
                yield self._recorded(index, [pairs[int(i)] for i in index])

    def _recorded(self, index: NDArray[np.int64], pairs: list[TokenPair]) -> PairBatch:
        device = self.tracer.anatomy.device
        clean_ids, corrupted_ids = (
            torch.tensor([getattr(pair, side) for pair in pairs], device=device) for side in ("clean", "corrupted")
        )
        shared = self._shared(pairs)
        prefix = self.tracer.prefix_of(clean_ids[:, :shared]) if shared else None
        at_clean, at_corrupted = self._new_taps(len(pairs))
        clean = record(self.tracer, clean_ids[:, shared:], prefix, taps=at_clean)
        corrupted = record(self.tracer, corrupted_ids[:, shared:], prefix, taps=at_corrupted)
        self._recorded_runs.require_plain((clean_ids, corrupted_ids), (clean, corrupted))
        base = replacements(self.tracer, clean, corrupted, self._means, self.options)
        answers = AnswerTokens.of(pairs, device)
        columns = answers.tokens if self.metric.of_answers_only and self.tracer.selects_columns else None
        return PairBatch(index, answers, clean, corrupted, base, columns, roles_of(pairs, self.graph, clean))

    def _new_taps(self, pairs: int) -> tuple[Taps | None, Taps | None]:
        """Tap one run (clean, corrupted) where that is wanted and takes no more memory than attribution will."""
        if not self.resources.keep_gradients or self.plan.checkpointing or pairs < self.n_pairs:
            return None, None
        self._taps = [Taps()]
        return (self._taps[0], None) if self.options.direction is Direction.NOISING else (None, self._taps[0])

    @in_own_state
    def part(self, begin: int, end: int) -> "PatchingExperiment":
        """Return the same experiment on some of its pairs; see :meth:`Experiment.part`."""
        fewer = copy(self)
        fewer._taps = []
        fewer.batches = self.batches.changed(
            lambda batch: batch.part(begin, end), kept=lambda batch: len(batch.index) > 0
        )
        fewer.clean, fewer.corrupted = self.clean[begin:end], self.corrupted[begin:end]
        fewer.n_pairs, fewer.pairs = len(fewer.clean), self.pairs[begin:end]
        fewer._kept = shelf_of_pairs(self._shelf, fewer.pairs, self.metric, self.options.ablation)
        return fewer

    @property
    def kept(self) -> Shelf:
        """Where what is measured on these pairs is kept."""
        return self._kept

    @in_own_state
    def with_metric(self, metric: Metric) -> "PatchingExperiment":
        """Return the same experiment by another metric of the logits, from the runs that are recorded already."""
        other = copy(self)
        other._taps, other.options = [], replace(self.options, metric=metric)
        other._kept = shelf_of_pairs(self._shelf, self.pairs, metric, self.options.ablation)
        other.batches = self.batches.changed(lambda batch: replace(batch, columns=None), kept=lambda _: True)
        other.clean = self._gather([other._metric(batch, batch.clean.logits) for batch in other.batches])[0]
        other.corrupted = self._gather([other._metric(batch, batch.base.logits) for batch in other.batches])[0]
        return other

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

    def single_metric(self, batch: PairBatch, logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
        """Measure logits of one batch's pairs, with gradients."""
        return self._metric(batch, logits)[0]

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
        if not rules.plain:
            return self.ruled(rules).attributions(points, stepwise=stepwise, progress=progress)
        kind, sums = self._attribution_kind, self._attribution_sums
        if stepwise:
            kind, sums = "conductance", self._conductance_sums
        found = self.kept.arrays(kind, list(points), lambda: self._attributed(points, kind, sums, progress))
        self.kept.forget(f"{kind}, part")
        return np.stack([found["mean"] * self.metric.sign, found["spread"]])

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
        self.kept.forget("conductance")

    def _attributed(
        self,
        points: Sequence[float],
        kind: str,
        sums_of: Callable[[PairBatch, Sequence[float]], Arrays],
        progress: Progress,
    ) -> Arrays:
        total, squares = np.zeros(self.graph.n_edges), np.zeros(self.graph.n_edges)
        for done, batch in enumerate(self.batches):
            what = [list(points), batch.index.tolist()]
            sums = self.kept.arrays(f"{kind}, part", what, partial(sums_of, batch, points))
            total += sums["sum"]
            squares += sums["squares"]
            progress(done + 1, len(self.batches))
        return mean_and_spread(total, squares, self.n_pairs)

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

    def _conductance_sums(self, batch: PairBatch, points: Sequence[float]) -> Arrays:
        ends, loss, plan = (batch.base, batch.clean), partial(self._metric, batch), self.plan
        given = self.tracer, self.graph, ends, points, loss
        tile, checkpointing = plan.attribution_tile, plan.checkpointing
        return sums_over_pairs(conductance(*given, checkpointing=checkpointing, tile=tile, roles=batch.roles))

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

    def _metric(self, batch: PairBatch, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "repeat pair"]:
        """Measure logits of ``repeat x pair`` rows, of all tokens or of the batch's columns."""
        repeats = len(logits) // len(batch.index)
        rows = torch.arange(len(batch.index), device=logits.device).repeat(repeats)
        if batch.columns is not None and logits.shape[-1] != batch.clean.logits.shape[-1]:
            values = measure(self.metric, logits, batch.answers.among(batch.columns).rows(rows))
        else:
            values = measure(self.metric, logits, batch.answers.rows(rows), batch.clean.logits[rows])
        return values.reshape(repeats, len(batch.index))

    @in_own_state
    def measured(self, batch: PairBatch, logits: Float[Tensor, "row d_vocab"]) -> NDArray[np.float64]:
        """Measure logits of ``repeat x pair`` rows of one batch of pairs, shape ``(repeat, pair)``."""
        return as_numpy(self._metric(batch, logits))

    def _gather(self, parts: Sequence[Float[Tensor, "repeat _"]]) -> NDArray[np.float64]:
        """Put the pairs of all batches back into their order."""
        values = np.empty((len(parts[0]), self.n_pairs))
        for batch, part in zip(self.batches.stored, parts, strict=True):
            values[:, batch.index] = as_numpy(part)
        return values

    def budget(self, batch: PairBatch, *, senders: int | None = None) -> RowBudget:
        """Return the rows per pass that the plan leaves room for: of single changes, or circuits of so many senders."""
        needs = self._needs(batch)
        if senders is not None:
            return self._rows(batch, needs.circuits(senders))
        return self._rows(batch, needs.exact(), beside=len(batch.index) * sum(needs.differences().values()))

    def _needs(self, batch: PairBatch) -> Needs:
        length = batch.clean.ids.shape[1]
        return Needs(self.plan.sizes, PromptSize(length, batch.clean.length - length))

    def _rows(self, batch: PairBatch, row: Terms, *, beside: int = 0) -> RowBudget:
        length = batch.clean.ids.shape[1]
        return RowBudget(self.resources.batch_size or self.plan.rows(row, length, beside=beside))
