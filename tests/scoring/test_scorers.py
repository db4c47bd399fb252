"""Scorers on toys whose numbers are worked out by hand."""

import numpy as np
import pytest

from circuits.errors import UsageError
from circuits.graph import Edge, ModelShape
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.vocabulary import Direction, Metric, ScorerName
from tests.toy import PENCIL_EFFECTS, LinearToy, ToyExperiment, pencil_toy, planted_toy

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
NOT_ON_TOYS = (ScorerName.VERIFIED, ScorerName.IFR, ScorerName.ATP_STAR, *(n for n in ScorerName if "activations" in n))
"""The first does not score all edges; the others are made of the runs of a model."""
GRADIENT_SCORERS = [ScorerName.EAP, ScorerName.EAP_IG, ScorerName.CLEAN_CORRUPTED]


class Recording(ToyExperiment):
    """Notes at which points gradients are asked for, and how often progress is told."""

    def __init__(self, metric: Metric = Metric.LOGIT_DIFFERENCE) -> None:
        super().__init__((1.0, 2.0))
        self.metric = metric
        self.points: list[float] = []

    def attributions(self, points: list[float], **options: object) -> np.ndarray:
        self.points = list(points)
        return super().attributions(points, **options)


def curved_toy(direction: Direction = Direction.NOISING) -> LinearToy:
    """The pencil toy with the metric 6 tanh(logits / 6), whose slope at the clean end is 1 / cosh(2)^2."""
    return pencil_toy(saturation=6.0, direction=direction)


