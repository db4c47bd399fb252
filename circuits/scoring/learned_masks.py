"""Masks that are learned: which edges stay open when all are pressed to close and the metric has to stay.

Every edge has a gate between 0 and 1, drawn anew for every update from a hard concrete distribution (Louizos et al.
2018, arXiv:1712.01312): ``clip(1.2 s - 0.1, 0, 1)`` of ``s = sigmoid((log u - log(1 - u) + location) * 3/2)``, ``u``
uniform. What is minimised by gradient descent on the locations is the mean squared distance of the circuit from the
model, as a share of the gap, plus the mean probability that a gate is not 0: an empty circuit loses as much by the one
as it saves by the other (edge pruning: Bhaskar et al. 2024, arXiv:2406.16778, with this package's masked runs).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.patching.protocol import Experiment, Progress, no_progress

Floats = NDArray[np.float64]
UPDATES = 100
_RATE, _DECAYS, _SMALL = 0.1, (0.9, 0.99), 1e-8
"""Adam's (Kingma and Ba 2015, arXiv:1412.6980)."""
_STRETCH, _OFFSET, _HEAT = 1.2, 0.1, 2 / 3
_START = 2.0
"""Locations begin between minus and plus this."""


@dataclass(frozen=True)
class Gates:
    """Gates that were drawn, and their slopes along the locations."""

    values: Floats
    slopes: Floats


def draw(locations: Floats, uniform: Floats) -> Gates:
    """Return the gates of uniform numbers between 0 and 1."""
    soft = _sigmoid((np.log(uniform) - np.log1p(-uniform) + locations) / _HEAT)
    stretched = _STRETCH * soft - _OFFSET
    inside = (stretched > 0) & (stretched < 1)
    return Gates(np.clip(stretched, 0, 1), inside * _STRETCH * soft * (1 - soft) / _HEAT)


def open_probability(locations: Floats) -> Floats:
    """Return the probability that a gate is not 0."""
    return _sigmoid(locations - _HEAT * np.log(_OFFSET / (_STRETCH - _OFFSET)))


def learned_masks(
    experiment: Experiment,
    start: Floats,
    *,
    updates: int = UPDATES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Floats:
    """Return the learned probability that each edge is open, between 0 and 1.

    ``start`` are scores to begin from: by the rank of their size, locations lie between -2 and 2. Cost: a forward and a
    backward pass of a circuit of all edges for every update.
    """
    generator, size = np.random.default_rng(seed), len(start)
    ranks = np.argsort(np.argsort(np.abs(start), kind="stable"), kind="stable")
    locations = _START * (2 * (ranks + 0.5) / size - 1)
    gap = max(float(np.square(experiment.clean - experiment.corrupted).mean()), 1e-30)
    first, second = np.zeros(size), np.zeros(size)
    for update in range(1, updates + 1):
        gates = draw(locations, generator.uniform(1e-6, 1 - 1e-6, size))
        values, slopes = experiment.circuit_gradient(gates.values)
        distance = 2 * ((values - experiment.clean)[:, None] * slopes).mean(axis=0) / gap
        held = open_probability(locations)
        slope = distance * gates.slopes + held * (1 - held) / size
        first = _DECAYS[0] * first + (1 - _DECAYS[0]) * slope
        second = _DECAYS[1] * second + (1 - _DECAYS[1]) * slope**2
        mean, square = first / (1 - _DECAYS[0] ** update), second / (1 - _DECAYS[1] ** update)
        locations = locations - _RATE * mean / (np.sqrt(square) + _SMALL)
        progress(update, updates)
    return open_probability(locations)


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * values))
