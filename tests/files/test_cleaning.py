"""Numbers that are not finite and marks that a format cannot hold never reach a file."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from circuits import EdgeScores
from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.files.documents import json_text, parse_json, plain
from circuits.interchange.formats import circuit_csv, circuit_graphml, circuit_mib_json
from tests.example_circuits import random_circuit

CIRCUIT = random_circuit(6)
INFINITE = np.array([np.inf, -np.inf, np.nan, 1.0, 2.0, 3.0])
NAMES = [
    "a\x00b",
    "a\x0bb",
    "a\x1b[31mb",
    "a\ud83db",
    "a\ufffeb",
    "a\uffffb",
    "a\x7fb",
    "a\u2028b",
    "<a&'\"b>",
    "a\nb\tc",
    "a\x85b",
]


def named(name: str) -> Circuit:
    model, behaviour = replace(CIRCUIT.model, id=name), replace(CIRCUIT.behaviour, name=name)
    return replace(CIRCUIT, model=model, behaviour=behaviour, method=replace(CIRCUIT.method, scorer=name))


def strictly(text: str) -> Any:
    return parse_json(text, "text")  # refuses NaN, Infinity and halves of characters


def test_what_is_not_finite_is_null_in_every_json() -> None:
    circuit = replace(CIRCUIT, scores=INFINITE, removal=INFINITE)
    found = strictly(circuit.to_json())
    assert [edge["score"] for edge in found["edges"]] == [None, None, None, 1, 2, 3]
    assert [edge["removal"] for edge in found["edges"]] == [None, None, None, 1, 2, 3]
    assert strictly(json_text({"a": [np.inf, {"b": (float("nan"), 1.5)}], 3: np.float64("inf")})) == {
        "a": [None, {"b": [None, 1.5]}],
        "3": None,
    }
    assert plain(1 / 3, digits=3) == 0.333


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_the_layout_of_mib_holds_finite_scores_only(number: float) -> None:
    circuit = replace(CIRCUIT, scores=np.array([number, *CIRCUIT.scores[1:]]))
    with pytest.raises(UsageError, match="1 of 6 edges have no finite score, and the MIB layout needs a number"):
        circuit_mib_json(circuit)
    values = np.ones(CIRCUIT.graph.n_edges)
    outside = np.setdiff1d(np.arange(len(values)), CIRCUIT.edges)[:3]
    values[outside] = number
    document = strictly(circuit_mib_json(CIRCUIT, EdgeScores(CIRCUIT.graph, values, "eap", measured=False)))
    scores = [edge["score"] for edge in document["edges"].values()]
    assert np.isfinite(scores).all()
    assert str(CIRCUIT.graph.edge(int(CIRCUIT.edges[0]))).split("->")[0] in document["nodes"]


def test_tables_and_graphs_leave_out_what_is_not_finite() -> None:
    circuit = replace(CIRCUIT, scores=INFINITE, removal=INFINITE)
    rows = list(csv.DictReader(io.StringIO(circuit_csv(circuit))))
    assert [row["score"] for row in rows] == ["", "", "", "1", "2", "3"]
    graph = nx.parse_graphml(circuit_graphml(circuit), force_multigraph=True)
    found = [data.get("score") for *_, data in graph.edges(data=True) if data["kind"] == "edge"]
    assert sorted(score for score in found if score is not None) == [1, 2, 3]
    assert len(found) == 6


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_with_any_mark_gives_files_that_can_be_read(name: str, tmp_path: Path) -> None:
    circuit = named(name)
    root = ET.fromstring(circuit_graphml(circuit))
    assert len(list(root.iter("{http://graphml.graphdrawing.org/xmlns}edge"))) >= 6
    document = strictly(circuit.to_json())
    assert document["model"]["id"] == name.replace("\ud83d", "\N{REPLACEMENT CHARACTER}")
    strictly(circuit_mib_json(circuit))
    circuit.save(tmp_path / "circuit.json")
    assert len(Circuit.load(tmp_path / "circuit.json")) == 6
    for suffix in ("svg", "html", "dot", "mmd"):
        circuit.draw(tmp_path / f"circuit.{suffix}", title=name)
        text = (tmp_path / f"circuit.{suffix}").read_text("utf-8")
        assert not {mark for mark in text if mark < " " and mark not in "\n\t\r"}
        assert not {"\ufffe", "\uffff", "\x7f"} & set(text)
    ET.parse(tmp_path / "circuit.svg")
    assert json.loads(document and circuit.to_json())["behaviour"]["name"]
