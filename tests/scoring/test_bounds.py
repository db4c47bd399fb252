"""The statistics of verification: numbers by hand, and coverage counted in simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from circuits.scoring.bounds import PRIOR_PAIRS, missed_at_most, multiples, prior_ratio, scales, upper_bounds


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Effects with mean 1 that are small on most pairs and large on few."""
    return rng.lognormal(-0.5, 1.0, shape)


def test_the_scale_is_the_measured_spread_and_the_prior_weighted_by_pairs() -> None:
    """Squares 1 + 0 + 1 about the mean 3, and a prior of 2 as if from four further pairs: (4·4 + 2) / (4 + 2)."""
    assert scales(np.array([[2.0, 3.0, 4.0]]), np.array([2.0])) == pytest.approx([math.sqrt(3)])
    assert scales(np.array([[5.0]]), np.array([2.0])) == pytest.approx([2.0])  # one pair tells nothing about spread


def test_the_prior_is_scaled_by_the_median_ratio_to_the_measured_spread() -> None:
    effects = np.array([[0.0, 2.0], [0.0, 4.0], [0.0, 20.0], [0.0, 1.0]])
    spread = np.sqrt([2.0, 8.0, 200.0, 0.5])
    assert prior_ratio(effects, spread * [1.0, 0.5, 0.1, 0.0]) == pytest.approx(2.0)  # of 1, 2 and 10
    assert prior_ratio(effects, np.zeros(4)) == 1.0


def test_a_bound_is_the_mean_and_the_multiple_of_the_standard_error_without_replacement() -> None:
    effects, prior = np.array([[-2.0, -3.0, -4.0]]), np.array([2.0])
    assert upper_bounds(effects, prior, 6, 1.5) == pytest.approx([3 + 1.5 * math.sqrt(3) * math.sqrt(1 / 3 - 1 / 6)])
    assert upper_bounds(effects, prior, 3, 1.5) == pytest.approx([3.0])  # all pairs: no error left
    assert upper_bounds(effects, np.array([0.0]), 6, math.inf) == [math.inf]


def test_normal_effects_need_no_more_than_student_says() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(3, 1, (100, 32))
    found = multiples(effects, np.ones(100), [2, 8], 1e-3, seed=0)
    for n, multiple in zip([2, 8], found, strict=True):
        assert multiple == pytest.approx(stats.t.isf(1e-3, PRIOR_PAIRS + n - 1), rel=0.25)


def test_skewed_effects_need_more_and_get_it() -> None:
    effects = skewed(np.random.default_rng(1), (100, 32))
    uneven = np.full(100, 0.01)  # a prior that is no help
    (found,) = multiples(effects, uneven, [8], 1e-3, seed=0)
    assert found > 1.3 * stats.t.isf(1e-3, PRIOR_PAIRS + 7)


@pytest.mark.parametrize("prior", [1.0, 0.02])
def test_bounds_calibrated_on_some_edges_hold_for_others_of_their_kind_as_often_as_stated(prior: float) -> None:
    """Coverage, counted: skewed effects, a prior that is right and one that is worthless, error 1 % per edge."""
    rng, total, missed = np.random.default_rng(5), 32, []
    for trial in range(20):
        known, others = skewed(rng, (100, total)), skewed(rng, (500, total))
        (multiple,) = multiples(known, np.full(100, prior), [4], 0.01, seed=trial)
        missed.append(upper_bounds(others[:, :4], np.full(500, prior), total, multiple) < others.mean(axis=1))
    assert float(np.mean(missed)) < 0.015


def test_without_the_calibration_the_bound_of_skewed_effects_fails_more_often_than_stated() -> None:
    """The negative control: Student's t alone, with a worthless prior, misses many times the stated 1 %."""
    others = skewed(np.random.default_rng(6), (5000, 32))
    bounds = upper_bounds(others[:, :4], np.full(5000, 0.02), 32, float(stats.t.isf(0.01, PRIOR_PAIRS + 3)))
    assert (bounds < others.mean(axis=1)).mean() > 0.05


def test_pairs_that_may_tell_nothing_make_the_multiple_infinite() -> None:
    """Edges that matter on one pair of 16 only: most draws of two pairs see zeros, without a spread and a prior."""
    effects = np.zeros((20, 16))
    effects[:, 3] = 1.0
    assert multiples(effects, np.zeros(20), [2], 0.01, seed=0) == [math.inf]


# ------------------------------------------------------------------------------------------------------ missed hits


def test_nothing_is_missed_of_what_was_sampled_whole_and_everything_may_be_of_what_was_not() -> None:
    assert missed_at_most(50, 50, 3, 0.05) == 0
    assert missed_at_most(50, 0, 0, 0.05) == 50


def test_the_bound_of_a_small_case_by_hand() -> None:
    """10 edges, 5 drawn, no hit. With K hits that has the probability C(10-K, 5) / C(10, 5): 0.083 at 3, 0.024 at 4."""
    assert missed_at_most(10, 5, 0, 0.05) == 3
    assert missed_at_most(10, 5, 0, 0.02) == 4


def test_no_hit_in_a_sample_bounds_the_share_by_three_over_the_sample() -> None:
    """The rule of three."""
    assert missed_at_most(100_000, 1000, 0, 0.05) == pytest.approx(300, rel=0.02)


def test_the_bound_fails_as_seldom_as_stated_and_a_tighter_one_would_fail_more_often() -> None:
    rng, hits, population, sample = np.random.default_rng(0), 30, 400, 100
    found = rng.hypergeometric(hits, population - hits, sample, size=4000)
    bounds = np.array([missed_at_most(population, sample, int(x), 0.1) for x in range(found.max() + 1)])[found]
    failures = float((hits - found > bounds).mean())
    assert 0.03 < failures < 0.1
    assert float((hits - found > bounds - 5).mean()) > 0.1
