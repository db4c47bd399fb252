"""What heads do on prompts: where they attend on both sides, and what they write at the last position of clean ones."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from circuits.behaviours.pairs import TokenPair
from circuits.graph import Node
from circuits.heads.attention import attention_weights, require_weighted_sum
from circuits.heads.averages import Averages
from circuits.heads.evidence import WrittenTokens
from circuits.heads.positions import at_counterparts
from circuits.heads.written_logits import TOP, among_top, head_logits
from circuits.metrics import PADDING, AnswerTokens
from circuits.model import Model
from circuits.tracing.runs import Run, record

SHOWN, PAIRS = 6, 16
"""How many tokens are listed, and how many pairs are run at once."""
_WEIGHTS = 20_000_000
"""At most so many attention weights are held at once: 160 MB."""


class Prompted:
    """Evidence of heads on prompt pairs. Cost: four forward passes, and an unembedding per head and pair."""

    def __init__(self, model: Model, heads: Sequence[Node], prompts: Sequence[TokenPair], behaviour: str) -> None:
        self._model, self._heads = model, heads
        self._writing = [_Writing() for _ in heads]
        self.averages = Averages()
        device = model.tracer.anatomy.device
        for batch in _batches(prompts, len(heads)):
            clean, corrupted = (
                record(model.tracer, torch.tensor([getattr(pair, side) for pair in batch], device=device))
                for side in ("clean", "corrupted")
            )
            weights, others = (weights_of(model, heads, run) for run in (clean, corrupted))
            others = at_counterparts(others, batch)
            self.averages.add(batch, behaviour, weights, others)
            self._write(clean, AnswerTokens.of(batch, device), weights)

    def _write(self, clean: Run, answers: AnswerTokens, weights: NDArray[np.float64]) -> None:
        for place, head in enumerate(self._heads):
            logits = head_logits(self._model.tracer, clean, self._model.graph.sender_index[head])
            attended = clean.ids.gather(1, _most_attended(weights[:, place, -1]).to(clean.ids.device))
            self._writing[place].add(logits, answers, attended)

    def written(self, head: int) -> WrittenTokens:
        """Return what one head writes at the last position."""
        tokenizer = self._model.tokenizer
        return self._writing[head].summary(
            lambda token: f"#{token}" if tokenizer is None else str(tokenizer.decode([token]))
        )


class _Writing:
    """Collects what one head adds to the logits."""

    def __init__(self) -> None:
        self._rows = list[Tensor]()
        self._rises = torch.empty(0, dtype=torch.float64)
        self._counts = torch.empty(0, dtype=torch.float64)

    def add(
        self, logits: Float[Tensor, "pair d_vocab"], answers: AnswerTokens, attended: Int[Tensor, "pair 1"]
    ) -> None:
        """Add some pairs."""
        right, wrong = answers.answers, answers.wrong_answers
        columns = (
            _mean_of(logits, right),
            _mean_of(logits, wrong),
            _or_nan(among_top(logits, right), right),
            _or_nan(among_top(logits, wrong, lowest=True), wrong),
            among_top(logits, attended).double(),
        )
        self._rows.append(torch.stack([column.double().cpu() for column in columns], 1))
        highest = logits.topk(min(TOP, logits.shape[-1]))
        best = highest.indices[highest.values > 0].cpu()
        if not len(self._rises):
            self._rises = torch.zeros(logits.shape[-1], dtype=torch.float64)
            self._counts = torch.zeros_like(self._rises)
        self._rises += logits.double().sum(0).cpu()
        self._counts += torch.bincount(best, minlength=len(self._counts))

    def summary(self, text: Callable[[int], str]) -> WrittenTokens:
        """Average over pairs; tokens that are as often among the first five are in the order of their mean rise."""
        rows = torch.cat(self._rows)
        order = sorted(
            np.flatnonzero(self._counts.numpy()).tolist(),
            key=lambda token: (-float(self._counts[token]), -float(self._rises[token])),
        )
        tokens = tuple((text(token), float(self._counts[token]) / len(rows)) for token in order[:SHOWN])
        means: list[float] = cast(Any, rows.nanmean(0)).tolist()
        return WrittenTokens(tokens, *means)


def weights_of(model: Model, heads: Sequence[Node], run: Run, *, checked: bool = False) -> NDArray[np.float64]:
    """Return the attention of heads on a run, ``(pair, head, query, key)``; see :mod:`circuits.heads.attention`."""
    parts = list[Tensor]()
    for layer in dict.fromkeys(head.layer for head in heads):
        members = [head.index for head in heads if head.layer == layer]
        parts.append(attention_weights(model.tracer, run, layer, members))
        if checked:
            require_weighted_sum(model.tracer, run, layer, members, parts[-1])
    return torch.cat(parts, 1).to("cpu", torch.float64).numpy()


def _batches(prompts: Sequence[TokenPair], heads: int) -> Iterator[list[TokenPair]]:
    """Yield pairs of one length (on either side) at a time, few enough for all their attention weights."""
    groups: dict[tuple[int, int], list[TokenPair]] = {}
    for pair in prompts:
        groups.setdefault((pair.length, len(pair.corrupted)), []).append(pair)
    for lengths, members in groups.items():
        most = max(1, min(PAIRS, _WEIGHTS // (heads * max(lengths) ** 2)))
        yield from (members[first : first + most] for first in range(0, len(members), most))


def _most_attended(last: NDArray[np.float64]) -> Int[Tensor, "pair 1"]:
    """Return the position that gets most attention, the first and the last aside (the first, if there is no other)."""
    inner = last[:, 1:-1]
    return torch.as_tensor(1 + inner.argmax(1) if inner.shape[1] else np.zeros(len(last), dtype=np.int64))[:, None]


def _mean_of(logits: Float[Tensor, "pair d_vocab"], tokens: Int[Tensor, "pair k"]) -> Float[Tensor, " pair"]:
    """Return the mean logit of each row's tokens; NaN where there are none."""
    present = tokens != PADDING
    chosen = torch.where(present, logits.gather(1, tokens.clamp(min=0)), 0.0) if tokens.shape[1] else logits[:, :0]
    return chosen.sum(1) / present.sum(1)


def _or_nan(found: Tensor, tokens: Int[Tensor, "pair k"]) -> Tensor:
    return torch.where((tokens != PADDING).any(1), found.double(), math.nan)
