"""How good a circuit is: ratios, intervals, random circuits, curves and areas, with numbers worked out by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.builder import build_graph
from circuits.evaluation import evaluate
from circuits.evaluation.curve import SHARES, best_edges, count_edges, curve
from circuits.evaluation.evaluating import accuracy
from circuits.evaluation.random_circuits import heads_swapped, random_circuits
from circuits.graph import ComputationalGraph, Edge, EdgeIndices, ModelShape, NodeKind
from circuits.pruning import connected
from circuits.report.sentences import verdict
from circuits.scores import EdgeScores
from circuits.scoring import score
from circuits.statistics import Estimate, Likeness, faithfulness, faithfulness_interval
from circuits.vocabulary import Metric, ScorerName, Universe
from tests.example_circuits import EVALUATION
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
def test_a_circuit_with_swapped_heads_keeps_size_degrees_layers_and_mlps(seed: int, n_edges: int) -> None:
    edges = np.sort(np.random.default_rng(seed).choice(GRAPH.n_edges, n_edges, replace=False))
    before = np.zeros(GRAPH.n_edges, dtype=np.bool_)
    before[edges] = True
    after = heads_swapped(GRAPH, edges, seed)
    assert int(after.sum()) == n_edges  # nothing taken twice, nothing outside the graph
    assert degrees(GRAPH, after) == degrees(GRAPH, before)
    np.testing.assert_array_equal(after, heads_swapped(GRAPH, edges, seed))
    here, there = (list(GRAPH.edges(np.flatnonzero(mask))) for mask in (before, after))
    kept = (NodeKind.INPUT, NodeKind.MLP, NodeKind.LOGITS)
    for end in (lambda edge: edge.sender, lambda edge: edge.receiver.node):
        nodes = [
            sorted((end(edge).layer, str(end(edge))) for edge in each if end(edge).kind in kept)
            for each in (here, there)
        ]
        assert nodes[0] == nodes[1]
        assert sorted(end(edge).layer for edge in here) == sorted(end(edge).layer for edge in there)


def test_paths_stay_paths_when_heads_are_swapped() -> None:
    for seed in range(20):
        edges = planted_edges(GRAPH, 12, seed=seed)
        moved = np.flatnonzero(heads_swapped(GRAPH, edges, seed))
        assert len(connected(GRAPH, edges)) == len(edges)
        np.testing.assert_array_equal(connected(GRAPH, moved), moved)


def test_a_chain_without_branches_goes_through_other_heads() -> None:
    graph = build_graph(ModelShape(n_layers=30, n_heads=9, n_kv_heads=3, d_model=1, d_head=1))
    edges = edges_of(graph, "input->m0", "m0->a4.kv1<v>", "a4.h4->m9", "m9->logits")
    kept = [heads_swapped(graph, edges, seed)[edges] for seed in range(30)]
    assert all(each[0] and each[3] for each in kept)
    assert np.mean([each[1:3].mean() for each in kept]) < 0.4


def test_circuits_without_heads_have_no_random_ones() -> None:
    graph = build_graph(ModelShape(n_layers=30, n_heads=9, n_kv_heads=3, d_model=1, d_head=1))
    edges = edges_of(graph, "input->m0", "m0->m9", "m9->logits")
    assert random_circuits(graph, edges, 5, 0).shape == (0, graph.n_edges)


def test_the_random_control_does_well_where_all_heads_do_the_same_and_the_verdict_says_so() -> None:
    """Every head of the toy's layer copies the input with the same weight, so that other heads do exactly as well."""
    weights = np.zeros(GRAPH.n_edges)
    names = [f"a0.h{head}->logits" for head in range(4)] + [f"input->a0.kv{group}<v>" for group in range(2)]
    weights[edges_of(GRAPH, *names)] = 1.0
    toy = LinearToy(SHAPE, weights, (1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    found = evaluate(toy, edges_of(GRAPH, "a0.h0->logits", "input->a0.kv0<v>"))
    assert found.random_baseline is not None
    assert found.random_baseline.fidelities == pytest.approx((0.4375,) * 3)  # a quarter of the effect: 1 - 0.75^2
    assert found.likeness is not None
    assert found.likeness.fidelity.value == pytest.approx(0.4375)
    assert any("Random heads of the same layers do as well" in sentence for sentence in verdict(found))


@pytest.mark.parametrize(
    ("fidelity", "low", "high", "f", "said", "claimed"),
    [
        (0.95, 0.92, 0.97, 0.98, "Sufficient: fidelity 0.95 [0.92, 0.97] on 64 held-out pairs", "on single pairs. Not"),
        (0.95, 0.85, 0.97, 0.98, "Borderline: fidelity 0.95 [0.85, 0.97]", "these pairs do not tell"),
        (0.88, 0.81, 0.91, 0.96, "0.9 is neither confirmed nor excluded", "these pairs do not tell"),
        (
            0.70,
            0.60,
            0.80,
            0.96,
            "Mean only: its mean effect is near the model's (faithfulness 0.96)",
            "not that it is close to the model on single pairs",
        ),
        (0.95, 0.92, 0.97, 0.70, "more than a tenth off (faithfulness 0.70)", "on the mean it is too small"),
        (0.95, 0.92, 0.97, 1.30, "more than a tenth off (faithfulness 1.30)", "on the mean it is too large"),
        (0.88, 0.81, 0.91, 0.70, "Not sufficient: alone it does not", "Claim nothing"),
        (0.40, 0.30, 0.50, 0.50, "[0.30, 0.50] on 64 held-out pairs, the interval below 0.9", "Claim nothing"),
    ],
)
def test_the_verdict_says_what_may_be_claimed_and_what_not(
    fidelity: float, low: float, high: float, f: float, said: str, claimed: str
) -> None:
    alike = Likeness(64, 64, Estimate(fidelity, low, high), Estimate(0.1, 0.0, 0.2))
    found = verdict(replace(EVALUATION, likeness=alike, faithfulness=f, necessity=0.05))
    assert len(found) == 2
    assert said in found[0]
    assert claimed in found[1]
    assert ("Not shown by this: that no other" in found[1]) != (claimed == "Claim nothing")
    other = verdict(replace(EVALUATION, likeness=alike, faithfulness=f, necessity=0.45))
    assert other[1] == "Corrupting all its edges, and only these, takes away 55% of the mean effect."


def test_a_single_pair_which_has_no_interval_is_never_enough() -> None:
    for fidelity, said in ((0.95, "Borderline: fidelity 0.95"), (0.5, "held-out pairs, below 0.9.")):
        alike = Likeness(1, 1, Estimate(fidelity, None, None), Estimate(0.1, None, None))
        found = verdict(replace(EVALUATION, likeness=alike, faithfulness=0.98, necessity=0.0))
        assert said in found[0]
        assert "interval" not in found[0]


def test_what_is_hardly_taken_away_has_no_sign() -> None:
    alike = Likeness(64, 64, Estimate(0.1, 0.0, 0.2), Estimate(0.9, 0.8, 1.0))
    found = verdict(replace(EVALUATION, likeness=alike, faithfulness=0.0, necessity=1.001))
    assert "takes away 0% of the mean effect" in found[1]


@pytest.mark.parametrize(
    ("value", "said"), [(0.95, ", and it follows how pairs differ (cor"), (0.54, "differ only in part (correlation")]
)
def test_the_verdict_says_whether_differences_between_pairs_are_followed(value: float, said: str) -> None:
    alike = Likeness(64, 64, Estimate(0.95, 0.92, 0.97), Estimate(0.1, 0.0, 0.2), Estimate(value, value, value))
    assert said in verdict(replace(EVALUATION, likeness=alike, faithfulness=0.98, necessity=0.0))[1]


def test_a_circuit_that_is_cut_off_is_said_to_be_the_empty_one() -> None:
    alike = Likeness(64, 64, Estimate(0.0, 0.0, 0.0), Estimate(1.0, 1.0, 1.0))
    words = verdict(replace(EVALUATION, likeness=alike, faithfulness=0.0, necessity=0.0))
    assert words[1] == "It does exactly what the empty circuit does: nothing in it reaches the output."


# ------------------------------------------------------------------------------------------------------ curve and areas


class Twenty(LinearToy):
    """Counts circuits instead of running them: f is the share of live edges, to some power."""

    power = 1.0

    def circuits(self, masks: object, **options: object) -> np.ndarray:
        return np.array([[float(np.mean(mask)) ** self.power] for mask in masks])


def scores_of(graph: ComputationalGraph, values: np.ndarray) -> EdgeScores:
    return EdgeScores(graph, values, "made up", measured=False)


def mib_areas(f_signed: Sequence[float], f_absolute: Sequence[float]) -> tuple[float, float]:
    """MIB's rule, written out apart from the code: trapezoids between ten shares, none from 0 to the first."""
    x = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    gap = [abs(1 - f) for f in f_absolute]
    widths = [right - left for left, right in pairwise(x)]
    cpr = sum(w * (f_signed[i] + f_signed[i + 1]) / 2 for i, w in enumerate(widths))
    return cpr, sum(w * (gap[i] + gap[i + 1]) / 2 for i, w in enumerate(widths))


def mib_sizes(n_edges: int) -> list[int]:
    return [int(share * n_edges) for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)]


def test_areas_of_a_straight_line_are_half_of_what_lies_right_of_the_first_share() -> None:
    """f equal to the number of edges: the trapezoids from 0.001 to 1, with sizes cut to whole edges."""
    toy = Twenty(SHAPE, np.ones(GRAPH.n_edges))
    points, (mib, own) = curve(toy, scores_of(GRAPH, np.ones(GRAPH.n_edges)), universes=tuple(Universe)[::-1])
    line = [size / GRAPH.n_edges for size in mib_sizes(GRAPH.n_edges)]
    assert [point.requested for point in points] == list(SHARES)
    assert (mib.universe, mib.edges) == ("query-head", GRAPH.copies.sum())
    assert (own.universe, own.edges) == ("group", GRAPH.n_edges)
    assert (own.cpr, own.cmd) == pytest.approx(mib_areas(line, line))
    assert own.cpr + own.cmd == pytest.approx(0.999)


def test_cpr_and_cmd_of_the_pencil_toy_by_hand() -> None:
    """Eight edges by effect: 9, 8, 6, 3, 2, 1, 0, 0. At shares to 10 % no edge is taken, at 20 % one, at 50 % four, at
    100 % all; f is 0, 0, (6 + 3) / 12 and 1."""
    toy = ToyExperiment()
    points, (areas,) = curve(toy, score(toy, ScorerName.EXACT), universes=[Universe.QUERY_HEAD])
    assert [point.edges for point in points] == [0, 0, 0, 0, 0, 0, 0, 1, 4, 8]
    assert [point.faithfulness for point in points][-3:] == [0, 0.75, 1]
    assert (areas.universe, areas.edges) == ("query-head", 8)
    assert areas.cpr == pytest.approx(0.3 * 0.75 / 2 + 0.5 * (0.75 + 1) / 2)
    assert areas.cmd == pytest.approx(0.199 * 1 + 0.3 * (1 + 0.25) / 2 + 0.5 * 0.25 / 2)


def test_cpr_ranks_by_score_and_cmd_by_magnitude_whichever_is_drawn() -> None:
    """m0->logits with its score turned round comes first by |score| and last by score."""
    toy = ToyExperiment()
    effects = score(toy, ScorerName.EXACT).values.copy()
    effects[toy.graph.index(Edge.parse("m0->logits"))] *= -1
    scores = scores_of(toy.graph, effects)
    signed, by_score = curve(toy, scores, universes=[Universe.QUERY_HEAD])
    absolute, by_magnitude = curve(toy, scores, by_magnitude=True, universes=[Universe.QUERY_HEAD])
    assert by_score == by_magnitude
    assert curve(toy, scores)[1] == (replace(by_score[0], cmd=None),)
    assert curve(toy, scores, by_magnitude=True)[1] == (replace(by_score[0], cpr=None),)
    assert [point.faithfulness for point in signed][-3:] == [0, pytest.approx(2 / 12), 1]
    assert [point.faithfulness for point in absolute][-3:] == [0, 0.75, 1]
    f_signed, f_absolute = ([point.faithfulness for point in points] for points in (signed, absolute))
    assert (by_score[0].cpr, by_score[0].cmd) == pytest.approx(mib_areas(f_signed, f_absolute))


def test_a_group_counts_once_per_query_head_and_shares_its_score_there() -> None:
    """Two heads read each group: a group's edge of score 1 comes behind a query's of 0.6, and takes two places."""
    values = np.zeros(GRAPH.n_edges)
    given = {"input->a0.kv0<k>": 1.0, "input->a0.h0<q>": 0.6, "input->a0.h1<q>": 0.4, "input->a0.h2<q>": 0.3}
    for name, value in given.items():
        values[GRAPH.index(Edge.parse(name))] = value
    scores = scores_of(GRAPH, values)
    per_head = int(GRAPH.copies.sum())
    assert per_head == build_graph(replace(SHAPE, n_kv_heads=SHAPE.n_heads)).n_edges

    def first(universe: Universe, count: int) -> list[str]:
        share = next(i for i, size in enumerate(mib_sizes(count_edges(scores, universe))) if size >= count)
        edges = best_edges(scores, universe, by_magnitude=False)[share]
        return [str(edge) for edge in GRAPH.edges(edges)]

    assert mib_sizes(GRAPH.n_edges)[:5] == [0, 0, 0, 1, 3]
    assert mib_sizes(per_head)[:5] == [0, 0, 1, 2, 5]
    assert first(Universe.GROUP, 1) == ["input->a0.kv0<k>"]
    assert first(Universe.QUERY_HEAD, 1) == ["input->a0.h0<q>"]
    assert first(Universe.QUERY_HEAD, 2) == ["input->a0.h0<q>"]  # the group's two do not fit
    assert first(Universe.QUERY_HEAD, 5) == [*list(given)[1:], "input->a0.kv0<k>"]
    scores = replace(scores, scorer=ScorerName.LEARNED_MASKS)  # a probability is that of each copy
    assert first(Universe.QUERY_HEAD, 2) == ["input->a0.kv0<k>"]


def test_beating_the_model_raises_cpr_but_also_cmd() -> None:
    class Above(Twenty):
        def circuits(self, masks: object, **options: object) -> np.ndarray:
            return np.array([[{0: 0.0, GRAPH.n_edges: 1.0}.get(int(np.sum(mask)), 1.5)] for mask in masks])

    ones = np.ones(GRAPH.n_edges)
    _, areas = curve(Above(SHAPE, ones), scores_of(GRAPH, ones), universes=tuple(Universe))
    assert len(areas) == 2
    assert all(each.cpr is not None and each.cpr > 1.2 for each in areas)
    assert all(each.cmd is not None and each.cmd > 0.3 for each in areas)


def test_a_ranking_of_some_edges_ends_at_their_number_and_has_no_areas() -> None:
    toy = planted_toy(SHAPE, 10, seed=0)
    values = np.full(GRAPH.n_edges, np.nan)
    values[toy.planted] = 1.0
    points, areas = curve(toy, scores_of(GRAPH, values), universes=tuple(Universe))
    assert max(point.edges for point in points) == 10
    assert points[-1].requested == 1.0
    assert points[-1].faithfulness == pytest.approx(1)
    assert areas == ()


def test_the_curve_of_all_edges_ends_at_one_and_progress_at_its_total() -> None:
    toy = planted_toy(SHAPE, 12, seed=2, noise=0.1)
    calls: list[tuple[int, int]] = []
    scores = score(toy, ScorerName.EAP)
    points, _ = curve(toy, scores, universes=tuple(Universe), progress=lambda *call: calls.append(call))
    assert points[-1].faithfulness == pytest.approx(1)
    total = calls[-1][1]
    assert calls == [(done, total) for done in range(1, total + 1)]
    assert 10 < total <= 37


# ------------------------------------------------------------------------------------------------------------ all of it


def test_an_evaluation_of_the_pencil_toy_by_hand() -> None:
    """Inputs 1 and 3; the circuit input->v, head->MLP, MLP->logits carries 6 of 12, and so does its complement."""
    toy = ToyExperiment((1.0, 3.0))
    edges = edges_of(toy.graph, "input->a0.h0<v>", "a0.h0->m0", "m0->logits")
    found = evaluate(toy, edges, scores=score(toy, ScorerName.EXACT))
    assert (found.n, found.metric_clean, found.metric_corrupted, found.metric_circuit) == (2, 24, 0, 12)
    assert found.faithfulness == 0.5
    assert found.faithfulness_ci == pytest.approx((0.5, 0.5))  # each pair keeps half of its own gap
    assert found.necessity == pytest.approx(1 / 12)  # only input->logits is left: the head and MLP lost what they carry
    assert (found.accuracy_clean, found.accuracy_circuit) == (1, 1)
    assert len(found.curve) == 10
    assert [areas.cmd for areas in found.areas] == [None]
    assert [areas.cpr for areas in found.areas] == pytest.approx([0.3 * 0.75 / 2 + 0.5 * (0.75 + 1) / 2])
    assert found.random_baseline is None  # one head in the layer: no other to swap it with
    assert found.likeness is not None
    assert found.likeness.error.value == pytest.approx(0.5)
    assert found.likeness.fidelity.value == pytest.approx(0.75)
    assert found.curve[-1].fidelity == pytest.approx(1)
    assert found.overshoot == pytest.approx(1)


def test_the_whole_planted_circuit_is_faithful_necessary_and_better_than_random_ones() -> None:
    toy = planted_toy(SHAPE, 25, seed=5, n_pairs=8)
    found = evaluate(toy, toy.planted)
    assert found.faithfulness == pytest.approx(1)
    assert found.necessity == pytest.approx(0)
    assert found.random_baseline is not None
    assert found.random_baseline.q95 < 0.9
    assert (found.curve, found.areas) == ((), ())


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
