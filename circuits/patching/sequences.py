"""Answers of several tokens: the log probability of *Sorry, I can't* against that of *To make a*.

By causality ``log P(t1 t2 ... | prompt) = sum over k of log P(t_k | prompt, t1 .. t_(k-1))``, exactly. So every token
of every answer becomes a row of its own: the clean and the corrupted prompt, both continued by the tokens before it,
and the log probability of this token at their last position. A pair's value is the weighted sum over its rows: the mean
over its answers minus the mean over its wrong answers. Rows that several answers share (``Sorry`` in *Sorry, I can't*
and *Sorry, but*) are measured once.

Patching and circuits act on every position of a row, those of the answer's earlier tokens included.
"""

from collections.abc import Callable, Sequence
from copy import copy
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens
from circuits.errors import PromptError, UsageError
from circuits.files.journal import Shelf
from circuits.graph import ComputationalGraph, Edges
from circuits.memory.memory_plan import MemoryPlan
from circuits.passes.conductance import Conductance
from circuits.passes.estimate import EdgeEstimate
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.keeping import mean_and_spread
from circuits.patching.measurement import Options
from circuits.patching.protocol import Masks, Progress, no_progress
from circuits.tracing.prefix import PrefixCache
from circuits.vocabulary import Metric

Floats = NDArray[np.float64]


def rows_of(pair: TokenPair) -> list[TokenPair]:
    """Turn a pair into one row per token of its answers, each with its weight.

    Raises :class:`PromptError` where nothing is left to be measured: no answers, or the same on both sides.
    """
    weights: dict[tuple[Tokens, int], float] = {}
    for sequences, sign in ((pair.sequences, 1), (pair.wrong_sequences, -1)):
        for sequence in sequences:
            for place, token in enumerate(sequence):
                row = sequence[:place], token
                weights[row] = weights.get(row, 0.0) + sign / len(sequences)
    rows = [
        TokenPair(
            (*pair.clean, *before), (*pair.corrupted, *before), (token,), (), pair.clean_text, pair.corrupted_text,
            pair.tags, weight=weight, roles=pair.roles, alignment=_longer(pair, len(before)),
        )
        for (before, token), weight in weights.items()
        if abs(weight) > 1e-12
    ]  # fmt: skip
    if not rows:
        raise PromptError(
            f"the pair {pair.clean_text!r} has no answers by the metric {Metric.SEQUENCE}; expected some, other than "
            "the wrong ones."
        )
    return rows


def _longer(pair: TokenPair, more: int) -> Tokens:
    """Return the alignment of a pair of which both sides go on alike for some tokens."""
    return (*pair.alignment, *range(len(pair.corrupted), len(pair.corrupted) + more)) if pair.alignment else ()


