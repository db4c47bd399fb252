"""Two circuits of models of different shapes: shares worked out by hand, words, and refusals."""

import json

import numpy as np
import pytest

from circuits.comparison.by_depth import compare_by_depth, of_other_shapes
from circuits.errors import UsageError
from circuits.graph import Node
from circuits.records import ModelInfo
from tests.example_circuits import PLAIN, circuit_of, random_circuit

FIVE = ModelInfo("five", n_layers=5, n_heads=2, n_kv_heads=2, d_model=4, d_head=2)
TEN = ModelInfo("ten", n_layers=10, n_heads=4, n_kv_heads=4, d_model=8, d_head=2)
A = circuit_of({"input->m0": 2.0, "m0->a3.h1<q>": -1.0, "a3.h1->logits": 4.0, "m4->logits": -1.0}, FIVE, name="refusal")
B = circuit_of({"input->m1": 1.0, "m1->a7.h0<v>": 1.0, "a6.h3->logits": 1.0, "m8->logits": 1.0}, TEN, name="refusal")


def test_shares_are_those_of_the_sizes_by_part_and_tenth_of_depth() -> None:
    found = compare_by_depth(A, B)
    assert (found.a.name, found.b.name) == ("five", "ten")
    # layer 0 of 5 begins in the first tenth, 3 in the seventh, 4 in the ninth
    assert found.a.depths == pytest.approx({"input": 0.25, "MLPs 1/10": 0.125, "heads 7/10": 0.5, "MLPs 9/10": 0.125})
    assert found.b.depths == pytest.approx({"input": 0.25, "MLPs 2/10": 0.25, "heads 7/10": 0.25, "MLPs 9/10": 0.25})
    assert found.overlap == pytest.approx(0.25 + 0.25 + 0.125)
    rows = {row[0]: row[1:] for row in found.rows()}
    assert list(rows) == ["input", "MLPs 1/10", "MLPs 2/10", "heads 7/10", "MLPs 9/10"]
    assert rows["heads 7/10"][0] == "0.50"
    assert rows["heads 7/10"][2] == "0.25"
    assert rows["MLPs 2/10"][0] == "0.00"


def test_beside_the_circuit_stands_what_all_edges_of_its_model_would_have() -> None:
    found = compare_by_depth(A, B)
    graph = A.graph
    for name, share in found.a.spread.items():
        senders = [i for i, node in enumerate(graph.senders) if _named(node, 5) == name]
        assert share == pytest.approx(np.isin(graph.edge_senders, senders).mean())
    assert sum(found.a.spread.values()) == pytest.approx(1)
    shared = sum(min(value, found.b.spread.get(name, 0)) for name, value in found.a.depths.items())
    assert found.overlap_spread[0] == pytest.approx(shared)


def _named(node: Node, layers: int) -> str:
    part = {"a": "heads", "m": "MLPs"}.get(str(node)[0])
    return f"{part} {10 * node.layer // layers + 1}/10" if part else "input"


def test_it_says_that_no_edges_are_compared_and_writes_everything() -> None:
    found = compare_by_depth(A, B)
    said = found.describe()
    assert "no edge of one is an edge of the other: edges, nodes and diagrams are not compared" in said
    assert "five: 4 edges in five (5 layers); heads 0.50, input 0.25, MLPs 0.25 of the sum of |score|" in said
    assert "half of it up to 70% of the depth" in said
    document = json.loads(found.to_json())
    assert document["overlap"] == pytest.approx(found.overlap)
    assert document["a"]["depths"]["heads 7/10"] == pytest.approx(0.5)
    assert found.role_rows() == []


def test_circuits_that_are_no_more_alike_than_a_model_at_large_are_called_so() -> None:
    early = circuit_of({"input->m0": 1.0, "m0->m1": 1.0}, FIVE, name="early")
    late = circuit_of({"m9->logits": 1.0, "a9.h0->logits": 1.0}, TEN, name="late")
    apart = compare_by_depth(early, late)
    assert apart.overlap == 0
    assert "no more alike than each is to the other model's edges at large" in apart.describe()
    alike = compare_by_depth(late, circuit_of({"m4->logits": 1.0, "a4.h0->logits": 1.0}, FIVE, name="other"))
    assert alike.overlap == 0  # layer 4 of 5 begins in the ninth tenth, layer 9 of 10 in the last
    same = compare_by_depth(early, circuit_of({"input->m0": 1.0, "m0->m1": 1.0}, TEN, name="early in ten"))
    assert same.overlap == pytest.approx(1)
    assert "are more alike than each is" in same.describe()


def test_shares_by_token_role_and_by_the_names_of_heads() -> None:
    by_role = ModelInfo("roles", n_layers=5, n_heads=2, n_kv_heads=2, d_model=4, d_head=2, roles=("subject", "end"))
    a = circuit_of({"input->m0@subject": 3.0, "m0->logits@end": 1.0}, by_role, name="a")
    found = compare_by_depth(a, B, roles=({}, {Node.parse("a6.h3"): "copying"}))
    assert found.a.token_roles == pytest.approx({"subject": 0.75, "end": 0.25})
    assert found.role_rows() == [
        ["tokens: subject", "0.75", "not known"],
        ["tokens: end", "0.25", "not known"],
        ["heads: copying", "not known", "1.00"],
    ]


def test_circuits_without_scores_have_no_shares() -> None:
    bare = A.with_edges(A.edges, np.full(len(A), np.nan))
    with pytest.raises(UsageError, match="edges without scores, so there is no share of its effect"):
        compare_by_depth(bare, B)
    assert of_other_shapes((A, B))
    assert not of_other_shapes((A, A))
    assert not of_other_shapes((A, B, A))
    assert compare_by_depth(random_circuit(50), random_circuit(80, PLAIN)).overlap > 0
