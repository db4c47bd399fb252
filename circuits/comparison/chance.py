"""Weighted overlap and rank correlation of two circuits' scores, with intervals."""

import math
from dataclasses import dataclass

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison.overlap import MATCHED, Chance, sampled_chance
from circuits.comparison.rewiring import weighted_jaccard
from circuits.graph import EdgeIndices
from circuits.scores import EdgeScores, Floats
from circuits.statistics import central

MIN_FOR_RANKS = 5
"""Fewer shared scores than this give no rank correlation."""
RESAMPLES, CHANCE_DRAWS = 500, 100
PROMPTS, EDGES = "prompts", "edges"


@dataclass(frozen=True)
class ScoreEstimate:
    """A number with its 95 % interval, and what was resampled for it: ``prompts``, ``edges`` or nothing."""

    value: float
    low: float
    high: float
    over: str = ""

    @property
    def known(self) -> bool:
        """Whether it could be computed."""
        return math.isfinite(self.value)

    def describe(self) -> str:
        """Return it as text."""
        if not self.known:
            return "unknown"
        text, low, high = (f"{round(each, 2) + 0.0:.2f}" for each in (self.value, self.low, self.high))  # no -0.00
        return f"{text} [{low}, {high}]" if math.isfinite(self.low) else text


UNKNOWN = ScoreEstimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class PairScores:
    """The scores of two circuits as they are compared.

    ``weighted`` is ``sum min / sum max`` of the circuits' |score|, each normalised to sum 1; ``ranks`` is Spearman's
    correlation over ``n`` edges: those of either circuit where both have scores of the whole graph, else the shared.
    Edges that one circuit took for their large scores have small ones in the other, so on the union chance correlates
    them negatively: ``ranks_chance`` is what is left when one side is shuffled among edges of the same kinds and
    layers.
    """

    weighted: ScoreEstimate
    ranks: ScoreEstimate
    n: int
    on_union: bool
    ranks_chance: Chance | None = None


def compared_scores(
    a: Circuit,
    b: Circuit,
    scores_a: EdgeScores | None,
    scores_b: EdgeScores | None,
    strata: EdgeIndices,
    *,
    seed: int = 0,
) -> PairScores:
    """Compare scores. Where both have standard deviations over prompts, intervals are over prompts, else over edges.

    Over prompts: every score is moved by normal noise of its standard error, independently of the others (their
    correlation is not stored), and the spread of the result is put around the estimate. Over edges: edges of either
    circuit are resampled.
    """
    union = np.union1d(a.edges, b.edges)
    values = _columns(union, a, b, scores_a, scores_b)
    on_union = scores_a is not None and scores_b is not None
    inside = np.stack([np.isin(union, circuit.edges) for circuit in (a, b)])
    ranked = np.flatnonzero(np.isfinite(values).all(0) if on_union else np.isfinite(values).all(0) & inside.all(0))
    generator = np.random.default_rng(seed)
    errors = _standard_errors(union, scores_a, scores_b)
    over = PROMPTS if errors is not None else EDGES

    def resampled() -> tuple[float, float]:
        if errors is not None:
            moved = values + generator.normal(size=values.shape) * errors
            return _weighted(moved, inside), spearman(*moved[:, ranked])
        picks = generator.integers(len(union), size=len(union))
        kept = picks[np.isin(picks, ranked)]
        return _weighted(values[:, picks], inside[:, picks]), spearman(*values[:, kept])

    weighted, ranks = _weighted(values, inside), spearman(*values[:, ranked])
    draws = np.array([resampled() for _ in range(RESAMPLES)]) if len(union) else np.full((1, 2), math.nan)
    chance = None
    if scores_a is not None and scores_b is not None and math.isfinite(ranks):
        chance = _ranks_chance((a, b), (scores_a, scores_b), strata, ranks, generator)
    found = _around(weighted, draws[:, 0], over, least=0), _around(ranks, draws[:, 1], over, least=-1)
    return PairScores(*found, len(ranked), on_union, chance)


def _ranks_chance(
    circuits: tuple[Circuit, Circuit],
    given: tuple[EdgeScores, EdgeScores],
    strata: EdgeIndices,
    found: float,
    generator: np.random.Generator,
) -> Chance:
    """Correlate with the other side's edges and scores shuffled within strata, which keeps kinds and layers only."""
    (a, b), (scores_a, scores_b) = circuits, given
    near = np.flatnonzero(np.isin(strata, strata[np.union1d(a.edges, b.edges)]))
    order = near[np.argsort(strata[near], kind="stable")]
    first, second = scores_a.values[order], scores_b.values[order]
    in_a, in_b = np.isin(order, a.edges), np.isin(order, b.edges)
    drawn: list[float] = []
    for _ in range(CHANCE_DRAWS):
        shuffled = np.lexsort((generator.random(len(order)), strata[order]))
        either = in_a | in_b[shuffled]
        left, right = first[either], second[shuffled][either]
        known = np.isfinite(left) & np.isfinite(right)
        drawn.append(spearman(left[known], right[known]))
    return sampled_chance(MATCHED, np.array(drawn), found)


def spearman(a: Floats, b: Floats) -> float:
    """Return Spearman's rank correlation; NaN of fewer than five, or where one side is constant."""
    if len(a) < MIN_FOR_RANKS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _columns(
    union: np.ndarray, a: Circuit, b: Circuit, scores_a: EdgeScores | None, scores_b: EdgeScores | None
) -> Floats:
    values = np.full((2, len(union)), math.nan)
    for row, circuit, scores in ((0, a, scores_a), (1, b, scores_b)):
        if scores is not None:
            values[row] = scores.values[union]
        else:
            values[row, np.searchsorted(union, circuit.edges)] = circuit.scores
    return values


def _standard_errors(union: np.ndarray, scores_a: EdgeScores | None, scores_b: EdgeScores | None) -> Floats | None:
    both = [each for each in (scores_a, scores_b) if each is not None and each.sd is not None and each.n > 1]
    if len(both) < 2:
        return None
    return np.stack([np.nan_to_num(each.sd[union]) / math.sqrt(each.n) for each in both if each.sd is not None])


def _weighted(values: Floats, inside: np.ndarray) -> float:
    """Weigh the circuits' own edges; positions stand for edges, so an edge may be there several times."""
    if not inside.size or not np.isfinite(values[inside]).all():
        return math.nan
    places = [np.flatnonzero(row) for row in inside]
    sizes = [np.abs(row[place]) for row, place in zip(values, places, strict=True)]
    return weighted_jaccard(places[0], sizes[0], places[1], sizes[1])


def _around(value: float, draws: Floats, over: str, *, least: float) -> ScoreEstimate:
    """Put the spread of resampled values around the estimate, up to 1: noise added to noisy scores would shift it."""
    draws = draws[np.isfinite(draws)]
    if not math.isfinite(value):
        return UNKNOWN
    if len(draws) < RESAMPLES / 2:
        return ScoreEstimate(value, math.nan, math.nan)
    low, high = central(draws)
    shift = value - float(np.median(draws)) if over == PROMPTS else 0.0
    return ScoreEstimate(value, max(least, float(low + shift)), min(1.0, float(high + shift)), over)
