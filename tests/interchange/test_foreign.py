"""Circuits go to EAP-IG, MIB and auto-circuit and come back; what a format cannot hold is said.

``eap_ig_graph.json`` was written by EAP-IG's own ``Graph.to_json``: two layers, four heads, random scores, the top 30
edges by |score| without those on no path.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import circuits
from circuits.builder import build_graph, per_query_head
from circuits.circuit import Circuit
from circuits.comparison import compare
from circuits.drawing.pictures import draw, export
from circuits.errors import FormatError, UsageError
from circuits.graph import Edge, ModelShape
from circuits.interchange.foreign import UNKNOWN, of_document, read_circuit
from circuits.records import ModelInfo
from circuits.scores import EdgeScores
from tests.example_circuits import GROUPED, PLAIN, circuit_of, random_circuit

RECORDED = Path(__file__).parent / "eap_ig_graph.json"
THEIRS = ModelInfo("theirs", n_layers=2, n_heads=4, n_kv_heads=4, d_model=8, d_head=2)


def all_scores(circuit: Circuit, seed: int = 1) -> EdgeScores:
    values = np.random.default_rng(seed).normal(size=circuit.graph.n_edges)
    values[circuit.edges] = circuit.scores
    return EdgeScores(circuit.graph, values, "eap-ig", measured=False)


@pytest.mark.parametrize("suffix", [".mib.json", ".mib.pt"])
@pytest.mark.parametrize("model", [PLAIN, GROUPED], ids=["plain", "grouped"])
def test_a_circuit_with_all_scores_comes_back_as_it_went(tmp_path: Path, model: ModelInfo, suffix: str) -> None:
    circuit = random_circuit(120, model)
    scores = all_scores(circuit)
    back = read_circuit(export(circuit, tmp_path / f"x{suffix}", scores=scores))
    assert back.losses == ()
    assert (back.circuit.model, back.circuit.behaviour, back.circuit.method) == (
        circuit.model,
        circuit.behaviour,
        circuit.method,
    )
    np.testing.assert_array_equal(back.circuit.edges, circuit.edges)
    np.testing.assert_allclose(back.circuit.scores, circuit.scores, rtol=1e-6)
    assert back.scores is not None
    np.testing.assert_allclose(back.scores.values, scores.values, rtol=1e-6)
    again = export(back.circuit, tmp_path / f"y{suffix}", scores=back.scores)
    if suffix == ".mib.json":
        assert again.read_bytes() == (tmp_path / f"x{suffix}").read_bytes()
    assert read_circuit(export(circuit, tmp_path / f"z{suffix}")).circuit.scores == pytest.approx(circuit.scores)


def test_the_file_that_eap_ig_wrote_is_read_edge_by_edge() -> None:
    document = json.loads(RECORDED.read_text())
    read = circuits.read_circuit(RECORDED)
    marked = {name: edge["score"] for name, edge in document["edges"].items() if edge["in_graph"]}
    found = dict(zip(map(str, read.circuit.edge_list), read.circuit.scores.tolist(), strict=True))
    assert found == pytest.approx(marked)
    assert len(found) == 20
    assert read.scores is not None
    assert {str(edge): read.scores.values[i] for i, edge in enumerate(read.scores.graph.edges())} == {
        name: pytest.approx(edge["score"]) for name, edge in document["edges"].items()
    }
    assert read.circuit.model.id == read.circuit.behaviour.name == UNKNOWN
    assert read.losses == (f"{RECORDED} does not say of which model, behaviour and scorer it is.",)


def test_our_export_names_the_nodes_and_edges_that_eap_ig_names(tmp_path: Path) -> None:
    """Also of a grouped model: four query heads, whose keys and values two groups share."""
    document = json.loads(RECORDED.read_text())
    for model in (THEIRS, replace(THEIRS, n_kv_heads=2)):
        graph = build_graph(model.shape)
        circuit = circuit_of({"input->m0": 1.0, "m0->logits": 2.0}, model)
        scores = EdgeScores(graph, np.arange(1.0, graph.n_edges + 1), "eap-ig", measured=False)
        ours = json.loads(export(circuit, tmp_path / "x.mib.json", scores=scores).read_text())
        assert ours["cfg"] == document["cfg"]
        assert set(ours["nodes"]) == set(document["nodes"])
        assert set(ours["edges"]) == set(document["edges"])
        assert {name for name, edge in ours["edges"].items() if edge["in_graph"]} == {"input->m0", "m0->logits"}
        assert sum(edge["score"] for edge in ours["edges"].values()) == pytest.approx(
            scores.values.sum() + 1 + 2 - scores.values[circuit.edges].sum(), rel=1e-6
        )


def test_edges_of_single_heads_become_their_groups_edge_in_a_grouped_model_and_splits_are_told() -> None:
    """Heads 0 and 1 read group 0: both keys of input->a1 are in the file's circuit, one value of m0->a1 is."""
    edges = {
        "input->a1.h0<k>": (0.25, True),
        "input->a1.h1<k>": (0.5, True),
        "m0->a1.h0<v>": (1.0, True),
        "m0->a1.h1<v>": (-4.0, False),
        "a1.h3->logits": (2.0, True),
    }
    document = {
        "cfg": {"n_layers": 2, "n_heads": 4, "d_model": 8, "parallel_attn_mlp": False},
        "nodes": {},
        "edges": {name: {"score": score, "in_graph": kept} for name, (score, kept) in edges.items()},
    }
    fitted = of_document(document, "theirs.json").of_model(replace(THEIRS, n_kv_heads=2, id="grouped"))
    named = dict(zip(map(str, fitted.circuit.edge_list), fitted.circuit.scores.tolist(), strict=True))
    assert named == {"input->a1.kv0<k>": 0.75, "m0->a1.kv0<v>": -3.0, "a1.h3->logits": 2.0}
    assert fitted.losses[1] == (
        "grouped shares keys and values among 2 heads: 1 edges stand for some heads of a group only in the file, and "
        "for the whole group here."
    )
    with pytest.raises(UsageError, match=r"of a model with layers 0-1 and heads 0-3, but tiny-plain has layers 0-11"):
        of_document(document, "theirs.json").of_model(PLAIN)


