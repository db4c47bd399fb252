"""How many members two sets share, beside what chance would give (hypergeometric)."""

import math
from dataclasses import dataclass

import numpy as np

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Overlap:
    """How many members two sets of a population share, and how many they would share by chance.

    ``expected_*`` are hypergeometric means, ``low`` and ``high`` bound 95 % of the chance distribution of ``shared``,
    and ``p_value`` is the probability to share at least this many by chance. ``jaccard`` is NaN for two empty sets.
    """

    population: int
    size_a: int
    size_b: int
    shared: int
    jaccard: float
    expected_shared: float
    expected_jaccard: float
    low: int
    high: int
    p_value: float

    def describe(self, members: str) -> str:
        """Say how many are shared and how many would be by chance; ``members`` is a plural noun."""
        if self.size_a + self.size_b == 0:
            return f"no {members}, because both circuits are empty"
        return (
            f"{self.shared} {members} (Jaccard {self.jaccard:.2f}); random sets of {self.size_a} and {self.size_b} out "
            f"of {self.population:,} would share {self.expected_shared:.2g} (95 %: {self.low} to {self.high}), "
            f"p = {self.p_value:.2g}"
        )

    def verdict(self) -> str:
        """Say what the overlap does and does not support."""
        if self.p_value < SIGNIFICANT:
            return (
                "That is more than chance, but this chance level takes every edge to be equally likely, while most "
                "circuits favour the same few well-connected nodes: it does not show that the behaviours share a "
                "mechanism."
            )
        return (
            "That is no more than chance: the edges give no evidence of shared components. It is no proof that there "
            "are none, since a behaviour can have several sufficient circuits."
        )


def chance_overlap(population: int, size_a: int, size_b: int, shared: int) -> Overlap:
    """Put the number of shared members of two sets beside its hypergeometric distribution."""
    from scipy.stats import hypergeom

    chance = hypergeom(population, size_a, size_b)
    counts = np.arange(max(0, size_a + size_b - population), min(size_a, size_b) + 1)
    sizes = size_a + size_b - counts
    jaccards = np.divide(counts, sizes, out=np.full(len(counts), math.nan), where=sizes > 0)
    together = size_a + size_b - shared
    low, high = (int(bound) for bound in chance.ppf([0.025, 0.975]))
    return Overlap(
        population=population,
        size_a=size_a,
        size_b=size_b,
        shared=shared,
        jaccard=shared / together if together else math.nan,
        expected_shared=size_a * size_b / population,
        expected_jaccard=float(np.sum(chance.pmf(counts) * jaccards)),
        low=low,
        high=high,
        p_value=min(1.0, float(chance.sf(shared - 1))),
    )
