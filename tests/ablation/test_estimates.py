"""Estimates: numbers one can check by hand, and intervals that are as wide as they should be."""

import math

import numpy as np
import pytest

from circuits.ablation.estimates import PromptEstimate, mean_quantity, perplexity_quantity, share_quantity
from circuits.statistics import wilson


def test_a_change_is_measured_on_the_same_prompts() -> None:
    before = np.array([0.0, 100.0, 200.0, 300.0])
    found = mean_quantity("x", "nats", before, before - 1, [before + 2, before], seed=0)
    assert (found.change.value, found.change.low, found.change.high) == (-1, -1, -1)  # paired: no spread at all
    assert found.before.value == 150
    assert 0 < found.before.low < 100
    assert 200 < found.before.high <= 300
    assert found.random == (152, 150)
    assert found.beyond_random is False
    assert mean_quantity("x", "nats", before, before - 3, [before + 2], seed=0).beyond_random is True
    assert mean_quantity("x", "nats", before, before - 3, [], seed=0).beyond_random is None


def test_a_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = generator.normal(size=40)
        estimate = mean_quantity("x", "", values, values, [], seed=seed).before
        covered += estimate.low <= 0 <= estimate.high
    assert 180 <= covered <= 199


def test_shares_count_prompts() -> None:
    before, after = np.array([True, True, True, False]), np.array([False, True, False, True])
    found = share_quantity("x", before, after, [before], seed=0)
    assert (found.before.value, found.after.value, found.change.value, found.random) == (0.75, 0.5, -0.25, (0.75,))
    assert (found.before.low, found.before.high) == wilson(3, 4)
    assert found.change.low < found.change.value < found.change.high


def test_perplexity_counts_every_token_alike_and_its_change_is_a_ratio() -> None:
    uniform = [np.full(3, math.log(7)), np.full(9, math.log(7))]
    mixed = [np.full(3, math.log(7)), np.full(9, math.log(14))]
    found = perplexity_quantity("x", uniform, mixed, [uniform], seed=0)
    assert found.before.value == pytest.approx(7)
    assert found.after.value == pytest.approx(7 * 2 ** (9 / 12))
    assert found.change.value == pytest.approx(2 ** (9 / 12))
    assert (found.change.low, found.change.high) == pytest.approx((1, 2))
    assert found.random == pytest.approx((7,))


def test_estimates_read_well() -> None:
    assert PromptEstimate(-0.001, -0.5, 12345.6).describe() == "0.00 [-0.50, 1.23e+04]"
