"""Which of the circuits that a search came by is taken: judged on pairs that it was not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from circuits.graph import EdgeIndices
from circuits.scores import Floats
from circuits.statistics import Ends

CLOSE = 0.1
"""How far the faithfulness of a circuit that reaches its target may be from 1."""


@dataclass(frozen=True)
class Candidate:
    """A circuit that a search came by, with its error and faithfulness on *choose* pairs and their standard errors."""

    edges: EdgeIndices
    error: float
    error_se: float
    faithfulness: float
    faithfulness_se: float

    def reaches(self, target: float, *, by: float = 0.0) -> bool:
        """Whether fidelity is at least the target and faithfulness close to 1, each by so many standard errors."""
        worst = self.error + by * self.error_se
        return 1 - worst**2 >= target and abs(1 - self.faithfulness) + by * self.faithfulness_se <= CLOSE


def candidate(ends: Ends, edges: EdgeIndices, values: Floats) -> Candidate:
    """Return a circuit as a candidate, from its values on *choose* pairs; standard errors are the jackknife's."""
    wrong, most = (values - ends.clean) ** 2, (ends.corrupted - ends.clean) ** 2
    kept, gap = values - ends.corrupted, ends.clean - ends.corrupted
    f, f_se = _ratio(kept, gap)
    squared, squared_se = _ratio(wrong, most)
    error = float(np.sqrt(squared))
    return Candidate(edges, error, squared_se / max(2 * error, 1e-12), f, f_se)


def chosen(candidates: Sequence[Candidate], target: float) -> Candidate:
    """Return the smallest circuit that reaches the target by one standard error.

    Where none does, the smallest that reaches it at all; where none does that either, the smallest whose error is
    within one standard error of the least seen (the rule of Breiman et al. 1984).
    """
    for by in (1.0, 0.0):
        reached = [each for each in candidates if each.reaches(target, by=by)]
        if reached:
            return min(reached, key=lambda each: len(each.edges))
    best = min(candidates, key=lambda each: each.error)
    near = [each for each in candidates if each.error <= best.error + best.error_se]
    return min(near, key=lambda each: len(each.edges))


def _ratio(above: Floats, below: Floats) -> tuple[float, float]:
    """Return a ratio of sums over pairs with the jackknife's standard error."""
    left_out = (above.sum() - above) / (below.sum() - below)
    spread = np.sqrt((len(above) - 1) * left_out.var()) if len(above) > 1 else 0.0
    return float(above.sum() / below.sum()), float(spread)
