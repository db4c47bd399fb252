"""How good a circuit is: ratios, intervals, random circuits, curves and areas, with numbers worked out by hand."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.builder import build_graph
from circuits.evaluation import evaluate, faithfulness, faithfulness_interval
from circuits.evaluation.curve import SHARES, curve
from circuits.evaluation.faithfulness import accuracy
from circuits.evaluation.random_circuits import transplanted
from circuits.graph import ComputationalGraph, Edge, EdgeIndices, ModelShape
from circuits.pruning import connected
from circuits.scoring import score
from circuits.vocabulary import Metric, ScorerName
from tests.toy import LinearToy, ToyExperiment, planted_edges, planted_toy

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
GRAPH = build_graph(SHAPE)


@dataclass(frozen=True)
class Measured:
    """Two ends, as if measured."""

    clean: np.ndarray
    corrupted: np.ndarray


def edges_of(graph: ComputationalGraph, *names: str) -> EdgeIndices:
    return np.sort(np.array([graph.index(Edge.parse(name)) for name in names], dtype=np.int64))


# --------------------------------------------------------------------------------------------------------- faithfulness


def test_faithfulness_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    """Pairs (clean, corrupted, circuit) of (10, 0, 10) and (2, 1, 1): 11 - 1 over 12 - 1, and not 1/2."""
    ends = Measured(np.array([10.0, 2.0]), np.array([0.0, 1.0]))
    assert faithfulness(ends, np.array([10.0, 1.0])) == pytest.approx(10 / 11)
    many = faithfulness(ends, np.array([[10.0, 2.0], [0.0, 1.0], [12.0, 3.0]]))
    np.testing.assert_allclose(many, [1, 0, 14 / 11])


def test_faithfulness_of_a_metric_where_lower_is_better_is_one_at_the_clean_end_too() -> None:
    """Divergence from the clean run: 0 clean, 4 corrupted, 1 with the circuit."""
    assert faithfulness(Measured(np.zeros(2), np.full(2, 4.0)), np.ones(2)) == pytest.approx(0.75)


def test_circuits_of_the_pencil_toy() -> None:
    toy = ToyExperiment()
    mask = np.zeros(8, dtype=np.bool_)
    mask[edges_of(toy.graph, "input->m0", "m0->logits")] = True  # 3 of 12
    assert faithfulness(toy, toy.circuits([mask, ~mask])).tolist() == [0.25, 0.25]


# ------------------------------------------------------------------------------------------------------------- interval


def noisy_ends(n: int, seed: int) -> tuple[Measured, np.ndarray]:
    """Pairs with a gap of about 4 and a circuit that keeps about 0.8 of it."""
    generator = np.random.default_rng(seed)
    gap = generator.normal(4, 1, n)
    start = generator.normal(0, 1, n)
    return Measured(start + gap, start), start + 0.8 * gap + generator.normal(0, 0.7, n)


def test_the_interval_is_the_same_for_the_same_seed_and_moves_with_it() -> None:
    ends, values = noisy_ends(40, 0)
    low, high = faithfulness_interval(ends, values, seed=1)
    assert (low, high) == faithfulness_interval(ends, values, seed=1)
    assert (low, high) != faithfulness_interval(ends, values, seed=2)
    assert low < faithfulness(ends, values) < high
    assert 0.03 < high - low < 0.3


def test_nineteen_of_twenty_intervals_hold_the_true_ratio() -> None:
    held = 0
    for seed in range(100):
        ends, values = noisy_ends(40, seed)
        low, high = faithfulness_interval(ends, values, seed=seed)
        held += low <= 0.8 <= high
    assert 86 <= held <= 99


def test_an_interval_of_less_confidence_lies_inside_and_of_more_pairs_is_narrower() -> None:
    ends, values = noisy_ends(40, 3)
    low, high = faithfulness_interval(ends, values)
    inner = faithfulness_interval(ends, values, confidence=0.5)
    assert low < inner[0] < inner[1] < high
    many = faithfulness_interval(*noisy_ends(640, 3))
    assert many[1] - many[0] < 0.5 * (high - low)


def test_pairs_are_resampled_together() -> None:
    """A circuit that keeps 0.8 of every pair's own gap has no uncertainty, however much gaps differ."""
    ends, _ = noisy_ends(30, 1)
    values = ends.corrupted + 0.8 * (ends.clean - ends.corrupted)
    assert faithfulness_interval(ends, values) == pytest.approx((0.8, 0.8))


