"""Other tools' formats hold exactly the circuit."""

import csv
import io
import json
from collections import defaultdict
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.diagrams.markup import number
from circuits.drawing.mermaid import circuit_mermaid
from circuits.errors import UsageError
from circuits.graph import Edge
from circuits.interchange.formats import circuit_csv, circuit_graphml, circuit_mib_json
from circuits.records import ModelInfo
from tests.example_circuits import GROUPED, PLAIN, circuit_of, random_circuit


def test_csv_has_the_columns_of_a_score_file_and_every_edge_in_graph_order() -> None:
    circuit = random_circuit(40)
    rows = list(csv.DictReader(io.StringIO(circuit_csv(circuit))))
    assert list(rows[0]) == ["edge", "sender", "receiver", "slot", "score", "measured"]
    assert [row["edge"] for row in rows] == [str(edge) for edge in circuit.edge_list]
    assert [row["score"] for row in rows] == [number(score) for score in circuit.scores.tolist()]
    for row, edge in zip(rows, circuit.edge_list, strict=True):
        assert (row["sender"], row["receiver"]) == (str(edge.sender), str(edge.receiver.node))
        assert row["slot"] == (edge.receiver.slot or "")
    assert {row["measured"] for row in rows} == {"False"}


def test_csv_leaves_a_missing_score_empty_and_says_when_scores_are_measured() -> None:
    circuit = replace(circuit_of({"input->m0": float("nan"), "m0->logits": 2.0}), measured=True)
    rows = list(csv.DictReader(io.StringIO(circuit_csv(circuit))))
    assert [(row["score"], row["measured"]) for row in rows] == [("", "True"), ("2", "True")]


@pytest.mark.parametrize("model", [PLAIN, GROUPED], ids=["plain", "grouped"])
def test_graphml_read_back_is_the_networkx_view(model: ModelInfo) -> None:
    circuit = random_circuit(80, model)
    view = circuit.to_networkx()
    back = nx.parse_graphml(circuit_graphml(circuit), force_multigraph=True)
    assert set(back.nodes) == set(view.nodes)
    assert dict(back.nodes(data=True)) == dict(view.nodes(data=True))
    expected = sorted((u, v, d["kind"], d.get("slot"), d.get("score")) for u, v, d in view.edges(data=True))
    found = sorted((u, v, d["kind"], d.get("slot"), d.get("score")) for u, v, d in back.edges(data=True))
    assert len(found) == len(expected)
    assert found == expected
    assert back.graph["behaviour"] == "toy"
    assert "positive score" in back.graph["sign"]


def test_graphml_edge_ids_are_distinct_and_name_the_edge() -> None:
    circuit = circuit_of({"input->a0.kv0<k>": 1.0, "input->a0.kv0<v>": 2.0, "a0.h1->logits": 1.0})
    back = nx.parse_graphml(circuit_graphml(circuit), force_multigraph=True)
    keys = [key for _, _, key in back.edges(keys=True)]
    assert sorted(keys) == ["a0.h1->logits", "a0.kv0->a0.h1<group>", "input->a0.kv0<k>", "input->a0.kv0<v>"]


def test_mib_json_without_grouping_has_exactly_the_circuits_edges() -> None:
    circuit = random_circuit(60, PLAIN)
    document = json.loads(circuit_mib_json(circuit))
    assert document["cfg"] == {"n_layers": 12, "n_heads": 12, "d_model": 24, "parallel_attn_mlp": False}
    expected = {
        str(edge): {"score": float(f"{score:.9g}"), "in_graph": True}
        for edge, score in zip(circuit.edge_list, circuit.scores.tolist(), strict=True)
    }
    assert document["edges"] == expected
    assert len(document["nodes"]) == 1 + 12 * 13 + 1
    in_graph = {name for name, node in document["nodes"].items() if node["in_graph"]}
    assert in_graph == {str(node) for node in circuit.nodes}


def test_mib_json_writes_a_groups_edge_once_per_query_head_and_the_shares_add_up() -> None:
    circuit = circuit_of({"input->a1.kv1<k>": 0.9, "m0->a2.h3<q>": -0.5, "a1.h4->logits": 1.0})
    edges = json.loads(circuit_mib_json(circuit))["edges"]
    assert edges == {
        "input->a1.h3<k>": {"score": 0.3, "in_graph": True},
        "input->a1.h4<k>": {"score": 0.3, "in_graph": True},
        "input->a1.h5<k>": {"score": 0.3, "in_graph": True},
        "m0->a2.h3<q>": {"score": -0.5, "in_graph": True},
        "a1.h4->logits": {"score": 1.0, "in_graph": True},
    }
    ungrouped = build_graph(replace(GROUPED, n_kv_heads=GROUPED.n_heads).shape)
    big = random_circuit(150)
    sums: dict[str, float] = defaultdict(float)
    for text, entry in json.loads(circuit_mib_json(big))["edges"].items():
        ungrouped.index(Edge.parse(text))
        sender, receiver = text.split("->")
        if receiver.endswith(("<k>", "<v>")):
            layer, head = receiver[1:-3].split(".h")
            receiver = f"a{layer}.kv{int(head) // 3}{receiver[-3:]}"
        sums[f"{sender}->{receiver}"] += entry["score"]
    expected = {str(edge): score for edge, score in zip(big.edge_list, big.scores.tolist(), strict=True)}
    assert sums == pytest.approx(expected, rel=1e-5)


def test_mib_json_refuses_edges_without_a_score() -> None:
    with pytest.raises(UsageError, match="1 of 2 edges have no finite score"):
        circuit_mib_json(circuit_of({"input->m0": float("nan"), "m0->logits": 2.0}))


def test_mermaid_draws_every_edge_with_slot_sign_and_score() -> None:
    circuit = circuit_of({"input->a0.kv0<k>": -0.25, "a0.h1->logits": 1.5}, name='"quoted" <b>')
    lines = circuit_mermaid(circuit).splitlines()
    assert lines[:4] == ["---", r'title: "\"quoted\" <b> in tiny-grouped"', "---", "flowchart BT"]
    assert 'n_input -.->|"k −0.25"| n_a0_kv0' in lines
    assert 'n_a0_h1 -->|"1.5"| n_logits' in lines
    assert "n_a0_kv0 --> n_a0_h1" in lines
    many = random_circuit(150, PLAIN)
    arrows = [line for line in circuit_mermaid(many).splitlines() if "->" in line]
    assert len(arrows) == 150
    assert not any('|"' in line for line in arrows)
    dotted = sum("-.->" in line for line in arrows)
    assert dotted == int(np.sum(many.scores < 0))