def test_circuits_of_other_tools_are_drawn_and_compared(tmp_path: Path) -> None:
    theirs = read_circuit(RECORDED).circuit
    draw(theirs, tmp_path / "theirs.dot")
    assert '"a1.h' in (tmp_path / "theirs.dot").read_text()
    ours = replace(read_circuit(RECORDED).of_model(THEIRS).circuit, behaviour=circuit_of({}, THEIRS).behaviour)
    fewer = replace(ours, edges=ours.edges[:10], scores=ours.scores[:10])
    diff = compare(replace(fewer, model=theirs.model), theirs).pairs[0]
    assert (len(diff.shared), len(diff.only_a), len(diff.only_b)) == (10, 0, 10)


def test_a_table_without_a_marked_edge_gives_the_edges_that_score() -> None:
    document = json.loads(RECORDED.read_text())
    for place, edge in enumerate(document["edges"].values()):
        edge["in_graph"] = False
        edge["score"] = float(place % 5 == 0)
    read = of_document(document, "table.json")
    assert len(read.circuit) == 22
    assert read.losses[0] == (
        "table.json marks no edge as in the circuit; the 22 edges whose score is not 0 are taken."
    )


def test_membership_alone_as_mib_takes_it_is_a_circuit_without_scores() -> None:
    document = json.loads(RECORDED.read_text())
    for edge in document["edges"].values():
        del edge["score"]
    document["nodes"]["m0"]["neurons"] = [True] * 8
    read = of_document(document, "t.json")
    assert len(read.circuit) == 20
    assert np.isnan(read.circuit.scores).all()
    assert read.scores is None
    assert "t.json says of 1 nodes which neurons are in the circuit; here a node is whole." in read.losses