def test_one_pair_has_no_interval() -> None:
    low, high = faithfulness_interval(Measured(np.ones(1), np.zeros(1)), np.ones(1))
    assert math.isnan(low)
    assert math.isnan(high)


def test_accuracy_is_the_share_above_zero() -> None:
    assert accuracy(np.array([1.0, -1.0, 0.0, 2.0])) == 0.5


# ------------------------------------------------------------------------------------------------------ random circuits


def degrees(graph: ComputationalGraph, mask: np.ndarray) -> tuple[list[int], list[int]]:
    edges = np.flatnonzero(mask)
    out, into = np.bincount(graph.edge_senders[edges]), np.bincount(graph.edge_receivers[edges])
    return sorted(out[out > 0].tolist()), sorted(into[into > 0].tolist())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), n_edges=st.integers(2, 80))
def test_a_transplanted_circuit_has_the_same_size_and_degrees(seed: int, n_edges: int) -> None:
    edges = np.sort(np.random.default_rng(seed).choice(GRAPH.n_edges, n_edges, replace=False))
    before = np.zeros(GRAPH.n_edges, dtype=np.bool_)
    before[edges] = True
    after = transplanted(GRAPH, edges, seed)
    assert int(after.sum()) == n_edges  # nothing taken twice, nothing outside the graph
    assert degrees(GRAPH, after) == degrees(GRAPH, before)
    np.testing.assert_array_equal(after, transplanted(GRAPH, edges, seed))


def test_transplanted_paths_stay_paths() -> None:
    for seed in range(20):
        edges = planted_edges(GRAPH, 12, seed=seed)
        moved = np.flatnonzero(transplanted(GRAPH, edges, seed))
        assert len(connected(GRAPH, edges)) == len(edges)
        np.testing.assert_array_equal(connected(GRAPH, moved), moved)


def test_a_chain_without_branches_goes_through_other_nodes() -> None:
    graph = build_graph(ModelShape(n_layers=30, n_heads=9, n_kv_heads=3, d_model=1, d_head=1))
    edges = edges_of(graph, "input->m0", "m0->a4.kv1<v>", "a4.h4->m9", "m9->logits")
    kept = [transplanted(graph, edges, seed)[edges].mean() for seed in range(20)]
    assert np.mean(kept) < 0.2


# ------------------------------------------------------------------------------------------------------ curve and areas


class Twenty(LinearToy):
    """Counts circuits instead of running them: f is the share of live edges, to some power."""

    power = 1.0

    def circuits(self, masks: object, **options: object) -> np.ndarray:
        return np.array([[float(np.mean(mask)) ** self.power] for mask in masks])


def test_areas_of_a_straight_line_are_one_half() -> None:
    """f equal to the share of edges: CPR and CMD are both the triangle."""
    toy = Twenty(SHAPE, np.ones(GRAPH.n_edges))
    points, cpr, cmd = curve(toy, np.arange(GRAPH.n_edges))
    for point, share in zip(points, SHARES, strict=True):
        assert point.requested == share
        assert point.faithfulness == pytest.approx(point.edges / GRAPH.n_edges)
    assert (cpr, cmd) == pytest.approx((0.5, 0.5))
    assert points[-1].edges == GRAPH.n_edges


def test_cpr_and_cmd_of_the_pencil_toy_by_hand() -> None:
    """Eight edges ranked by effect: 9, 8, 6, 3, 2, 1, 0, 0. At shares to 10 % one edge is taken, at 20 % two, at 50 %
    four, at 100 % all; f is 0, 0, 6 / 12 + 3 / 12 and 1 (one edge alone leads nowhere, m0 needs what it reads)."""
    toy = ToyExperiment()
    points, cpr, cmd = curve(toy, score(toy, ScorerName.EXACT).ranked())
    assert [point.edges for point in points] == [1, 1, 1, 1, 1, 1, 1, 2, 4, 8]
    assert [point.faithfulness for point in points][-3:] == [0, 0.75, 1]
    assert cpr == pytest.approx(0.25 * 0.75 / 2 + 0.5 * (0.75 + 1) / 2)
    assert cmd == pytest.approx(0.25 * 1 + 0.25 * (1 + 0.25) / 2 + 0.5 * 0.25 / 2)


