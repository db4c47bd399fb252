"""Fidelity and what goes with it: numbers by hand, intervals that hold the truth as often as they say."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from circuits.behaviours.pairs import TokenPair, clusters_of
from circuits.statistics import (
    Estimate,
    central,
    error,
    faithfulness,
    faithfulness_interval,
    fidelity,
    interval,
    likeness,
    numbered,
    picks,
    wilson,
)


@dataclass(frozen=True)
class Measured:
    """Two ends, as if measured."""

    clean: np.ndarray
    corrupted: np.ndarray


ENDS = Measured(np.array([4.0, 2.0]), np.array([0.0, 0.0]))


def test_error_and_fidelity_by_hand() -> None:
    """Pairs of 4 and 2 over 0: values of 3 and 3 are right on average, and each is one off."""
    assert faithfulness(ENDS, np.array([3.0, 3.0])) == 1
    assert error(ENDS, np.array([3.0, 3.0])) == pytest.approx(math.sqrt(2 / 20))
    np.testing.assert_allclose(
        fidelity(ENDS, np.array([[3.0, 3.0], [4.0, 2.0], [0.0, 0.0], [8.0, 4.0]])), [0.9, 1, 0, 0]
    )


def test_twice_the_gap_is_as_wrong_as_none_of_it_and_worse_than_that_is_negative() -> None:
    assert fidelity(ENDS, np.array([12.0, 6.0])) == pytest.approx(-3)


def test_likeness_of_hand_made_values() -> None:
    ends = Measured(np.array([1.0, 2.0, 3.0, -1.0]), np.zeros(4))
    found = likeness(ends, np.array([1.0, 2.0, 4.0, 1.0]), compares=True, kl=np.array([0.1, 0.2, 0.3, 0.2]))
    assert (found.n, found.clusters) == (4, 4)
    assert found.error.value == pytest.approx(math.sqrt(5 / 15))
    assert found.fidelity.value == pytest.approx(1 - 5 / 15)
    assert found.agreement is not None
    assert (found.agreement.value, found.agreement.low, found.agreement.high) == pytest.approx((0.75, *wilson(3, 4)))
    assert found.correlation is not None
    assert found.correlation.value == pytest.approx(np.corrcoef([1, 2, 4, 1], [1, 2, 3, -1])[0, 1])
    assert found.kl is not None
    assert found.kl.value == pytest.approx(0.2)


def test_correlation_is_undefined_where_the_models_values_hardly_vary_and_agreement_where_nothing_is_compared() -> None:
    found = likeness(Measured(np.full(20, 3.0), np.zeros(20)), np.linspace(2, 4, 20))
    assert found.correlation is None
    assert found.agreement is None
    assert found.kl is None


def test_the_whole_model_has_fidelity_one_without_any_spread() -> None:
    clean = np.linspace(1, 3, 20)
    found = likeness(Measured(clean, np.zeros(20)), clean).fidelity
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize(("n", "least"), [(16, 0.86), (64, 0.9)])
def test_intervals_of_fidelity_hold_the_truth_about_as_often_as_they_say(n: int, least: float) -> None:
    """Drawn from one population of 5,000 pairs; 95 % is meant, and of 200 draws more than 180 are likely."""
    generator = np.random.default_rng(0)
    clean = generator.normal(3, 1, 5000)
    corrupted, values = generator.normal(0, 0.5, 5000), 0.9 * clean + generator.normal(0, 0.6, 5000)
    truth = float(fidelity(Measured(clean, corrupted), values))
    held = []
    squares = np.stack([(values - clean) ** 2, (corrupted - clean) ** 2], axis=1)
    for seed in range(200):
        chosen = generator.choice(5000, n, replace=False)
        low, high = interval(squares[chosen], lambda sums: 1 - sums[..., 0] / sums[..., 1], seed=seed)
        held.append(low is not None and high is not None and low <= truth <= high)
    assert least <= np.mean(held)
    assert not all(held)


def test_clusters_are_resampled_together() -> None:
    """Forty pairs that are four, ten times each, tell as much as four: the interval is about three times as wide."""
    generator = np.random.default_rng(1)
    clean, corrupted = np.tile(generator.normal(3, 1, 4), 10), np.zeros(40)
    values = 0.8 * clean + np.tile(generator.normal(0, 0.5, 4), 10)
    ends, groups = Measured(clean, corrupted), np.tile(np.arange(4), 10)
    alone, together = likeness(ends, values), likeness(ends, values, clusters=groups)
    assert (together.n, together.clusters) == (40, 4)
    assert together.fidelity.value == pytest.approx(alone.fidelity.value)
    widths = [e.high - e.low for e in (alone.fidelity, together.fidelity) if e.high is not None and e.low is not None]
    assert widths[1] > 2 * widths[0]
    assert together.remark == "intervals of 4 groups of pairs that share a text are too narrow; use at least 16"
    assert not alone.remark
    low, high = faithfulness_interval(ends, values)
    wider = faithfulness_interval(ends, values, clusters=groups)
    assert wider[1] - wider[0] > 2 * (high - low)


def test_few_pairs_are_said_to_have_too_narrow_intervals_and_a_single_one_has_none() -> None:
    few = likeness(Measured(np.arange(1.0, 9), np.zeros(8)), np.arange(1.0, 9) + 0.1)
    assert few.remark == "intervals of 8 pairs are too narrow; use at least 16"
    assert few.fidelity.narrow
    one = likeness(Measured(np.ones(1), np.zeros(1)), np.array([0.5]))
    assert one.fidelity == Estimate(0.75, None, None, 1)
    assert one.fidelity.describe() == "0.750"
    assert interval(np.ones((1, 2)), lambda s: s[..., 0]) == (None, None)


def test_estimates_as_text_have_no_minus_nought() -> None:
    assert Estimate(-0.0001, -0.5, 0.25, 20).describe(2) == "0.00 [-0.50, 0.25]"


def test_wilsons_interval_of_a_textbook_example_has_a_width_at_nought_too() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert all(math.isnan(end) for end in wilson(0, 0))


def test_the_middle_of_draws_and_the_same_draws_for_the_same_seed() -> None:
    assert central(np.arange(101.0), confidence=0.9) == pytest.approx((5, 95))
    np.testing.assert_array_equal(picks(5, 3), picks(5, 3))
    assert not np.array_equal(picks(5, 3), picks(5, 4))


def test_pairs_that_share_a_prompt_or_are_marked_as_one_cluster_are_one() -> None:
    def pair(text: str, **tags: str) -> TokenPair:
        return TokenPair((1,), (2,), (3,), (4,), text, "other", tags)

    assert clusters_of([pair("a"), pair("b"), pair("a"), pair("c", cluster="b")]).tolist() == [0, 1, 0, 1]
    assert numbered([]).shape == (0,)


def test_two_pairs_have_no_interval_unless_they_agree() -> None:
    """Nor a warning: at the level that two need, the formula is infinite over infinite."""
    assert interval(np.array([[1.0, 2.0], [2.0, 3.0]]), lambda s: s[..., 0] / s[..., 1]) == (None, None)
    assert interval(np.array([[1.0, 2.0], [2.0, 4.0]]), lambda s: s[..., 0] / s[..., 1]) == (0.5, 0.5)
