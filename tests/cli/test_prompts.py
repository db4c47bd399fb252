"""``circuits prompts`` shows what a tokenizer makes of a file; ``--skip-unusable`` goes on with what it can use."""

import csv
import json
from pathlib import Path

import pytest

import circuits
from circuits.errors import FormatError
from tests.cli.conftest import as_json, discover_options, done, invoke, pairs_shown_by, write_pairs

GOOD = {"clean": "When John went", "corrupted": "When Paul went", "answer": " the", "wrong_answer": " gave"}


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Five rows: two good ones, a copy of the first, one that is not JSON, one whose answer is several tokens."""
    other = {**GOOD, "clean": "The capital of", "corrupted": "The city of"}
    rows = [
        json.dumps(GOOD),
        "{oops",
        json.dumps(GOOD),
        json.dumps({**GOOD, "answer": " Xylophone"}),
        json.dumps(other),
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows))
    return tmp_path / "mine.jsonl"


def test_a_prompt_file_is_shown_as_the_tokenizer_reads_it(tiny_folder: Path, file: Path) -> None:
    document = as_json("prompts", file, "--model", tiny_folder)
    first, copy, last = document["pairs"]
    assert (first["source"], first["length"], first["differing"]) == ("mine.jsonl, line 1", 3, 1)
    assert (first["answers"], first["wrong_answers"]) == ([" the"], [" gave"])
    assert (copy["source"], last["clean"]) == ("mine.jsonl, line 3", "The capital of")
    assert [row["row"] for row in document["unusable"]] == ["mine.jsonl, line 2", "mine.jsonl, line 4"]
    assert document["unusable"][0]["reason"].startswith("not valid JSON at column 2")
    assert "tokens" in document["unusable"][1]["reason"]
    assert document["duplicates"] == [
        {"row": "mine.jsonl, line 3", "reason": "the same prompts and answers as mine.jsonl, line 1"}
    ]
    assert sum(document["splits"].values()) == sum(document["lengths"].values()) == document["n"] == 3
    shown = " ".join(done("prompts", file, "--model", tiny_folder).stdout.split())
    for text in (
        "usable pairs 3",
        "unusable rows 2",
        "duplicates 1",
        "'When John went'",
        "' the'",
        "mine.jsonl, line 4",
    ):
        assert text in shown


def test_weights_are_neither_needed_nor_read(tiny_folder: Path, file: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_folder / name).is_file():
            (tmp_path / "only").mkdir(exist_ok=True)
            (tmp_path / "only" / name).write_bytes((tiny_folder / name).read_bytes())
    assert as_json("prompts", file, "--model", tmp_path / "only")["n"] == 3


def test_the_cleaned_file_is_read_again_without_complaint(tiny_folder: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.jsonl"
    document = as_json("prompts", file, "--model", tiny_folder, "--out", out)
    left_out = tmp_path / "clean.unusable.csv"
    assert document["files"] == [str(out), str(left_out)]
    places = [f"mine.jsonl, line {number}" for number in (2, 4, 3)]
    assert [row["row"] for row in rows_of(left_out)] == places
    again = as_json("prompts", out, "--model", tiny_folder, "--out", tmp_path / "again.jsonl")
    assert (again["n"], again["unusable"], again["duplicates"]) == (2, [], [])
    assert again["files"] == [str(tmp_path / "again.jsonl")]
    assert (tmp_path / "again.jsonl").read_text() == out.read_text()


def test_python_reads_prompts_with_one_call(tiny_folder: Path, file: Path) -> None:
    found = circuits.read_prompts(file, str(tiny_folder))
    splits = ", ".join(f"{n} {split}" for split, n in found.splits.items())
    assert repr(found) == f"Prompts('mine' for {tiny_folder}: 3 pairs ({splits}), 2 unusable, 1 duplicates)"
    whole = circuits.read_prompts(file, str(tiny_folder), metric="sequence")
    assert len(whole.pairs) == 4
    assert whole.pairs[2].answers == (" Xylophone",)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.jsonl"], 2, "nowhere.jsonl does not exist"),
        (["ioii"], 2, "there is no behaviour 'ioii'. Closest: 'ioi'."),
        (["ioi", "--model", "./nowhere"], 2, "there is no folder './nowhere'"),
        (["ioi", "--metric", "sequences"], 2, "there is no metric 'sequences'. Closest: 'sequence'."),
        (["ioi", "--out", "x.csv"], 2, "there is no file format '.csv'. Closest: '.jsonl'."),
    ],
)
def test_a_mistake_in_an_argument_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("prompts", *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_sides_of_different_lengths_are_aligned_where_asked_from_the_file_to_the_circuit_that_is_judged_again(
    tiny_folder: Path, tmp_path: Path
) -> None:
    words = (" Paul", " city", " capital", " gave", " the")
    texts = [(f"When{first}{second} went to", "When John went to") for first in words for second in words]
    mine = write_pairs(tmp_path / "mine.jsonl", pairs_shown_by(tiny_folder, texts))
    refused = invoke("prompts", mine, "--model", tiny_folder)
    assert refused.exit_code == 1
    assert "5 clean and 4 corrupted tokens" in refused.stderr
    assert "(--align suffix)" in refused.stderr
    document = as_json("prompts", mine, "--model", tiny_folder, "--align", "suffix")
    assert {(row["length"], row["corrupted_length"], row["differing"]) for row in document["pairs"]} == {(5, 4, 2)}
    assert document["remarks"][-1].startswith(f"{document['n']} pairs of different lengths are aligned")
    found = tmp_path / "found"
    result = done("discover", mine, *discover_options(tiny_folder, found), "--align", "suffix", "--no-heads")
    assert "pairs of different lengths are aligned" in " ".join(result.stderr.split())
    judged = json.loads((found / "circuit.json").read_text())
    assert judged["behaviour"]["variant"]["align"] == "suffix"
    kept = json.loads((found / "prompts.json").read_text())["prompts"]
    assert kept[0]["alignment"] == [0, 1, 1, 2, 3]
    again = as_json("evaluate", found / "circuit.json", "--model", tiny_folder)["evaluation"]
    assert again["metric_clean"] == pytest.approx(judged["evaluation"]["metric_clean"], abs=1e-4)
    assert again["faithfulness"] == pytest.approx(judged["evaluation"]["faithfulness"], abs=1e-3)
    denoising = invoke("patch", mine, "--model", tiny_folder, "--align", "suffix", "--out", tmp_path / "patch.svg")
    assert denoising.exit_code != 0
    assert "--direction noising measures aligned pairs" in " ".join(denoising.stderr.split())


def spoilt(prompts: Path, folder: Path) -> Path:
    """A prompt file with two bad rows among good ones."""
    lines = prompts.read_text().splitlines()
    lines[3:3] = ["{oops", json.dumps({"clean": "When John went"})]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder / "mine.jsonl"


def test_bad_rows_refuse_a_file_unless_they_are_skipped_and_then_they_are_listed(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    bad = spoilt(prompts, tmp_path)
    options = (bad, "--model", tiny_folder, "--pairs", 6, "--scorer", "eap", "--out", tmp_path / "out" / "s.csv")
    refused = invoke("score", *options)
    assert refused.exit_code == 1
    assert "mine.jsonl, line 4: not valid JSON" in refused.stderr
    assert "mine.jsonl, line 5: there is no 'corrupted'" in refused.stderr
    assert "--skip-unusable" in refused.stderr
    result = done("score", *options, "--skip-unusable")
    listed = tmp_path / "out" / "unusable.csv"
    assert f"2 unusable rows are left out; {listed} lists them" in " ".join(result.stderr.split())
    assert [row["row"] for row in rows_of(listed)] == ["mine.jsonl, line 4", "mine.jsonl, line 5"]


def test_every_command_on_prompts_can_skip_rows(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = spoilt(prompts, tmp_path)
    common = ("--model", tiny_folder, "--pairs", 6, "--skip-unusable", "--quiet")
    done("discover", bad, *discover_options(tiny_folder, tmp_path / "d"), "--skip-unusable", "--quiet", "--no-heads")
    done("path", bad, "m0->logits", *common)
    done("patch", bad, *common, "--by", "layer", "--out", tmp_path / "p" / "x.svg")
    done("evaluate", found / "circuit.json", "-b", bad, *common, "--out", tmp_path / "e" / "circuit.json")
    done("heads", found / "circuit.json", "-b", bad, *common, "--out", tmp_path / "h" / "heads.json")
    for folder in ("d", f"outputs/{tiny_folder.name}/mine", "p", "e", "h"):
        assert len(rows_of(tmp_path / folder / "unusable.csv")) == 2, folder


def test_one_pair_is_enough_to_score_to_patch_and_to_follow_a_path(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = prompts.read_text().splitlines()
    for count in (1, 2):
        (tmp_path / "few.jsonl").write_text("\n".join(lines[:count]))
        for command in (("score", "few.jsonl"), ("patch", "few.jsonl"), ("path", "few.jsonl", "m0->logits")):
            document = as_json(*command, "--model", tiny_folder)
            assert document["n"] == count, command
            assert any("measured, too few to tell" in warning for warning in document["warnings"])


def test_evaluate_and_heads_find_the_prompts_beside_the_circuit(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path
) -> None:
    circuit = found / "circuit.json"
    common = ("evaluate", circuit, "--model", tiny_folder)
    beside, given = (as_json(*common, *more)["evaluation"] for more in ((), ("--behaviour", prompts)))
    assert beside["n"] == 6
    for name in ("n", "metric_clean", "metric_corrupted", "metric_circuit", "faithfulness"):
        assert beside[name] == pytest.approx(given[name]), name
    assert as_json("heads", circuit, "--model", tiny_folder, "--out", tmp_path / "h.json")["behaviour"] == "mine"
    other = tmp_path / "circuit.json"
    other.write_bytes(circuit.read_bytes())
    changed = json.loads((found / "prompts.json").read_text())
    changed["prompts"][0]["answer_ids"] = [5]
    (tmp_path / "prompts.json").write_text(json.dumps(changed))
    refused = invoke("evaluate", other, "--model", tiny_folder)
    assert refused.exit_code == 2
    assert "do not give the tokens that the circuit was found on" in " ".join(refused.stderr.split())
    (tmp_path / "prompts.json").write_text(json.dumps({**changed, "digest": "0"}))
    refused = invoke("evaluate", other, "--model", tiny_folder)
    assert "holds other prompts than those the circuit was found on" in " ".join(refused.stderr.split())


def test_a_folder_is_a_place_for_every_command(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    circuit, common = found / "circuit.json", ("--model", tiny_folder, "--pairs", 6, "--quiet")
    done("score", prompts, *common, "--scorer", "eap", "--out", "new")
    done("patch", prompts, *common, "--by", "layer", "--out", "new")
    done("evaluate", circuit, *common, "--out", "new")
    done("draw", circuit, "--out", "new")
    done("prompts", prompts, "--model", tiny_folder, "--out", "new")
    names = {"scores-eap.csv", "patch-resid.svg", "patch-resid.csv", "circuit.json", "circuit.svg", "prompts.jsonl"}
    records = {"run.json", "run-patch-resid.json", "run-circuit.json"}
    assert {file.name for file in Path("new").iterdir()} == names | records
    refused = invoke("discover", prompts, "--model", tiny_folder, "--out", "x.json")
    assert refused.exit_code == 2
    assert "'x.json' is the name of a file, and several files are written" in " ".join(refused.stderr.split())


def test_a_smaller_circuit_than_was_asked_for_says_why(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    options = discover_options(tiny_folder, tmp_path)
    document = as_json("discover", prompts, *options, "--pruner", "top", "--size", 12, "--no-heads")
    edges = len(document["circuit"]["edges"])
    told = [text for text in document["warnings"] if "edges were asked for" in text]
    assert edges < 12
    assert told == [
        f"12 edges were asked for (size), and the circuit has {edges}: the other {12 - edges} of the best 12 are on no "
        "path from the input to the logits through these, so they carry nothing. --pruner ilp takes that "
        "many that are."
    ]


def test_a_python_caller_learns_what_to_do_too(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="skip_unusable=True"):
        circuits.load_behaviour(spoilt(prompts, tmp_path))


def test_harmless_prompts_that_are_refused_are_paired_with_answered_ones(
    prompts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "over.jsonl"
    result = done("prompts", prompts, "--over-refusal", "--model", tiny_folder, "--out", out)
    assert "the first token refuses on 3 of 36 harmless requests; 3 of these have" in " ".join(result.stdout.split())
    assert result.stderr == ""
    assert len(out.read_text().splitlines()) == 3
    both = invoke("prompts", prompts, "--over-refusal", "--harmless", prompts)
    assert both.exit_code == 2
    assert "leave --harmless, --metric and --align out" in " ".join(both.stderr.split())
