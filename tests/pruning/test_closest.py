"""The closest circuit: predicted sums by hand, the rule of stopping, and every claim measured again on other pairs."""

from dataclasses import dataclass

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.errors import UsageError
from circuits.files.journal import NOWHERE
from circuits.graph import Edge, EdgeIndices, ModelShape
from circuits.patching.protocol import Progress, no_progress
from circuits.pruning import Selection, closest
from circuits.pruning.residuals import Residuals, greedily
from circuits.pruning.stopping import Candidate, candidate, chosen
from circuits.scoring import score
from circuits.statistics import error, faithfulness, fidelity
from circuits.vocabulary import Metric, ScorerName
from tests.toy import LinearToy, mean_and_sd, planted_toy

SHAPE = ModelShape(n_layers=4, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)


@dataclass(frozen=True)
class Measured:
    """Two ends, as if measured."""

    clean: np.ndarray
    corrupted: np.ndarray


@dataclass(frozen=True, eq=False)
class Ways:
    """``input->m_k->logits`` adds ``effects[pair, k]`` when both of its edges are live; nothing else does anything."""

    effects: np.ndarray

    metric = Metric.LOGIT_DIFFERENCE
    kept = NOWHERE

    def __post_init__(self) -> None:
        n = self.effects.shape[1]
        graph = build_graph(ModelShape(n_layers=n, n_heads=1, n_kv_heads=1, d_model=1, d_head=1))
        ends = [(f"input->m{k}", f"m{k}->logits") for k in range(n)]
        ways = np.array([[graph.index(Edge.parse(text)) for text in texts] for texts in ends])
        for name, value in (("graph", graph), ("ways", ways), ("n_pairs", len(self.effects))):
            object.__setattr__(self, name, value)

    @property
    def clean(self) -> np.ndarray:
        return self.effects.sum(1)

    @property
    def corrupted(self) -> np.ndarray:
        return np.zeros(len(self.effects))

    def circuits(self, masks: np.ndarray, *, progress: Progress = no_progress) -> np.ndarray:
        live = np.asarray(masks, dtype=float)[:, self.ways]
        return live.prod(2) @ self.effects.T

    def circuit_gradient(self, weights: np.ndarray, *, among: EdgeIndices | None = None) -> tuple:
        live = weights[self.ways]
        slopes = np.zeros((self.n_pairs, self.graph.n_edges))
        slopes[:, self.ways[:, 0]], slopes[:, self.ways[:, 1]] = self.effects * live[:, 1], self.effects * live[:, 0]
        return self.effects @ live.prod(1), slopes

    def attributions(self, points: list[float], *, progress: Progress = no_progress) -> np.ndarray:
        return mean_and_sd(self.circuit_gradient(np.ones(self.graph.n_edges))[1])


def values_of(toy: LinearToy | Ways, edges: EdgeIndices) -> np.ndarray:
    mask = np.zeros(toy.graph.n_edges, dtype=np.bool_)
    mask[edges] = True
    return toy.circuits(mask[None])[0]


# ---------------------------------------------------------------------------------------------------------- by hand


def test_the_loss_is_the_squared_error_and_three_times_the_squared_miss_of_the_mean() -> None:
    ends = Measured(np.array([4.0, 2.0]), np.zeros(2))
    values = np.array([3.0, 2.0])
    rows = Residuals(ends).of(values)
    assert np.square(rows).sum() == pytest.approx(1 / 20 + 3 * (1 / 6) ** 2)
    assert np.square(rows).sum() == pytest.approx(float(error(ends, values)) ** 2 + 3 * (1 - 5 / 6) ** 2)
    assert np.square(Residuals(ends).of(np.zeros(2))).sum() == pytest.approx(4)


def test_changes_that_cancel_pair_by_pair_go_together_and_others_that_cancel_on_average_do_not() -> None:
    effects = np.array([[3.0, -3.0, 1.0], [-3.0, 3.0, 1.0]])
    taken, rest = greedily(np.zeros(2), effects, 3, ridge=0)
    assert taken.tolist() == [2, 0, 1]
    assert rest.tolist() == [1, 1]
    taken, rest = greedily(np.array([-1.0, -1.0]), effects, 2, ridge=0, only_gains=True)
    assert taken.tolist() == [2]
    assert rest.tolist() == [0, 0]


def test_a_ridge_prefers_small_changes_to_large_ones_that_fit_as_well() -> None:
    effects = np.array([[-2.0, -0.5]])
    assert greedily(np.array([1.5]), effects, 1, ridge=0)[0].tolist() == [0]  # leaves 0.5 where the other leaves 1
    assert greedily(np.array([1.5]), effects, 1, ridge=1)[0].tolist() == [1]


def test_a_candidate_has_the_jackknifes_standard_errors() -> None:
    generator = np.random.default_rng(0)
    ends, values = Measured(generator.normal(3, 1, 30), np.zeros(30)), generator.normal(2.5, 1, 30)
    found = candidate(ends, np.arange(3), values)
    assert (found.error, found.faithfulness) == pytest.approx(
        (float(error(ends, values)), float(faithfulness(ends, values)))
    )
    picks = generator.integers(30, size=(4000, 30))
    drawn = [error(Measured(ends.clean[i], ends.corrupted[i]), values[i]) for i in picks]
    assert found.error_se == pytest.approx(np.std(drawn), rel=0.15)
    ratios = [faithfulness(Measured(ends.clean[i], ends.corrupted[i]), values[i]) for i in picks]
    assert found.faithfulness_se == pytest.approx(np.std(ratios), rel=0.15)


