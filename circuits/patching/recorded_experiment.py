"""The runs of an experiment on a real model: its prompt pairs, recorded in batches, and how logits are measured."""

import logging
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.behaviours.behaviour import TokenPair
from circuits.files.journal import NOWHERE, Shelf
from circuits.graph import ComputationalGraph
from circuits.guards.checks import PrefixDiffersError, RecordedRuns
from circuits.memory.batching import RowBudget, budget_of
from circuits.memory.memory_plan import MemoryPlan, plan_memory
from circuits.memory.needs import ModelSizes, Needs, PromptSize, Terms
from circuits.memory.offload import Kept, kept_on_host
from circuits.metrics import AnswerTokens, measure
from circuits.patching.keeping import as_numpy, shelf_of_pairs
from circuits.patching.measurement import Options, Resources
from circuits.patching.recorded_pairs import (
    PairBatch,
    counterparts_of,
    first_difference,
    means_of,
    replacements,
    require_noising,
    roles_of,
    wanted_prefix_cache,
)
from circuits.tracing.prefix import PrefixCache
from circuits.tracing.requirements import require_pairs
from circuits.tracing.runs import record
from circuits.tracing.state import in_own_state
from circuits.tracing.taps import Taps
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Direction, Metric

_LOGGER = logging.getLogger(__name__)


class RecordedExperiment:
    """Prompt pairs recorded on a model, to be measured by a metric; making one costs two forward passes."""

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
        require_noising(pairs, options.direction)
        self.tracer, self.graph, self.options = tracer, graph, options
        self.resources = resources or Resources()
        self.n_pairs, self.pairs, self._shelf = len(pairs), tuple(pairs), shelf
        self._kept = shelf_of_pairs(shelf, pairs, options.metric, options.ablation)
        self.prefix_cache = wanted_prefix_cache(tracer, options, self.resources)
        self._means = means_of(tracer, reference, options, shelf)
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
        anatomy = self.tracer.anatomy
        runs = 2 if self.options.ablation.by_runs and not any(pair.alignment for pair in pairs) else 3
        longest = [(max(len(pair.clean), len(pair.corrupted)), self._shared([pair])) for pair in pairs]
        prompts = [PromptSize(length - shared, shared) for length, shared in longest]
        return plan_memory(
            ModelSizes.of(anatomy),
            prompts,
            budget_of(anatomy.devices, self.resources.memory),
            runs=runs,
            batch_size=self.resources.batch_size,
            checkpointing=self.resources.checkpointing,
        )

    def _shared(self, pairs: Sequence[TokenPair]) -> int:
        """Return how many positions of some pairs are read from the prefix cache."""
        return min(first_difference(pair) for pair in pairs) if self.prefix_cache.on else 0

    def _record(self, pairs: Sequence[TokenPair]) -> Iterator[PairBatch]:
        """Record pairs in batches of one token length (on either side), so that nothing is ever padded."""
        by_length: dict[tuple[int, int], list[int]] = {}
        for i, pair in enumerate(pairs):
            by_length.setdefault((len(pair.clean), len(pair.corrupted)), []).append(i)
        for lengths, members in by_length.items():
            positions = max(lengths) - self._shared([pairs[i] for i in members])
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
        places = counterparts_of(pairs, clean)
        base = replacements(self.tracer, (clean, corrupted), pairs, self._means, self.options, places)
        answers = AnswerTokens.of(pairs, device)
        columns = answers.tokens if self.metric.of_answers_only and self.tracer.selects_columns else None
        return PairBatch(index, answers, clean, corrupted, base, columns, roles_of(pairs, self.graph, clean), places)

    def _new_taps(self, pairs: int) -> tuple[Taps | None, Taps | None]:
        """Tap one run (clean, corrupted) where that is wanted and takes no more memory than attribution will."""
        if not self.resources.keep_gradients or self.plan.checkpointing or pairs < self.n_pairs:
            return None, None
        self._taps = [Taps()]
        return (self._taps[0], None) if self.options.direction is Direction.NOISING else (None, self._taps[0])

    @in_own_state
    def part(self, begin: int, end: int) -> Self:
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
    def with_metric(self, metric: Metric) -> Self:
        """Return the same experiment by another metric of the logits, from the runs that are recorded already."""
        other = copy(self)
        other._taps, other.options = [], replace(self.options, metric=metric)
        other._kept = shelf_of_pairs(self._shelf, self.pairs, metric, self.options.ablation)
        other.batches = self.batches.changed(lambda batch: replace(batch, columns=None), kept=lambda _: True)
        other.clean = self._gather([other._metric(batch, batch.clean.logits) for batch in other.batches])[0]
        other.corrupted = self._gather([other._metric(batch, batch.base.logits) for batch in other.batches])[0]
        return other

    def single_metric(self, batch: PairBatch, logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
        """Measure logits of one batch's pairs, with gradients."""
        return self._metric(batch, logits)[0]

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
