"""A command that fails says so for programs too: by its exit code, and with ``--json`` by an object on stdout."""

import json
from pathlib import Path

import pytest

from circuits.cli.app import report_bug
from tests.cli.conftest import invoke


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "message"),
    [
        (["discover", "ioii"], 2, "UnknownNameError", "there is no behaviour 'ioii'. Closest: 'ioi'."),
        (["score", "nowhere.jsonl"], 2, "MissingFileError", "nowhere.jsonl does not exist"),
        (["draw", "nowhere.json", "-o", "x.svg"], 2, "MissingFileError", "cannot read nowhere.json: No such file"),
        (["check", "--model", "./nowhere"], 2, "MissingModelError", "there is no folder './nowhere'"),
        (["discover", "ioi", "--target", "2"], 2, "UsageError", "the target must be between 0 and 1"),
        (["discover", "ioi", "--scorers", "x"], 2, "NoSuchOption", "No such option: --scorers"),
        (["discover", "ioi", "--pairs", "x"], 2, "BadParameter", "Invalid value for '--pairs'"),
        (["draw"], 2, "MissingParameter", ""),
        (["score", "bad.jsonl"], 1, "FormatError", "bad.jsonl, line 1: not valid JSON"),
    ],
)
def test_a_failure_is_one_json_object_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, kind: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text("{oops\n")
    result = invoke(*arguments, "--json")
    assert result.exit_code == code
    told = json.loads(result.stdout)["error"]
    assert (told["kind"], told["exit_code"]) == (kind, code)
    assert message in told["message"]
    plain = invoke(*arguments)
    assert (plain.exit_code, plain.stdout) == (code, "")


def test_what_nobody_foresaw_is_a_json_object_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["circuits", "models", "--json"])
    report_bug(KeyError, KeyError("x"), None)
    assert json.loads(capsys.readouterr().out)["error"] == {"kind": "KeyError", "message": "'x'", "exit_code": 1}


def test_a_stopped_command_is_a_json_object_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("circuits.cli.commands.listings.table", stop)
    result = invoke("models", "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["error"]["message"] == "stopped."