def named(experiment: object, scorer: ScorerName, settings: Settings | None = None) -> dict[str, float]:
    scores = score(experiment, scorer, settings)
    return dict(zip(map(str, scores.graph.edges()), scores.values.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------------- pencil numbers


def test_exact_scores_are_the_pencil_effects() -> None:
    scores = score(ToyExperiment(), ScorerName.EXACT)
    assert named(ToyExperiment(), ScorerName.EXACT) == PENCIL_EFFECTS
    assert (scores.measured, scores.scorer, scores.n) == (True, "exact", 1)


@pytest.mark.parametrize("scorer", GRADIENT_SCORERS)
def test_on_a_linear_toy_every_estimate_is_the_effect(scorer: ScorerName) -> None:
    assert named(ToyExperiment(), scorer) == PENCIL_EFFECTS
    assert not score(ToyExperiment(), scorer).measured


def test_scores_are_means_over_pairs_with_their_standard_deviation() -> None:
    """Pairs with inputs 1 and 3: effects 9 and 27 of the MLP into the logits."""
    for scorer in (ScorerName.EXACT, ScorerName.EAP):
        scores = score(ToyExperiment((1.0, 3.0)), scorer)
        edge = scores.graph.index(Edge.parse("m0->logits"))
        assert scores.values[edge] == 18
        assert scores.sd is not None
        assert scores.sd[edge] == pytest.approx(9 * 2**0.5)
        assert scores.n == 2


def test_eap_takes_the_slope_at_the_clean_end_and_clean_corrupted_the_mean_of_both() -> None:
    clean, corrupted = 1 / np.cosh(2) ** 2, 1.0
    eap, both = named(curved_toy(), ScorerName.EAP), named(curved_toy(), ScorerName.CLEAN_CORRUPTED)
    for edge, effect in PENCIL_EFFECTS.items():
        assert eap[edge] == pytest.approx(effect * clean)
        assert both[edge] == pytest.approx(effect * (clean + corrupted) / 2)


def test_eap_ig_sums_the_slope_at_the_midpoints_and_comes_near_the_whole_gap() -> None:
    """Effects of edges into the logits add up to the gap: the integral of the slope along the path."""
    gap = 6 * np.tanh(2)
    for steps, tolerance in ((1, 2.0), (5, 0.05), (50, 5e-4)):
        scores = named(curved_toy(), ScorerName.EAP_IG, Settings(steps=steps))
        midpoints = (np.arange(steps) + 0.5) / steps
        slope = float(np.mean(1 / np.cosh(2 * midpoints) ** 2))
        assert scores["m0->logits"] == pytest.approx(9 * slope)
        total = sum(value for edge, value in scores.items() if edge.endswith("->logits"))
        assert abs(total - gap) < tolerance
    assert abs(12 / np.cosh(2) ** 2 - gap) > 2  # one point at the clean end would miss it


@pytest.mark.parametrize(
    ("scorer", "steps", "points"),
    [
        (ScorerName.EAP, 5, [1.0]),
        (ScorerName.EAP_IG, 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        (ScorerName.EAP_IG, 1, [0.5]),
        (ScorerName.CLEAN_CORRUPTED, 5, [0.0, 1.0]),
    ],
)
def test_each_scorer_takes_gradients_at_its_own_points(scorer: ScorerName, steps: int, points: list[float]) -> None:
    experiment = Recording()
    score(experiment, scorer, Settings(steps=steps))
    assert experiment.points == pytest.approx(points)


def test_denoising_is_scored_from_the_corrupted_end() -> None:
    """There the slope is 1, so eap gives the linear effects; exact restores one edge."""
    assert named(curved_toy(Direction.DENOISING), ScorerName.EAP) == pytest.approx(PENCIL_EFFECTS)
    exact = named(curved_toy(Direction.DENOISING), ScorerName.EXACT)
    assert exact["m0->logits"] == pytest.approx(6 * np.tanh(9 / 6))


# ---------------------------------------------------------------------------------------------------- what is refused


def test_eap_with_kl_is_refused_because_every_score_would_be_zero() -> None:
    with pytest.raises(UsageError, match=r"zero gradient at the clean run.*--scorer eap-ig"):
        score(Recording(Metric.KL), ScorerName.EAP)
    for scorer in (ScorerName.EAP_IG, ScorerName.CLEAN_CORRUPTED, ScorerName.EXACT, ScorerName.RANDOM):
        score(Recording(Metric.KL), scorer)


def test_fewer_than_one_step_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 step, got 0"):
        score(ToyExperiment(), ScorerName.EAP_IG, Settings(steps=0))


# -------------------------------------------------------------------------------------------------------- some edges


@pytest.mark.parametrize("scorer", [name for name in ScorerName if name not in NOT_ON_TOYS])
def test_only_the_edges_asked_for_get_a_score_and_it_is_the_same(scorer: ScorerName) -> None:
    toy = planted_toy(SHAPE, 15, seed=2)
    edges = np.array([40, 3, 3, 77])
    some, every = score(toy, scorer, Settings(edges=edges)), score(toy, scorer)
    assert some.scored.tolist() == [3, 40, 77]
    np.testing.assert_array_equal(some.values[some.scored], every.values[some.scored])
    assert len(every.scored) == toy.graph.n_edges


# ------------------------------------------------------------------------------------------------------------ random


def test_random_scores_follow_the_seed_and_nothing_else() -> None:
    toy, other = planted_toy(SHAPE, 5, seed=0), planted_toy(SHAPE, 9, seed=4)
    first = score(toy, ScorerName.RANDOM, Settings(seed=3)).values
    np.testing.assert_array_equal(first, score(other, ScorerName.RANDOM, Settings(seed=3)).values)
    assert not np.array_equal(first, score(toy, ScorerName.RANDOM, Settings(seed=4)).values)
    assert abs(first.mean()) < 0.3
    assert first.std() == pytest.approx(1, abs=0.2)
    assert score(toy, ScorerName.RANDOM).sd is None


def test_progress_reaches_the_caller() -> None:
    calls: list[tuple[int, int]] = []
    score(ToyExperiment(), ScorerName.EXACT, Settings(progress=lambda *call: calls.append(call)))
    assert calls == [(8, 8)]
