"""Means, shares and perplexities over prompts, each with an interval, and their change on the same prompts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.scores import Floats
from circuits.statistics import central, picks, wilson


@dataclass(frozen=True)
class PromptEstimate:
    """A value with its 95 % interval over prompts."""

    value: float
    low: float
    high: float

    def describe(self) -> str:
        """Return it as text."""
        return f"{_number(self.value)} [{_number(self.low)}, {_number(self.high)}]"


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 1000 else f"{value:.3g}"  # -0.0 becomes 0.0


@dataclass(frozen=True)
class Quantity:
    """What was measured of the model as it is, ablated, and with each random ablation.

    ``change`` is after minus before (of perplexity: after over before) on the same resampled prompts. Intervals are of
    the percentile bootstrap over prompts; those of shares are Wilson's, since resampling 16 of 16 tells no spread.
    ``random`` has one value per random ablation.
    """

    name: str
    unit: str
    n: int
    before: PromptEstimate
    after: PromptEstimate
    change: PromptEstimate
    random: tuple[float, ...]

    @property
    def beyond_random(self) -> bool | None:
        """Whether the change is larger than that of every random ablation; None without any."""
        if not self.random:
            return None
        size = abs(self.after.value - self.before.value)
        return all(size > abs(value - self.before.value) for value in self.random)

    def describe_random(self) -> str:
        """Return the median and the range of the random ablations as text."""
        if not self.random:
            return "not measured"
        return f"{_number(float(np.median(self.random)))} [{_number(min(self.random))}, {_number(max(self.random))}]"


def mean_quantity(name: str, unit: str, before: Floats, after: Floats, random: list[Floats], *, seed: int) -> Quantity:
    """Compare means of one value per prompt."""
    chosen = picks(len(before), seed)
    change = _bootstrap((after - before).mean(), (after - before)[chosen].mean(1))
    first, second = (_bootstrap(values.mean(), values[chosen].mean(1)) for values in (before, after))
    return Quantity(name, unit, len(before), first, second, change, tuple(float(values.mean()) for values in random))


def share_quantity(
    name: str, before: NDArray[np.bool_], after: NDArray[np.bool_], random: list[NDArray[np.bool_]], *, seed: int
) -> Quantity:
    """Compare shares of prompts."""
    moved = after.astype(np.float64) - before.astype(np.float64)
    change = _bootstrap(moved.mean(), moved[picks(len(before), seed)].mean(1))
    first, second = (_share(values) for values in (before, after))
    return Quantity(name, "share", len(before), first, second, change, tuple(float(values.mean()) for values in random))


def perplexity_quantity(
    name: str, before: list[Floats], after: list[Floats], random: list[list[Floats]], *, seed: int
) -> Quantity:
    """Compare perplexities ``exp(mean loss per token)``, from losses per token of every sentence."""
    chosen, counts = picks(len(before), seed), np.array([len(losses) for losses in before])

    def estimate(losses: Floats) -> PromptEstimate:
        resampled = np.exp(losses[chosen].sum(1) / counts[chosen].sum(1))
        return _bootstrap(np.exp(losses.sum() / counts.sum()), resampled)

    totals = [np.array([losses.sum() for losses in each]) for each in (before, after)]
    ratio = estimate(totals[1] - totals[0])
    others = tuple(float(np.exp(sum(losses.sum() for losses in each) / counts.sum())) for each in random)
    return Quantity(name, "perplexity", len(before), estimate(totals[0]), estimate(totals[1]), ratio, others)


def _share(members: NDArray[np.bool_]) -> PromptEstimate:
    return PromptEstimate(float(members.mean()), *wilson(int(members.sum()), len(members)))


def _bootstrap(value: np.floating, resampled: Floats) -> PromptEstimate:
    low, high = central(resampled)
    return PromptEstimate(float(value), float(low), float(high))
