"""Confidence bounds: of an edge's mean effect from some of the prompt pairs, and of what a sample of edges missed.

Pairs are a finite population of ``N``, of which the first ``n`` were measured, in random order and without replacement.
The error of their mean then has the standard deviation ``sd sqrt(1/n - 1/N)``, which vanishes when all are measured.

With few pairs, the spread of an edge's effects is known better from its attributions, which exist for all pairs. Both
are combined as if the prior came from ``d0 = PRIOR_PAIRS`` further pairs (moderated t: Smyth 2004,
doi:10.2202/1544-6115.1027): ``scale^2 = (d0 (r prior)^2 + (n - 1) sd^2) / (d0 + n - 1)``, with ``r`` the median of
sd / prior over edges measured on all pairs. The multiple of the scale that makes a bound is the larger of Student's t
with ``d0 + n - 1`` degrees of freedom and of what those edges themselves needed when their pairs were drawn anew many
times: their effects may be skewed, and where the prior is worthless the second becomes large.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.scores import Floats

PRIOR_PAIRS = 4
_REDRAWS = 200
_EDGES = 400


def scales(effects: Floats, prior: Floats) -> Floats:
    """Estimate the spread over pairs from the pairs measured, ``(edge, n)``, and a prior (already scaled)."""
    n = effects.shape[1]
    squares = np.square(effects - effects.mean(axis=1, keepdims=True)).sum(axis=1)
    return np.sqrt((PRIOR_PAIRS * prior**2 + squares) / (PRIOR_PAIRS + n - 1))


def prior_ratio(effects: Floats, prior: Floats) -> float:
    """Return the median ratio of measured spread to prior, from edges measured on all pairs."""
    known = prior > 0
    return float(np.median(effects[known].std(axis=1, ddof=1) / prior[known])) if known.any() else 1.0


def multiples(effects: Floats, prior: Floats, rounds: Sequence[int], error: float, seed: int) -> list[float]:
    """Return, for each number of pairs, how many standard errors the mean of ``|effect|`` may lie too low.

    ``effects`` are those of edges measured on all pairs; ``error`` is the probability, for one edge and one round, that
    an edge like these lies lower still. Infinite where the pairs tell nothing.
    """
    from scipy import stats

    student: Any = stats.t
    total = effects.shape[1]
    if len(effects) > _EDGES:
        chosen = np.linspace(0, len(effects) - 1, _EDGES).astype(np.int64)
        effects, prior = effects[chosen], prior[chosen]
    truth, generator = np.abs(effects.mean(axis=1)), np.random.default_rng(seed)
    needed: list[list[Floats]] = [[] for _ in rounds]
    for _ in range(_REDRAWS):
        drawn = effects[:, generator.permutation(total)]
        for n, ratios in zip(rounds, needed, strict=True):
            ratios.append(_shortfall(drawn[:, :n], prior, truth, total))
    found: list[float] = []
    for n, ratios in zip(rounds, needed, strict=True):
        theory = float(student.isf(error, PRIOR_PAIRS + n - 1))
        found.append(max(theory, float(np.quantile(np.concatenate(ratios), 1 - error, method="higher"))))
    return found


def _shortfall(drawn: Floats, prior: Floats, truth: Floats, total: int) -> Floats:
    """By how many standard errors the size of the mean over the drawn pairs falls short of that over all pairs."""
    short = truth - np.abs(drawn.mean(axis=1))
    width = scales(drawn, prior) * np.sqrt(1 / drawn.shape[1] - 1 / total)
    sure = np.full_like(short, -np.inf)
    sure[short > 0] = np.inf
    return np.divide(short, width, out=sure, where=width > 0)


def upper_bounds(effects: Floats, prior: Floats, total: int, multiple: float) -> Floats:
    """Bound ``|mean over all pairs|`` from above by the first ``n`` pairs, ``(edge, n)``."""
    width = scales(effects, prior) * np.sqrt(1 / effects.shape[1] - 1 / total)
    if np.isinf(multiple):
        return np.full(len(effects), np.inf)
    return np.abs(effects.mean(axis=1)) + multiple * width


def missed_at_most(population: int, sampled: int, hits: int, error: float) -> int:
    """Bound how many hits are among what was not sampled, when ``sampled`` drawn at random held ``hits``.

    The largest number of hits in the population with which so few in the sample still have a probability above
    ``error`` (Clopper and Pearson 1934 for draws without replacement), less those found. Nothing is assumed about how
    hits are distributed; with ``sampled == population`` it is 0.
    """
    from scipy import stats

    hypergeometric: NDArray[Any] | Any = stats.hypergeom
    low, high = hits, population - (sampled - hits)
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeometric.cdf(hits, population, middle, sampled) > error:
            low = middle
        else:
            high = middle - 1
    return low - hits
