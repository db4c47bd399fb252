"""How well estimates agree with effects: numbers by hand, and a sample that does not miss the large ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.builder import build_graph
from circuits.graph import ModelShape
from circuits.scores import EdgeScores
from circuits.scoring import agreement, score
from circuits.scoring.sampled_agreement import compare_scores, stratified_sample
from circuits.vocabulary import ScorerName
from tests.toy import planted_toy

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
GRAPH = build_graph(SHAPE)


def scores_of(values: np.ndarray) -> EdgeScores:
    return EdgeScores(GRAPH, values, "test", measured=False)


# ------------------------------------------------------------------------------------------------------------ by hand


def test_numbers_by_hand() -> None:
    """Ranks of the estimate 1 2 4 3 against 1 2 3 4: Spearman 1 - 6·2/60; Pearson of (1, 2, 5, 3) and (-1, 2, 3, 4)."""
    found = compare_scores(np.array([1.0, 2.0, 5.0, 3.0]), np.array([-1.0, 2.0, 3.0, 4.0]))
    assert found.n == 4
    assert found.spearman == pytest.approx(0.8)
    assert found.pearson == pytest.approx(8 / math.sqrt(8.75 * 14))
    assert found.sign_errors == 0.25
    assert found.top_found == 0  # the best estimate is the third, the best effect the fourth


def test_perfect_and_opposite_estimates() -> None:
    exact = np.linspace(-1, 2, 20)
    good, bad = compare_scores(3 * exact, exact), compare_scores(-exact, exact)
    assert (good.spearman, good.pearson, good.sign_errors, good.top_found) == pytest.approx((1, 1, 0, 1))
    assert (bad.spearman, bad.pearson, bad.sign_errors, bad.top_found) == pytest.approx((-1, -1, 1, 0))


def test_the_top_tenth_is_counted_by_edges() -> None:
    exact = np.arange(30.0)
    estimated = exact.copy()
    estimated[[29, 0]] = estimated[[0, 29]]
    assert compare_scores(estimated, exact).top_found == pytest.approx(2 / 3)


def test_correlations_of_constant_scores_are_not_numbers_rather_than_warnings() -> None:
    found = compare_scores(np.zeros(5), np.arange(5.0))
    assert math.isnan(found.spearman)
    assert math.isnan(found.pearson)
    assert found.sign_errors == 0.8


def test_it_is_said_in_one_line() -> None:
    line = compare_scores(np.array([1.0, -1.0]), np.array([2.0, 1.0])).describe("eap")
    assert line == (
        "eap against exact on 2 edges: Spearman 1.00, Pearson 1.00, 50% wrong signs, 100% of the exact top tenth found"
    )


# ---------------------------------------------------------------------------------------------------- on a toy


def test_agreement_measures_only_the_sample_and_finds_a_linear_toy_in_perfect_agreement() -> None:
    toy = planted_toy(SHAPE, 20, seed=1, noise=0.05)
    calls: list[tuple[int, int]] = []
    found = agreement(toy, score(toy, ScorerName.EAP), sample=32, seed=0, progress=lambda *call: calls.append(call))
    assert (found.n, calls) == (32, [(32, 32)])
    assert found.pearson == pytest.approx(1)
    assert found.sign_errors == 0
    bad = agreement(toy, score(toy, ScorerName.RANDOM), sample=60, seed=0)
    assert abs(bad.spearman) < 0.5
    assert bad.top_found < 0.5


# ----------------------------------------------------------------------------------------------------- the sample


@settings(max_examples=40, deadline=None)
@given(sample=st.integers(1, 300), seed=st.integers(0, 99), unscored=st.integers(0, GRAPH.n_edges - 1))
def test_a_sample_has_the_size_asked_for_and_only_scored_edges_each_once(sample: int, seed: int, unscored: int) -> None:
    values = np.random.default_rng(seed).normal(size=GRAPH.n_edges)
    values[:unscored] = np.nan
    drawn = stratified_sample(scores_of(values), sample, seed)
    assert len(drawn) == len(set(drawn.tolist())) == min(sample, GRAPH.n_edges - unscored)
    assert not np.isnan(values[drawn]).any()
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, stratified_sample(scores_of(values), sample, seed))


def test_the_largest_scores_of_either_sign_are_always_in_the_sample() -> None:
    values = np.random.default_rng(0).normal(size=GRAPH.n_edges) * 0.01
    values[50], values[100] = 5.0, -4.0
    for seed in range(10):
        drawn = stratified_sample(scores_of(values), 24, seed)
        assert {50, 100} <= set(drawn.tolist())


def test_the_sample_is_spread_over_the_ranking_more_densely_at_the_top() -> None:
    values = np.linspace(1, 0.001, GRAPH.n_edges)
    drawn = np.array([stratified_sample(scores_of(values), 16, seed) for seed in range(50)])
    thirds = np.histogram(drawn, bins=[0, 20, 100, GRAPH.n_edges])[0] / drawn.size
    assert thirds[0] > 0.4
    assert (thirds[1:] > 0.1).all()
    assert len(np.unique(drawn)) > 60