def test_the_folder_for_mib_has_its_names_and_needs_every_score(tmp_path: Path) -> None:
    qwen = replace(GROUPED, id="Qwen/Qwen2.5-0.5B")
    circuit = random_circuit(40, qwen, name="ioi")
    file = export(circuit, tmp_path / "sub.mib", scores=all_scores(circuit))
    assert file == tmp_path / "sub.mib" / "ioi_qwen2.5" / "importances.json"
    edges = json.loads(file.read_text())["edges"]
    assert len(edges) == circuit.graph.copies.sum()
    other = random_circuit(40, replace(GROUPED, id="/models/My Model"), name="Greater than!")
    assert export(other, tmp_path / "o.mib", scores=all_scores(other)).parent.name == "greater-than_my-model"
    with pytest.raises(UsageError, match=r"MIB ranks all edges, and not all of this circuit's model have a score"):
        export(circuit, tmp_path / "none.mib")
    assert not (tmp_path / "none.mib").exists()


# ------------------------------------------------------------------------------------------------------------- tensors


def auto_circuit(shape: ModelShape, *, positions: int = 0, whole: bool = False) -> dict[str, torch.Tensor]:
    """Make scores as auto-circuit lays them out: by module, for every head one number per earlier sender."""
    graph, found = build_graph(shape), {}
    generator = np.random.default_rng(0)
    for layer in range(shape.n_layers):
        before = graph.fan_in[graph.receiver_index[Edge.parse(f"input->a{layer}.h0<q>").receiver]]
        sites = ["attn_in"] if whole else ["q_input", "k_input", "v_input"]
        found |= {f"blocks.{layer}.hook_{site}": generator.normal(size=(shape.n_heads, before)) for site in sites}
        fan_in = graph.fan_in[graph.receiver_index[Edge.parse(f"input->m{layer}").receiver]]
        found[f"blocks.{layer}.hook_mlp_in"] = generator.normal(size=fan_in)
    found[f"blocks.{shape.n_layers - 1}.hook_resid_post"] = generator.normal(size=graph.fan_in[-1])
    repeated = {key: np.stack([value] * positions) if positions else value for key, value in found.items()}
    return {key: torch.asarray(value, dtype=torch.float32) for key, value in repeated.items()}


@pytest.mark.parametrize("parallel", [False, True])
def test_scores_of_auto_circuit_are_read_by_module_head_and_sender(tmp_path: Path, *, parallel: bool) -> None:
    shape = ModelShape(2, 3, 3, 6, 2, parallel=parallel)
    table = auto_circuit(shape)
    torch.save(table, tmp_path / "prune_scores.pkl")
    read = read_circuit(tmp_path / "prune_scores.pkl")
    assert read.circuit.model.parallel is parallel
    named = dict(zip(map(str, read.circuit.edge_list), read.circuit.scores.tolist(), strict=True))
    assert len(named) == build_graph(shape).n_edges
    assert named["a0.h1->a1.h2<v>"] == pytest.approx(float(table["blocks.1.hook_v_input"][2, 2]))
    assert named["input->m1"] == pytest.approx(float(table["blocks.1.hook_mlp_in"][0]))
    assert named["m1->logits"] == pytest.approx(float(table["blocks.1.hook_resid_post"][8]))
    assert any("does not say how wide the model is" in loss for loss in read.losses)


def test_positions_and_whole_inputs_of_auto_circuit_are_told_as_losses(tmp_path: Path) -> None:
    shape = ModelShape(2, 3, 3, 6, 2)
    torch.save(auto_circuit(shape, positions=4, whole=True), tmp_path / "x.pt")
    plain = auto_circuit(shape, whole=True)
    read = read_circuit(tmp_path / "x.pt")
    named = dict(zip(map(str, read.circuit.edge_list), read.circuit.scores.tolist(), strict=True))
    assert named["a0.h1->a1.h2<v>"] == pytest.approx(4 / 3 * float(plain["blocks.1.hook_attn_in"][2, 2]))
    assert any("at each of 4 positions; here they are added up" in loss for loss in read.losses)
    assert any("q, k and v have a third of the score each" in loss for loss in read.losses)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code ran",)


