"""What lies beside a circuit is used when it is of this circuit, and said to be unusable when it is not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.errors import FormatError
from circuits.graph import Node, NodeKind
from circuits.interchange.sidecars import beside, prompts_json, read_evidence, read_prompts
from circuits.records import Example
from tests.behaviours.conftest import read_pairs
from tests.example_circuits import random_circuit

HEAD = Node(NodeKind.HEAD, 2, 1)
PROMPTS = (
    Example("Ann met Bob; “Bob”", "Ann met Ann; “Bob”", (" Ann", " An"), (" Bob",), "discovery"),
    Example("one\ntwo", "one\nten", (" two",), (), "heldout"),
)


def heads_json(circuit: Circuit, **changes: Any) -> str:
    document = {"format": "circuits/heads", "version": 1, "circuit_digest": circuit.digest, "more": "ignored"}
    return json.dumps(document | {"heads": [{"head": str(HEAD), "text": "induction; copies 9%", "x": 1}]} | changes)


@pytest.fixture
def circuit(tmp_path: Path) -> Circuit:
    made = random_circuit(30)
    made.save(tmp_path / "circuit.json")
    return Circuit.load(tmp_path / "circuit.json")


def test_evidence_and_prompts_of_the_circuit_are_found(circuit: Circuit, tmp_path: Path) -> None:
    assert beside(tmp_path / "circuit.json", circuit) == beside(tmp_path / "circuit.json", circuit)
    assert beside(tmp_path / "circuit.json", circuit).remarks == ()
    assert beside(tmp_path / "circuit.json", circuit).evidence == {}
    (tmp_path / "heads.json").write_text(heads_json(circuit))
    (tmp_path / "prompts.json").write_text(prompts_json(circuit, PROMPTS), encoding="utf-8")
    found = beside(tmp_path / "circuit.json", circuit)
    assert found.evidence == {HEAD: "induction; copies 9%"}
    assert found.prompts == PROMPTS
    assert found.remarks == ()


@pytest.mark.parametrize("what", ["edges", "prompts", "weights"])
def test_evidence_of_another_circuit_is_not_used_and_that_is_said(circuit: Circuit, tmp_path: Path, what: str) -> None:
    others = {
        "edges": replace(circuit, edges=circuit.edges[1:], scores=circuit.scores[1:], removal=None),
        "prompts": replace(circuit, behaviour=replace(circuit.behaviour, digest="other")),
        "weights": replace(circuit, model=replace(circuit.model, digest="other")),
    }
    (tmp_path / "heads.json").write_text(heads_json(others[what]))
    found = beside(tmp_path / "circuit.json", circuit)
    assert found.evidence == {}
    (remark,) = found.remarks
    assert "of another circuit" in remark
    assert "circuits heads" in remark


def test_a_new_evaluation_or_new_scores_keep_the_evidence(circuit: Circuit) -> None:
    assert replace(circuit, scores=np.ones(len(circuit)), evaluation=None).digest == circuit.digest


def test_prompts_of_another_circuit_are_not_used(circuit: Circuit, tmp_path: Path) -> None:
    other = replace(circuit, behaviour=replace(circuit.behaviour, digest="other"))
    (tmp_path / "prompts.json").write_text(prompts_json(other, PROMPTS), encoding="utf-8")
    found = beside(tmp_path / "circuit.json", circuit)
    assert found.prompts == ()
    assert "other prompts" in found.remarks[0]
    with pytest.raises(FormatError, match="other prompts"):
        read_prompts(tmp_path / "prompts.json", circuit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "circuits/circuit"}, "expected circuits/heads"),
        ({"version": 2}, "version 2"),
        ({"heads": 3}, "heads: Input should be a valid"),
        ({"heads": [{"head": "a1.h1"}]}, "text"),
    ],
)
def test_a_file_that_is_not_evidence_is_refused_with_the_reason(
    circuit: Circuit, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "heads.json").write_text(heads_json(circuit, **changes))
    with pytest.raises(FormatError, match=message):
        read_evidence(tmp_path / "heads.json", circuit)
    assert message in beside(tmp_path / "circuit.json", circuit).remarks[0]


def test_a_broken_file_does_not_stop_a_drawing(circuit: Circuit, tmp_path: Path) -> None:
    for name in ("heads.json", "prompts.json"):
        (tmp_path / name).write_text("{")
    assert len(beside(tmp_path / "circuit.json", circuit).remarks) == 2
    (tmp_path / "heads.json").write_text(heads_json(circuit, heads=[{"head": "nonsense", "text": ""}]))
    assert "'nonsense' is not a node" in beside(tmp_path / "circuit.json", circuit).remarks[0]


def test_the_prompts_are_a_prompt_file_too(circuit: Circuit, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(prompts_json(circuit, PROMPTS), encoding="utf-8")
    first, second = read_pairs(tmp_path / "prompts.json")
    assert (first.clean, first.corrupted, first.answers) == (PROMPTS[0].clean, PROMPTS[0].corrupted, (" Ann", " An"))
    assert (first.tags["split"], second.tags["split"]) == ("discovery", "heldout")
    assert second.wrong_answers == ()