def test_beating_the_model_raises_cpr_but_also_cmd() -> None:
    class Above(Twenty):
        def circuits(self, masks: object, **options: object) -> np.ndarray:
            return np.array([[{0: 0.0, GRAPH.n_edges: 1.0}.get(int(np.sum(mask)), 1.5)] for mask in masks])

    _, cpr, cmd = curve(Above(SHAPE, np.ones(GRAPH.n_edges)), np.arange(GRAPH.n_edges))
    assert cpr > 1.3
    assert cmd > 0.3


def test_a_ranking_of_some_edges_ends_at_their_number_and_says_so() -> None:
    toy = planted_toy(SHAPE, 10, seed=0)
    points, _, _ = curve(toy, toy.planted)
    assert max(point.edges for point in points) == 10
    assert points[-1].requested == 1.0
    assert points[-1].faithfulness == pytest.approx(1)


def test_the_curve_of_all_edges_ends_at_one_and_progress_at_ten() -> None:
    toy = planted_toy(SHAPE, 12, seed=2, noise=0.1)
    calls: list[tuple[int, int]] = []
    points, _, _ = curve(toy, score(toy, ScorerName.EAP).ranked(), progress=lambda *call: calls.append(call))
    assert points[-1].faithfulness == pytest.approx(1)
    assert calls[-1] == (10, 10)


# ------------------------------------------------------------------------------------------------------------ all of it


def test_an_evaluation_of_the_pencil_toy_by_hand() -> None:
    """Inputs 1 and 3; the circuit input->v, head->MLP, MLP->logits carries 6 of 12, and so does its complement."""
    toy = ToyExperiment((1.0, 3.0))
    edges = edges_of(toy.graph, "input->a0.h0<v>", "a0.h0->m0", "m0->logits")
    found = evaluate(toy, edges, ranked=score(toy, ScorerName.EXACT).ranked())
    assert (found.n, found.metric_clean, found.metric_corrupted, found.metric_circuit) == (2, 24, 0, 12)
    assert found.faithfulness == 0.5
    assert found.faithfulness_ci == pytest.approx((0.5, 0.5))  # each pair keeps half of its own gap
    assert found.necessity == pytest.approx(1 / 12)  # only input->logits is left: the head and MLP lost what they carry
    assert (found.accuracy_clean, found.accuracy_circuit) == (1, 1)
    assert len(found.curve) == 10
    assert found.cpr == pytest.approx(0.25 * 0.75 / 2 + 0.5 * (0.75 + 1) / 2)
    assert found.random_baseline is not None
    assert found.random_baseline.n == 20
    assert 0 <= found.random_baseline.q05 <= found.random_baseline.median <= found.random_baseline.q95 <= 1


def test_the_whole_planted_circuit_is_faithful_necessary_and_better_than_random_ones() -> None:
    toy = planted_toy(SHAPE, 25, seed=5, n_pairs=8)
    found = evaluate(toy, toy.planted)
    assert found.faithfulness == pytest.approx(1)
    assert found.necessity == pytest.approx(0)
    assert found.random_baseline is not None
    assert found.random_baseline.q95 < 0.9
    assert (found.curve, found.cpr, found.cmd) == ((), None, None)


def test_an_evaluation_follows_its_seed() -> None:
    toy = planted_toy(SHAPE, 25, seed=5, n_pairs=8, noise=0.1)
    edges = planted_edges(GRAPH, 25, seed=5)
    assert evaluate(toy, edges, seed=1) == evaluate(toy, edges, seed=1)
    assert evaluate(toy, edges, seed=1).random_baseline != evaluate(toy, edges, seed=2).random_baseline


def test_empty_circuits_and_metrics_where_lower_is_better_are_evaluated_too() -> None:
    toy = ToyExperiment((1.0, 2.0))
    toy.metric = Metric.KL
    found = evaluate(toy, np.array([], dtype=np.int64))
    assert (found.faithfulness, found.necessity, found.random_baseline) == (0, 1, None)
    assert (found.accuracy_clean, found.accuracy_circuit) == (None, None)
