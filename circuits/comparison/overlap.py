"""How many members two sets share, beside what chance would give under three ideas of chance.

*Uniform* (hypergeometric): any two sets of these sizes. *Matched*: sets that keep how many members they take of each
stratum, such as "edges from heads of layer 3 into MLPs of layer 7"; then only the choice within strata is left to
chance. *Rewired* (edges only): circuits whose nodes keep their number of edges, so that well-connected nodes stay so.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.scores import Floats
from circuits.statistics import central, wilson

SIGNIFICANT = 0.05
LEAST_P = 1e-12
"""Smaller probabilities are not told apart."""
MUCH = 0.25
"""From this share of what is shared on, an excess over chance is more than small."""
Strata = NDArray[np.int64]
UNIFORM, MATCHED, REWIRED = "uniform", "matched", "rewired"


@dataclass(frozen=True)
class Chance:
    """How many members would be shared by chance.

    ``low`` and ``high`` bound 95 % of the chance distribution, ``p_value`` is the probability to share at least as many
    as were found.
    """

    kind: str
    expected: float
    low: float
    high: float
    p_value: float

    @property
    def beaten(self) -> bool:
        """Whether more is shared than this chance explains (5 %)."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Overlap:
    """How many members two sets of a population share, and how many they would share by chance.

    ``expected_*`` are hypergeometric means, ``low`` and ``high`` bound 95 % of the chance distribution of ``shared``,
    and ``p_value`` is the probability to share at least this many by chance. ``jaccard`` is NaN for two empty sets; its
    interval is Wilson's for the share of shared members, as if members were drawn one by one. ``controls`` are stricter
    ideas of chance.
    """

    population: int
    size_a: int
    size_b: int
    shared: int
    jaccard: float
    jaccard_ci: tuple[float, float]
    expected_shared: float
    expected_jaccard: float
    low: int
    high: int
    p_value: float
    controls: tuple[Chance, ...] = ()

    @property
    def uniform(self) -> Chance:
        """The hypergeometric level as a :class:`Chance`."""
        return Chance(UNIFORM, self.expected_shared, self.low, self.high, self.p_value)

    @property
    def chances(self) -> tuple[Chance, ...]:
        """Every idea of chance, the simplest first."""
        return (self.uniform, *self.controls)

    def describe(self, members: str) -> str:
        """Return in words how many are shared and how many would be by chance; ``members`` is a plural noun."""
        if self.size_a + self.size_b == 0:
            return f"no {members}, because both circuits are empty"
        low, high = self.jaccard_ci
        controls = "".join(f"; {_WORDS[each.kind]} {_level(each)}" for each in self.controls)
        return (
            f"{self.shared} {members} (Jaccard {self.jaccard:.2f} [{low:.2f}, {high:.2f}]); random sets of "
            f"{self.size_a} and {self.size_b} out of {self.population:,} would share {_level(self.uniform)}{controls}"
        )

    def verdict(self, members: str = "edges") -> str:
        """Return in words what the overlap does and does not support."""
        if not self.uniform.beaten:
            return (
                f"That is no more than chance: the {members} give no evidence of shared components. It is no proof "
                "that there are none, since a behaviour can have several sufficient circuits."
            )
        explained = [_WORDS[each.kind] for each in self.controls if not each.beaten]
        if explained:
            return (
                f"That is more than if all {members} were equally likely, but no more than {' or '.join(explained)} "
                f"would share: the two are alike in depth, kind or well-connected nodes, and the {members} give no "
                "evidence of more than that."
            )
        if not self.controls:
            return (
                f"That is more than chance, but this chance level takes all {members} to be equally likely, while most "
                "circuits favour the same few well-connected nodes: it does not show that the behaviours share a "
                "mechanism."
            )
        beside = " and ".join(_WORDS[each.kind] for each in self.controls)
        return (
            f"That is more than chance, also beside {beside}: {self.excess:.0%} of the shared {members} are beyond "
            f"what the strictest of these expects, {_AMOUNT[self.excess >= MUCH]}. Whether for the same purpose, only "
            "transfer and knocking out can tell."
        )

    def in_short(self) -> str:
        """Return in a few words how the overlap compares with chance."""
        if not self.uniform.beaten:
            return "no more than chance"
        if not all(each.beaten for each in self.controls):
            return "no more than kinds, layers and well-connected nodes explain"
        return f"{self.excess:.0%} of them beyond what kinds, layers and well-connected nodes explain"

    @property
    def excess(self) -> float:
        """The share of what is shared that is beyond the expectation of the strictest idea of chance."""
        return 1 - max(each.expected for each in self.chances) / self.shared if self.shared else 0.0


_AMOUNT = {
    True: "so the two use the same parts beyond their kind and depth",
    False: "a small excess: most of what they share is explained by kind, depth or well-connected nodes",
}
_WORDS = {
    MATCHED: "sets of the same kinds and layers",
    REWIRED: "rewired circuits of the same degrees",
}


def _level(chance: Chance) -> str:
    p_value = f"p = {chance.p_value:.2g}" if chance.p_value >= LEAST_P else f"p < {LEAST_P:g}"
    return f"{chance.expected:.3g} (95 %: {chance.low:.0f} to {chance.high:.0f}), {p_value}"


def chance_overlap(population: int, size_a: int, size_b: int, shared: int, *controls: Chance) -> Overlap:
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
        jaccard_ci=wilson(shared, together),
        expected_shared=size_a * size_b / population,
        expected_jaccard=float(np.sum(chance.pmf(counts) * jaccards)),
        low=low,
        high=high,
        p_value=min(1.0, float(chance.sf(shared - 1))),
        controls=controls,
    )


def matched_chance(population: Strata, a: Strata, b: Strata, shared: int) -> Chance:
    """Return the chance level of two sets that keep how many members they take of each stratum, exactly.

    Each argument has the stratum of every member, as a number. The number shared is a sum of independent hypergeometric
    numbers.
    """
    from scipy.stats import hypergeom

    n_strata = int(population.max()) + 1 if len(population) else 0
    sizes, in_a, in_b = (np.bincount(members, minlength=n_strata) for members in (population, a, b))
    distribution: Floats = np.ones(1)
    for stratum in np.flatnonzero((in_a > 0) & (in_b > 0)).tolist():
        counts = np.arange(int(min(in_a[stratum], in_b[stratum])) + 1)
        chances = np.asarray(hypergeom.pmf(counts, sizes[stratum], in_a[stratum], in_b[stratum]), dtype=np.float64)
        distribution = np.convolve(distribution, chances)
    return _chance_of(distribution, shared)


def sampled_chance(kind: str, drawn: Floats, found: float) -> Chance:
    """Return the chance level from random draws; the p-value counts what was found as one more draw."""
    low, high = central(drawn)
    p_value = (1 + int(np.sum(drawn >= found - 1e-12))) / (1 + len(drawn))
    return Chance(kind, float(drawn.mean()), float(low), float(high), p_value)


def _chance_of(probabilities: Floats, found: int) -> Chance:
    values = np.arange(len(probabilities))
    cumulative = np.cumsum(probabilities)
    low, high = (int(values[min(np.searchsorted(cumulative, level), len(values) - 1)]) for level in (0.025, 0.975))
    p_value = min(1.0, float(probabilities[values >= found].sum()))
    return Chance(MATCHED, float(np.sum(values * probabilities)), low, high, p_value)
