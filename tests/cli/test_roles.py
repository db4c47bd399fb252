"""Edges by token role on the command line: scored, searched, judged, drawn."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from circuits.behaviours.roles import BY_DIFFERENCE
from circuits.circuit import Circuit
from circuits.interchange.score_files import read_scores
from tests.cli.conftest import as_json, done, invoke, write_pairs


@pytest.fixture(scope="module")
def found_by_role(tiny_folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by_role")
    search = ("--by-role", "--pruner", "top", "--size", 60, "--pairs", 6, "--heldout", 4, "--no-heads")
    done("discover", prompts, "--model", tiny_folder, *search, "--out", folder, "--quiet")
    return folder


def test_scores_by_role_sum_to_the_scores(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    common = ("score", prompts, "--model", tiny_folder, "--pairs", 6)
    plain = as_json(*common, "--out", tmp_path / "plain.csv")
    document = as_json(*common, "--by-role", "--out", tmp_path / "roles.csv")
    assert document["edges"] == len(BY_DIFFERENCE) * plain["edges"]
    assert (document["roles"], plain["roles"]) == (list(BY_DIFFERENCE), [])
    assert 0 <= document["cancels_over_roles"] < 1
    with (tmp_path / "plain.csv").open() as file:
        expected = {row["edge"]: float(row["score"]) for row in csv.DictReader(file)}
    sums = dict.fromkeys(expected, 0.0)
    with (tmp_path / "roles.csv").open() as file:
        for row in csv.DictReader(file):
            edge, role = row["edge"].split("@")
            assert row["role"] == role
            sums[edge] += float(row["score"])
    assert list(sums.values()) == pytest.approx(list(expected.values()), abs=1e-5)


def test_a_prompt_file_names_roles(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    named = write_pairs(tmp_path / "named.jsonl", [row | {"roles": {"first": [0], "names": [3, 1]}} for row in rows])
    out = tmp_path / "scores.parquet"
    common = ("score", named, "--model", tiny_folder, "--pairs", 6, "--by-role")
    assert as_json(*common, "--out", out)["roles"] == ["first", "names", "other", "end"]
    bad = write_pairs(tmp_path / "bad.jsonl", [row | {"roles": {"first": [0], "a name": [0]}} for row in rows])
    assert "a role is named with letters, digits" in " ".join(invoke("score", bad, *common[2:]).output.split())
    far = write_pairs(tmp_path / "far.jsonl", [row | {"roles": {"first": [99]}} for row in rows])
    assert "the role 'first' is at position 99" in " ".join(invoke("score", far, *common[2:]).output.split())
    twice = write_pairs(tmp_path / "twice.jsonl", [row | {"roles": {"a": [1], "b": [1]}} for row in rows])
    assert "is in two roles, 'a' and 'b'" in " ".join(invoke("score", twice, *common[2:]).output.split())


def test_a_circuit_by_role_is_saved_judged_and_drawn_with_its_roles(found_by_role: Path, tmp_path: Path) -> None:
    file = found_by_role / "circuit.json"
    circuit = Circuit.load(file)
    assert circuit.model.roles == BY_DIFFERENCE
    assert circuit.to_json() == file.read_text()
    assert {edge.receiver.role for edge in circuit} <= set(BY_DIFFERENCE)
    scores = read_scores(found_by_role / "scores.parquet", circuit.graph)
    np.testing.assert_allclose(scores.values[circuit.edges], circuit.scores, rtol=1e-5)
    judged = as_json("evaluate", file, "--behaviour", found_by_role / "prompts.json")
    assert judged["evaluation"]["faithfulness"] == pytest.approx(circuit.evaluation.faithfulness, abs=1e-4)
    done("draw", file, "-o", tmp_path / "x.dot")
    text = (tmp_path / "x.dot").read_text()
    assert all(f'id="edge:{edge}"' in text and f"\N{NO-BREAK SPACE}{edge.receiver.role}" in text for edge in circuit)
    assert "at all others the edge is corrupted" in text
    done("export", file, "-o", tmp_path / "x.graphml")
    written = (tmp_path / "x.graphml").read_text()
    assert all(str(edge).replace("<", "&lt;").replace(">", "&gt;") in written for edge in circuit)


def test_the_roles_that_a_file_names_go_with_the_circuit(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    named = write_pairs(tmp_path / "named.jsonl", [row | {"roles": {"first": [0], "names": [3, 1]}} for row in rows])
    search = ("--by-role", "--pruner", "top", "--size", 60, "--pairs", 6, "--heldout", 4, "--no-heads", "--quiet")
    done("discover", named, "--model", tiny_folder, *search, "--out", tmp_path / "out")
    circuit = Circuit.load(tmp_path / "out" / "circuit.json")
    assert circuit.model.roles == ("first", "names", "other", "end")
    common = ("evaluate", tmp_path / "out" / "circuit.json", "--behaviour")
    judged = as_json(*common, tmp_path / "out" / "prompts.json")
    assert judged["evaluation"]["faithfulness"] == pytest.approx(circuit.evaluation.faithfulness, abs=1e-4)
    unnamed = invoke(*common, prompts)
    assert "names no roles, and first, names, other, end are measured" in " ".join(unnamed.output.split())


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        (
            "ablate",
            ("--what", "edges", "--prompts", "prompts.json"),
            "the token roles of the circuit's edges are before, at",
        ),
        ("export", ("-o", "x.mib.json"), "no place for the token roles of this circuit's edges (before, at"),
    ],
)
def test_what_takes_whole_edges_refuses_a_circuit_by_role(
    found_by_role: Path, command: str, options: tuple[str, ...], said: str
) -> None:
    there = [found_by_role / each if each == "prompts.json" else each for each in options]
    result = invoke(command, found_by_role / "circuit.json", *there)
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())


def test_heads_of_a_circuit_by_role_are_measured_at_all_positions(found_by_role: Path, tmp_path: Path) -> None:
    document = as_json("heads", found_by_role / "circuit.json", "--pairs", 4, "-o", tmp_path / "heads.json")
    assert document["heads"]
