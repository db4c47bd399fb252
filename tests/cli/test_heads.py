"""``circuits heads`` says what each head of a circuit does, on narrow and on wide terminals, and writes files."""

import csv
import json
from pathlib import Path

import pytest

from circuits.circuit import Circuit
from circuits.graph import NodeKind
from tests.cli.conftest import as_json, done, invoke


def heads_options(prompts: Path, folder: Path) -> list[object]:
    return ["--behaviour", prompts, "--model", folder, "--pairs", 6]


@pytest.fixture(scope="module")
def document(found: Path, prompts: Path, tiny_folder: Path) -> dict:
    return as_json("heads", found / "circuit.json", *heads_options(prompts, tiny_folder))


def test_every_head_of_the_circuit_is_reported(found: Path, document: dict) -> None:
    nodes = Circuit.load(found / "circuit.json").nodes
    assert [row["head"] for row in document["heads"]] == [str(node) for node in nodes if node.kind is NodeKind.HEAD]
    assert document["n_pairs"] == 6
    shares = document["heads"][0]["from_last"]
    assert all(0 <= each[side] <= 1.0001 for each in shares for side in ("clean", "corrupted", "uniform"))


@pytest.mark.parametrize("columns", [80, 140])
def test_the_tables_fit_the_terminal_and_say_what_json_says(
    found: Path, prompts: Path, tiny_folder: Path, document: dict, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = done("heads", found / "circuit.json", *heads_options(prompts, tiny_folder))
    assert max(map(len, result.stdout.splitlines())) <= columns
    lines = result.stdout.splitlines()
    for row in document["heads"]:
        numbers = [f"{row['direct']['mean']:+.3f}", *(f"{value:.2f}" for value in row["sequences"].values())]
        assert any(row["head"] in line and all(number in line for number in numbers) for line in lines), row["head"]
    assert "Attention was measured by replacing values with unit vectors" in " ".join(result.stdout.split())


def test_files_are_written_as_json_and_csv(
    found: Path, prompts: Path, tiny_folder: Path, document: dict, tmp_path: Path
) -> None:
    for suffix in ("json", "csv"):
        done("heads", found / "circuit.json", *heads_options(prompts, tiny_folder), "--out", tmp_path / f"h.{suffix}")
    written = json.loads((tmp_path / "h.json").read_text())
    assert written["format"] == "circuits/heads"
    assert [row["text"] for row in written["heads"]] == [row["text"] for row in document["heads"]]
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert [row["head"] for row in rows] == [row["head"] for row in written["heads"]]


def test_another_kind_of_file_is_refused_before_anything_runs(found: Path, prompts: Path, tiny_folder: Path) -> None:
    result = invoke("heads", found / "circuit.json", *heads_options(prompts, tiny_folder), "--out", "heads.xlsx")
    assert result.exit_code == 2
    assert "there is no file format '.xlsx'" in " ".join(result.stderr.split())


def test_a_behaviour_that_is_not_built_in_needs_its_prompt_file(found: Path, tiny_folder: Path) -> None:
    result = invoke("heads", found / "circuit.json", "--model", tiny_folder)
    assert result.exit_code == 2
    assert "give its prompt file with --behaviour FILE" in " ".join(result.stderr.split())


@pytest.mark.real
def test_the_ioi_circuit_of_the_built_in_model_has_the_heads_of_its_paper(tmp_path: Path) -> None:
    quick = ("--pairs", 16, "--heldout", 16, "--pruner", "top", "--size", 60, "--quiet")
    done("discover", "ioi", *quick, "--out", tmp_path)
    document = as_json("heads", tmp_path / "circuit.json", "--pairs", 16)
    labels = {row["head"]: [label["name"] for label in row["labels"]] for row in document["heads"]}
    assert "name mover" in labels["a23.h0"]
    assert "S-inhibition" in labels["a20.h0"]
    assert "induction" in labels["a17.h4"]
    assert "wrong-answer suppressor" in labels["a23.h3"]
