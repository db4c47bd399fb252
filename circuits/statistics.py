"""How closely circuits follow their model on prompt pairs, and how sure that is: the home of every interval.

For pair ``i``: ``c`` the metric of the whole model, ``e`` with every edge corrupted, ``x`` of the circuit.

- faithfulness ``mean(x - e) / mean(c - e)``: a ratio of means, as published. It passes 1 where too much and too little
  cancel, and a circuit may then be far from the model on every single pair;
- error ``sqrt(mean (x - c)^2 / mean (e - c)^2)``: 0 is the model, 1 no better than the empty circuit;
- fidelity ``1 - error^2``: the share of what the empty circuit gets wrong that the circuit gets right; can be negative;
- correlation of ``x`` and ``c`` (Pearson); agreement, the share of pairs on which both prefer the same answer.

All of them are functions of sums over pairs, so that clusters of pairs (the same phrase, the same template) are
resampled together by resampling their sums.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from circuits.scores import Floats

RESAMPLES = 2000
CONFIDENCE = 0.95
FEW = 16
"""Intervals of fewer pairs (or clusters) than this hold the truth less often than they say."""
_LEAST = 4
"""Of fewer there is no correlation to speak of: of two pairs it is always 1 or -1."""
_LEAST_SPREAD = 0.05
"""Where the model's own values vary less than this share of the gap, correlation with them tells nothing."""
Interval = tuple[float, float]
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that files hold as null where it is no number (the interval of a single pair)."""


class Ends(Protocol):
    """The two ends of a scale per prompt pair, ``(pair,)``: the whole model, and the empty circuit."""

    @property
    def clean(self) -> Floats:
        """Metric of the whole model."""
        ...

    @property
    def corrupted(self) -> Floats:
        """Metric with every edge corrupted."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over ``n`` pairs or clusters of pairs; without bounds where there is one only."""

    value: Number
    low: float | None = None
    high: float | None = None
    n: int = 0

    @property
    def narrow(self) -> bool:
        """Whether the interval is of so few pairs that it is narrower than it should be."""
        return self.n < FEW

    def describe(self, digits: int = 3) -> str:
        """Return it as text: ``0.912 [0.874, 0.941]``."""
        numbers = [
            f"{round(each, digits) + 0.0:.{digits}f}" for each in (self.value, self.low, self.high) if each is not None
        ]
        return numbers[0] if len(numbers) < 3 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


@dataclass(frozen=True)
class Likeness:
    """How closely a circuit follows the model, pair by pair; see :mod:`circuits.statistics`.

    ``correlation`` is None where the model's own values hardly vary, ``agreement`` where the metric compares no
    answers, ``kl`` where it was not measured: the mean divergence of the next-token distribution, model to circuit, in
    nats. ``clusters`` is how many independent groups of pairs there are.
    """

    n: int
    clusters: int
    fidelity: Estimate
    error: Estimate
    correlation: Estimate | None = None
    agreement: Estimate | None = None
    kl: Estimate | None = None

    @property
    def remark(self) -> str:
        """A remark where the intervals cannot be trusted; else nothing."""
        if self.clusters >= FEW:
            return ""
        what = "pairs" if self.clusters == self.n else "groups of pairs that share a text"
        return f"intervals of {self.clusters} {what} are too narrow; use at least {FEW}"


def faithfulness(ends: Ends, values: Floats) -> Floats:
    """Return ``mean(x - e) / mean(c - e)`` of ``(…, pair)`` values, shape ``(…)``.

    1 is perfect; above 1 the circuit beats the model, which is not better.
    """
    empty, full = ends.corrupted.mean(), ends.clean.mean()
    return (values.mean(axis=-1) - empty) / (full - empty)


def error(ends: Ends, values: Floats) -> Floats:
    """Return the error of ``(…, pair)`` values, shape ``(…)``: 0 the model's own values, 1 the empty circuit's."""
    return np.sqrt(((values - ends.clean) ** 2).mean(axis=-1) / ((ends.corrupted - ends.clean) ** 2).mean())


def fidelity(ends: Ends, values: Floats) -> Floats:
    """Return ``1 - error^2`` of ``(…, pair)`` values, shape ``(…)``."""
    return 1 - error(ends, values) ** 2


