"""Long commands that are stopped and started again with --resume end as if they had not been stopped."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from circuits.files.journal import Journal
from circuits.tracing.tracer import Tracer
from tests.cli.conftest import done, invoke

STOPPED = 130


@dataclass(frozen=True)
class Places:
    """Where things are that commands work on."""

    model: Path
    prompts: Path
    others: Path
    circuit: Path
    other: Path


@pytest.fixture
def places(tiny_folder: Path, prompts: Path, other_prompts: Path, found: Path, other_found: Path) -> Places:
    return Places(tiny_folder, prompts, other_prompts, found / "circuit.json", other_found / "circuit.json")


Arguments = Callable[[Places], list[object]]
COMMANDS: dict[str, tuple[Arguments, str, str]] = {
    "score": (lambda at: ["score", at.prompts, "--model", at.model, "--pairs", 6, "--scorer", "exact"], "x.csv", ""),
    "compare": (
        lambda at: ["compare", at.circuit, at.other, "-b", at.prompts, "-b", at.others, "--pairs", 6, "--random", 2],
        "comparison.json",
        "folder",
    ),
    "ablate": (
        lambda at: ["ablate", at.circuit, "-p", at.prompts, "--pairs", 6, "--random", 2, "--tokens", 2],
        "x.json",
        "",
    ),
    "ablate edges": (
        lambda at: ["ablate", at.circuit, "-p", at.prompts, "--pairs", 6, "--random", 2, "--what", "edges"],
        "x.json",
        "",
    ),
    "evaluate": (lambda at: ["evaluate", at.circuit, "-b", at.prompts, "--pairs", 6], "x.json", ""),
    "heads": (lambda at: ["heads", at.circuit, "-b", at.prompts, "--pairs", 6], "heads.json", ""),
    "patch": (lambda at: ["patch", at.prompts, "--model", at.model, "--pairs", 6], "x.svg", ""),
}


class Passes:
    """Counts forward passes, and stops the run at one of them."""

    def __init__(self, patched: pytest.MonkeyPatch, stop_at: int | None = None) -> None:
        self.count = 0
        original: Any = Tracer.run

        def counting(*given: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == stop_at:
                raise KeyboardInterrupt
            return original(*given, **options)

        patched.setattr(Tracer, "run", counting)


def result(path: Path) -> object:
    """What a command wrote, without the command line; of a drawing, the values beside it."""
    if path.suffix != ".json":
        return path.with_suffix(".csv").read_bytes()
    document = json.loads(path.read_text())
    document.pop("command", None)
    return document


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(
    name: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, file, kind = COMMANDS[name]

    def out(folder: str) -> tuple[list[object], Path]:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / file
        return [*arguments(places), "--out", path.parent if kind == "folder" else path], path

    with monkeypatch.context() as patched:
        whole = Passes(patched)
        command, expected = out("whole")
        done(*command)
    command, path = out("cut")
    with monkeypatch.context() as patched:
        Passes(patched, whole.count)
        stopped = invoke(*command)
    journal = path.with_name(f"{file}.journal")
    assert stopped.exit_code == STOPPED, stopped.output
    assert f"stopped; what is finished is kept in {journal}, continue with --resume." in stopped.stderr
    assert not path.exists()
    with monkeypatch.context() as patched:
        resumed = Passes(patched)
        said = done(*command, "--resume").stderr
    assert f"continuing from {journal}." in said
    assert resumed.count < whole.count
    assert result(path) == result(expected)
    assert {each.name for each in path.parent.iterdir()} == {each.name for each in expected.parent.iterdir()}


def test_a_run_that_is_not_resumed_says_what_it_throws_away(places: Places, tmp_path: Path) -> None:
    with Journal(tmp_path / "x.csv.journal") as journal:
        journal.shelf(model="other").put("circuit", b"1", b"one")
    command = ["score", places.prompts, "--model", places.model, "--pairs", 6, "--out", tmp_path / "x.csv"]
    said = done(*command).stderr
    assert "x.csv.journal is of an interrupted run, which is started afresh (--resume would have" in said
    said = done(*command, "--resume").stderr
    assert f"nothing to continue: {tmp_path / 'x.csv.journal'} does not exist. Starting afresh." in said


def test_two_runs_that_write_one_file_are_refused(places: Places, tmp_path: Path) -> None:
    command = ["score", places.prompts, "--model", places.model, "--pairs", 6, "--out", tmp_path / "x.csv"]
    with Journal(tmp_path / "x.csv.journal"):
        refused = invoke(*command)
    assert refused.exit_code == 1
    assert f"another run is writing to {tmp_path}" in refused.stderr


def test_an_ablation_that_is_only_printed_works_where_nothing_can_be_kept(places: Places, tmp_path: Path) -> None:
    circuit = tmp_path / "circuit.json"
    circuit.write_bytes(places.circuit.read_bytes())
    command = ["ablate", circuit, "-p", places.prompts, "--pairs", 6, "--random", 1, "--tokens", 1]
    with Journal(tmp_path / "circuit.ablate.journal"):
        said = done(*command).stderr
        assert "what is measured is not kept, should this be stopped: another run is writing to" in said
        assert invoke(*command, "--resume").exit_code == 1
    done(*command)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["circuit.json", "run.json"]
