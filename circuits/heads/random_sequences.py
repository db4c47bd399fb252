"""Random tokens given twice, on which previous-token, duplicate-token and induction heads show themselves.

Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits); Olsson et al. 2022, arXiv:2209.11895.
"""

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.adapters.anatomy import Anatomy
from circuits.errors import UsageError
from circuits.heads.evidence import SequenceScores

SEQUENCES, PERIOD, SHORTEST = 8, 25, 4


def repeated_sequences(anatomy: Anatomy, tokenizer: Any, first: int, *, seed: int) -> Int[Tensor, "sequence pos"]:
    """Draw sequences: one ``first`` token, then distinct ordinary tokens, then these once more.

    Raises :class:`UsageError` for a model with too few tokens or positions.
    """
    ordinary = ordinary_tokens(anatomy, tokenizer)
    ordinary = ordinary[ordinary != first]
    positions = getattr(getattr(anatomy.module, "config", None), "max_position_embeddings", None)
    longest = (positions - 1) // 2 if isinstance(positions, int) else PERIOD
    period = min(PERIOD, len(ordinary), longest)
    if period < SHORTEST:
        raise UsageError(
            f"random sequences need at least {SHORTEST} tokens given twice; this model has {len(ordinary)} ordinary "
            f"tokens and {positions} positions."
        )
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(ordinary, period, replace=False) for _ in range(SEQUENCES)]
    rows = [[first, *once.tolist(), *once.tolist()] for once in drawn]
    return torch.tensor(rows, device=anatomy.device)


def ordinary_tokens(anatomy: Anatomy, tokenizer: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the tokens that stand for text: none that is special, none that the tokenizer does not know."""
    known = anatomy.vocabulary if tokenizer is None else min(anatomy.vocabulary, len(tokenizer))
    special = list(getattr(tokenizer, "all_special_ids", ()))
    return np.setdiff1d(np.arange(known), special)


def sequence_scores(weights: Float[Tensor, "sequence head query key"]) -> list[SequenceScores]:
    """Score every head on its attention to repeated sequences.

    Rows before the third position have no previous token but the first, on which attention rests, and are left out.
    """
    period = (weights.shape[-1] - 1) // 2
    again = torch.arange(period + 1, 2 * period + 1, device=weights.device)
    late = torch.arange(2, 2 * period + 1, device=weights.device)

    def mean(query: Tensor, back: int) -> list[float]:
        return cast(Any, weights[:, :, query, query - back].mean((0, 2))).tolist()

    columns = (mean(late, 1), mean(again, period), mean(again, period - 1))
    return [SequenceScores(*scores) for scores in zip(*columns, strict=True)]
