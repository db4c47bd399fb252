"""Metrics: from next-token logits to one number per prompt, differentiable with respect to the logits.

Notation: ``A`` the answers and ``W`` the wrong answers of a prompt, ``l`` its logits, ``p = softmax(l)``.

- logit difference: ``logsumexp(l[A]) - logsumexp(l[W])``, which is ``log p(A) - log p(W)``
- mean logit difference: ``mean(l[A]) - mean(l[W])``
- log-odds: ``log p(A) - log(1 - p(A))``, in float64 with 1e-8 added to both
- probability difference: ``p(A) - p(W)``
- log probability: ``log p(A)``
- sequence: ``w log p(A)`` with the weight ``w`` of a row, of which a pair has several
  (:mod:`circuits.patching.sequences`)
- projection: the length along a direction of the final stream, which takes the place of the logits
- KL: ``KL(p_clean || p)`` in float64, lower is better
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.behaviours.behaviour import TokenPair
from circuits.errors import UsageError
from circuits.vocabulary import Metric

PADDING = -1
"""Fills the rows of answers that are fewer than the longest row."""
EPSILON = 1e-8
"""Keeps log-odds finite when all or nothing of the probability is on the answers."""

Rows = Float[Tensor, "row"]
Logits = Float[Tensor, "row d_vocab"]


@dataclass(frozen=True)
class AnswerTokens:
    """The answers and wrong answers of prompt pairs as token ids, one row per pair, filled up with -1.

    ``weights`` are the factors of rows that are parts of a sequence; None: all 1.
    """

    answers: Int[Tensor, "pair k"]
    wrong_answers: Int[Tensor, "pair j"]
    weights: Float[Tensor, " pair"] | None = None

    @classmethod
    def of(cls, pairs: Sequence[TokenPair], device: torch.device | str = "cpu") -> Self:
        """Collect the answers of pairs; raises :class:`UsageError` for answers of several tokens."""
        if any(pair.sequences or pair.wrong_sequences for pair in pairs):
            raise UsageError(
                f"answers of several tokens are measured token by token: by the metric {Metric.SEQUENCE}, with the "
                "commands discover, score, evaluate and compare (`model.experiment` in Python). "
                "Use another metric, and answers of one token."
            )
        weights = [pair.weight for pair in pairs]
        return cls(
            _padded([pair.answers for pair in pairs], device),
            _padded([pair.wrong_answers for pair in pairs], device),
            _factors(weights, torch.device(device)) if any(weight != 1 for weight in weights) else None,
        )

    def rows(self, index: Int[Tensor, "row"] | slice) -> Self:
        """Select pairs, in the order of ``index``; a pair may come several times."""
        weights = None if self.weights is None else self.weights[index]
        return type(self)(self.answers[index], self.wrong_answers[index], weights)

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        """Every token that is an answer or a wrong answer of some pair, in ascending order."""
        tokens = cast(Any, torch.cat([self.answers.flatten(), self.wrong_answers.flatten()])).unique()
        return cast(Tensor, tokens[tokens != PADDING])

    def among(self, columns: Int[Tensor, " token"]) -> Self:
        """Return the answers as places among some tokens in ascending order, which hold them all."""

        def places(ids: Int[Tensor, "pair k"]) -> Int[Tensor, "pair k"]:
            return torch.where(ids == PADDING, ids, torch.searchsorted(columns, ids))

        return type(self)(places(self.answers), places(self.wrong_answers), self.weights)


def _padded(rows: Sequence[Sequence[int]], device: torch.device | str) -> Int[Tensor, "pair k"]:
    width = max((len(row) for row in rows), default=0)
    filled = [[*row, *[PADDING] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=device).reshape(len(rows), width)


def _factors(weights: Sequence[float], device: torch.device) -> Float[Tensor, " pair"]:
    exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    return torch.tensor(weights, dtype=exact, device=device)


def measure(metric: Metric, logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Compute a metric from the logits at the last position, one value per row, in float32 or wider.

    ``answers`` and ``clean_logits`` have one row per row of ``logits``; only KL reads ``clean_logits``. Raises
    :class:`UsageError` when something the metric needs is missing.
    """
    if len(answers.answers) != len(logits):
        raise UsageError(
            f"{len(logits)} rows of logits need {len(logits)} rows of answers, got {len(answers.answers)}; select them "
            "with AnswerTokens.rows."
        )
    return METRICS[metric](_wide(logits), answers, None if clean_logits is None else _wide(clean_logits))


