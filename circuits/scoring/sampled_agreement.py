"""How far estimated scores agree with exact ones, on a sample of edges spread over the range of scores."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from circuits.graph import EdgeIndices
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.scores import EdgeScores, Floats


@dataclass(frozen=True)
class Agreement:
    """Agreement of a scorer with exact effects on ``n`` sampled edges.

    ``sign_errors`` is the share of edges whose estimate has the wrong sign; ``top_found`` the share of the sample's
    exact top tenth that is in the estimated top tenth.
    """

    n: int
    spearman: float
    pearson: float
    sign_errors: float
    top_found: float

    def describe(self, scorer: str) -> str:
        """Return it as one line of text."""
        return (
            f"{scorer} against exact on {self.n} edges: Spearman {self.spearman:.2f}, Pearson {self.pearson:.2f}, "
            f"{self.sign_errors:.0%} wrong signs, {self.top_found:.0%} of the exact top tenth found"
        )


def agreement(
    experiment: Experiment, scores: EdgeScores, *, sample: int = 64, seed: int = 0, progress: Progress = no_progress
) -> Agreement:
    """Measure a stratified sample of edges exactly and compare. Cost: about a third of a forward pass per edge."""
    edges = stratified_sample(scores, sample, seed)
    exact = experiment.edge_effects(edges, progress=progress).mean(axis=1)
    return compare_scores(scores.values[edges], exact)


def compare_scores(estimated: Floats, exact: Floats) -> Agreement:
    """Compare two lists of scores of the same edges."""
    from scipy import stats

    ranks: Any = stats.spearmanr
    linear: Any = stats.pearsonr
    varied = len(set(exact.tolist())) > 1 and len(set(estimated.tolist())) > 1
    top = max(1, len(exact) // 10)
    best, claimed = _places_of_largest(exact, top), _places_of_largest(estimated, top)
    return Agreement(
        n=len(exact),
        spearman=float(ranks(estimated, exact).statistic) if varied else float("nan"),
        pearson=float(linear(estimated, exact).statistic) if varied else float("nan"),
        sign_errors=int(np.count_nonzero(np.sign(estimated) != np.sign(exact))) / len(exact),
        top_found=len(best & claimed) / top,
    )


def _places_of_largest(values: Floats, count: int) -> set[int]:
    return {int(place) for place in np.argsort(-values, kind="stable")[:count]}


def stratified_sample(scores: EdgeScores, sample: int, seed: int) -> EdgeIndices:
    """Draw edges in geometric steps down the ranking by |score|, so that large ones are not missed."""
    ranked = scores.ranked(by_magnitude=True)
    sample = min(sample, len(ranked))
    bounds = sorted({int(bound) - 1 for bound in np.geomspace(1, len(ranked) + 1, sample + 1)})
    generator = np.random.default_rng(seed)
    drawn = [int(generator.integers(low, high)) for low, high in pairwise(bounds)]
    rest = np.setdiff1d(np.arange(len(ranked)), drawn)
    extra = generator.choice(rest, size=sample - len(drawn), replace=False)
    return np.sort(ranked[np.concatenate([np.array(drawn, dtype=np.int64), extra])])