def made(size: int, error: float, f: float = 1.0, *, error_se: float = 0.02, f_se: float = 0.01) -> Candidate:
    return Candidate(np.arange(size), error, error_se, f, f_se)


def test_the_smallest_that_surely_reaches_the_target_is_taken_then_one_that_does_then_the_smallest_near_the_best() -> (
    None
):
    sure, just, average = made(50, 0.28), made(40, 0.31), made(30, 0.5, 0.99)
    assert chosen([made(90, 0.1), sure, just, average], 0.9) is sure
    assert chosen([just, average, made(60, 0.311)], 0.9) is just
    shrunk = made(20, 0.25, 0.75)  # close pair by pair for its size, a quarter short on average
    assert not shrunk.reaches(0.9)
    best, near = made(100, 0.40), made(70, 0.415)
    assert chosen([best, near, average], 0.9) is near


# ------------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize(("noise", "saturation"), [(0.0, None), (0.05, None), (0.08, 3.0)])
def test_what_is_found_holds_on_pairs_that_nothing_was_chosen_on_and_every_claim_is_true(
    noise: float, saturation: float | None
) -> None:
    toy = planted_toy(SHAPE, 15, seed=1, n_pairs=40, noise=noise, saturation=saturation)
    fit, choose, heldout = toy.part(0, 16), toy.part(16, 28), toy.part(28, 40)
    reports: list[Selection] = []
    found = closest(fit, choose, score(fit, ScorerName.EAP), report=lambda _, each: reports.append(each))
    assert found.reached
    assert float(fidelity(heldout, values_of(heldout, found.edges))) > 0.9
    values = values_of(choose, found.edges)
    assert found.error == pytest.approx(float(error(choose, values)))
    assert found.faithfulness == pytest.approx(float(faithfulness(choose, values)))
    assert abs(1 - found.faithfulness) <= 0.1
    assert len(found.edges) <= 20
    assert found.removal is not None
    without = [faithfulness(choose, values_of(choose, np.delete(found.edges, i))) for i in range(len(found.edges))]
    np.testing.assert_allclose(found.removal, found.faithfulness - np.array(without))
    assert len(reports) > 3
    if not noise:
        assert set(found.edges.tolist()) <= set(toy.planted.tolist())


def test_no_single_edge_can_go_from_what_is_said_to_be_locally_minimal() -> None:
    toy = planted_toy(SHAPE, 15, seed=2, n_pairs=28)
    fit, choose = toy.part(0, 16), toy.part(16, 28)
    found = closest(fit, choose, score(fit, ScorerName.EAP))
    assert found.locally_minimal
    for i in range(len(found.edges)):
        shorter = np.delete(found.edges, i)
        assert not candidate(choose, shorter, values_of(choose, shorter)).reaches(0.9, by=1)


def ways(n_pairs: int, seed: int) -> Ways:
    """Two ways that make 8 nats between them, one that has nothing to do with the behaviour on any pair, and one that
    takes it away again."""
    generator = np.random.default_rng(seed)
    share, noise = generator.uniform(0.3, 0.7, n_pairs), generator.normal(0, 2, n_pairs)
    return Ways(np.column_stack([8 * share, 8 - 8 * share, noise, -noise]))


def test_ways_that_cancel_on_every_pair_are_dropped_together() -> None:
    """Without one of them faithfulness would still be near 1, and the error half the gap on a pair or more."""
    fit, choose, heldout = (ways(n, seed) for n, seed in ((24, 0), (24, 1), (40, 2)))
    found = closest(fit, choose, score(fit, ScorerName.EAP))
    assert found.edges.tolist() == sorted(fit.ways[:2].flatten().tolist())
    assert float(fidelity(heldout, values_of(heldout, found.edges))) == pytest.approx(1)
    lopsided = np.sort(fit.ways[:3].flatten())
    assert float(faithfulness(heldout, values_of(heldout, lopsided))) == pytest.approx(1, abs=0.1)
    assert float(error(heldout, values_of(heldout, lopsided))) > 0.2


def test_the_search_ends_when_time_is_up_with_the_best_so_far_and_goes_on_from_there() -> None:
    toy = planted_toy(SHAPE, 15, seed=1, n_pairs=28, noise=0.05)
    fit, choose = toy.part(0, 16), toy.part(16, 28)
    scores = score(fit, ScorerName.EAP)
    first = closest(fit, choose, scores, seconds=1e-9)
    assert len(first.edges) == first.proposed  # not one round
    assert first.reached
    later = closest(fit, choose, scores, begin=first)
    assert later.edges.tolist() == closest(fit, choose, scores).edges.tolist()


def test_where_no_circuit_reaches_the_target_the_best_one_is_returned_and_said_to_miss_it() -> None:
    """On choose pairs the model's values have noise that no edge carries on fit pairs."""
    fit, choose = ways(24, 0), ways(24, 1)
    scores = score(fit, ScorerName.EAP)
    moved = Measured(choose.clean + np.random.default_rng(3).normal(0, 3, 24), choose.corrupted)

    class Noisy(Ways):
        clean = moved.clean

    found = closest(fit, Noisy(choose.effects), scores)
    assert not found.reached
    assert len(found.edges)
    assert found.error is not None
    assert found.error > np.sqrt(0.1)


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    toy = planted_toy(SHAPE, 15, seed=1, n_pairs=8)
    with pytest.raises(UsageError, match="target fidelity must be between 0 and 1"):
        closest(toy, toy, score(toy, ScorerName.EAP), target=target)
