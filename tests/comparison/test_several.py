"""Any number of circuits: names, membership, core and differences as circuits, refusals."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.comparison import compare
from circuits.comparison.parts import live_edges, pruned_to_live_paths
from circuits.errors import UnknownNameError, UsageError
from tests.example_circuits import GROUPED, ONE_LAYER, circuit_of, random_circuit

A = circuit_of({"input->m0": 4.0, "m0->m1": 2.0, "m1->logits": 1.0, "input->m1": 1.0}, name="first")
B = circuit_of({"input->m0": 2.0, "m0->m1": -1.0, "m2->logits": 1.0}, name="second")
C = circuit_of({"input->m0": 1.0, "m0->m1": 0.5, "m1->logits": 0.5, "input->a1.h0<q>": 5.0}, name="third")


def edges_of(circuit: Circuit) -> dict[str, float]:
    return dict(zip(map(str, circuit.edge_list), circuit.scores.tolist(), strict=True))


def test_three_circuits_give_three_pairs_and_a_table_of_memberships() -> None:
    comparison = compare(A, B, C)
    assert comparison.names == ("first", "second", "third")
    assert [diff.names for diff in comparison.pairs] == [("first", "second"), ("first", "third"), ("second", "third")]
    assert comparison.pair("third", "first") is comparison.pairs[1]
    counts = {count.circuits: (count.edges, count.nodes) for count in comparison.memberships}
    assert counts == {
        ("first", "second", "third"): (2, 2),  # m0 and m1
        ("first", "third"): (1, 0),
        ("first",): (1, 0),
        ("second",): (1, 1),  # m2
        ("third",): (1, 1),  # a1.h0
    }
    assert sum(edges for edges, _ in counts.values()) == len(np.unique(np.concatenate([A.edges, B.edges, C.edges])))


def test_core_and_differences_are_circuits_with_the_right_edges_and_scores() -> None:
    comparison = compare(A, B, C)
    parts = {part.name: part for part in comparison.parts}
    assert set(parts) == {"core", "only first", "only second", "only third"}
    core = edges_of(parts["core"].circuit)
    # relative to the largest: 1 and 0.5; 1 and -0.5; 0.2 and 0.1
    assert core == pytest.approx({"input->m0": (1 + 1 + 0.2) / 3, "m0->m1": (0.5 - 0.5 + 0.1) / 3})
    assert edges_of(parts["only first"].circuit) == {"input->m1": 1.0}
    assert edges_of(parts["only third"].circuit) == {"input->a1.h0<q>": 5.0}
    assert parts["only first"].circuit.behaviour == A.behaviour
    assert parts["core"].circuit.behaviour.name == "first and second and third"
    assert "share of the largest score" in parts["core"].circuit.behaviour.unit
    assert parts["core"].circuit.provenance.made_of == "edges that are in all of: first, second, third"
    assert parts["only third"].circuit.evaluation is None


def test_parts_of_one_behaviour_keep_its_name() -> None:
    tuned = replace(B, behaviour=A.behaviour, model=replace(GROUPED, id="tuned"))
    comparison = compare(A, tuned)
    assert comparison.names == ("tiny-grouped", "tuned")
    assert comparison.core is not None
    assert comparison.core.circuit.behaviour.name == "first"
    assert (
        comparison.sentences()[0]
        == "The models differ: tiny-grouped is first in tiny-grouped, tuned is first in tuned."
    )


def test_a_part_is_saved_loaded_and_drawn_like_any_circuit(tmp_path: Path) -> None:
    for part in compare(A, B, C).parts:
        part.circuit.save(tmp_path / "part.json")
        again = Circuit.load(tmp_path / "part.json")
        assert edges_of(again) == pytest.approx(edges_of(part.circuit), rel=1e-5)
        assert again.provenance.made_of == part.circuit.provenance.made_of
        part.circuit.draw(tmp_path / "part.svg")


def test_live_edges_are_those_on_a_path_within_the_part() -> None:
    comparison = compare(A, C)
    core = comparison.core
    assert core is not None
    assert list(edges_of(core.circuit)) == ["input->m0", "m0->m1", "m1->logits"]
    assert core.live == 3
    third = comparison.part("only third")
    assert third is not None
    assert third.live == 0
    pruned = pruned_to_live_paths(third)
    assert len(pruned.circuit) == 0
    assert "only the 0 of 1 on a path" in pruned.circuit.provenance.made_of
    assert len(pruned_to_live_paths(core).circuit) == 3


def test_live_edges_lead_through_key_value_groups() -> None:
    through = circuit_of({"input->a0.kv0<v>": 1.0, "a0.h1->logits": 1.0, "a0.h5->logits": 1.0})  # kv0 serves h0 to h2
    assert [str(through.graph.edge(int(i))) for i in live_edges(through)] == ["input->a0.kv0<v>", "a0.h1->logits"]


def test_circuits_without_common_edges_have_no_core() -> None:
    comparison = compare(circuit_of({"input->m0": 1.0}, name="a"), circuit_of({"input->m1": 1.0}, name="b"))
    assert comparison.core is None
    assert [part.name for part in comparison.parts] == ["only a", "only b"]
    third = circuit_of({"input->m2": 1.0}, name="c")
    assert "All 3 circuits have no edge in common." in compare(*comparison.circuits, third).describe()


def test_names_tell_circuits_apart() -> None:
    tuned = replace(A, model=replace(GROUPED, id="models/tuned"))
    assert compare(A, B).names == ("first", "second")
    assert compare(A, tuned).names == ("tiny-grouped", "tuned")
    assert compare(A, tuned, B).names == ("first@tiny-grouped", "first@tuned", "second@tiny-grouped")
    assert compare(A, A).names == ("first#1", "first#2")
    assert compare(A, B, names=("x", "y")).names == ("x", "y")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="at least two circuits can be compared, got 1"):
        compare(A)
    with pytest.raises(UsageError, match=r"tiny-grouped with layers 0-10 .* one-layer with layers 0-0"):
        compare(A, B, circuit_of({"input->m0": 1.0}, ONE_LAYER))
    with pytest.raises(UsageError, match="need as many different names, got x, x"):
        compare(A, B, names=("x", "x"))
    with pytest.raises(UsageError, match=r"need as many scores \(or None\), got 1"):
        compare(A, B, scores=[None])
    with pytest.raises(UnknownNameError, match=r"no circuit 'frist'.*Closest: 'first'"):
        compare(A, B).pair("frist", "second")
    with pytest.raises(UsageError, match=r"3 circuits are compared; choose two with \.pair"):
        compare(A, B, C).difference  # noqa: B018 - raises


def test_the_document_is_plain_json_with_format_and_version() -> None:
    comparison = compare(random_circuit(30, seed=1, name="x"), random_circuit(30, seed=2, name="y"), A)
    document = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert (document["format"], document["version"]) == ("circuits/comparison", 1)
    assert [each["name"] for each in document["circuits"]] == ["x", "y", "first"]
    assert len(document["pairs"]) == 3
    assert document["transfer"] is None
    assert document["sentences"][-1].startswith("Whether one circuit can do the other's work was not measured")


def test_the_same_circuits_give_the_same_comparison() -> None:
    a, b = random_circuit(60, seed=1, name="x"), random_circuit(60, seed=2, name="y")
    assert compare(a, b).to_dict() == compare(a, b).to_dict()
    other = compare(a, b, seed=1).to_dict()
    assert other != compare(a, b).to_dict()
    assert other["memberships"] == compare(a, b).to_dict()["memberships"]


HASHED = """
from circuits.comparison import compare
from circuits.drawing.node_map import node_map_dot, shared_dot
from tests.example_circuits import random_circuit
found = compare(*(random_circuit(120, seed=i // 2, name=name) for i, name in enumerate("xyz")))
print(found.to_dict(), node_map_dot(found), shared_dot(found), *(part.circuit.to_json() for part in found.parts))
"""


def test_two_processes_with_different_hash_seeds_find_the_same() -> None:
    first, second = (
        subprocess.run(
            [sys.executable, "-c", HASHED],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "4242")
    )
    assert first == second
    assert len(first) > 50_000
