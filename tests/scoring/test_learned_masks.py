"""Gates, and masks that are learned on toys with planted circuits."""

import numpy as np
import pytest

from circuits.errors import UsageError
from circuits.graph import ModelShape
from circuits.scoring import score
from circuits.scoring.learned_masks import draw, learned_masks, open_probability
from circuits.scoring.scorers import Settings
from circuits.vocabulary import ScorerName
from tests.subjects import subject_of
from tests.toy import planted_edges, planted_toy

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)


def test_slopes_of_gates_are_their_finite_differences_and_gates_reach_both_ends() -> None:
    generator = np.random.default_rng(0)
    locations, uniform = generator.normal(0, 2, 2000), generator.uniform(size=2000)
    gates, step = draw(locations, uniform), 1e-6
    moved = (draw(locations + step, uniform).values - draw(locations - step, uniform).values) / (2 * step)
    away = np.abs(gates.values - 0.5) < 0.49  # from the corners
    np.testing.assert_allclose(gates.slopes[away], moved[away], atol=1e-6)
    assert (gates.values == 0).any()
    assert (gates.values == 1).any()
    assert not gates.slopes[(gates.values == 0) | (gates.values == 1)].any()
    assert gates.slopes.max() > 0.3


def test_the_probability_of_being_open_is_the_share_of_draws_that_are() -> None:
    uniform = np.random.default_rng(1).uniform(size=20_000)
    for location in (-3.0, -0.5, 0.0, 2.0):
        share = (draw(np.full(20_000, location), uniform).values > 0).mean()
        assert open_probability(np.array(location)) == pytest.approx(share, abs=0.01)


def test_planted_edges_come_first_and_the_others_close_whatever_it_begins_from() -> None:
    toy, planted = planted_toy(SHAPE, 12, seed=3), planted_edges(planted_toy(SHAPE, 1).graph, 12, seed=3)
    for seed in (0, 1):
        start = np.random.default_rng(seed).normal(size=toy.graph.n_edges)
        found = learned_masks(toy, start, updates=300, seed=seed)
        others = np.setdiff1d(np.arange(toy.graph.n_edges), planted)
        assert found[planted].min() > 0.9
        assert found[others].max() < 0.1


def test_scores_follow_the_seed_and_have_the_signs_of_what_they_begin_from() -> None:
    experiment = subject_of("llama").experiment()
    first, again, other = (score(experiment, "learned-masks", Settings(seed=seed)).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    start = score(experiment, ScorerName.EAP_IG).values
    np.testing.assert_array_equal(np.sign(first)[start != 0], np.sign(start)[start != 0])


def test_nothing_is_frozen_in_them() -> None:
    with pytest.raises(UsageError, match="the scorer learned-masks takes no gradients"):
        score(subject_of("llama").experiment(), "learned-masks", Settings(freeze_patterns=True))
