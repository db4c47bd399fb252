"""``circuits direction``, ``ablate --direction`` and what leads to a direction (``--to``), on a tiny model."""

import json
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch

import circuits
from circuits.ablation.nodes import acting_nodes
from circuits.circuit import Circuit
from tests.cli.conftest import as_json, done, invoke, write_pairs
from tests.reference.hooks import sender_values

SEARCH = ["--pairs", "4", "--choose", "4", "--candidates", "1", "--random", "1"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "mine.jsonl"
    lines = [
        {
            "clean": f"When {a}{b} and John",
            "corrupted": f"When {a}{b} and Paul",
            "answers": [" to"],
            "wrong_answers": [" is"],
        }
        for a in "abcdefgh"
        for b in "xyz"
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture(scope="module")
def found(words: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("found")
    table = as_json("direction", words, "--model", tiny_folder, "--out", folder, *SEARCH)
    assert len([each for each in table["candidates"] if each["effect"] is not None]) == 1
    return folder


def test_a_direction_is_found_saved_and_acted_on(found: Path, words: Path, tiny_folder: Path) -> None:
    table = json.loads((found / "directions.json").read_text())
    assert {"direction.safetensors", "direction.json", "candidates.safetensors"} <= {
        path.name for path in found.iterdir()
    }
    report = as_json(
        "ablate",
        "--direction",
        found / "direction.safetensors",
        "--model",
        tiny_folder,
        "--prompts",
        words,
        "--pairs",
        "4",
        "--random",
        "1",
        "--out",
        found / "ablated.json",
    )
    assert report["action"] == "ablate"
    assert report["direction"]["layer"] == table["direction"]["layer"]
    written = json.loads((found / "ablated.json").read_text())
    assert [each["name"] for each in written["quantities"]] == [each["name"] for each in report["quantities"]]
    assert "directions.svg" in {path.name for path in found.iterdir()}
    other = as_json("direction", words, "--model", tiny_folder, "--out", found / "two", "--layer", "2", *SEARCH)
    assert other["direction"]["layer"] == 2
    added = done(
        "ablate",
        "--direction",
        found / "direction.safetensors",
        "--add",
        "2",
        "--model",
        tiny_folder,
        "--prompts",
        words,
        "--pairs",
        "4",
        "--random",
        "0",
    )
    assert "added 2 times" in added.stdout


def test_circuits_lead_to_the_direction_and_are_judged_by_it(
    found: Path, words: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    file, folder = found / "direction.safetensors", tmp_path / "circuit"
    layer = json.loads((found / "direction.json").read_text())["layer"]
    options = ["--pairs", "4", "--heldout", "4", "--pruner", "top", "--size", "5"]
    done("discover", words, "--to", file, "--model", tiny_folder, "--out", folder, *options)
    circuit = Circuit.load(folder / "circuit.json")
    assert circuit.model.target is not None
    assert circuit.model.target.layer == layer
    assert circuit.behaviour.metric == "projection"
    assert f'label="resid{layer}"' in (folder / "circuit.dot").read_text()
    judged = as_json("evaluate", folder / "circuit.json", "--behaviour", words, "--model", tiny_folder, "--pairs", "4")
    assert judged["evaluation"]["faithfulness"] == pytest.approx(circuit.evaluation.faithfulness, rel=1e-4)
    (folder / "direction.safetensors").rename(folder / "elsewhere.safetensors")
    lost = invoke("evaluate", folder / "circuit.json", "--behaviour", words, "--model", tiny_folder)
    assert lost.exit_code == 2
    assert f"leads to resid:{layer}:last, and its direction is not beside it" in lost.stderr
    again = ["--to", folder / "elsewhere.safetensors", "--pairs", "4"]
    assert as_json("evaluate", folder / "circuit.json", "--behaviour", words, "--model", tiny_folder, *again)[
        "edges"
    ] == len(circuit)


@pytest.mark.parametrize("place", ["m1.n3", "a1.h1<q>", "probe.npz"])
def test_circuits_lead_to_heads_neurons_and_probes(
    place: str, found: Path, words: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    known = circuits.StreamDirection.load(found / "direction.safetensors")
    np.savez(tmp_path / "probe.npz", coef_=known.vector[None], intercept_=np.array([0.3]), layer=known.layer)
    to = tmp_path / place if place.endswith("npz") else place
    node = "mid1" if place == "m1.n3" else "resid1" if to == place else f"resid{known.layer}"
    folder = tmp_path / "circuit"
    options = ["--pairs", "4", "--heldout", "4", "--pruner", "top", "--size", "5"]
    done("discover", words, "--to", to, "--model", tiny_folder, "--out", folder, *options)
    circuit = Circuit.load(folder / "circuit.json")
    assert str(circuit.graph.shape.end) == node
    assert f'label="{node}"' in (folder / "circuit.dot").read_text()
    assert f"towards {escape(str(circuit.model.target))}" in (folder / "circuit.dot").read_text()
    assert (folder / "direction.safetensors").is_file() == place.endswith("npz")
    options = ["--behaviour", words, "--model", tiny_folder, "--pairs", "4"]
    judged = as_json("evaluate", folder / "circuit.json", *options)
    assert judged["evaluation"]["faithfulness"] == pytest.approx(circuit.evaluation.faithfulness, rel=1e-4)
    other = invoke("evaluate", folder / "circuit.json", *options, "--to", "m0.n1")
    assert other.exit_code == 2
    assert f"the circuit leads to {circuit.model.target}, and to another place" in other.stderr


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("a1h1", "--to: 'a1h1' is no place that a circuit can lead to; expected resid:LAYER:TOKEN"),
        ("a1.kv0", "does not say which input of its heads a circuit shall lead to; expected one of 'a1.kv0<q>'"),
        ("a7.h1<q>", "there is no place for a circuit to lead to 'a7.h1<q>'. Closest: 'a2.h1<q>'"),
        ("m1.n9999", "there is no neuron 'm1.n9999'"),
        ("resid:1:last", "--to: resid:1:last is a vector; give the file of the direction that it is read along:"),
        ("gone.safetensors", "--to: there is no file gone.safetensors; `circuits direction` writes one."),
    ],
)
def test_places_that_circuits_cannot_lead_to_are_refused(place: str, said: str, words: Path, tiny_folder: Path) -> None:
    refused = invoke("discover", words, "--to", place, "--model", tiny_folder)
    assert refused.exit_code == 2
    assert said in " ".join(refused.stderr.split())


def test_nodes_of_a_circuit_that_leads_to_a_direction_are_ablated_in_the_whole_model(
    found: Path, words: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """What is measured is what ablating the same nodes without a circuit does; edges and roles are refused by name."""
    file, folder = found / "direction.safetensors", tmp_path / "circuit"
    options = ["--pairs", "4", "--heldout", "4", "--pruner", "top", "--size", "12"]
    done("discover", words, "--to", file, "--model", tiny_folder, "--out", folder, *options)
    acted = ["--model", tiny_folder, "--prompts", words, "--pairs", "4", "--random", "1"]
    report = as_json("ablate", folder / "circuit.json", *acted)
    circuit, model = Circuit.load(folder / "circuit.json"), circuits.load_model(str(tiny_folder))
    drawn = circuits.load_behaviour(words).prompts(model.tokenizer, discovery=32, heldout=4)
    plain = circuits.measure_ablation(
        model, acting_nodes(circuit), drawn.heldout, reference=drawn.discovery, draws=1, new_tokens=5
    )
    assert report["metric"] == "logit-difference"
    assert report["quantities"] == json.loads(json.dumps([asdict(each) for each in plain.quantities]))
    for command in (["heads", "--behaviour", words], ["ablate", "--what", "edges", "--prompts", words]):
        name, *rest = command
        refused = invoke(name, folder / "circuit.json", "--model", tiny_folder, *rest)
        assert refused.exit_code == 2
        assert f"the circuit leads to {circuit.model.target} and not to the logits" in refused.stderr
        assert "ablate acts on its nodes" in refused.stderr


def test_options_that_do_not_go_with_a_direction_are_refused(found: Path, words: Path, tiny_folder: Path) -> None:
    file = found / "direction.safetensors"
    both = invoke("ablate", "--direction", file, "--steer", "2")
    assert both.exit_code == 2
    assert "--direction acts on the residual stream, not on a circuit's nodes" in both.stderr
    neither = invoke("ablate")
    assert neither.exit_code == 2
    assert "expected a circuit (CIRCUIT.json), or a direction (--direction FILE" in neither.stderr
    metric = invoke("discover", words, "--to", file, "--metric", "kl", "--model", tiny_folder)
    assert metric.exit_code == 2
    assert "what does not lead to the logits (--to) is measured by the metric projection, got 'kl'" in metric.stderr


def test_a_model_is_written_that_answers_as_the_ablated_one(
    found: Path, words: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """The first tokens' log-odds of the written model, as it is, are those of the other with the direction ablated."""
    file, new = found / "direction.safetensors", tmp_path / "without"
    options = ["--prompts", words, "--pairs", "4", "--random", "0"]
    first = as_json("ablate", "--direction", file, "--model", tiny_folder, "--weights", new, *options)
    assert first["weights"] == str(new)
    again = as_json("ablate", "--direction", file, "--model", new, *options)
    assert json.loads((new / "ablated_direction.json").read_text())["direction"]["layer"] == first["direction"]["layer"]
    for before, after in zip(first["quantities"], again["quantities"], strict=True):
        if before["name"].startswith("log-odds"):
            assert after["before"]["value"] == pytest.approx(before["after"]["value"], abs=1e-4)
            assert before["before"]["value"] != pytest.approx(before["after"]["value"], abs=1e-3)
    both = invoke("ablate", "--direction", file, "--weights", new, "--add", "1")
    assert both.exit_code == 2
    assert "--weights writes a model without the direction, and --add adds it; leave one of them out" in both.stderr
    alone = invoke("ablate", "--weights", new)
    assert alone.exit_code == 2
    assert "or a direction (--direction FILE, and with it --add TIMES or --weights FOLDER)" in alone.stderr


def written_by(head: str, words: Path, folder: Path) -> np.ndarray:
    """The difference of means of what a head writes at the last token, on the pairs that a discovery draws."""
    model = circuits.load_model(str(folder))
    pairs = circuits.load_behaviour(words).prompts(model.tokenizer, discovery=8, heldout=4).discovery
    module, node = model.tracer.anatomy.module, circuits.Node.parse(head)
    sides = (
        torch.stack([sender_values(module, torch.tensor([getattr(pair, side)]))[node][0, -1] for pair in pairs])
        for side in ("clean", "corrupted")
    )
    clean, corrupted = (side.double().mean(0) for side in sides)
    return (clean - corrupted).numpy()


@pytest.mark.parametrize("along", [True, False])
def test_a_circuit_leads_to_what_a_head_writes(along: bool, words: Path, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "along" / "mean.safetensors"
    circuits.StreamDirection(written_by("a1.h1", words, tiny_folder), 3).save(file)
    options = ["--to", "a1.h1", *(["--along", file] if along else []), "--model", tiny_folder, "--out", tmp_path]
    done("discover", words, *options, "--pairs", "8", "--heldout", "4", "--pruner", "top", "--size", "5")
    circuit = Circuit.load(tmp_path / "circuit.json")
    assert str(circuit.model.target) == "a1.h1:last"
    assert (tmp_path / "direction.safetensors").is_file() is along
    assert {str(edge.sender) for edge in circuit.graph.edges(circuit.edges) if edge.receiver.node.kind.is_end} <= {
        "a1.h1"
    }
    assert 'label="mid1"' in (tmp_path / "circuit.dot").read_text()
    judge = ["evaluate", tmp_path / "circuit.json", "--behaviour", words, "--model", tiny_folder, "--pairs", "4"]
    assert as_json(*judge)["evaluation"]["faithfulness"] == pytest.approx(circuit.evaluation.faithfulness, rel=1e-4)


@pytest.mark.parametrize("token", ["-2", "at"])
def test_a_direction_is_read_at_another_layer_and_token_and_found_again_beside_the_circuit(
    token: str, found: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {side: f"When {name} and {a}{b}" for side, name in (("clean", "John"), ("corrupted", "Paul"))}
        | {"answers": [" to"], "wrong_answers": [" is"]}
        for a in "abcdefgh"
        for b in "xyz"
    ]
    words = write_pairs(tmp_path / "early.jsonl", rows)
    to = ["--to", f"resid:2:{token}", "--along", found / "direction.safetensors", "--model", tiny_folder]
    options = ["--pairs", "8", "--heldout", "4", "--pruner", "top", "--size", "5"]
    done("discover", words, *to, "--out", tmp_path, *options)
    circuit = Circuit.load(tmp_path / "circuit.json")
    assert str(circuit.model.target) == f"resid:2:{token}"
    judge = ["evaluate", tmp_path / "circuit.json", "--behaviour", words, "--model", tiny_folder, "--pairs", "4"]
    assert as_json(*judge)["evaluation"]["faithfulness"] == pytest.approx(circuit.evaluation.faithfulness, rel=1e-4)
    elsewhere = invoke(*judge, "--to", "resid:2:last", "--along", found / "direction.safetensors")
    assert elsewhere.exit_code == 2
    assert f"the circuit leads to resid:2:{token}, and to another place" in " ".join(elsewhere.stderr.split())


def test_a_direction_to_read_along_belongs_to_a_place_in_the_stream(found: Path, words: Path) -> None:
    file = found / "direction.safetensors"
    for given, said in (
        (["--along", file], "give --to too"),
        (
            ["--along", file, "--to", "m1.n3"],
            "belongs to a place in the stream (--to resid:LAYER:TOKEN) or to what a",
        ),
        (["--to", "resid:2:-2"], "give the file of the direction that it is read along: --along FILE"),
    ):
        result = invoke("score", words, "--model", "/nowhere", *given)
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())
