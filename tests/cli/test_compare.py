"""``circuits compare``: files, tables, refusals, and models of one shape."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.circuit import Circuit
from circuits.comparison import compare
from circuits.comparison.by_depth import compare_by_depth
from circuits.report.comparison_tables import tables_of
from tests.cli.conftest import as_json, discover_options, done, invoke
from tests.cli.test_bad_input import FAILED, USAGE, refused
from tests.example_circuits import circuit_of
from tests.tiny import tiny_llama, tiny_tokenizer

FEW = ("--pairs", 6, "--random", 2)


def prompts_of(folder: Path) -> Path:
    """The prompt file of the session that a circuit was found on."""
    name = Circuit.load(folder / "circuit.json").behaviour.name
    return next(folder.parent.glob(f"prompts*/{name}.jsonl"))


@pytest.fixture(scope="module")
def given(found: Path, other_found: Path, prompts: Path, other_prompts: Path) -> tuple[object, ...]:
    """Two circuits of one model, and their prompt files."""
    files = (found / "circuit.json", other_found / "circuit.json")
    return (*files, "-b", prompts, "-b", other_prompts)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's shape with other weights."""
    folder = tmp_path_factory.mktemp("models") / "tuned"
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.9)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def compared(given: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two circuits; not to be changed."""
    out = tmp_path_factory.mktemp("compared")
    done("compare", *given, *FEW, "--out", out)
    return out


def test_compare_writes_numbers_parts_and_diagrams(compared: Path) -> None:
    names = {file.name for file in compared.iterdir()}
    parts = {"core.json", "only-mine.json", "only-yours.json"}
    drawn = {"difference.dot", "difference.svg", "nodes.svg", "report.html"}
    assert names == {"comparison.json", "run.json"} | drawn | parts
    assert "Knocking out mine&#39;s circuit costs" in (compared / "report.html").read_text()
    document = json.loads((compared / "comparison.json").read_text())
    assert (document["format"], document["version"]) == ("circuits/comparison", 1)
    assert document["command"].split()[0] == "circuits"


def test_what_compare_says_of_overlap_is_what_the_circuits_are(compared: Path, found: Path, other_found: Path) -> None:
    document = json.loads((compared / "comparison.json").read_text())
    a, b = (Circuit.load(folder / "circuit.json") for folder in (found, other_found))
    pair = document["pairs"][0]
    assert (pair["a"], pair["b"]) == ("mine", "yours")
    assert pair["edge_overlap"]["shared"] == len(np.intersect1d(a.edges, b.edges))
    assert [level["kind"] for level in pair["edge_overlap"]["controls"]] == ["matched", "rewired"]
    assert pair["rank_correlation"]["of"] == "union"  # scores.parquet lies beside both
    assert pair["rank_correlation"]["over"] == "prompts"


def test_transfer_is_what_evaluate_measures(compared: Path, found: Path, other_prompts: Path) -> None:
    document = json.loads((compared / "comparison.json").read_text())
    cells = {(cell["circuit"], cell["on"]): cell for cell in document["transfer"]}
    assert set(cells) == {
        (row, column) for row in ("mine", "yours", "core", "only mine", "only yours") for column in ("mine", "yours")
    }
    direct = as_json("evaluate", found / "circuit.json", "--behaviour", other_prompts, "--pairs", 6)["evaluation"]
    assert cells["mine", "yours"]["value"] == pytest.approx(direct["faithfulness"], rel=1e-4)
    assert len(cells["mine", "yours"]["random"]) == 2


def test_knocking_out_is_what_evaluate_calls_necessity(compared: Path, found: Path, other_prompts: Path) -> None:
    document = json.loads((compared / "comparison.json").read_text())
    losses = {
        (each["knocked_out"], each["behaviour"]): each["value"]
        for each in document["dissociations"][0]["whole"]["losses"]
    }
    for name, behaviour in (("mine", ()), ("yours", ("--behaviour", other_prompts))):
        options = behaviour or ("--behaviour", prompts_of(found))
        direct = as_json("evaluate", found / "circuit.json", *options, "--pairs", 6)["evaluation"]
        assert losses["mine", name] == pytest.approx(1 - direct["necessity"], abs=1e-4)


def test_parts_are_circuits_that_were_evaluated_on_their_own_behaviour(compared: Path, prompts: Path) -> None:
    part = Circuit.load(compared / "only-mine.json")
    assert part.provenance.made_of == "edges of mine that are in none of: yours"
    assert part.evaluation is not None
    direct = as_json("evaluate", compared / "only-mine.json", "--behaviour", prompts, "--pairs", 6)["evaluation"]
    assert part.evaluation.faithfulness == pytest.approx(direct["faithfulness"], abs=1e-4)
    assert Circuit.load(compared / "core.json").evaluation is None  # of two behaviours: see comparison.json
    done("draw", compared / "core.json", "-o", compared.parent / "core.svg")


@pytest.mark.parametrize("columns", [80, 200])
def test_tables_fit_the_terminal(
    given: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = done("compare", *given, "--pairs", 6, "--random", 1, "--out", tmp_path).stdout
    tables = [line for line in shown.splitlines() if "mine" in line or "─" in line]
    ruled = [line for line in tables if "─" in line]
    assert ruled
    assert max(map(len, ruled)) <= columns
    for title in ("overlap, and what chance would give", "parts", "faithfulness alone", "share of the behaviour lost"):
        assert title in shown


def test_long_names_are_letters_in_tables_and_the_letters_are_explained() -> None:
    circuits = [circuit_of({"input->m0": 1.0}, name=name) for name in ("a behaviour with a long name", "another")]
    tables = tables_of(compare(*circuits))
    assert tables[0].title.startswith("A and B: overlap")
    assert tables[0].note.endswith("A is a behaviour with a long name, B is another.")
    plain = tables_of(compare(circuits[1], circuit_of({"input->m1": 1.0}, name="short")))
    assert plain[0].title.startswith("another and short: overlap")
    assert [row[0] for row in plain[1].rows] == ["only another", "only short"]


def test_compare_runs_no_model_when_told_so(
    given: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_to_be_called(*_: object, **__: object) -> None:
        raise AssertionError("this should not have been called")

    monkeypatch.setattr("circuits.model.load_model", not_to_be_called)
    result = done("compare", *given[:2], "--no-transfer", "--out", tmp_path)
    assert "Whether one circuit can do the other's work was not measured" in result.stdout
    assert Circuit.load(tmp_path / "only-mine.json").evaluation is None


def test_live_leaves_out_edges_that_lead_nowhere(given: tuple[object, ...], tmp_path: Path) -> None:
    document = as_json("compare", *given[:2], "--no-transfer", "--live", "--out", tmp_path)
    for part in document["parts"]:
        name = part["name"].replace(" ", "-")
        assert len(Circuit.load(tmp_path / f"{name}.json")) == part["live_edges"] == part["edges"]
        assert "on a path from input to logits" in part["made_of"]


def test_three_circuits_have_a_table_of_memberships_and_a_diagram_for_each_pair(
    found: Path, other_found: Path, tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    third = tmp_path / "third"
    options = [*discover_options(tiny_folder, third), "--pruner", "top", "--size", "25", "--metric", "log-odds"]
    done("discover", prompts, *options)
    files = [folder / "circuit.json" for folder in (found, other_found, third)]
    result = done("compare", *files, "--no-transfer", "--out", tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {name for name in names if name.endswith(".svg")} >= {
        "difference-mine#1-yours#2.svg",
        "difference-mine#1-mine#3.svg",
        "difference-yours#2-mine#3.svg",
        "nodes.svg",
        "shared.svg",
    }
    assert "edges and nodes by the circuits that have them" in result.stdout
    assert "●" in result.stdout


# --------------------------------------------------------------------------------------------------------- two models


def test_edges_are_measured_in_another_model_that_does_not_show_the_behaviour(
    found: Path, prompts: Path, tmp_path: Path
) -> None:
    tiny_llama(seed=3).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    out = tmp_path / "out"
    options = ("-b", prompts, "--against-model", tmp_path / "other", "--pairs", 6, "--out", out)
    document = as_json("compare", found / "circuit.json", *options)
    circuit = Circuit.load(found / "circuit.json")
    change = document["changes"][0]
    assert {each["edge"] for each in change["edges"]} == set(map(str, circuit.edge_list))
    assert change["pairs"] == 6
    models = change["models"]
    assert models[0]["remark"] == ""
    assert "does not show mine" in models[1]["remark"]
    assert any("so there is no circuit of it there to compare with" in text for text in document["sentences"])
    assert not any("other's work" in text for text in document["sentences"])
    files = {"changes.svg", "changes.dot", "changes.html", "comparison.json", "nodes.svg", "run.json"}
    assert {file.name for file in out.iterdir()} == files


def test_circuits_of_one_behaviour_in_two_models_are_compared_edge_by_edge(
    found: Path, tuned: Path, prompts: Path, tmp_path: Path
) -> None:
    there = tmp_path / "tuned"
    done("discover", prompts, *discover_options(tuned, there), "--pruner", "top", "--size", "40")
    files = (found / "circuit.json", there / "circuit.json")
    document = as_json("compare", *files, "-b", prompts, *FEW, "--out", tmp_path / "out")
    assert [each["name"] for each in document["circuits"]] == ["tiny", "tuned"]
    cells = {(cell["circuit"], cell["on"]) for cell in document["transfer"]}
    assert {("tiny", "tuned"), ("tuned", "tiny")} <= cells
    a, b = (Circuit.load(file) for file in files)
    assert len(document["changes"][0]["edges"]) == len(np.union1d(a.edges, b.edges))
    assert Circuit.load(tmp_path / "out" / "core.json").evaluation is not None  # one behaviour


# ------------------------------------------------------------------------------------------------------------ refusals


def test_numbers_and_parts_are_written_and_shown_when_diagrams_cannot_be(
    given: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    result = invoke("compare", *given[:2], "--no-transfer", "--out", tmp_path / "out")
    assert result.exit_code == FAILED
    assert "The numbers are in" in " ".join(result.stderr.split())
    assert "overlap, and what chance would give" in result.stdout
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"comparison.json", "core.json", "only-mine.json", "only-yours.json", "run.json"}


def test_one_circuit_alone_cannot_be_compared(found: Path) -> None:
    message = refused(USAGE, "compare", found / "circuit.json")
    assert "give another to compare it with, or a model with --against-model" in message


def test_the_same_file_twice_is_refused(found: Path, tmp_path: Path) -> None:
    again = found / ".." / found.name / "circuit.json"
    assert "was given twice" in refused(USAGE, "compare", found / "circuit.json", again, "--out", tmp_path)


def test_behaviours_that_are_not_built_in_ask_for_their_files(
    found: Path, other_found: Path, other_prompts: Path, tmp_path: Path
) -> None:
    files = (found / "circuit.json", other_found / "circuit.json")
    message = refused(USAGE, "compare", *files, "-b", other_prompts, "--out", tmp_path)
    assert "of the behaviour 'mine', which is not built in; give its prompt file with --behaviour FILE" in message
    message = refused(USAGE, "compare", *files, "-b", "ioi", "--out", tmp_path)
    assert "no circuit is of the behaviour 'ioi' that --behaviour gives; they are of mine, yours" in message
    message = refused(USAGE, "compare", *files, "-b", "mine=nowhere.jsonl", "--out", tmp_path)
    assert "nowhere.jsonl does not exist" in message


def test_one_model_cannot_stand_for_several(found: Path, tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    document = json.loads((found / "circuit.json").read_text())
    document["model"]["digest"], document["model"]["id"] = "0" * 64, "elsewhere/tuned"
    (tmp_path / "b.json").write_text(json.dumps(document))
    files = (found / "circuit.json", tmp_path / "b.json")
    message = refused(USAGE, "compare", *files, "-b", prompts, "--model", tiny_folder, "--out", tmp_path)
    assert "elsewhere/tuned), so --model cannot stand for all; leave it out" in message


def test_a_model_that_cannot_be_had_can_be_done_without(found: Path, prompts: Path, tmp_path: Path) -> None:
    document = json.loads((found / "circuit.json").read_text())
    document["model"]["id"] = str(tmp_path / "gone")
    for name, seed in (("a", 1), ("b", 2)):
        document["method"]["seed"] = seed
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    files = (tmp_path / "a.json", tmp_path / "b.json")
    result = refused(FAILED, "compare", *files, "-b", prompts, "--out", tmp_path / "out")
    assert "add --no-transfer" in result


def test_circuits_of_other_shapes_and_the_models_own_weights_are_refused(
    found: Path, tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    tiny_llama(num_hidden_layers=2).save_pretrained(tmp_path / "short")
    tiny_tokenizer().save_pretrained(tmp_path / "short")
    common = ("compare", found / "circuit.json", "-b", prompts, "--pairs", 4, "--out", tmp_path / "out")
    assert "give a model of the same shape" in refused(USAGE, *common, "--against-model", tmp_path / "short")
    assert "has the same weights as the circuit's own model" in refused(USAGE, *common, "--against-model", tiny_folder)


def test_two_circuits_of_models_of_other_shapes_are_compared_by_depth_and_not_edge_by_edge(
    found: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    circuit_of({"input->m0": 1.0, "m0->a5.h1<q>": 2.0, "a5.h1->logits": 1.0}, name="elsewhere").save(other)
    files, out = (found / "circuit.json", other), tmp_path / "out"
    shown = " ".join(done("compare", *files, "--out", out).stdout.split())
    assert "no edge of one is an edge of the other: edges, nodes and diagrams are not compared" in shown
    assert "by tenth of depth" in shown
    document = json.loads((out / "comparison.json").read_text())
    expected = compare_by_depth(*map(Circuit.load, files))
    assert document["b"]["depths"] == pytest.approx(expected.b.depths)
    assert document["overlap"] == pytest.approx(expected.overlap)
    assert document["b"]["depths"]["heads 5/10"] == pytest.approx(0.25)
    assert {file.name for file in out.iterdir()} == {"comparison.json", "run.json"}
    again = circuit_of({"input->m0": 1.0}, name="third")
    again.save(tmp_path / "third.json")
    three = refused(USAGE, "compare", *files, tmp_path / "third.json", "--out", out)
    assert "two of other shapes can be compared by depth and roles alone" in three


def test_an_unknown_file_format_of_prompts_and_a_missing_circuit(found: Path, tmp_path: Path) -> None:
    files = (found / "circuit.json", tmp_path / "absent.json")
    assert "cannot read" in refused(USAGE, "compare", *files)
    (tmp_path / "pairs.xml").write_text("hello")
    common = ("compare", found / "circuit.json", "--against-model", "smollm2-135m")
    assert "there is no prompt file format '.xml'" in refused(USAGE, *common, "-b", f"mine={tmp_path / 'pairs.xml'}")
