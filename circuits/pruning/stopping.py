"""Which of the circuits that a search came by is taken: judged on pairs that it was not fitted to."""

import math
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

    def within(self, error: float, *, by: float = 0.0) -> bool:
        """Whether the error is at most this and faithfulness close to 1, give or take so many standard errors."""
        off = abs(1 - self.faithfulness) - by * self.faithfulness_se
        return self.error - by * self.error_se <= error and off <= CLOSE

    def reaches(self, target: float) -> bool:
        """Whether fidelity is at least the target and faithfulness close to 1."""
        return self.within(math.sqrt(1 - target))


def candidate(ends: Ends, edges: EdgeIndices, values: Floats) -> Candidate:
    """Return a circuit as a candidate, from its values on *choose* pairs; standard errors are the jackknife's."""
    wrong, most = (values - ends.clean) ** 2, (ends.corrupted - ends.clean) ** 2
    kept, gap = values - ends.corrupted, ends.clean - ends.corrupted
    f, f_se = ratio(kept, gap)
    squared, squared_se = ratio(wrong, most)
    error = float(np.sqrt(squared))
    return Candidate(edges, error, squared_se / max(2 * error, 1e-12), f, f_se)


def allowed(candidates: Sequence[Candidate], target: float) -> float:
    """Return the error up to which a circuit is good enough, given all that were seen on choose pairs.

    One standard error less than the target's where circuits get there with ease, since the smallest of many that just
    reach it is the luckiest of them: an ioi circuit of 93 edges with an error of 0.304 on 64 choose pairs had 0.374 on
    128 others. As the least error seen comes closer to the target, this gives way up to the target itself. Where no
    circuit reaches it, it is one standard error more than the least seen (the rule of Breiman et al. 1984). So there is
    no step at which a little noise in one circuit would make the answer several times as large.
    """
    most = math.sqrt(1 - target)
    reached = [each for each in candidates if each.reaches(target)]
    best = min(reached or candidates, key=lambda each: each.error)
    near = best.error + best.error_se
    return min(most, max(near, most - best.error_se)) if reached else near


def chosen(candidates: Sequence[Candidate], target: float) -> Candidate:
    """Return the smallest circuit within the error that is :func:`allowed`; faithfulness counts where it can be had."""
    error = allowed(candidates, target)
    good = [each for each in candidates if each.within(error)]
    return min(good or [each for each in candidates if each.error <= error], key=lambda each: len(each.edges))


def ratio(above: Floats, below: Floats) -> tuple[float, float]:
    """Return a ratio of sums over pairs with the jackknife's standard error."""
    left_out = (above.sum() - above) / (below.sum() - below)
    spread = np.sqrt((len(above) - 1) * left_out.var()) if len(above) > 1 else 0.0
    return float(above.sum() / below.sum()), float(spread)
