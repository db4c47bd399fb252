"""``circuits scorers`` compares scorers, and writes the numbers and the picture."""

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import as_json, done, invoke


def test_scorers_are_compared_and_written_with_a_picture(prompts: Path, tiny_folder: Path, tmp_path: Path) -> None:
    options = ["--model", tiny_folder, "--pairs", 6, "--heldout", 4, "--sample", 12, "--top", 20, "--steps", 2]
    chosen = ["--scorer", "eap", "--scorer", "relp"]
    shown = done("scorers", prompts, *options, *chosen, "--ablation", "resample", "--out", tmp_path).stdout
    document = json.loads((tmp_path / "scorers.json").read_text())
    assert [row["scorer"] for row in document["rows"]] == ["eap", "relp", "ensemble"]
    assert document["ablation"] == "resample"
    assert (tmp_path / "scorers.svg").read_text().startswith("<svg")
    assert all(name in shown for name in ("Spearman", "CMD", "relp", "ensemble"))
    by_kl = as_json("scorers", prompts, *options, *chosen, "--scorer", "eap-ig", "--metric", "kl", "--out", tmp_path)
    assert [row["scorer"] for row in by_kl["rows"]] == ["eap-ig"]
    assert sorted(by_kl["left_out"]) == ["eap", "relp"]


def test_a_scorer_that_there_is_not_is_refused(prompts: Path) -> None:
    result = invoke("scorers", prompts, "--scorer", "rlep")
    assert (result.exit_code, "Closest: 'relp'" in result.stderr) == (2, True)


def test_edges_are_scored_searched_and_compared_by_recursive_elimination(
    prompts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    options = ["--model", tiny_folder, "--pairs", 6, "--scorer", "recursive-elimination"]
    scored = as_json("score", prompts, *options, "--out", tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        sizes = sorted(abs(float(row["score"])) for row in csv.DictReader(file))
    assert (scored["scorer"], scored["measured"], len(sizes)) == ("recursive-elimination", False, scored["edges"])
    assert sizes == pytest.approx([place / len(sizes) for place in range(1, len(sizes) + 1)])
    told = ["--pruner", "top", "--size", 20, "--heldout", 4, "--no-heads", "--out", tmp_path / "found"]
    done("discover", prompts, *options, *told)
    assert json.loads((tmp_path / "found" / "circuit.json").read_text())["method"]["scorer"] == "recursive-elimination"
    scores_there = (tmp_path / "found" / "scores.parquet").read_bytes()
    done("run", tmp_path / "found" / "run.json", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "scores.parquet").read_bytes() == scores_there
    compared = as_json("scorers", prompts, *options, "--heldout", 4, "--sample", 12, "--top", 20, "--out", tmp_path)
    assert [row["scorer"] for row in compared["rows"]] == ["recursive-elimination"]
    refused = invoke("score", prompts, *options, "--metric", "kl")
    assert (refused.exit_code, "would not tell one edge from another" in refused.stderr) == (2, True)