def logit_difference(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Log of the answers' total probability over that of the wrong answers; with one each, their logits' difference."""
    del clean_logits
    return _logsumexp(logits, answers.answers) - _logsumexp(logits, answers.wrong_answers)


def mean_logit_difference(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Mean logit of the answers minus mean logit of the wrong answers."""
    del clean_logits
    return _mean(logits, answers.answers) - _mean(logits, answers.wrong_answers)


def log_probability(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Log of the answers' total probability; 0 at most."""
    del clean_logits
    return _logsumexp(logits, answers.answers) - logits.logsumexp(-1)


def sequence(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Log of the answers' total probability, times the row's weight."""
    values = log_probability(logits, answers, clean_logits)
    return values if answers.weights is None else values * answers.weights.to(values.dtype)


def projection(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Length along the one direction that was read instead of logits."""
    del answers, clean_logits
    if logits.shape[-1] != 1:
        raise UsageError(
            f"the metric {Metric.PROJECTION} reads the residual stream along a direction, and got the logits of "
            f"{logits.shape[-1]} tokens; it is measured by discover, score, patch, path, evaluate and compare "
            "(`model.experiment` in Python). Use another metric here."
        )
    return logits[:, 0]


def log_odds(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Log of the answers' total probability over that of everything else; between -18.4 and 18.4."""
    del clean_logits
    exact = _exact(logits)
    p = torch.exp(_logsumexp(exact, answers.answers) - exact.logsumexp(-1))
    return torch.log(p + EPSILON) - torch.log1p(EPSILON - p)


def probability_difference(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Total probability of the answers minus that of the wrong answers."""
    del clean_logits
    total = logits.logsumexp(-1)
    right, wrong = (_logsumexp(logits, ids) for ids in (answers.answers, answers.wrong_answers))
    return torch.exp(right - total) - torch.exp(wrong - total)


def kl(logits: Logits, answers: AnswerTokens, clean_logits: Logits | None = None) -> Rows:
    """Kullback-Leibler divergence of the run's next-token distribution from the clean run's, in nats."""
    del answers
    if clean_logits is None:
        raise UsageError("the metric kl compares with the clean run and needs its logits.")
    clean, run = (_exact(each).log_softmax(-1) for each in (clean_logits, logits))
    return (clean.exp() * (clean - run)).sum(-1)


METRICS: Mapping[Metric, Callable[[Logits, AnswerTokens, Logits | None], Rows]] = {
    Metric.LOGIT_DIFFERENCE: logit_difference,
    Metric.MEAN_LOGIT_DIFFERENCE: mean_logit_difference,
    Metric.LOG_ODDS: log_odds,
    Metric.PROBABILITY_DIFFERENCE: probability_difference,
    Metric.LOG_PROBABILITY: log_probability,
    Metric.SEQUENCE: sequence,
    Metric.PROJECTION: projection,
    Metric.KL: kl,
}


def require_logits(metric: Metric, what: str) -> None:
    """Raise :class:`UsageError` for a metric that is not measured on the logits of one token, which ``what`` is."""
    if metric.whole_answers or metric.along_direction:
        measured = "answers of several tokens" if metric.whole_answers else "the length along a direction"
        raise UsageError(
            f"{what} is told from the logits of one token, and the metric {metric} is {measured}, which discover, "
            "score, evaluate and compare measure. Use another metric here."
        )


def _wide(logits: Logits) -> Logits:
    return logits if logits.dtype is torch.float64 else logits.float()


def _exact(logits: Logits) -> Logits:
    return logits if logits.device.type == "mps" else logits.double()  # MPS has no float64


def _logsumexp(logits: Logits, ids: Int[Tensor, "row k"]) -> Rows:
    """Log of the summed exponentials of the logits of each row's own tokens."""
    chosen, present = _chosen(logits, ids)
    return chosen.masked_fill(~present, -torch.inf).logsumexp(-1)


def _mean(logits: Logits, ids: Int[Tensor, "row k"]) -> Rows:
    """Mean of the logits of each row's own tokens."""
    chosen, present = _chosen(logits, ids)
    return chosen.masked_fill(~present, 0.0).sum(-1) / present.sum(-1)


def _chosen(logits: Logits, ids: Int[Tensor, "row k"]) -> tuple[Float[Tensor, "row k"], Bool[Tensor, "row k"]]:
    """Return the logits of each row's own tokens, and where there are any."""
    present = ids != PADDING
    if not bool(present.any(-1).all()):
        raise UsageError("a pair has no answer or no wrong answer, which this metric needs; choose another metric.")
    return logits.gather(-1, ids.clamp(min=0)), present
