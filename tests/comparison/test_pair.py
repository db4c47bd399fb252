"""Comparison of circuits: numbers worked out by hand, chance level, refusal, words."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.comparison import Membership, difference
from circuits.comparison.overlap import Chance, chance_overlap, matched_chance, sampled_chance
from circuits.comparison.pair import edge_strata
from circuits.comparison.rewiring import rewired, shuffled_within
from circuits.errors import UsageError
from circuits.scores import EdgeScores
from tests.example_circuits import GROUPED, ONE_LAYER, circuit_of, random_circuit

# One layer, two heads: 13 edges (6 into q, k, v of the heads, 3 into the MLP, 4 into the logits).
A = circuit_of({"input->a0.h0<q>": 2.0, "a0.h0->m0": 1.0, "m0->logits": -1.0}, ONE_LAYER, name="first")
B = circuit_of({"a0.h0->m0": 3.0, "a0.h1->m0": 2.0, "m0->logits": 4.0, "input->logits": -1.0}, ONE_LAYER, name="second")


def names(indices: np.ndarray) -> list[str]:
    return [str(A.graph.edge(int(index))) for index in indices]


def test_edges_are_sorted_into_shared_and_only_one_circuits() -> None:
    diff = difference(A, B)
    assert names(diff.shared) == ["a0.h0->m0", "m0->logits"]
    assert names(diff.only_a) == ["input->a0.h0<q>"]
    assert names(diff.only_b) == ["a0.h1->m0", "input->logits"]
    assert names(diff.sign_flips) == ["m0->logits"]
    assert dict(zip(names(diff.union), diff.membership, strict=True)) == {
        "input->a0.h0<q>": Membership.ONLY_A,
        "a0.h0->m0": Membership.SHARED,
        "a0.h1->m0": Membership.ONLY_B,
        "input->logits": Membership.ONLY_B,
        "m0->logits": Membership.SIGN_FLIP,
    }


def test_edge_overlap_and_its_chance_level_are_those_worked_out_by_hand() -> None:
    overlap = difference(A, B).edge_overlap
    # 13 edges, 3 of A; B draws 4. Ways to share 0, 1, 2, 3: C(3,s) C(10,4-s) = 210, 360, 135, 10 of 715.
    assert (overlap.population, overlap.size_a, overlap.size_b, overlap.shared) == (13, 3, 4, 2)
    assert overlap.jaccard == 2 / 5
    assert overlap.expected_shared == pytest.approx(12 / 13)
    assert overlap.p_value == pytest.approx((135 + 10) / 715)
    assert overlap.expected_jaccard == pytest.approx((360 / 6 + 135 * 2 / 5 + 10 * 3 / 4) / 715)
    assert (overlap.low, overlap.high) == (0, 2)


def test_node_overlap_leaves_out_input_and_logits() -> None:
    overlap = difference(A, B).node_overlap
    # a0.h0, a0.h1 and m0 exist; A has h0 and m0, B has all three.
    assert (overlap.population, overlap.size_a, overlap.size_b, overlap.shared) == (3, 2, 3, 2)
    assert overlap.jaccard == 2 / 3
    assert overlap.p_value == 1


def test_weighted_jaccard_is_the_one_worked_out_by_hand() -> None:
    # |A| / 4: 1/2, 1/4, 1/4; |B| / 10: 3/10, 2/10, 4/10, 1/10.
    # minima: h0->m0 1/4, m0->logits 1/4; maxima: 1/2 + 3/10 + 2/10 + 4/10 + 1/10.
    assert difference(A, B).weighted_jaccard == pytest.approx(0.5 / 1.5)


def test_weighted_jaccard_does_not_depend_on_the_scale_of_either_metric() -> None:
    scaled = replace(A, scores=A.scores * 1000)
    assert difference(scaled, B).weighted_jaccard == pytest.approx(difference(A, B).weighted_jaccard)


def test_ranks_are_correlated_over_the_shared_edges() -> None:
    first = random_circuit(30, seed=1)
    scores = dict(zip(map(str, first.edge_list), range(30), strict=True))
    up = circuit_of({text: float(rank) for text, rank in scores.items()})
    squared = circuit_of({text: float(rank) ** 3 for text, rank in scores.items()})
    down = circuit_of({text: -float(rank) for text, rank in scores.items()})
    assert difference(up, squared).rank_correlation == pytest.approx(1)
    assert difference(up, down).rank_correlation == pytest.approx(-1)
    assert difference(up, down).scores.n == 30
    assert not difference(up, down).scores.on_union
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24)
    texts = list(scores)[:5]
    a = circuit_of(dict(zip(texts, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True)))
    b = circuit_of(dict(zip(texts, [2.0, 1.0, 4.0, 3.0, 5.0], strict=True)))
    assert difference(a, b).rank_correlation == pytest.approx(0.8)


def test_ranks_are_correlated_over_the_union_when_all_scores_are_known() -> None:
    a, b = random_circuit(20, seed=1), random_circuit(20, seed=2)
    values = np.random.default_rng(0).normal(size=a.graph.n_edges)
    scores = EdgeScores(a.graph, values.copy(), "eap", measured=False)
    other = EdgeScores(a.graph, np.exp(values), "eap", measured=False)
    diff = difference(a, b, scores_a=scores, scores_b=other)
    assert diff.scores.on_union
    assert diff.scores.n == len(diff.union)
    assert diff.rank_correlation == pytest.approx(1)


def test_too_few_or_constant_scores_give_no_rank_correlation() -> None:
    diff = difference(A, B)
    assert math.isnan(diff.rank_correlation)
    assert diff.scores.n == 2
    constant = replace(random_circuit(10), scores=np.ones(10))
    assert math.isnan(difference(constant, random_circuit(10)).rank_correlation)
    assert "too few" in diff.describe()


def test_a_circuit_compared_with_itself_is_the_same_in_every_number() -> None:
    circuit = random_circuit(40)
    diff = difference(circuit, circuit)
    assert diff.edge_overlap.jaccard == diff.node_overlap.jaccard == 1
    assert diff.weighted_jaccard == pytest.approx(1)
    assert diff.rank_correlation == pytest.approx(1)
    assert len(diff.only_a) == len(diff.only_b) == len(diff.sign_flips) == 0
    assert diff.edge_overlap.p_value < 1e-50


def test_swapping_the_circuits_swaps_the_sides_and_keeps_the_overlap() -> None:
    there, back = difference(A, B), difference(B, A)
    assert names(there.only_a) == names(back.only_b)
    assert there.edge_overlap.p_value == pytest.approx(back.edge_overlap.p_value)
    assert there.edge_overlap.expected_jaccard == pytest.approx(back.edge_overlap.expected_jaccard)
    assert there.weighted_jaccard == back.weighted_jaccard


def test_random_circuits_share_what_the_chance_level_says() -> None:
    shares, expected = [], 0.0
    for seed in range(40):
        a, b = random_circuit(400, seed=2 * seed), random_circuit(400, seed=2 * seed + 1)
        overlap = chance_overlap(a.graph.n_edges, 400, 400, len(np.intersect1d(a.edges, b.edges)))
        shares.append(overlap.shared)
        expected = overlap.expected_shared
        assert overlap.p_value > 1e-4
    assert np.mean(shares) == pytest.approx(expected, rel=0.1)


def test_circuits_of_different_model_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(UsageError, match=r"tiny-grouped with layers 0-10 .* one-layer with layers 0-0"):
        difference(random_circuit(3, GROUPED), A)


def test_models_of_one_shape_but_another_name_are_compared_and_the_difference_is_told() -> None:
    tuned = replace(A, model=replace(ONE_LAYER, id="one-layer-tuned"))
    assert difference(A, tuned).names == ("one-layer", "one-layer-tuned")
    assert difference(A, B).names == ("first", "second")


def test_empty_circuits_and_missing_scores_give_not_a_number_instead_of_zero() -> None:
    empty = circuit_of({}, ONE_LAYER)
    nothing = difference(empty, empty)
    assert math.isnan(nothing.edge_overlap.jaccard)
    assert "both circuits are empty" in nothing.describe()
    assert difference(A, empty).edge_overlap.jaccard == 0
    unscored = replace(A, scores=np.array([1.0, np.nan, 2.0]))
    assert math.isnan(difference(unscored, B).weighted_jaccard)
    assert "Weighted" not in difference(unscored, B).describe()
    json.dumps(difference(unscored, empty).to_dict(), allow_nan=False)


def test_the_dictionary_is_plain_json_with_edges_by_name() -> None:
    document = json.loads(json.dumps(difference(A, B).to_dict(), allow_nan=False))
    assert (document["a"], document["b"]) == ("first", "second")
    assert document["shared"] == ["a0.h0->m0", "m0->logits"]
    assert document["sign_flips"] == ["m0->logits"]
    assert document["edge_overlap"]["jaccard"] == 0.4
    assert document["rank_correlation"] == {
        "value": None,
        "low": None,
        "high": None,
        "over": "",
        "edges": 2,
        "of": "shared",
    }


def test_the_description_claims_no_more_than_the_numbers_support() -> None:
    by_chance = difference(A, B).describe()
    assert "share 2 edges (Jaccard 0.40 " in by_chance
    assert "That is no more than chance: the edges give no evidence" in by_chance
    circuit = random_circuit(40)
    beyond = difference(circuit, circuit).describe()
    assert "That is more than chance, also beside sets of the same kinds and layers and rewired circuits" in beyond
    assert "the edges give no evidence" not in beyond


def test_the_chance_overlap_of_everything_with_everything_is_certain() -> None:
    overlap = chance_overlap(5, 5, 5, 5)
    assert overlap.expected_jaccard == pytest.approx(1)
    assert (overlap.low, overlap.high, overlap.p_value) == (5, 5, 1)


# ------------------------------------------------------------------------------------------- stricter ideas of chance


def test_the_chance_of_matched_strata_is_the_one_worked_out_by_hand() -> None:
    """Stratum 0 of 2 members, one in each set: shared with 1/2. Stratum 1 of 3, two in each: 1 with 2/3, 2 with 1/3."""
    population, both = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1])
    chance = matched_chance(population, both, both, shared=3)
    assert chance.expected == pytest.approx(1 / 2 + 4 / 3)
    assert chance.p_value == pytest.approx(1 / 2 * 1 / 3)
    assert (chance.low, chance.high) == (1, 3)
    assert matched_chance(population, both, both, shared=1).p_value == pytest.approx(1)


def test_strata_of_single_members_leave_nothing_to_chance() -> None:
    singles = np.arange(5)
    chance = matched_chance(singles, singles[:3], singles[1:4], shared=2)
    assert (chance.expected, chance.low, chance.high) == (2, 2, 2)
    assert chance.p_value == pytest.approx(1)
    assert not chance.beaten


def test_edges_of_one_stratum_have_the_same_kinds_and_layers() -> None:
    graph = random_circuit(3).graph
    strata = edge_strata(graph)
    found: dict[int, set[tuple[object, ...]]] = {}
    for stratum, edge in zip(strata.tolist(), graph.edges(), strict=True):
        sender, node = edge.sender, edge.receiver.node
        found.setdefault(stratum, set()).add((sender.kind, sender.layer, node.kind, node.layer, edge.receiver.slot))
    assert all(len(kinds) == 1 for kinds in found.values())
    assert len(found) == len({kind for kinds in found.values() for kind in kinds})


def test_rewired_circuits_keep_every_nodes_number_of_edges_and_exist_in_the_model() -> None:
    circuit = random_circuit(60, seed=4)
    graph = circuit.graph
    drawn = rewired(graph, circuit.edges, np.random.default_rng(0), draws=30)
    for draw in drawn:
        assert len(set(draw.tolist())) == 60
        assert sorted(graph.edge_senders[draw]) == sorted(graph.edge_senders[circuit.edges])
        assert sorted(graph.edge_receivers[draw]) == sorted(graph.edge_receivers[circuit.edges])
    np.testing.assert_array_equal(graph.edge_senders[drawn], np.tile(graph.edge_senders[circuit.edges], (30, 1)))
    kept = [np.isin(draw, circuit.edges).mean() for draw in drawn]
    assert max(kept) < 0.8


def test_circuits_around_the_same_hub_share_more_than_uniform_chance_but_not_more_than_rewired_ones() -> None:
    """Two random halves of the edges out of one MLP: the hub explains what they share."""
    graph = random_circuit(3).graph
    hub = [i for i in range(graph.n_edges) if str(graph.edge(i).sender) == "m0"]
    generator = np.random.default_rng(3)
    others = np.setdiff1d(np.arange(graph.n_edges), hub)
    circuits = []
    for name in ("first", "second"):
        chosen = [*generator.choice(hub, len(hub) // 2, replace=False), *generator.choice(others, 30, replace=False)]
        circuits.append(circuit_of({str(graph.edge(int(i))): 1.0 for i in chosen}, name=name))
    diff = difference(*circuits)
    uniform, _, chance = diff.edge_overlap.chances
    assert uniform.beaten
    assert chance.kind == "rewired"
    assert not chance.beaten
    assert "no more than" in diff.edge_overlap.verdict()
    assert "rewired circuits of the same degrees would share" in diff.edge_overlap.verdict()


def test_shuffled_edges_keep_their_strata() -> None:
    circuit = random_circuit(60, seed=4)
    strata = edge_strata(circuit.graph)
    drawn = shuffled_within(strata, circuit.edges, np.random.default_rng(0), draws=30)
    np.testing.assert_array_equal(strata[drawn], np.tile(strata[circuit.edges], (30, 1)))
    assert all(len(set(draw.tolist())) == 60 for draw in drawn)
    assert np.mean(drawn == circuit.edges) < 0.5


def test_circuits_that_share_only_kinds_and_layers_have_no_more_weighted_overlap_than_chance() -> None:
    """Edges and weights of one circuit, shuffled among edges of the same kinds and layers: heavy single-edge strata
    keep theirs, which any-edges chance and rewiring would take for agreement."""
    circuit = random_circuit(300, seed=1)
    strata = edge_strata(circuit.graph)
    p_values = []
    for seed in range(8):
        (edges,) = shuffled_within(strata, circuit.edges, np.random.default_rng(seed), draws=1)
        order = np.argsort(edges)
        other = replace(circuit, edges=edges[order], scores=circuit.scores[order], removal=None)
        matched, rewiring = difference(circuit, other, seed=seed).weighted_chances
        assert (matched.kind, rewiring.kind) == ("matched", "rewired")
        p_values.append(matched.p_value)
    assert sorted(p_values)[1] > 0.05  # one of eight may be small
    assert np.mean(p_values) > 0.25
    same = difference(circuit, circuit)
    assert all(chance.beaten for chance in same.weighted_chances)
    assert "more than the same weights give by chance" in same.describe()


def test_the_verdict_follows_the_chance_levels() -> None:
    beaten, explained = Chance("rewired", 1, 0, 2, 0.001), Chance("matched", 9, 7, 12, 0.4)
    assert "no more than chance" in chance_overlap(1000, 50, 50, 2).verdict()
    assert "does not show that the behaviours share" in chance_overlap(1000, 50, 50, 20).verdict()
    assert "no more than sets of the same kinds" in chance_overlap(1000, 50, 50, 20, explained, beaten).verdict()
    beyond = chance_overlap(1000, 50, 50, 20, beaten).verdict()
    assert "also beside rewired circuits" in beyond
    assert "88% of the shared edges are beyond what the strictest of these expects, so the two use" in beyond
    assert "no more than" not in beyond
    small = chance_overlap(1000, 50, 50, 20, Chance("rewired", 18, 17, 19, 0.001)).verdict()
    assert "10% of the shared edges are beyond what the strictest of these expects, a small excess" in small
    assert "so the two use" not in small


def test_a_sampled_chance_counts_what_was_found_as_a_draw() -> None:
    drawn = np.arange(99.0)
    assert sampled_chance("rewired", drawn, 98.5).p_value == pytest.approx(0.01)
    assert sampled_chance("rewired", drawn, -1).p_value == 1


# ------------------------------------------------------------------------------------------------------------ intervals


def scores_of(values: np.ndarray, sd: float, n: int = 16) -> EdgeScores:
    graph = random_circuit(3).graph
    return EdgeScores(graph, values, "eap-ig", measured=False, sd=np.full(graph.n_edges, sd), n=n)


def strongest(values: np.ndarray, count: int, name: str) -> Circuit:
    graph = random_circuit(3).graph
    chosen = np.sort(np.argsort(-values)[:count])
    return circuit_of({str(graph.edge(int(i))): float(values[i]) for i in chosen}, name=name)


def test_intervals_over_prompts_hold_the_estimate_and_are_wider_for_noisier_scores() -> None:
    values = np.random.default_rng(0).exponential(size=random_circuit(3).graph.n_edges)
    other = values + np.random.default_rng(1).normal(size=len(values)) * 0.5
    a, b = strongest(values, 60, "a"), strongest(other, 60, "b")
    widths = []
    for sd in (0.1, 1.0):
        scores = difference(a, b, scores_a=scores_of(values, sd), scores_b=scores_of(other, sd)).scores
        assert scores.weighted.over == scores.ranks.over == "prompts"
        assert scores.weighted.low < scores.weighted.value < scores.weighted.high
        widths.append(scores.weighted.high - scores.weighted.low)
    assert widths[0] < widths[1] / 3


def test_without_spread_over_prompts_intervals_are_over_edges() -> None:
    a, b = random_circuit(60), random_circuit(60, seed=0)
    moved = replace(b, scores=b.scores + np.random.default_rng(0).normal(size=60) * 0.3)
    scores = difference(a, moved).scores
    assert scores.weighted.over == scores.ranks.over == "edges"
    assert scores.ranks.low < scores.ranks.value < scores.ranks.high


def test_ranks_over_the_union_are_beside_what_choosing_the_strongest_edges_gives_by_chance() -> None:
    """Independent scores: each circuit's edges are strong in it and not in the other, so they correlate negatively."""
    n_edges = random_circuit(3).graph.n_edges
    values, other = (np.random.default_rng(seed).exponential(size=n_edges) for seed in (0, 1))
    independent = difference(
        strongest(values, 80, "a"),
        strongest(other, 80, "b"),
        scores_a=scores_of(values, 0.01),
        scores_b=scores_of(other, 0.01),
    )
    assert independent.rank_correlation < -0.3
    assert independent.scores.ranks_chance is not None
    assert independent.scores.ranks_chance.low < independent.rank_correlation < independent.scores.ranks_chance.high
    assert independent.scores.ranks_chance.expected == pytest.approx(independent.rank_correlation, abs=0.06)
    assert "no evidence that they rank edges alike" in independent.describe()
    near = values + other * 0.3
    alike = difference(
        strongest(values, 80, "a"),
        strongest(near, 80, "b"),
        scores_a=scores_of(values, 0.01),
        scores_b=scores_of(near, 0.01),
    )
    assert "they rank edges more alike than chance" in alike.describe()


def test_wilsons_interval_of_the_jaccard_index() -> None:
    """Two of five: (0.4 + z²/10 ± z sqrt(0.24/5 + z²/100)) / (1 + z²/5) with z = 1.96."""
    low, high = difference(A, B).edge_overlap.jaccard_ci
    assert (low, high) == pytest.approx((0.1176, 0.7693), abs=1e-4)
