"""Circuits as values: JSON in and out, refusal of what is not a circuit, the networkx view."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.circuit import PER_EDGE, Circuit
from circuits.errors import FormatError, OutputError, UsageError
from circuits.graph import ModelShape
from circuits.records import ModelInfo, Stability
from tests.example_circuits import EVALUATION, GROUPED, PLAIN, circuit_of, random_circuit

Document = dict[str, Any]


def document_of(circuit: Circuit) -> Document:
    return json.loads(circuit.to_json())


@pytest.mark.parametrize(
    "model", [PLAIN, GROUPED, replace(GROUPED, parallel=True)], ids=["plain", "grouped", "parallel"]
)
def test_saving_loading_and_saving_again_gives_the_same_bytes(model: ModelInfo, tmp_path: Path) -> None:
    circuit = random_circuit(120, model)
    circuit.save(tmp_path / "one.json")
    Circuit.load(tmp_path / "one.json").save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert len((tmp_path / "one.json").read_bytes()) > 10_000


def test_loading_gives_back_every_field_with_numbers_to_six_digits(tmp_path: Path) -> None:
    circuit = random_circuit(60)
    circuit.save(tmp_path / "x.json")
    loaded = Circuit.load(tmp_path / "x.json")
    assert loaded.edge_list == circuit.edge_list
    np.testing.assert_allclose(loaded.scores, circuit.scores, rtol=1e-5)
    assert loaded.removal is not None
    assert circuit.removal is not None
    np.testing.assert_allclose(loaded.removal, circuit.removal, rtol=1e-5)
    assert (loaded.model, loaded.behaviour, loaded.method) == (circuit.model, circuit.behaviour, circuit.method)
    assert (loaded.evaluation, loaded.provenance) == (EVALUATION, circuit.provenance)


def test_missing_parts_stay_missing(tmp_path: Path) -> None:
    circuit = replace(circuit_of({"input->m0": float("nan"), "m0->logits": 1.0}), evaluation=None)
    circuit.save(tmp_path / "x.json")
    assert "NaN" not in (tmp_path / "x.json").read_text(encoding="utf-8")
    loaded = Circuit.load(tmp_path / "x.json")
    assert np.isnan(loaded.scores).tolist() == [True, False]
    assert loaded.removal is None
    assert loaded.evaluation is None
    empty = Circuit.from_document(document_of(circuit_of({})))
    assert len(empty) == 0
    assert empty.to_json() == circuit_of({}).to_json()


def test_sections_that_an_older_writer_left_out_are_filled_in() -> None:
    document = document_of(random_circuit(5))
    del document["provenance"], document["evaluation"]
    del document["model"]["tokenizer_digest"], document["method"]["rank_by"]
    loaded = Circuit.from_document(document)
    assert len(loaded) == 5
    assert loaded.evaluation is None


def test_the_file_says_what_it_is_and_lists_edges_in_graph_order() -> None:
    circuit = circuit_of({"m0->logits": -0.123456789, "input->a0.kv1<k>": 2.0})
    document = document_of(circuit)
    assert (document["format"], document["version"]) == ("circuits/circuit", 1)
    assert [edge["edge"] for edge in document["edges"]] == ["input->a0.kv1<k>", "m0->logits"]
    assert document["edges"][0] == {
        "edge": "input->a0.kv1<k>",
        "measured": False,
        "receiver": "a0.kv1",
        "removal": None,
        "score": 2.0,
        "sender": "input",
        "slot": "k",
    }
    assert document["edges"][1]["score"] == -0.123457


def test_a_newer_version_is_refused_with_advice() -> None:
    document = document_of(random_circuit(3)) | {"version": 2}
    with pytest.raises(FormatError, match=r"version 2; this release reads up to 1. Install a newer circuits"):
        Circuit.from_document(document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "is not a circuit; expected a JSON object"),
        (lambda d: d.update(version="one"), "version 'one'; expected a whole number from 1 to 1"),
        (lambda d: d.update(version=-1), "version -1; expected a whole number from 1"),
        (lambda d: d.update(version=0), "version 0; expected a whole number from 1"),
        (lambda d: d.update(version=True), "version True; expected a whole number from 1"),
        (lambda d: d.update(version=1.0), "version 1.0; expected a whole number from 1"),
        (lambda d: d.pop("model"), "no field 'model'"),
        (lambda d: d.pop("edges"), "no field 'edges'"),
        (lambda d: d["edges"][0].pop("score"), "no field 'score'"),
        (lambda d: d["edges"][0].update(score="high"), "valid number"),
        (lambda d: d["edges"][0].update(edge="a1.h2"), "'a1.h2' is not an edge"),
        (lambda d: d["edges"][0].update(edge="m5->m2"), "'m5' is not computed before 'm2'"),
        (lambda d: d["edges"][0].update(edge="input->m99"), "no node 'm99'"),
        (lambda d: d["edges"].reverse(), "distinct and in graph order"),
        (lambda d: d["model"].update(n_layers="many"), "n_layers: Input should be a valid integer"),
        (lambda d: d["model"].update(n_heads=7), "cannot share"),
        (lambda d: d["evaluation"].update(faithfulness_ci=[1]), "faithfulness_ci"),
        (lambda d: d["edges"][0].update(sender="m0"), 'edges.0.sender is "m0", which would be read as "m4"'),
        (lambda d: d["edges"][0].update(receiver="a0.kv0"), 'edges.0.receiver is "a0.kv0", which would be read as'),
        (lambda d: d["edges"][0].update(slot="k"), 'edges.0.slot is "k", which would be read as "v"'),
        (lambda d: d["edges"][0].update(slot=""), 'edges.0.slot is "", which would be read as "v"'),
        (lambda d: d["edges"][0].update(measured="false"), 'edges.0.measured is "false", which would be read as false'),
        (lambda d: d["edges"][0].update(measured=not d["edges"][0]["measured"]), ".measured is "),
        (lambda d: d["edges"][0].update(measured=1), "edges.0.measured is 1, which would be read as"),
        (lambda d: d["edges"][0].update(score="0.5"), 'edges.0.score is "0.5", which would be read as 0.5'),
        (lambda d: d["edges"][0].update(score=True), "edges.0.score is true, which would be read as 1.0"),
        (lambda d: d["edges"][0].update(remvoal=0.5), "edges.0 has an unknown field 'remvoal'; known: edge, measured"),
        (
            lambda d: d["model"].update(n_layers=str(d["model"]["n_layers"])),
            'model.n_layers is "11", which would be read as 11',
        ),
        (lambda d: d["model"].update(n_layers=10**6), "heads has more than 500,000,000 edges"),
        (lambda d: d["model"].update(n_heads=10**9, n_kv_heads=10**9), "heads has more than 500,000,000 edges"),
        (lambda d: d["model"].update(parallel="no"), 'model.parallel is "no", which would be read as false'),
        (lambda d: d["method"].update(target=7), "method.target is 7; expected a faithfulness above 0 and up to 1"),
        (lambda d: d["method"].update(target=-0.5), "method.target is -0.5; expected"),
        (lambda d: d["method"].update(seed=-1), "method.seed is -1; expected a number from 0 up"),
        (lambda d: d["behaviour"].update(n_heldout="64"), 'behaviour.n_heldout is "64", which would be read as 64'),
        (lambda d: d.update(evaluation={}), "Evaluation n: "),
        (lambda d: d.update(comment="mine"), "the document has an unknown field 'comment'"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason_and_its_name(change: Any, message: str, tmp_path: Path) -> None:
    document = document_of(random_circuit(4))
    change(document)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FormatError, match=r"broken\.json") as caught:
        Circuit.load(path)
    assert message in str(caught.value)


def test_files_that_are_absent_or_not_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"cannot read .*absent\.json: No such file"):
        Circuit.load(tmp_path / "absent.json")
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match=r"x\.json: not valid JSON"):
        Circuit.load(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(FormatError, match=r"y\.json is not a circuit"):
        Circuit.load(tmp_path / "y.json")
    with pytest.raises(OutputError, match="cannot write"):
        random_circuit(2).save(tmp_path / "absent" / "x.json")


def test_a_circuit_cannot_be_made_of_repeated_edges_or_too_few_scores_and_cannot_be_changed() -> None:
    circuit = random_circuit(4)
    with pytest.raises(UsageError, match="distinct and in graph order"):
        replace(circuit, edges=circuit.edges[[0, 0, 1, 2]])
    with pytest.raises(UsageError, match="4 edges has \\(3,\\) scores"):
        replace(circuit, scores=circuit.scores[:3])
    with pytest.raises(ValueError, match="read-only"):
        circuit.scores[0] = 1.0


def test_the_networkx_view_has_every_edge_once_with_its_score() -> None:
    circuit = random_circuit(150, PLAIN)
    view = circuit.to_networkx()
    found = {
        f"{u}->{v}" + (f"<{key}>" if key else ""): data["score"] for u, v, key, data in view.edges(keys=True, data=True)
    }
    assert found == {str(e): s for e, s in zip(circuit.edge_list, circuit.scores.tolist(), strict=True)}
    assert list(view.nodes) == [str(node) for node in circuit.nodes]


def test_a_group_leads_to_the_circuits_heads_of_that_group_and_no_others() -> None:
    circuit = circuit_of(
        {
            "input->a2.kv0<v>": 1.0,
            "a2.h1->m3": 1.0,
            "a2.h2->m3": 1.0,
            "a2.h3->m3": 1.0,
            "a3.h1->m3": 1.0,
            "m3->logits": 1,
        }
    )
    view = circuit.to_networkx()
    groups = [(u, v) for u, v, key in view.edges(keys=True) if key == "group"]
    assert groups == [("a2.kv0", "a2.h1"), ("a2.kv0", "a2.h2")]
    assert nx.has_path(view, "input", "logits")
    assert not nx.has_path(view, "input", "a2.h3")


def test_the_mask_marks_exactly_the_circuits_edges() -> None:
    circuit = random_circuit(30)
    assert np.flatnonzero(circuit.mask()).tolist() == circuit.edges.tolist()
    assert len(circuit.mask()) == circuit.graph.n_edges


def test_a_removal_that_is_null_is_missing_for_its_own_edge_only(tmp_path: Path) -> None:
    document = document_of(random_circuit(4))
    for row in document["edges"]:
        row["removal"] = 0.25
    document["edges"][1]["removal"] = None
    found = Circuit.from_document(document)
    assert found.removal is not None
    assert np.isnan(found.removal).tolist() == [i == 1 for i in range(len(found))]
    assert document_of(found) == document
    document["edges"][0].pop("removal")
    assert Circuit.from_document(document).removal is not None


def test_an_interval_of_a_single_pair_is_null_and_read_back_as_no_number() -> None:
    document = document_of(random_circuit(4))
    document["evaluation"]["faithfulness_ci"] = [None, None]
    found = Circuit.from_document(document)
    assert found.evaluation is not None
    assert np.isnan(found.evaluation.faithfulness_ci).all()
    assert document_of(found) == document


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("layers", "heads", "groups"), [(1, 1, 1), (3, 4, 2), (5, 6, 6), (30, 9, 3)])
def test_the_number_of_edges_is_known_before_the_graph_is_made(
    layers: int, heads: int, groups: int, parallel: bool
) -> None:
    shape = ModelShape(layers, heads, groups, 16, 4, parallel)
    assert shape.n_edges == build_graph(shape).n_edges


def test_what_resampling_says_of_edges_is_written_read_and_kept_with_them(tmp_path: Path) -> None:
    plain = random_circuit(12)
    summary = Stability(100, 18, 0.7, 0.8, 0.9, ("m0->logits",), 64, 16, 400, 0.05)
    shares, kept = np.linspace(1, 0.2, 12).round(3), np.array([2, 1, 0, *[-1] * 9])
    circuit = replace(plain, inclusion=shares, withstands=kept, stability=summary, removal_se=np.full(12, 0.25))
    circuit.save(tmp_path / "circuit.json")
    loaded = Circuit.load(tmp_path / "circuit.json")
    assert loaded.stability == summary
    for name in PER_EDGE[1:]:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(circuit, name))
    assert not {"stability", "inclusion"} & {*plain.to_document(), *plain.to_document()["edges"][0]}
    core = circuit.core()
    assert len(core) == 2
    np.testing.assert_array_equal(core.inclusion, shares[:2])
    assert core.evaluation is None
    few = circuit.strongest(3)
    np.testing.assert_array_equal(few.inclusion, shares[np.isin(circuit.edges, few.edges)])
    other = circuit.with_edges(circuit.edges[:2], circuit.scores[:2])
    assert other.inclusion is other.removal is other.stability is other.evaluation is None
    with pytest.raises(UsageError, match="does not say how stable"):
        plain.core()
