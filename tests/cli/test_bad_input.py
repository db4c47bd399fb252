"""Bad input is answered with what is wrong, what was expected and what to do; exit code 2 for usage, else 1."""

import errno
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from circuits.errors import RenderError
from tests.cli.conftest import discover_options, invoke, pairs_shown_by, swapped, write_pairs

WORKED, FAILED, USAGE = 0, 1, 2
PAIR = {"clean": "When John went", "corrupted": "When Paul went", "answer": " and", "wrong_answer": " to"}


def refused(code: int, *arguments: object) -> str:
    """Run a command that must fail with this code; give the message, without line breaks."""
    result = invoke(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make loading a model a failure of the test: what is wrong must be found before."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("circuits.model.load_model", load)


# ------------------------------------------------------------------------------------------------------ unknown names


def test_an_unknown_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from circuits.models.fetching import hub

    def absent(hub_id: str, *_: object) -> Path:
        raise hub.NotOnHubError(f"the hub has no '{hub_id}'")

    monkeypatch.setattr(hub, "download_snapshot", absent)
    message = refused(USAGE, "discover", "ioi", "--model", "smollm2-135", "--out", tmp_path)
    assert "there is no model 'smollm2-135'. Closest: 'smollm2-135m'." in message
    message = refused(USAGE, "check", "--model", "./nowhere")
    assert "there is no folder './nowhere'; expected a model folder, a Hugging Face id" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ioii"], "there is no behaviour 'ioii'. Closest: 'ioi'."),
        (["ioi", "--scorer", "eap-gi"], "there is no scorer 'eap-gi'. Closest: 'eap-ig'."),
        (["ioi", "--pruner", "maximal"], "there is no pruner 'maximal'. Closest: 'minimal'."),
        (["ioi", "--metric", "logit-diff"], "there is no metric 'logit-diff'. Closest: 'logit-difference'."),
        (["ioi", "--ablation", "zeros"], "there is no ablation 'zeros'. Closest: 'zero'."),
        (["ioi", "--direction", "noise"], "there is no direction 'noise'. Closest: 'noising'."),
        (["ioi", "--batch-size", "big"], "--batch-size is auto or a number from 1 up, got 'big'"),
        (["ioi", "--target", "1.5"], "the target must be between 0 and 1, got 1.5"),
        (["ioi", "--pairs", "2"], "at least 4 discovery and 4 held-out pairs are needed, got 2"),
        (["ioi", "--heldout", "0"], "at least 4 discovery and 4 held-out pairs are needed"),
        (["ioi", "--ablation", "zero", "--direction", "denoising"], "zero ablation has no corrupted run"),
        (["ioi", "--pairs", "many"], "Invalid value for '--pairs'"),
        (["ioi", "--scorers", "eap"], "No such option: --scorers"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_unknown_names_and_wrong_numbers_are_found_before_the_model_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert message in refused(USAGE, "discover", *arguments, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("no_model")
def test_an_unknown_command_and_site() -> None:
    assert "there is no site 'residual'. Closest: 'resid'" in refused(USAGE, "patch", "ioi", "--site", "residual")
    assert "there is no value of --by 'position'" in refused(USAGE, "patch", "ioi", "--by", "position")
    assert "patches every head at all positions" in refused(USAGE, "patch", "ioi", "--site", "head", "--by", "layer")
    assert "No such command 'discovery'" in refused(USAGE, "discovery")


def test_an_unknown_device_and_dtype(tiny_folder: Path, prompts: Path) -> None:
    common = ("score", prompts, "--model", tiny_folder)
    assert "there is no device 'gpu'" in refused(USAGE, *common, "--device", "gpu")
    assert "there is no dtype 'float31'. Closest: 'float32'" in refused(USAGE, *common, "--dtype", "float31")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a9.h1->logits", "there is no node 'a9.h1'. Closest: 'a2.h1'. This model has layers 0-2 and heads 0-3"),
        ("a2.h9->logits", "there is no node 'a2.h9'. Closest: 'a2.h3'"),
        ("x->logits", "'x' is not a node; expected input, logits, m3, a3.h5 or a3.kv1"),
        ("m1->m0->logits", "'m1' is not computed before 'm0' reads the stream"),
        ("a0.h1->m1", "must end at logits: write 'a0.h1->m1->logits'"),
        ("m0", "'m0' is not a path; expected nodes joined by ->"),
    ],
)
def test_unknown_nodes_and_edges_of_a_path(tiny_folder: Path, prompts: Path, path: str, message: str) -> None:
    assert message in refused(USAGE, "path", prompts, path, "--model", tiny_folder, "--pairs", 6)


def test_unknown_edges_of_a_file_are_named_with_their_line(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    edges = tmp_path / "edges.txt"
    edges.write_text("# two edges\nm0->logits\na7.h0->logits\n")
    common = ("score", prompts, "--model", tiny_folder, "--pairs", 6, "--out", tmp_path / "x.csv", "--edges")
    message = refused(FAILED, *common, edges)
    assert "edges.txt, line 3: there is no node 'a7.h0'. Closest: 'a2.h0'" in message
    assert "there is no file 'nothing.txt'; --edges takes all, top:N, or a file" in refused(
        USAGE, *common, "nothing.txt"
    )
    assert "--edges top:N needs a number from 1 up, got 'top:all'" in refused(USAGE, *common, "top:all")


# ------------------------------------------------------------------------------------------------------- file formats


@pytest.mark.usefixtures("no_model")
def test_unknown_file_formats_are_found_before_the_model_is_loaded(prompts: Path, tmp_path: Path) -> None:
    score = refused(USAGE, "score", prompts, "--out", tmp_path / "x.txt")
    assert "there is no file format '.txt'. Known: .csv, .parquet. The file was to be" in score
    assert "'.gif'" in refused(USAGE, "patch", prompts, "--out", tmp_path / "x.gif")


def test_unknown_formats_of_diagrams_and_exports(found: Path, tmp_path: Path) -> None:
    message = refused(USAGE, "draw", found / "circuit.json", "-o", tmp_path / "x.sgv")
    assert "there is no file format '.sgv'. Closest: '.svg'." in message
    assert "'.xml'" in refused(USAGE, "export", found / "circuit.json", "-o", tmp_path / "x.xml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("{", "not valid JSON"),
        ("{}", "is not a circuit; expected a JSON object with"),
        ('{"format": "circuits/circuit", "version": 99}', "has version 99; this release reads up to 1"),
    ],
)
@pytest.mark.parametrize("command", ["draw", "export", "evaluate", "compare"])
def test_files_that_are_no_circuits(found: Path, tmp_path: Path, command: str, text: str | None, message: str) -> None:
    file = tmp_path / "broken.json"
    if text is not None:
        file.write_text(text)
    out = {"draw": ["-o", tmp_path / "x.svg"], "export": ["-o", tmp_path / "x.csv"], "evaluate": []}
    rest = out.get(command, [found / "circuit.json"])
    complaint = refused(USAGE if text is None else FAILED, command, file, *rest)
    assert message in complaint
    assert "broken.json" in complaint


def test_a_circuit_of_a_prompt_file_asks_for_it_where_its_prompts_are_not_beside_it(
    found: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "circuit.json"
    alone.write_bytes((found / "circuit.json").read_bytes())
    message = refused(USAGE, "evaluate", alone)
    assert "of the behaviour 'mine', which is not built in; give its prompt file with --behaviour FILE" in message


# ------------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("name", "text", "code", "message"),
    [
        ("empty.jsonl", "", FAILED, "empty.jsonl has no prompt pairs; expected one pair per line"),
        ("bad.jsonl", json.dumps(PAIR) + "\n{oops\n", FAILED, "bad.jsonl, line 2: not valid JSON at column 2"),
        ("part.jsonl", '{"clean": "When"}\n', FAILED, "part.jsonl, line 1: there is no 'corrupted'"),
        ("list.jsonl", "[1]\n", FAILED, "list.jsonl, line 1: expected an object such as"),
        ("table.csv", "clean,corrupted\na,b,c\n", FAILED, "table.csv, line 2: expected 2 columns as in the header"),
        ("pairs.md", "hello", USAGE, "there is no prompt file format '.md'. Known: .jsonl, .csv, .json"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_empty_and_malformed_prompt_files(tmp_path: Path, name: str, text: str, code: int, message: str) -> None:
    (tmp_path / name).write_text(text)
    assert message in refused(code, "discover", tmp_path / name, "--out", tmp_path / "out")


def test_a_missing_prompt_file() -> None:
    assert "pairs.jsonl does not exist; give the path of a prompt file" in refused(USAGE, "score", "pairs.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"corrupted": "When France went"},
            "3 clean and 6 corrupted tokens; patching replaces activations position by position, so both sides must "
            "tokenize to the same length. First difference at position 1: ' John' / ' '",
        ),
        ({"answer": " Mary"}, "the answer ' Mary' is 3 tokens (' ' 'Mar' 'y'); only the next token is measured"),
        (
            {"corrupted": "When John went"},
            "the clean and the corrupted prompt are the same, so patching changes nothing",
        ),
        ({"wrong_answer": " and"}, "' and' is an answer and a wrong answer at once"),
    ],
)
def test_pairs_that_cannot_be_used(tiny_folder: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    file = write_pairs(tmp_path / "bad.jsonl", [PAIR | change])
    complaint = refused(FAILED, "discover", file, *discover_options(tiny_folder, tmp_path / "out"))
    assert message in complaint
    assert "bad.jsonl, line 1" in complaint


def test_too_few_pairs(tiny_folder: Path, tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "few.jsonl", [PAIR])
    message = refused(FAILED, "discover", file, *discover_options(tiny_folder, tmp_path / "out"))
    assert "at least 4 of each, with different clean prompts, are needed" in message


# --------------------------------------------------------------------------------------------- model and behaviour


def shown_wrongly(tiny_folder: Path, path: Path) -> Path:
    """Pairs that the model shows the other way round."""
    rows = pairs_shown_by(tiny_folder, swapped("When", " went to"))
    return write_pairs(path, [row | {"answer": row["wrong_answer"], "wrong_answer": row["answer"]} for row in rows])


@pytest.mark.parametrize("command", ["discover", "score", "patch"])
def test_a_model_that_does_not_show_the_behaviour(tiny_folder: Path, tmp_path: Path, command: str) -> None:
    file = shown_wrongly(tiny_folder, tmp_path / "not.jsonl")
    message = refused(FAILED, command, file, "--model", tiny_folder, "--pairs", 8, "--out", _out(command, tmp_path))
    pairs = 12 if command == "discover" else 8  # those that circuits are chosen by, too
    assert f"does not show not. logit-difference over {pairs} pairs: clean -" in message
    assert "try another model" in message


def _out(command: str, folder: Path) -> Path:
    return folder / {"discover": "out", "score": "x.csv", "patch": "x.svg"}[command]


def test_a_weak_behaviour_is_warned_about_but_measured(tiny_folder: Path, tmp_path: Path) -> None:
    rows: list[Any] = pairs_shown_by(tiny_folder, swapped("When", " went to"))
    turned = [row | {"answer": row["wrong_answer"], "wrong_answer": row["answer"]} for row in rows[::12]]
    file = write_pairs(tmp_path / "weak.jsonl", [*turned, *(row for i, row in enumerate(rows) if i % 12)])
    options = ("--model", tiny_folder, "--pairs", 12, "--seed", 3, "--out", tmp_path / "x.csv", "--scorer", "eap")
    result = invoke("score", file, *options, "--json")
    assert result.exit_code == WORKED, result.output
    assert "warning: on " in result.stderr
    assert "the corrupted prompt does at least as well as the clean one" in result.stderr
    assert len(json.loads(result.stdout)["warnings"]) >= 1


def test_an_unsupported_architecture(tmp_path: Path, prompts: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.tiny import tiny_tokenizer

    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=320, add_cross_attention=True)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "crossed")
    tiny_tokenizer().save_pretrained(tmp_path / "crossed")
    message = refused(FAILED, "score", prompts, "--model", tmp_path / "crossed", "--out", tmp_path / "scores.csv")
    assert "'gpt2' has add_cross_attention=True, for which there is no adapter" in message
    assert "expected add_cross_attention=False" in message


def test_cuda_asked_for_and_absent(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = ["--model", tiny_folder, "--device", "CUDA", "--out", tmp_path]
    message = refused(FAILED, "discover", prompts, *options)
    assert "device 'CUDA' was asked for, but torch" in message
    assert "Use `--device cpu` or `--device auto`" in message


# ------------------------------------------------------------------------------------------------------------ output


@pytest.mark.usefixtures("no_model")
def test_an_output_folder_that_cannot_be_written_is_found_before_the_model_is_loaded(
    prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    message = refused(FAILED, "discover", prompts, "--out", tmp_path / "file" / "results")
    assert f"the folder '{tmp_path / 'file' / 'results'}' cannot be written to (" in message
    assert "Choose another place with --out, or free some space." in message
    assert "is a folder; name a file in it" in refused(FAILED, "score", prompts, "--out", _folder(tmp_path / "x.csv"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("command", ["discover", "score", "patch"])
@pytest.mark.usefixtures("no_model")
def test_a_full_disk_is_found_before_the_model_is_loaded(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    usage = namedtuple("usage", "total used free")(100, 99, 1_000_000)
    monkeypatch.setattr("circuits.files.atomic.shutil.disk_usage", lambda _: usage)
    message = refused(FAILED, command, prompts, "--out", _out(command, tmp_path))
    assert "has 1 MB of free space, but 50 MB are needed. Choose another place with --out" in message


def test_a_disk_that_fills_up_later_leaves_what_was_computed(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("circuits.files.atomic.Path.write_bytes", full)
        message = refused(FAILED, "discover", prompts, *discover_options(tiny_folder, tmp_path))
    assert f"cannot write {tmp_path / 'scores.parquet'}: No space left on device" in message
    result = invoke("discover", prompts, *discover_options(tiny_folder, tmp_path), "--resume")
    assert result.exit_code == WORKED
    assert f"continuing the run in {tmp_path}" in result.stderr


def test_without_graphviz_the_circuit_is_kept_and_shown(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise RenderError("no Graphviz was found: pygraphviz cannot be imported.")

    monkeypatch.setattr("circuits.drawing.pictures.image", broken)
    result = invoke("discover", prompts, *discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 30)
    assert result.exit_code == FAILED
    assert "no Graphviz was found" in result.stderr
    assert f"The circuit itself is in {tmp_path / 'circuit.json'}." in result.stderr
    assert "faithfulness" in result.stdout
    assert (tmp_path / "circuit.json").is_file()
    assert (tmp_path / "circuit.dot").is_file()


# ------------------------------------------------------------------------------------------------------------- debug


def test_debug_lets_the_error_pass_with_its_traceback() -> None:
    plain, debug = invoke("score", "ioii"), invoke("score", "ioii", "--debug")
    assert plain.exit_code == USAGE
    assert plain.exception is None or isinstance(plain.exception, SystemExit)
    assert type(debug.exception).__name__ == "UnknownNameError"


def test_what_was_not_foreseen_is_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from circuits.cli.app import report_bug

    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        problem = error
    monkeypatch.setattr(sys, "argv", ["circuits", "check"])
    report_bug(type(problem), problem, problem.__traceback__)
    shown = capsys.readouterr().err
    assert "error: ZeroDivisionError: division by zero" in shown
    assert "--debug" in shown
    assert "Traceback" not in shown
    monkeypatch.setattr(sys, "argv", ["circuits", "check", "--debug"])
    report_bug(type(problem), problem, problem.__traceback__)
    assert "Traceback" in capsys.readouterr().err
