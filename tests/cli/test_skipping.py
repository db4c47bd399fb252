"""``--skip-unusable`` on commands about circuits and directions: one bad row does not refuse a whole file."""

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import as_json, done, invoke


@pytest.fixture
def spoiled(prompts: Path, tmp_path: Path) -> Path:
    """The prompts of the circuit, with a row that cannot be used."""
    file = tmp_path / "mine.jsonl"
    file.write_text(
        prompts.read_text() + '{"clean": "When John", "corrupted": "When", "answer": " a", "wrong_answer": 1}\n'
    )
    return file


@pytest.fixture
def circuit(found: Path, tmp_path: Path) -> Path:
    (tmp_path / "found").mkdir()
    return Path(shutil.copy(found / "circuit.json", tmp_path / "found"))


def test_ablate_leaves_unusable_rows_out_and_lists_them(circuit: Path, spoiled: Path) -> None:
    options = ("ablate", circuit, "--prompts", spoiled, "--pairs", 4, "--random", 0, "--tokens", 1)
    assert "mine.jsonl, line 37" in " ".join(invoke(*options).output.split())
    result = done(*options, "--skip-unusable")
    assert "1 unusable rows are left out" in " ".join(result.stderr.split())
    assert "line 37" in circuit.with_name("unusable.csv").read_text()


def test_compare_leaves_unusable_rows_out_and_lists_them(
    circuit: Path, other_found: Path, spoiled: Path, other_prompts: Path, tmp_path: Path
) -> None:
    options = ["compare", circuit, other_found / "circuit.json", "--random", 0, "--pairs", 4, "--out", tmp_path / "out"]
    options += ["--behaviour", spoiled, "--behaviour", other_prompts]
    assert invoke(*options).exit_code != 0
    assert as_json(*options, "--skip-unusable")["transfer"]
    assert "line 37" in (tmp_path / "out" / "unusable.csv").read_text()


def test_direction_leaves_unusable_rows_out_and_lists_them(tiny_folder: Path, spoiled: Path, tmp_path: Path) -> None:
    options = ["direction", spoiled, "--model", tiny_folder, "--pairs", 4, "--choose", 4, "--candidates", 1]
    options += ["--random", 0, "--openings", "own", "--out", tmp_path / "out"]
    assert invoke(*options).exit_code != 0
    done(*options, "--skip-unusable")
    assert "line 37" in (tmp_path / "out" / "unusable.csv").read_text()
