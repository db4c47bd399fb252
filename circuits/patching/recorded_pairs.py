"""Prompt pairs of one token length, recorded."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from circuits.metrics import AnswerTokens
from circuits.tracing.runs import Columns, Run


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