def likeness(
    ends: Ends,
    values: Floats,
    *,
    compares: bool = False,
    kl: Floats | None = None,
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Likeness:
    """Return how closely one circuit's values follow the model's, each number with its interval.

    Args:
        ends: The whole model's and the empty circuit's values.
        values: The circuit's, ``(pair,)``.
        compares: Whether values above 0 prefer the answer, so that circuit and model can agree on it.
        kl: The divergence of each pair's next-token distribution from the model's, where measured.
        clusters: A number for each pair; pairs with the same number are resampled together.
        seed: Seed of the resampling.
    """
    x, c, e = values, ends.clean, ends.corrupted
    columns = np.stack([np.ones_like(c), x, c, e, (x - c) ** 2, (e - c) ** 2, x * x, c * c, x * c], axis=1)
    sums = _summed(columns if kl is None else np.column_stack([columns, kl]), clusters)

    def estimate(statistic: Callable[[Floats], Floats]) -> Estimate:
        return Estimate(float(statistic(sums.sum(0))), *interval(sums, statistic, seed=seed), n=len(sums))

    varies = len(sums) >= _LEAST and c.std() > _LEAST_SPREAD * abs(c.mean() - e.mean()) and x.std() > 0
    return Likeness(
        n=len(c),
        clusters=len(sums),
        fidelity=estimate(lambda s: 1 - s[..., 4] / s[..., 5]),
        error=estimate(lambda s: np.sqrt(s[..., 4] / s[..., 5])),
        correlation=estimate(_correlation) if varies else None,
        agreement=_share((x > 0) == (c > 0), len(sums)) if compares else None,
        kl=None if kl is None else estimate(lambda s: s[..., 9] / s[..., 0]),
    )


def faithfulness_interval(
    ends: Ends,
    values: Floats,
    *,
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the interval of one circuit's faithfulness over resampled pairs or clusters; NaN of a single one."""
    sums = _summed(np.stack([values, ends.clean, ends.corrupted], axis=1), clusters)
    low, high = interval(
        sums, lambda s: (s[..., 0] - s[..., 2]) / (s[..., 1] - s[..., 2]), seed=seed, confidence=confidence
    )
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def interval(
    rows: Floats, statistic: Callable[[Floats], Floats], *, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[float, float] | tuple[None, None]:
    """Return the bootstrap interval of a function of summed rows.

    Bias-corrected and accelerated (Efron 1987), at a level that makes up for the spread of few rows being too small
    (Hesterberg 2015, arXiv:1411.5279, section 5.3). ``statistic`` takes sums of shape ``(…, column)``. Where it has no
    spread both ends are its value; otherwise there is none of fewer than three rows.
    """
    if len(rows) < 2:
        return (None, None)
    from scipy import stats

    def resampled(picks: NDArray[np.int64], axis: int = -1) -> Floats:
        return statistic(rows[picks].sum(axis=axis - 1))

    leaving_one_out = statistic(rows.sum(0) - rows)
    if np.ptp(leaving_one_out) <= 1e-12 * np.abs(leaving_one_out).max():
        return (float(leaving_one_out[0]), float(leaving_one_out[0]))
    if len(rows) == 2:
        return (None, None)  # at the level that two rows need, BCa's formula is infinite over infinite
    n, tail = len(rows), (1 - confidence) / 2
    tail = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1)))
    found = stats.bootstrap(
        (np.arange(len(rows)),),
        resampled,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return (float(found.low), float(found.high))


def share_of(values: Floats, whole: Floats, *, clusters: NDArray[np.int64] | None = None, seed: int = 0) -> Estimate:
    """Return the ratio of two means over pairs, ``(pair,)`` each, with its interval over pairs or clusters."""
    sums = _summed(np.stack([values, whole], axis=1), clusters)
    found = interval(sums, lambda s: s[..., 0] / s[..., 1], seed=seed)
    return Estimate(float(values.mean() / whole.mean()), *found, n=len(sums))


def sign_flips(
    rows: Floats, *, clusters: NDArray[np.int64] | None = None, seed: int = 0, resamples: int = 9999
) -> Floats:
    """Return each row's p-value, two-sided, of a mean that is 0: the permutation test that flips signs of pairs.

    ``rows`` has shape ``(row, pair)``; pairs of one cluster keep their signs together. All patterns of signs are tried
    where there are no more than ``resamples``, else as many at random. NaN of a single cluster.
    """
    from scipy import stats

    sums = _summed(rows.T, clusters)
    if len(sums) < 2:
        return np.full(len(rows), math.nan)
    found = stats.permutation_test(
        (sums,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        axis=0,
        rng=np.random.default_rng(seed),
    )
    return np.asarray(found.pvalue, dtype=np.float64)


def holm(chances: Floats) -> Floats:
    """Return p-values corrected for being several (Holm 1979): the chance of any error among them is bounded."""
    order = np.argsort(chances, kind="stable")
    corrected = np.maximum.accumulate(chances[order] * np.arange(len(chances), 0, -1))
    found = np.empty_like(corrected)
    found[order] = np.minimum(corrected, 1)
    return found


def central(draws: Floats, *, confidence: float = CONFIDENCE, axis: int = -1) -> tuple[Floats, Floats]:
    """Return the ends of the middle ``confidence`` of resampled values: the percentile bootstrap interval."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=axis)
    return low, high


def picks(n: int, seed: int = 0, *, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """Draw the members of each resample, ``(resample, n)``.

    They are the same for the same ``n`` and seed, so that differences between things that were measured on the same
    prompts are differences on the same resampled prompts.
    """
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def wilson(count: float, n: float) -> Interval:
    """Return Wilson's 95 % interval of a share (Wilson 1927), which has a width at 0 and 1 too; NaN of nothing."""
    if n == 0:
        return (math.nan, math.nan)
    z, share = 1.959964, count / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def numbered(keys: Iterable[str]) -> NDArray[np.int64]:
    """Number equal keys alike, in order of appearance: the clusters of pairs that share a text."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _summed(columns: Floats, clusters: NDArray[np.int64] | None) -> Floats:
    if clusters is None:
        return columns
    _, place = np.unique(clusters, return_inverse=True)
    sums = np.zeros((int(place.max()) + 1, columns.shape[1]))
    np.add.at(sums, place, columns)
    return sums


def _share(members: NDArray[np.bool_], n: int) -> Estimate:
    """Return the share of pairs, with the interval of as many independent ones as there are clusters.

    (Resampling 16 of 16 tells no spread.)
    """
    share = float(members.mean())
    return Estimate(share, *wilson(share * n, n), n=n)


def _correlation(s: Floats) -> Floats:
    n = s[..., 0]
    both = s[..., 8] - s[..., 1] * s[..., 2] / n
    own = (s[..., 6] - s[..., 1] ** 2 / n) * (s[..., 7] - s[..., 2] ** 2 / n)
    return both / np.sqrt(np.maximum(own, 1e-300))
