"""``circuits interchange`` tests nodes, writes everything and shows what does most."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import as_json, done, invoke


def test_every_node_is_tested_and_the_ones_that_do_most_are_shown(
    prompts: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = [prompts, "--model", tiny_folder, "--pairs", 8, "--out", tmp_path]
    text = done("interchange", *options).stdout
    document = json.loads((tmp_path / "interchange.json").read_text())
    assert len(document["tests"]) == 15  # three layers of four heads and an MLP
    assert max(map(len, text.splitlines())) <= 80, text
    first = max(document["tests"], key=lambda test: max(abs(test[k]["value"]) for k in ("necessity", "sufficiency")))
    assert text.index(first["nodes"][0]) > text.index("shares of the gap")
    assert "corrected for 15 tests (Holm)" in " ".join(text.split())


def test_a_circuits_nodes_are_exchanged_together_against_random_sets(
    found: Path, prompts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "nodes.json"
    options = [prompts, "--model", tiny_folder, "--pairs", 6, "--random", 9, "--out", file]
    named = as_json("interchange", *options, "--nodes", "a0.h1,L1H2,m1", "--together")
    assert named["tests"][0]["nodes"] == ["a0.h1", "a1.h2", "m1"]
    assert named["random"]["n"] <= 9
    assert named["random"]["p_necessity"] >= 0.1
    whole = as_json("interchange", *options, "--nodes", found / "circuit.json")
    assert len(whole["tests"]) == 1
    assert whole["tests"][0]["necessity"]["value"] > named["tests"][0]["necessity"]["value"]


def test_wrong_names_end_before_the_model_is_loaded(prompts: Path) -> None:
    for options, words in (
        (["--nodes", "a3.x5"], "'a3.x5' is not a node"),
        (["--together"], "name them with --nodes"),
        (["--nodes", "missing.json"], "Check the path"),
    ):
        result = invoke("interchange", prompts, "--model", "/nowhere", *options)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())


def test_gates_are_parted_and_written_beside_the_tests(prompts: Path, tiny_folder: Path, tmp_path: Path) -> None:
    options = [
        prompts,
        "--model",
        tiny_folder,
        "--pairs",
        6,
        "--out",
        tmp_path / "tests.json",
        "--nodes",
        "a0.h1,m0,m2",
    ]
    document = as_json("interchange", *options, "--gates")
    parted = json.loads((tmp_path / "gates.json").read_text())
    assert document["gates"] == parted
    for test, whole in zip(document["tests"], parted["tests"], strict=True):
        assert whole["node"] == test["nodes"][0]
        assert whole["whole"][0]["total"] == test["necessity"]
    assert "name" in done("interchange", *options, "--gates").stdout
    for given in (["--gates"], ["--gates", "--nodes", "m0,m1", "--together"]):
        refused = invoke("interchange", prompts, *given)
        assert refused.exit_code == 2
        assert "--gates parts what single nodes do; name some with --nodes" in " ".join(refused.stderr.split())