class SequenceExperiment:
    """Implements :class:`~circuits.patching.protocol.Experiment` for answers of several tokens.

    Everything is one number per pair, the sum over its rows; every cost is that of as many pairs as there are rows.
    ``measure`` sets up the experiment on them.
    """

    def __init__(
        self, pairs: Sequence[TokenPair], measure: Callable[[Sequence[TokenPair]], PatchingExperiment]
    ) -> None:
        rows = [rows_of(pair) for pair in pairs]
        self.n_pairs = len(pairs)
        self._starts = np.cumsum([0, *map(len, rows)])
        self._rows = measure([row for several in rows for row in several])

    @property
    def graph(self) -> ComputationalGraph:
        """The model's graph."""
        return self._rows.graph

    @property
    def options(self) -> Options:
        """What is measured."""
        return self._rows.options

    @property
    def metric(self) -> Metric:
        """The metric, ``sequence``."""
        return self._rows.metric

    @property
    def prefix_cache(self) -> PrefixCache:
        """Whether positions that prompts share are run once, and if not, why not."""
        return self._rows.prefix_cache

    @property
    def plan(self) -> MemoryPlan:
        """How the rows fit into memory."""
        return self._rows.plan

    @property
    def kept(self) -> Shelf:
        """Where what is measured on the rows is kept."""
        return self._rows.kept

    @property
    def clean(self) -> Floats:
        """Metric of the clean run, shape ``(pair,)``."""
        return self._summed(self._rows.clean)

    @property
    def corrupted(self) -> Floats:
        """Metric with every edge corrupted, shape ``(pair,)``."""
        return self._summed(self._rows.corrupted)

    def part(self, begin: int, end: int) -> "SequenceExperiment":
        """Return the same experiment on some of its pairs; see :meth:`Experiment.part`."""
        fewer = copy(self)
        starts = self._starts[begin : end + 1]
        fewer.n_pairs, fewer._starts = len(starts) - 1, starts - starts[0]
        fewer._rows = self._rows.part(int(starts[0]), int(starts[-1]))
        return fewer

    def circuits(self, masks: Masks, *, progress: Progress = no_progress) -> Floats:
        """Measure circuits; see :meth:`Experiment.circuits`."""
        return self._summed(self._rows.circuits(masks, progress=progress))

    def circuit_gradient(self, weights: Floats, *, among: Edges | None = None) -> tuple[Floats, Floats]:
        """Measure one weighted circuit and its slope along each weight; see :meth:`Experiment.circuit_gradient`."""
        values, slopes = self._rows.circuit_gradient(weights, among=among)
        return self._summed(values), np.add.reduceat(slopes, self._starts[:-1], axis=0)

    def edge_effects(self, edges: Edges, *, progress: Progress = no_progress) -> Floats:
        """Measure single edges exactly; see :meth:`Experiment.edge_effects`."""
        return self._summed(self._rows.edge_effects(edges, progress=progress))

    def ruled(self, rules: BackwardRules) -> "SequenceExperiment":
        """Return the same experiment with gradients by other rules; raises :class:`UnsupportedModelError`."""
        other = copy(self)
        other._rows = self._rows.ruled(rules)
        return other

    def attributions(
        self,
        points: Sequence[float],
        *,
        stepwise: bool = False,
        rules: BackwardRules = PLAIN,
        progress: Progress = no_progress,
    ) -> Floats:
        """Estimate all edges to first order; see :meth:`Experiment.attributions`.

        Pair by pair, since its rows lie in batches of several lengths and the spread is that over pairs.
        """
        if stepwise:
            return self.estimates(Conductance(tuple(points)), rules=rules, progress=progress)
        if not rules.plain:
            return self.ruled(rules).attributions(points, progress=progress)
        kind = f"attribution by pair, {self.options.direction}"

        def of_part(part: PatchingExperiment) -> Floats:
            return part.attributions(points)[0] * part.n_pairs

        found = self.kept.arrays(kind, list(points), lambda: self._over_pairs(of_part, progress))
        return np.stack([found["mean"], found["spread"]])

    def estimates(
        self, estimate: EdgeEstimate, *, rules: BackwardRules = PLAIN, progress: Progress = no_progress
    ) -> Floats:
        """Estimate all edges some other way; see :meth:`Experiment.estimates`.

        What is no estimate of the metric is a mean over a pair's rows.
        """
        if not rules.plain:
            return self.ruled(rules).estimates(estimate, progress=progress)

        def of_part(part: PatchingExperiment) -> Floats:
            return part.estimates(estimate)[0] * (part.n_pairs if estimate.of_metric else 1)

        kind, what = "estimate by pair", [self.options.direction, estimate.name]
        found = self.kept.arrays(kind, what, lambda: self._over_pairs(of_part, progress))
        return np.stack([found["mean"], found["spread"]])

    def _over_pairs(self, of_part: Callable[[PatchingExperiment], Floats], progress: Progress) -> dict[str, Floats]:
        total, squares = np.zeros(self.graph.n_edges), np.zeros(self.graph.n_edges)
        parts = [self._rows.part(int(begin), int(end)) for begin, end in pairwise(self._starts)]
        for done, part in enumerate(parts):
            values = of_part(part)
            total += values
            squares += values**2
            progress(done + 1, self.n_pairs)
        for part in parts:
            part.forget_attributions()
        return mean_and_spread(total, squares, self.n_pairs)

    def _summed(self, rows: Floats) -> Floats:
        """Sum the last axis, rows, over each pair's own."""
        return np.add.reduceat(rows, self._starts[:-1], axis=-1)


AnyExperiment = PatchingExperiment | SequenceExperiment
"""What :meth:`circuits.Model.experiment` sets up: by most metrics the first, by ``sequence`` the second."""


def of_one_token(experiment: AnyExperiment, what: str) -> PatchingExperiment:
    """Return the experiment; raises :class:`UsageError` where it measures several tokens and ``what`` needs one."""
    if isinstance(experiment, PatchingExperiment):
        return experiment
    raise UsageError(
        f"the metric {experiment.metric} measures answers of several tokens, and {what} needs one; choose another "
        "metric."
    )
