"""Prompt pairs of one token length, recorded."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours.pairs import TokenPair
from circuits.metrics import AnswerTokens
from circuits.patching.measurement import Options, Resources
from circuits.tracing.prefix import PrefixCache
from circuits.tracing.runs import Columns, Run
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one token length: ``base`` is what corrupted edges carry.

    ``columns`` are the tokens whose logits the metric reads, in ascending order; None where it reads all.
    """

    index: NDArray[np.int64]
    answers: AnswerTokens
    clean: Run
    corrupted: Run
    base: Run
    columns: Columns | None = None

    def part(self, begin: int, end: int) -> "PairBatch":
        """Return the pairs of the batch whose places are ``begin .. end - 1``, counted from there."""
        part = self.rows(slice(*np.searchsorted(self.index, (begin, end)).tolist()))
        return replace(part, index=part.index - begin)

    def rows(self, chosen: slice) -> "PairBatch":
        """Return some pairs of the batch, by their row."""
        answers = self.answers.rows(chosen)
        runs = (run.rows(chosen) for run in (self.clean, self.corrupted, self.base))
        return PairBatch(self.index[chosen], answers, *runs, columns=self.columns)


def wanted_prefix_cache(tracer: Tracer, options: Options, resources: Resources) -> PrefixCache:
    """Return the prefix cache that is wanted and that the ablation and the model allow."""
    if not resources.prefix_cache:
        return PrefixCache("not wanted")
    if options.ablation is Ablation.ZERO:
        return PrefixCache("zero ablation also replaces values at the positions that prompts share")
    return tracer.prefix_cache


def first_difference(pair: TokenPair) -> int:
    """Return the first position at which the prompts of a pair differ; of equal prompts the last."""
    differing = (i for i, (here, there) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if here != there)
    return next(differing, len(pair.clean) - 1)
