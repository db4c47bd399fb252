"""``circuits heads`` says what each head of a circuit does, on narrow and on wide terminals, and writes files."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import pytest

from circuits.circuit import Circuit
from circuits.errors import GuardError
from circuits.graph import NodeKind
from circuits.interchange.score_files import read_scores
from tests.cli.conftest import as_json, discover_options, done, invoke


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


def test_a_behaviour_that_is_not_built_in_needs_its_prompt_file(found: Path, tiny_folder: Path, tmp_path: Path) -> None:
    alone = shutil.copy(found / "circuit.json", tmp_path)  # no prompts.json beside it
    result = invoke("heads", alone, "--model", tiny_folder)
    assert result.exit_code == 2
    assert "give its prompt file with --behaviour FILE" in " ".join(result.stderr.split())


def test_the_evidence_lies_beside_the_circuit_and_is_drawn(
    found: Path, prompts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    circuit = Path(shutil.copy(found / "circuit.json", tmp_path))
    done("draw", circuit, "--out", tmp_path / "before.html")
    done("heads", circuit, *heads_options(prompts, tiny_folder))
    written = json.loads((tmp_path / "heads.json").read_text())
    text = written["heads"][0]["text"]
    for name in ("after.html", "after.svg"):
        done("draw", circuit, "--out", tmp_path / name)
    fact = html.escape(text.split("; ")[1])
    assert fact in (tmp_path / "after.html").read_text()
    assert fact in html.unescape((tmp_path / "after.svg").read_text())
    assert fact not in (tmp_path / "before.html").read_text()


def test_evidence_of_another_circuit_is_warned_about_and_not_drawn(
    found: Path, other_found: Path, tmp_path: Path
) -> None:
    shutil.copy(found / "circuit.json", tmp_path)
    shutil.copy(other_found / "heads.json", tmp_path)
    result = done("draw", tmp_path / "circuit.json", "--out", tmp_path / "report.html")
    assert "of another circuit" in " ".join(result.stderr.split())
    assert "What the heads do" not in (tmp_path / "report.html").read_text()


def test_discover_measures_the_heads_and_keeps_the_prompts_for_its_report(found: Path) -> None:
    page = (found / "report.html").read_text()
    heads = json.loads((found / "heads.json").read_text())
    assert heads["circuit_digest"] == Circuit.load(found / "circuit.json").digest
    assert [row["head"] for row in heads["heads"]] == re.findall(r'<tr data-node="(.*?)">', page)
    kept = json.loads((found / "prompts.json").read_text())["prompts"]
    assert [pair["split"] for pair in kept] == ["discovery"] * 6 + ["heldout"] * 6
    assert all(html.escape(pair["clean"]) in page for pair in kept)
    assert all(len(pair["answers"]) == len(pair["wrong_answers"]) == 1 for pair in kept)


@pytest.mark.parametrize("scorer", ["exact", "eap-ig"])
def test_scores_have_their_interval_in_the_report_of_discover_and_of_draw(
    tiny_folder: Path, prompts: Path, tmp_path: Path, scorer: str
) -> None:
    options = (*discover_options(tiny_folder, tmp_path), "--no-heads", "--pruner", "top", "--size", 9)
    done("discover", prompts, *options, "--scorer", scorer)
    done("draw", tmp_path / "circuit.json", "--out", tmp_path / "again.html")
    circuit = Circuit.load(tmp_path / "circuit.json")
    scores = read_scores(tmp_path / "scores.parquet", circuit.graph)
    intervals = scores.intervals(circuit.edges)
    assert intervals is not None
    for name in ("report.html", "again.html"):
        page = (tmp_path / name).read_text()
        for edge, (low, high) in zip(circuit.edge_list, intervals.tolist(), strict=True):
            row = page.split(f"<code>{html.escape(str(edge))}</code>")[1].split("</tr>")[0]
            assert f"[{low:.3g}, {high:.3g}]" in row
    (tmp_path / "scores.parquet").unlink()
    done("draw", tmp_path / "circuit.json", "--out", tmp_path / "without.html")
    assert "95 % interval" not in (tmp_path / "without.html").read_text()


def test_discover_can_leave_the_heads_out(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    done("discover", prompts, *discover_options(tiny_folder, tmp_path), "--no-heads", "--pruner", "top", "--size", 9)
    assert not (tmp_path / "heads.json").exists()
    assert "What the heads do" not in (tmp_path / "report.html").read_text()


def test_heads_that_cannot_be_measured_are_a_warning_and_not_a_failure(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise GuardError("attention cannot be told from what heads put out.")

    monkeypatch.setattr("circuits.results.head_roles", refuse)
    options = (*discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 9)
    result = done("discover", prompts, *options)
    assert "no evidence on heads: attention cannot be told" in " ".join(result.stderr.split())
    assert (tmp_path / "report.html").is_file()


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
