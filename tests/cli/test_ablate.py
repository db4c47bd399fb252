"""``circuits ablate``: prints what changed for people and programs, and refuses what cannot be done."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import as_json, done, invoke

QUICK = ("--pairs", "6", "--random", "2", "--tokens", "2", "--quiet")


@pytest.fixture(scope="module")
def document(tiny_folder: Path, prompts: Path, found: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("ablate") / "new" / "ablation.json"
    shown = as_json("ablate", found / "circuit.json", "--prompts", prompts, *QUICK, "--out", out)
    assert shown.pop("file") == str(out)
    assert shown.pop("record") == str(out.with_name("run.json"))
    assert shown == json.loads(out.read_text())
    return shown


def test_what_is_printed_for_programs_is_what_is_written(document: dict) -> None:
    assert (document["format"], document["version"]) == ("circuits/ablation", 1)
    assert document["intervention"] == {"ablation": "mean", "scale": 0.0, "steer": 0.0, "first_token": False}
    assert document["pairs"] == 6
    assert document["random_draws"] == 2
    names = [row["name"] for row in document["quantities"]]
    assert names[:2] == ["opens with an answer on clean prompts", "opens with an answer on corrupted prompts"]
    assert names[-1] == "perplexity on neutral text"
    assert all(len(row["random"]) == 2 for row in document["quantities"])
    assert len(document["openings"]) == 12
    assert document["summary"].startswith("'opens with an answer on clean prompts' went from ")


def test_the_nodes_are_those_of_the_circuit(document: dict, found: Path) -> None:
    from circuits.circuit import Circuit

    nodes = [str(node) for node in Circuit.load(found / "circuit.json").nodes]
    assert document["nodes"] == [node for node in nodes if node.startswith("m") or ".h" in node]


def test_ablating_changes_what_an_unchanged_scale_leaves(document: dict, prompts: Path, found: Path) -> None:
    same = as_json("ablate", found / "circuit.json", "--prompts", prompts, *QUICK, "--scale", 1)
    assert all(row["before"] == row["after"] for row in same["quantities"])
    changed = [row["name"] for row in document["quantities"] if row["before"] != row["after"]]
    assert "perplexity on neutral text" in changed
    assert [row["before"] for row in same["quantities"]] == [row["before"] for row in document["quantities"]]


@pytest.mark.parametrize("columns", [80, 140])
def test_the_table_shows_before_after_and_random(
    document: dict, prompts: Path, found: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = done("ablate", found / "circuit.json", "--prompts", prompts, *QUICK)
    head, _, rest = result.stdout.partition("'opens with")
    assert max(len(line) for line in head.splitlines()) <= columns
    shown = " ".join(head.split())
    assert "replaced by mean over the tokens of the corrupted prompts" in shown
    assert "heads and " in shown
    perplexity = document["quantities"][-1]
    for estimate in (perplexity["before"], perplexity["after"]):
        assert f"{estimate['value']:.2f}" in shown or f"{estimate['value']:.3g}" in shown
    assert " ".join(f"'opens with{rest}".split()) == document["summary"]


def test_steering_alone_leaves_the_nodes_own_values(prompts: Path, found: Path) -> None:
    steered = as_json("ablate", found / "circuit.json", "--prompts", prompts, *QUICK, "--steer", 2, "--nodes", "heads")
    assert steered["intervention"]["scale"] == 1.0
    assert all(".h" in node for node in steered["nodes"])
    metric = next(row for row in steered["quantities"] if row["name"].startswith("logit-difference"))
    assert metric["before"] != metric["after"]


def test_edges_are_ablated_at_the_first_token_and_that_is_said(prompts: Path, found: Path) -> None:
    arguments = ("ablate", found / "circuit.json", "--prompts", prompts, *QUICK, "--what", "edges")
    document = as_json(*arguments)
    judged = as_json("evaluate", found / "circuit.json", "--behaviour", prompts, "--pairs", 6, "--quiet")["evaluation"]
    gap = judged["metric_clean"] - judged["metric_corrupted"]
    metric = document["quantities"][0]
    assert metric["after"]["value"] == pytest.approx(judged["metric_corrupted"] + judged["necessity"] * gap, abs=1e-3)
    assert metric["before"]["value"] == pytest.approx(judged["metric_clean"], abs=1e-4)
    assert "first token of the answer only" in " ".join(done(*arguments).stdout.split())


def test_fewer_edges_have_fewer_nodes(document: dict, prompts: Path, found: Path) -> None:
    fewer = as_json("ablate", found / "circuit.json", "--prompts", prompts, *QUICK, "--strongest", 2)
    assert 0 < len(fewer["nodes"]) < len(document["nodes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ablation", "means"], "there is no ablation of nodes 'means'. Closest: 'mean'."),
        (["--ablation", "corrupted"], "not for text that is generated; use --ablation mean"),
        (["--what", "edge"], "there is no value of --what 'edge'. Closest: 'edges'."),
        (["--what", "edges", "--ablation", "zero"], "expected --ablation corrupted, got 'zero'"),
        (["--what", "edges", "--steer", "1"], "act on nodes; leave them out"),
        (["--what", "edges", "--nodes", "heads"], "act on nodes; leave them out"),
        (["--nodes", "head"], "there is no value of --nodes 'head'. Closest: 'heads'."),
        (["--scale", "nan"], "'scale' of Intervention is nan; expected a finite number."),
        (["--tokens", "9"], "Invalid value for '--tokens'"),
        (["--metric", "logit"], "there is no metric 'logit'"),
        (["--out", "x.csv"], "there is no file format '.csv'"),
        (["--batch-size", "0"], "--batch-size is auto or a number from 1 up, got '0'."),
        (["--memory", "lots"], "memory is auto, a size such as 8GB or 512MiB"),
        (["--prompts", "ioii"], "there is no behaviour 'ioii'. Closest: 'ioi'."),
    ],
)
def test_wrong_usage_is_found_before_the_model_is_loaded(
    found: Path, prompts: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("circuits.model.load_model", load)
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke("ablate", found / "circuit.json", "--prompts", prompts, *options)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_circuit_of_a_prompt_file_asks_for_it(found: Path) -> None:
    result = invoke("ablate", found / "circuit.json")
    assert result.exit_code == 2
    assert "give its prompt file with --prompts FILE" in " ".join(result.stderr.split())


def test_a_file_that_is_no_circuit_fails(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    result = invoke("ablate", tmp_path / "x.json", "--prompts", "ioi")
    assert result.exit_code == 1
    assert "is not a circuit" in result.stderr
