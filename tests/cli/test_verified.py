"""``--scorer verified`` from the command line: what it finds and says, its budget, going on after Ctrl-C."""

import csv
from pathlib import Path

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.interchange.score_files import read_scores
from circuits.scores import EdgeScores
from tests.cli.conftest import as_json, discover_options, done, invoke
from tests.cli.test_interruption import stopped, without_provenance

VERIFIED = ("--scorer", "verified")


def scores_in(folder: Path) -> EdgeScores:
    return read_scores(folder / "scores.parquet", Circuit.load(folder / "circuit.json").graph)


def test_score_finds_the_edges_of_largest_effect(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    common = ("score", prompts, "--model", tiny_folder, "--pairs", 6)
    exact = as_json(*common, "--scorer", "exact", "--out", tmp_path / "exact.csv")
    document = as_json(*common, *VERIFIED, "--top", 10, "--out", tmp_path / "verified.csv")
    record = document["verification"]
    assert record["uncertain"] == record["missed_at_most"] == 0
    assert 10 / 190 < record["share_of_sweep"] < 1
    best = {row["edge"]: row["score"] for row in exact["strongest"]}
    assert {row["edge"]: row["score"] for row in document["strongest"]} == pytest.approx(best, rel=1e-4)
    assert exact["verification"] is None


def test_score_says_how_sure_it_is_and_marks_what_was_measured(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    options = ("--model", tiny_folder, "--pairs", 6, "--top", 5, "--budget", 20, "--out", out)
    shown = " ".join(done("score", prompts, *VERIFIED, *options).stdout.split())
    assert "the exact top 5 but for about" in shown
    assert "with probability 95%" in shown
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 190
    assert {row["measured"] for row in rows} == {"True", "False"}
    sizes = {
        row["measured"]: [abs(float(r["score"])) for r in rows if r["measured"] == row["measured"]] for row in rows
    }
    assert sorted(sizes["True"])[-5] > max(sizes["False"])


def test_a_budget_of_time_is_taken(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--model", tiny_folder, "--pairs", 6, "--top", 5, "--out", tmp_path / "scores.csv")
    document = as_json("score", prompts, *VERIFIED, *options, "--budget", "1h")
    assert document["verification"]["edges_measured"] == 190


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scorer", "eap", "--top", "5"], "--top and --budget are for --scorer verified; the scorer is eap."),
        (["--scorer", "exact", "--budget", "5"], "--top and --budget are for --scorer verified; the scorer is exact."),
        ([*VERIFIED, "--budget", "soon"], "a budget is a number of edges such as 2000, or a time such as 90s"),
        ([*VERIFIED, "--budget", "10"], "to find the top 200 edges, these at least must be measured"),
    ],
)
@pytest.mark.parametrize("command", ["score", "discover"])
def test_what_cannot_be_meant_is_refused_before_the_model_is_loaded(
    tmp_path: Path, options: list[str], message: str, command: str
) -> None:
    result = invoke(command, "ioi", "--model", tmp_path / "none", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_discover_ranks_by_verified_scores_keeps_and_reports_them(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    document = as_json("discover", prompts, *discover_options(tiny_folder, tmp_path), *VERIFIED, "--top", 20)
    circuit, scores = Circuit.load(tmp_path / "circuit.json"), scores_in(tmp_path)
    assert circuit.method.scorer == "verified"
    assert circuit.measured == bool(scores.which_measured[circuit.edges].all())
    np.testing.assert_allclose(circuit.scores, scores.values[circuit.edges], rtol=1e-5)
    assert scores.verification is not None
    assert document["verification"]["top"] == scores.verification.top == 20
    assert document["verification"]["share_of_sweep"] <= 40 / 190  # by default twice as many edges as it finds
    assert document["agreement"] is None


def test_an_interrupted_verification_goes_on_with_what_was_measured(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done("discover", prompts, *discover_options(tiny_folder, whole), *VERIFIED, "--top", 20)
    arguments = [prompts, *discover_options(tiny_folder, cut), *VERIFIED, "--top", 20]
    message = stopped(monkeypatch, arguments, "edge_effects", 3).stderr
    assert f"what is finished is kept in {cut}, continue with --resume" in message
    assert f"continuing the run in {cut}" in done("discover", *arguments, "--resume").stderr
    assert without_provenance(cut) == without_provenance(whole)


def test_another_top_goes_on_with_what_was_measured_of_the_same_edges(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [prompts, *discover_options(tiny_folder, tmp_path), *VERIFIED, "--top", 20]
    stopped(monkeypatch, arguments, "edge_effects", 3)
    assert f"continuing the run in {tmp_path}" in done("discover", *arguments, "--top", 15, "--resume").stderr
