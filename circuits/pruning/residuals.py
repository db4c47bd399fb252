"""Which edges to drop or add, predicted from what each does to every single pair.

A circuit misses the model on pair ``i`` by ``r_i = x_i - c_i``. To first order, changing a set of edges moves that to
``r_i + sum of s_ie``, with ``s_ie`` the slope of pair ``i``'s metric along the weight of edge ``e`` inside the circuit.
Sets are built greedily on the squares of these sums: at the optimum the first order of the error vanishes, and what an
edge does to pairs that others have moved already counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.scores import Floats
from circuits.statistics import Ends

_MEAN = 1.0
"""How much being off on average counts against being off pair by pair. Left to the squares alone, circuits that shrink
every pair's effect alike look best: on agreement 134 edges of error 0.24 had a faithfulness of 0.80."""


@dataclass(frozen=True)
class Residuals:
    """Turns values and effects of pairs into rows whose squares sum to a loss: the error squared, and (1 - f) squared.

    A circuit without error has the loss 0, the empty one 2.
    """

    ends: Ends

    def rows(self, changes: Floats) -> Floats:
        """Return changes of the metric, ``(pair, …)``, as rows in units of the loss: one per pair, and their mean."""
        norm = np.sqrt(((self.ends.corrupted - self.ends.clean) ** 2).sum())
        gap = self.ends.clean.mean() - self.ends.corrupted.mean()
        return np.concatenate([changes / norm, np.sqrt(_MEAN) * changes.mean(axis=0, keepdims=True) / gap])

    def of(self, values: Floats) -> Floats:
        """Return the rows of how far a circuit's values, ``(pair,)``, are from the model's."""
        return self.rows(values - self.ends.clean)


def greedily(
    rest: Floats, effects: Floats, count: int, *, ridge: float, prices: Floats | None = None, only_gains: bool = False
) -> tuple[NDArray[np.int64], Floats]:
    """Return ``count`` of the changes with ``effects``, ``(row, change)``, and the rows that are left after them.

    One after the other the change with the smallest ``|rest + effect|^2 + ridge |effect|^2`` is taken. The ridge stands
    for effects that hold for small changes only, and for these pairs: with one of 1 their standard deviation is as
    large as they are, so that of two changes that cancel as well the smaller are taken. ``prices``, ``(change,)``, are
    added, for changes that are unwanted (or, below 0, wanted) whatever they do. With ``only_gains`` it stops where no
    change makes that less than it was.
    """
    rest, sizes = rest.copy(), (1 + ridge) * np.square(effects).sum(axis=0)
    sizes = sizes if prices is None else sizes + prices
    products, free = 2 * (rest @ effects), np.ones(effects.shape[1], dtype=np.bool_)
    taken: list[int] = []
    for _ in range(min(count, effects.shape[1])):
        change = np.where(free, sizes + products, np.inf)
        best = int(np.argmin(change))
        if only_gains and change[best] >= 0:
            break
        taken.append(best)
        free[best] = False
        rest = rest + effects[:, best]
        products = products + 2 * (effects[:, best] @ effects)
    return np.array(taken, dtype=np.int64), rest
