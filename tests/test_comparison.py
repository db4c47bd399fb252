"""Comparison of circuits: numbers worked out by hand, chance level, refusal, words."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from circuits.comparison import Membership, Transfer, Transferred, compare
from circuits.errors import UsageError
from circuits.overlap import chance_overlap
from circuits.records import RandomBaseline
from circuits.scores import EdgeScores
from tests.export.example_circuits import GROUPED, ONE_LAYER, circuit_of, random_circuit

# One layer, two heads: 13 edges (6 into q, k, v of the heads, 3 into the MLP, 4 into the logits).
A = circuit_of({"input->a0.h0<q>": 2.0, "a0.h0->m0": 1.0, "m0->logits": -1.0}, ONE_LAYER, name="first")
B = circuit_of({"a0.h0->m0": 3.0, "a0.h1->m0": 2.0, "m0->logits": 4.0, "input->logits": -1.0}, ONE_LAYER, name="second")


def names(indices: np.ndarray) -> list[str]:
    return [str(A.graph.edge(int(index))) for index in indices]


def test_edges_are_sorted_into_shared_and_only_one_circuits() -> None:
    diff = compare(A, B)
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
    overlap = compare(A, B).edge_overlap
    # 13 edges, 3 of A; B draws 4. Ways to share 0, 1, 2, 3: C(3,s) C(10,4-s) = 210, 360, 135, 10 of 715.
    assert (overlap.population, overlap.size_a, overlap.size_b, overlap.shared) == (13, 3, 4, 2)
    assert overlap.jaccard == 2 / 5
    assert overlap.expected_shared == pytest.approx(12 / 13)
    assert overlap.p_value == pytest.approx((135 + 10) / 715)
    assert overlap.expected_jaccard == pytest.approx((360 / 6 + 135 * 2 / 5 + 10 * 3 / 4) / 715)
    assert (overlap.low, overlap.high) == (0, 2)


def test_node_overlap_leaves_out_input_and_logits() -> None:
    overlap = compare(A, B).node_overlap
    # a0.h0, a0.h1 and m0 exist; A has h0 and m0, B has all three.
    assert (overlap.population, overlap.size_a, overlap.size_b, overlap.shared) == (3, 2, 3, 2)
    assert overlap.jaccard == 2 / 3
    assert overlap.p_value == 1


def test_weighted_jaccard_is_the_one_worked_out_by_hand() -> None:
    # |A| / 4: 1/2, 1/4, 1/4; |B| / 10: 3/10, 2/10, 4/10, 1/10.
    # minima: h0->m0 1/4, m0->logits 1/4; maxima: 1/2 + 3/10 + 2/10 + 4/10 + 1/10.
    assert compare(A, B).weighted_jaccard == pytest.approx(0.5 / 1.5)


def test_weighted_jaccard_does_not_depend_on_the_scale_of_either_metric() -> None:
    scaled = replace(A, scores=A.scores * 1000)
    assert compare(scaled, B).weighted_jaccard == pytest.approx(compare(A, B).weighted_jaccard)


def test_ranks_are_correlated_over_the_shared_edges() -> None:
    first = random_circuit(30, seed=1)
    scores = dict(zip(map(str, first.edge_list), range(30), strict=True))
    up = circuit_of({text: float(rank) for text, rank in scores.items()})
    squared = circuit_of({text: float(rank) ** 3 for text, rank in scores.items()})
    down = circuit_of({text: -float(rank) for text, rank in scores.items()})
    assert compare(up, squared).rank_correlation == pytest.approx(1)
    assert compare(up, down).rank_correlation == pytest.approx(-1)
    assert compare(up, down).rank_edges == 30
    assert not compare(up, down).rank_on_union
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24)
    texts = list(scores)[:5]
    a = circuit_of(dict(zip(texts, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True)))
    b = circuit_of(dict(zip(texts, [2.0, 1.0, 4.0, 3.0, 5.0], strict=True)))
    assert compare(a, b).rank_correlation == pytest.approx(0.8)


def test_ranks_are_correlated_over_the_union_when_all_scores_are_known() -> None:
    a, b = random_circuit(20, seed=1), random_circuit(20, seed=2)
    values = np.random.default_rng(0).normal(size=a.graph.n_edges)
    scores = EdgeScores(a.graph, values.copy(), "eap", measured=False)
    other = EdgeScores(a.graph, np.exp(values), "eap", measured=False)
    diff = compare(a, b, scores_a=scores, scores_b=other)
    assert diff.rank_on_union
    assert diff.rank_edges == len(diff.union)
    assert diff.rank_correlation == pytest.approx(1)


def test_too_few_or_constant_scores_give_no_rank_correlation() -> None:
    diff = compare(A, B)
    assert math.isnan(diff.rank_correlation)
    assert diff.rank_edges == 2
    constant = replace(random_circuit(10), scores=np.ones(10))
    assert math.isnan(compare(constant, random_circuit(10)).rank_correlation)
    assert "too few" in diff.describe()


def test_a_circuit_compared_with_itself_is_the_same_in_every_number() -> None:
    circuit = random_circuit(40)
    diff = compare(circuit, circuit)
    assert diff.edge_overlap.jaccard == diff.node_overlap.jaccard == 1
    assert diff.weighted_jaccard == pytest.approx(1)
    assert diff.rank_correlation == pytest.approx(1)
    assert len(diff.only_a) == len(diff.only_b) == len(diff.sign_flips) == 0
    assert diff.edge_overlap.p_value < 1e-50


def test_swapping_the_circuits_swaps_the_sides_and_keeps_the_overlap() -> None:
    there, back = compare(A, B), compare(B, A)
    assert names(there.only_a) == names(back.only_b)
    assert there.edge_overlap.p_value == pytest.approx(back.edge_overlap.p_value)
    assert there.edge_overlap.expected_jaccard == pytest.approx(back.edge_overlap.expected_jaccard)
    assert there.weighted_jaccard == back.weighted_jaccard


def test_random_circuits_share_what_the_chance_level_says() -> None:
    shares, expected = [], 0.0
    for seed in range(40):
        overlap = compare(random_circuit(400, seed=2 * seed), random_circuit(400, seed=2 * seed + 1)).edge_overlap
        shares.append(overlap.shared)
        expected = overlap.expected_shared
        assert overlap.p_value > 1e-4
    assert np.mean(shares) == pytest.approx(expected, rel=0.1)


def test_circuits_of_different_model_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(UsageError, match=r"tiny-grouped with layers 0-10 .* one-layer with layers 0-0"):
        compare(random_circuit(3, GROUPED), A)


def test_models_of_one_shape_but_another_name_are_compared_and_the_difference_is_told() -> None:
    tuned = replace(B, model=replace(ONE_LAYER, id="one-layer-tuned"))
    assert "The models differ: A is of one-layer, B of one-layer-tuned." in compare(A, tuned).describe()
    assert "The models differ" not in compare(A, B).describe()


def test_empty_circuits_and_missing_scores_give_not_a_number_instead_of_zero() -> None:
    empty = circuit_of({}, ONE_LAYER)
    nothing = compare(empty, empty)
    assert math.isnan(nothing.edge_overlap.jaccard)
    assert "both circuits are empty" in nothing.describe()
    assert compare(A, empty).edge_overlap.jaccard == 0
    unscored = replace(A, scores=np.array([1.0, np.nan, 2.0]))
    assert math.isnan(compare(unscored, B).weighted_jaccard)
    assert "Weighted" not in compare(unscored, B).describe()
    json.dumps(compare(unscored, empty).to_dict(), allow_nan=False)


def test_the_dictionary_is_plain_json_with_edges_by_name() -> None:
    document = json.loads(json.dumps(compare(A, B).to_dict(), allow_nan=False))
    assert document["a"] == {"model": "one-layer", "behaviour": "first", "edges": 3}
    assert document["shared"] == ["a0.h0->m0", "m0->logits"]
    assert document["sign_flips"] == ["m0->logits"]
    assert document["edge_overlap"]["jaccard"] == 0.4
    assert document["rank_correlation"] == {"spearman": None, "edges": 2, "over": "shared"}
    assert document["transfer"] is None


def test_the_description_claims_no_more_than_the_numbers_support() -> None:
    by_chance = compare(A, B).describe()
    assert "share 2 edges (Jaccard 0.40)" in by_chance
    assert "no more than chance" in by_chance
    assert "was not measured (cross-transfer)" in by_chance
    circuit = random_circuit(40)
    beyond = compare(circuit, circuit).describe()
    assert "more than chance, but" in beyond
    assert "no more than chance" not in beyond


def test_measured_transfer_is_described_beside_random_circuits() -> None:
    random = RandomBaseline(20, 0.02, -0.05, 0.1)
    transfer = Transfer(
        a_on_b=Transferred(0.61, (0.5, 0.7), 32, random), b_on_a=Transferred(0.07, (-0.1, 0.2), 32, random)
    )
    diff = compare(A, B).with_transfer(transfer)
    lines = {line.split(":")[0]: line for line in diff.describe().splitlines()}
    assert "faithfulness 0.61, interval [0.50, 0.70], n = 32" in lines["A's circuit on B's prompts"]
    assert "no more than chance" not in lines["A's circuit on B's prompts"]
    assert "no more than chance" in lines["B's circuit on A's prompts"]
    assert "not measured" not in diff.describe()
    assert diff.to_dict()["transfer"]["a_on_b"]["faithfulness"] == 0.61
    bare = Transfer(Transferred(0.6, (0.5, 0.7), 8), Transferred(0.6, (0.5, 0.7), 8))
    assert "cannot be told from chance" in compare(A, B).with_transfer(bare).describe()


def test_the_chance_overlap_of_everything_with_everything_is_certain() -> None:
    overlap = chance_overlap(5, 5, 5, 5)
    assert overlap.expected_jaccard == pytest.approx(1)
    assert (overlap.low, overlap.high, overlap.p_value) == (5, 5, 1)
