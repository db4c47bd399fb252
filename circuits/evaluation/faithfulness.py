"""Faithfulness: how much of the behaviour a circuit keeps, with a bootstrap interval over prompt pairs."""

import numpy as np
from numpy.typing import NDArray

from circuits.scores import Floats
from circuits.tracing.protocol import Experiment

Interval = tuple[float, float]


def faithfulness(experiment: Experiment, values: Floats) -> Floats:
    """Give ``(m(circuit) - m(corrupted)) / (m(clean) - m(corrupted))`` of means over pairs, for ``(…, pair)`` values.

    1 is perfect; above 1 the circuit beats the model, which is not better.
    """
    empty, full = experiment.corrupted.mean(), experiment.clean.mean()
    return (values.mean(axis=-1) - empty) / (full - empty)


def faithfulness_interval(
    experiment: Experiment, values: Floats, *, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Give the percentile bootstrap interval of one circuit's faithfulness over resampled pairs (2000 resamples)."""
    from scipy import stats

    def ratio(circuit: Floats, empty: Floats, full: Floats, axis: int = -1) -> Floats:
        lower = empty.mean(axis=axis)
        return (circuit.mean(axis=axis) - lower) / (full.mean(axis=axis) - lower)

    if len(values) < 2:
        return (float("nan"), float("nan"))
    found = stats.bootstrap(
        (values, experiment.corrupted, experiment.clean),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=2000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return (float(found.low), float(found.high))


def accuracy(values: Floats) -> float:
    """Give the share of pairs with a positive metric (for logit differences: the answer beats the wrong answer)."""
    return float(np.mean(values > 0))


def circuit_values(experiment: Experiment, mask: NDArray[np.bool_]) -> Floats:
    """Measure one circuit, shape ``(pair,)``."""
    return experiment.circuits([mask])[0]