def test_a_file_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"edges_scores": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(FormatError, match=r"evil\.pt cannot be read without running what is in it"):
        read_circuit(tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.pt cannot be read"),
        (b"no such format", r"x\.pt cannot be read"),
        (b"PK\x03\x04 cut", r"x\.pt cannot be read"),
        ([1, 2], r"x\.pt holds a list; expected a dictionary"),
        ({}, r"x\.pt holds nothing; expected edges_scores"),
        ({"blocks.0.hook_q_input": torch.ones(2, 9)}, r"a0\.h0<q> has scores of 9 senders; expected 1"),
        ({"blocks.0.hook_mlp_in": torch.ones(2)}, "no scores of attention heads"),
        ({"ioi": {"blocks.0.hook_q_input": torch.ones(2, 1)}}, "holds ioi; expected edges_scores .* of one task"),
        ({"edges_scores": torch.ones(2)}, r"x\.pt, cfg, : Input should be a valid dictionary"),
        (
            {"edges_scores": torch.ones(2), "cfg": {"n_layers": 1, "n_heads": 1, "d_model": 1}},
            r"edges_scores: expected a tensor of 3 senders by 5 inputs, got \(2,\)",
        ),
    ],
)
def test_tensor_files_of_another_form_are_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(FormatError, match=message):
        read_circuit(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cfg": {"n_layers": "2", "n_heads": 4, "d_model": 8}},
            r"t\.json, cfg\.n_layers: Input should be a valid integer",
        ),
        ({"cfg": {"n_layers": 0, "n_heads": 4, "d_model": 8}}, r"t\.json: every number of a model's shape"),
        ({"cfg": {"n_layers": 10**6, "n_heads": 400, "d_model": 8}}, r"t\.json: .* has more than"),
        ({"edges": {"a0.h9->m0": {"score": 1.0, "in_graph": True}}}, r"t\.json: no node 'a0\.h9'|t\.json: "),
        ({"edges": {"m0": {"score": 1.0, "in_graph": True}}}, r"t\.json: 'm0' is not an edge"),
        (
            {"edges": {"input->m0": {"score": "1", "in_graph": True}}},
            r"edges\.input->m0\.score: Input should be a valid number",
        ),
        (
            {"edges": {"input->m0": {"score": 1.0, "in_graph": 1}}},
            r"edges\.input->m0\.in_graph: Input should be a valid boolean",
        ),
        ({"edges": {}}, "has no edge in the circuit, and no score"),
        ({"edges": []}, r"t\.json, edges: Input should be a valid dictionary"),
        ({"circuits": {"model": 3}}, r"t\.json, circuits, model: "),
    ],
)
def test_documents_of_another_form_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        of_document({**json.loads(RECORDED.read_text()), **change}, "t.json")


def test_a_circuit_of_an_earlier_release_is_read_without_its_areas_of_another_rule(tmp_path: Path) -> None:
    circuit = random_circuit(10)
    document = json.loads(circuit.to_json())
    del document["evaluation"]["areas"]
    document["evaluation"] |= {"cpr": 0.97, "cmd": 1.07}
    (tmp_path / "old.json").write_text(json.dumps(document))
    old = Circuit.load(tmp_path / "old.json")
    assert old.evaluation is not None
    assert old.evaluation.areas == ()


def test_every_edge_per_query_head_copies_one_edge_and_all_are_copied() -> None:
    graph = build_graph(GROUPED.shape)
    ungrouped, copied = per_query_head(graph)
    np.testing.assert_array_equal(np.bincount(copied), graph.copies)
    for place in (0, 50, 1000, ungrouped.n_edges - 1):
        one, other = ungrouped.edge(place), graph.edge(int(copied[place]))
        assert one.sender == other.sender
        assert one.receiver.slot == other.receiver.slot
    same, copied = per_query_head(build_graph(PLAIN.shape))
    np.testing.assert_array_equal(copied, np.arange(same.n_edges))


def test_reading_json_needs_no_torch() -> None:
    code = f"import sys, circuits; circuits.read_circuit({str(RECORDED)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
