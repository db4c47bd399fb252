"""Records of runs: what is in them, where they go, what two of them differ in, and how they are cited."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits import RunRecord, RunRecorder, cite, run_again
from circuits.errors import FormatError, OutputError, UsageError
from circuits.recording.environment import environment
from circuits.recording.literature import TITLE
from circuits.recording.repeating import arguments_again, compared
from circuits.recording.run_record import UsedModel, UsedPrompts, sha256_of

MODEL = UsedModel("smollm2-135m", "r1", "ab" * 32, 134_515_008, "cpu", "float32")
PROMPTS = UsedPrompts("ioi", "logit-diff", 64, 64, "cd" * 32)


def record(**more: Any) -> RunRecord:
    settings = {"scorer": "eap-ig", "pruner": "closest", "target": 0.9, "direction": "noising", "seed": None}
    given = RunRecord("discover", ("discover", "ioi"), settings=settings, models=(MODEL,), prompts=(PROMPTS,))
    return replace(given, **{"environment": environment(), "results": {"x": 1.0}, "seconds": 61.2, **more})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = record(warnings=("weak gap",))
    made.save(tmp_path / "run.json")
    assert RunRecord.load(tmp_path / "run.json") == made
    assert RunRecord.load(tmp_path) == made


def test_a_recorder_notes_versions_threads_stages_warnings_and_digests(tmp_path: Path) -> None:
    data, result = tmp_path / "data.jsonl", tmp_path / "out" / "result.csv"
    data.write_bytes(b"abc")
    result.parent.mkdir()
    result.write_bytes(b"")
    run = RunRecorder("a look", inputs=[data])
    for stage in ("scoring", "pruning: 10 edges", "pruning: 5 edges"):
        run(stage, 0, 0)
    run.warned("few pairs")
    saved, path = run.save(result.parent, [result], {"faithfulness": 0.9})
    assert path == result.parent / "run.json"
    assert [each.stage for each in saved.stages] == ["before the first stage", "scoring", "pruning"]
    assert saved.inputs[0].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [(file.path, file.sha256[:8]) for file in saved.outputs] == [("result.csv", "e3b0c442")]
    assert saved.warnings == ("few pairs",)
    assert saved.environment is not None
    assert saved.environment.packages["torch"] == torch.__version__
    assert saved.environment.threads == torch.get_num_threads()
    assert saved.peak_memory > 50_000_000
    assert RunRecord.load(path) == saved


def test_a_record_does_not_replace_the_one_of_another_run_in_the_same_folder(tmp_path: Path) -> None:
    for name in ("circuit.json", "heads.json"):
        (tmp_path / name).write_text("{}")
    first = RunRecorder("discover").save(tmp_path, [tmp_path / "circuit.json"])[1]
    other = RunRecorder("heads").save(tmp_path, [tmp_path / "heads.json"])[1]
    none = RunRecorder("evaluate").save(tmp_path)[1]
    again = RunRecorder("discover").save(tmp_path, [tmp_path / "circuit.json"])[1]
    assert [path.name for path in (first, other, none, again)] == [
        "run.json",
        "run-heads.json",
        "run-evaluate.json",
        "run.json",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no record of a run"),
        ('{"format": "circuits/run", "version": 9}', "has version 9"),
        ('{"format": "circuits/run", "version": 1, "command": 3}', "command: Input should be a valid string"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        RunRecord.load(tmp_path)


# --------------------------------------------------------------------------------------------------------- repeating


def test_arguments_are_repeated_with_another_place_for_results(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("")
    given = ("score", "ioi", "--resume", "--json", "--out", "a/mine.csv")
    made = record(arguments=given, settings={"out": "a/mine.csv"}).with_outputs([tmp_path / "mine.csv"], tmp_path)
    kept = ["score", "ioi", "--out", "a/mine.csv"]
    to = ["--record", str(Path("b", "run.json"))]
    assert arguments_again(made, Path("b")) == [*kept, "--out", str(Path("b", "mine.csv")), *to]
    assert arguments_again(replace(made, settings={"out": "a"}), Path("b")) == [*kept, "--out", "b", *to]
    assert arguments_again(replace(made, outputs=()), Path("b")) == [*kept, *to]
    dashed = replace(made, arguments=("path", "--seed", "1", "--", "ioi"), outputs=())
    assert arguments_again(dashed, Path("b")) == ["path", "--seed", "1", *to, "--", "ioi"]


def test_two_records_differ_in_figures_beyond_six_digits_and_in_what_they_ran_on(tmp_path: Path) -> None:
    before = record(results={"a": 1.0, "rows": [1, 2.0], "file": "here", "wall_seconds": 3.0})
    near = record(results={"a": 1.0 + 1e-8, "rows": [1, 2.0], "file": "there", "wall_seconds": 9.0})
    far = record(
        results={"a": 1.1, "rows": [1, 2.0, 3]},
        models=(replace(MODEL, device="mps"),),
        settings={**before.settings, "seed": 1},
    )
    for name, made in (("before", before), ("near", near), ("far", far)):
        made.save(tmp_path / name / "run.json")
    places = [tmp_path / name / "run.json" for name in ("before", "near", "far")]
    same = compared(before, near, places[0], places[1])
    assert same.same
    assert same.describe().startswith("All 3 figures are the same.")
    other = compared(before, far, places[0], places[2])
    assert [(each.place, each.before, each.now) for each in other.figures] == [("a", 1.0, 1.1), ("rows (length)", 2, 3)]
    assert sorted(each.place for each in other.conditions) == ["model 1 device", "setting seed"]
    assert "2 of 4 figures differ, the largest by 0.33 of its size" in other.describe()


def test_files_with_other_content_are_named_but_not_for_times_and_places(tmp_path: Path) -> None:
    made: list[RunRecord] = []
    for name, seconds, score in (("one", 1.0, "1"), ("two", 2.0, "2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "circuit.json").write_text(json.dumps({"wall_seconds": seconds, "x": 1.0}))
        (folder / "scores.csv").write_text(score)
        made.append(record().with_outputs([folder / "circuit.json", folder / "scores.csv"], folder))
        made[-1].save(folder / "run.json")
    found = compared(*made, tmp_path / "one" / "run.json", tmp_path / "two" / "run.json")
    assert found.files == ("scores.csv",)


def test_what_cannot_be_repeated_says_why(tmp_path: Path) -> None:
    record(arguments=()).save(tmp_path / "python" / "run.json")
    with pytest.raises(UsageError, match="of a run from Python"):
        run_again(tmp_path / "python")
    record().save(tmp_path / "command" / "run.json")
    with pytest.raises(UsageError, match="would be overwritten"):
        run_again(tmp_path / "command", tmp_path / "command")
    with pytest.raises(OutputError, match="exit code 3"):
        run_again(tmp_path / "command", runner=lambda arguments, folder: 3)


# ------------------------------------------------------------------------------------------------------------ citing


def test_a_discovery_is_cited_with_its_methods_model_pairs_and_doubts() -> None:
    circuit = {
        "edges": [{}, {}],
        "evaluation": {"n": 64, "faithfulness": 0.912, "likeness": {"fidelity": {"value": 0.887}}},
        "search": {"doubts": ["The target was missed."]},
    }
    found = cite(record(results={"circuit": circuit}))
    assert found.paragraph == " ".join(
        (
            f"With circuits {record().version} we searched for a circuit (Goldowsky-Dill et al., 2023) in smollm2-135m",
            "(Ben Allal et al., 2025), 135 million parameters, weights with the SHA-256 abababababababab….",
            "We used 64 prompt pairs and 64 held-out prompt pairs of ioi (Wang et al., 2022) and measured logit-diff.",
            "Edges were scored by eap-ig (Hanna et al., 2024) and chosen by the pruner closest (target 0.9), with",
            "corrupted ablation (noising) and seed 0. The circuit has 2 edges, a fidelity of 0.89 and a faithfulness",
            "of 0.91 on 64 held-out pairs. Note that the target was missed.",
            f"It ran in float32 on cpu with {_versions()} (Fiotto-Kaufman et al., 2024) and took 61 s.",
        )
    )
    for key in ("circuits", "goldowskydill2023path", "hanna2024faith", "wang2022ioi", "benallal2025smollm2"):
        assert f"{{{key}," in found.bibtex
    assert found.bibtex.count("@") == 6
    assert found.bibtex.count("{") == found.bibtex.count("}")


def test_a_search_is_cited_as_its_circuit_was_found_not_as_it_was_typed() -> None:
    quick = {"edges": [], "method": {"scorer": "eap-ig", "pruner": "minimal", "target": 0.8}}
    assert "chosen by the pruner minimal (target 0.8)" in cite(record(results={"circuit": quick})).paragraph
    assert "chosen by the pruner closest" in cite(record(results={"circuit": "outputs/circuit.json"})).paragraph


def _versions() -> str:
    packages = record().environment
    assert packages is not None
    return ", ".join(f"{name} {packages.packages[name]}" for name in ("torch", "transformers", "nnsight"))


def test_models_and_behaviours_of_ones_own_get_no_reference() -> None:
    own = record(models=(replace(MODEL, id="mine"),), prompts=(replace(PROMPTS, behaviour="my pairs"),), results={})
    text = cite(own)
    assert " in mine, 135 million" in text.paragraph
    assert "of my pairs and measured" in text.paragraph
    assert "benallal" not in text.bibtex


def test_the_package_is_cited_as_its_citation_file_says() -> None:
    text = (Path(__file__).parents[2] / "CITATION.cff").read_text()
    assert f'title: "{TITLE}"' in text
    assert "- name: The circuits authors" in text
    assert TITLE in cite(record()).bibtex


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x").startswith("ba7816bf")
    assert sha256_of(tmp_path / "absent") == ""
