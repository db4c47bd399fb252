"""Attribution graphs for Neuronpedia: valid by its published schema, and with the circuit's own numbers."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.drawing.pictures import export
from circuits.errors import UsageError
from circuits.graph import Node
from circuits.interchange.neuronpedia import neuronpedia_graph
from circuits.records import Example
from tests.example_circuits import GROUPED, PLAIN, circuit_of, random_circuit

SCHEMA = json.loads(Path(__file__).with_name("neuronpedia_schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
PROMPTS = [
    Example(f"When {name} and John went", "other", (" Mary",), (" John",), "heldout") for name in ("Mary", "Eve")
]
SCORES = {
    "input->a0.h1<q>": 0.5,
    "input->a0.kv0<v>": 0.25,
    "input->a0.kv0<k>": 0.5,
    "a0.h1->m2": -0.25,
    "m2->logits": 1.5,
    "a0.h2->logits": float("nan"),
}


def graph_of(circuit: Circuit, **more: Any) -> dict[str, Any]:
    document = json.loads(neuronpedia_graph(circuit, PROMPTS, **more))
    VALIDATOR.validate(document)
    known = [node["node_id"] for node in document["nodes"]]
    assert len(set(known)) == len(known)
    assert {end for link in document["links"] for end in (link["source"], link["target"])} <= set(known)
    return document


def links_of(document: dict[str, Any]) -> dict[tuple[str, str], float]:
    names = {node["node_id"]: node["clerp"] for node in document["nodes"]}
    return {(names[link["source"]], names[link["target"]]): link["weight"] for link in document["links"]}


@pytest.mark.parametrize("field", ["metadata", "qParams", "nodes", "links"])
def test_the_schema_refuses_a_graph_that_lacks_something(field: str) -> None:
    document = graph_of(circuit_of(SCORES))
    del document[field]
    assert not VALIDATOR.is_valid(document)
    for part in ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"):
        broken = graph_of(circuit_of(SCORES))
        del broken["nodes"][0][part]
        assert not VALIDATOR.is_valid(broken)


@pytest.mark.parametrize("model", [GROUPED, PLAIN])
def test_any_circuit_is_valid_and_its_weights_add_up_to_its_scores(model: Any) -> None:
    circuit = random_circuit(200, model, seed=5)
    document = graph_of(circuit)
    read = {str(node) for node in circuit.nodes} - {name for name in map(str, circuit.nodes) if ".kv" in name}
    assert {node["clerp"] for node in document["nodes"]} == read
    unread = {group for group in map(str, circuit.nodes) if ".kv" in group and not list(circuit.to_networkx()[group])}
    scores = zip(circuit.edge_list, circuit.scores.tolist(), strict=True)
    expected = sum(score for edge, score in scores if str(edge.receiver.node) not in unread)
    assert sum(links_of(document).values()) == pytest.approx(expected, rel=1e-3)


def test_slots_are_added_up_and_shared_keys_and_values_divided_among_the_circuits_heads_of_the_group() -> None:
    document = graph_of(circuit_of(SCORES))
    assert links_of(document) == {
        ("input", "a0.h1"): 0.5 + 0.75 / 2,
        ("input", "a0.h2"): 0.75 / 2,
        ("a0.h1", "m2"): -0.25,
        ("m2", "logits"): 1.5,
        ("a0.h2", "logits"): 0.0,
    }
    kinds = {node["clerp"]: (node["feature_type"], node["layer"]) for node in document["nodes"]}
    assert kinds["a0.h1"] == ("lorsa", "0")
    assert kinds["m2"] == ("cross layer transcoder", "2")
    assert kinds["input"] == ("embedding", "E")
    assert kinds["logits"] == ("logit", str(GROUPED.n_layers))


def test_without_positions_the_prompt_is_one_token_and_the_description_says_why() -> None:
    document = graph_of(circuit_of(SCORES))
    assert document["metadata"]["prompt_tokens"] == ["When Mary and John went"]
    assert {node["ctx_idx"] for node in document["nodes"]} == {0}
    assert "all token positions at once" in document["metadata"]["info"]["description"]
    assert document["metadata"]["slug"] == "toy-tiny-grouped"


def test_nodes_stand_at_their_positions_where_these_are_known_and_else_at_the_last() -> None:
    tokens = ["When", " Mary", " and"]
    document = graph_of(circuit_of(SCORES), tokens=tokens, positions={Node.parse("a0.h1"): 1, Node.parse("input"): 0})
    places = {node["clerp"]: node["ctx_idx"] for node in document["nodes"]}
    assert places == {"input": 0, "a0.h1": 1, "a0.h2": 2, "m2": 2, "logits": 2}
    assert "all token positions" not in document["metadata"]["info"]["description"]
    with pytest.raises(UsageError, match=r"3 tokens have the positions 0 to 2; got a0\.h1: 3"):
        graph_of(circuit_of(SCORES), tokens=tokens, positions={Node.parse("a0.h1"): 3})


def test_a_circuit_is_exported_by_its_suffix(tmp_path: Path) -> None:
    file = export(circuit_of(SCORES), tmp_path / "x.neuronpedia.json", prompts=PROMPTS)
    assert json.loads(file.read_text()) == graph_of(circuit_of(SCORES))
    assert np.isnan(circuit_of(SCORES).scores).any()
