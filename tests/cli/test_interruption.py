"""Ctrl-C keeps what is finished, says where, and --resume ends with the circuit of a run that was never interrupted."""

import errno
import json
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import typer
from pyarrow import parquet
from typer.testing import Result

from circuits.cli import main
from circuits.cli.places import RunLog, _Handler
from circuits.errors import OutputError
from circuits.files.journal import Journal
from circuits.patching.experiment import PatchingExperiment
from tests.cli.conftest import discover_options, done, invoke

STOPPED = 130
CALLS = (2, 18, 24, 32, 40)
"""Which measurement of circuits is interrupted: while proposing, in three rounds of pruning, while judging."""


def interrupted(patched: pytest.MonkeyPatch, method: str, calls: int) -> None:
    """Raise what Ctrl-C raises, from inside the n-th call of a method of the experiment."""
    original: Callable[..., Any] = getattr(PatchingExperiment, method)
    count = 0

    def stopping(self: PatchingExperiment, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    patched.setattr(PatchingExperiment, method, stopping)


def stopped(monkeypatch: pytest.MonkeyPatch, arguments: list[object], method: str, calls: int) -> Result:
    with monkeypatch.context() as patched:
        interrupted(patched, method, calls)
        result = invoke("discover", *arguments)
    assert result.exit_code == STOPPED, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result


def without_provenance(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "circuit.json").read_text())
    del document["provenance"]
    return document


def kept(folder: Path) -> int:
    """How many measurements the journal holds."""
    with closing(sqlite3.connect(folder / "journal")) as connection:
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]


@pytest.mark.parametrize("calls", CALLS)
def test_a_search_that_was_interrupted_ends_with_the_same_circuit(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    arguments = [prompts, *discover_options(tiny_folder, tmp_path)]
    message = stopped(monkeypatch, arguments, "circuits", calls).stderr
    assert f"stopped; what is finished is kept in {tmp_path}, continue with --resume" in message
    assert not (tmp_path / "circuit.json").exists()
    before = kept(tmp_path)
    monkeypatch.setattr("circuits.patching.experiment.PatchingExperiment._attribution", None)
    resumed = done("discover", *arguments, "--resume")
    assert f"continuing the run in {tmp_path}" in resumed.stderr
    assert kept(tmp_path) > before
    assert without_provenance(tmp_path) == without_provenance(found)


def test_the_interruptions_above_hit_different_stages(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for calls in CALLS:
        folder = tmp_path / str(calls)
        stopped(monkeypatch, [prompts, *discover_options(tiny_folder, folder)], "circuits", calls)
        seen.append(kept(folder))
    assert seen == sorted(set(seen))


def test_before_anything_is_finished_there_is_nothing_to_keep(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [prompts, *discover_options(tiny_folder, tmp_path)]
    message = stopped(monkeypatch, arguments, "attributions", 1).stderr
    assert f"stopped before anything was finished; the log is in {tmp_path}" in message
    assert "KeyboardInterrupt" in (tmp_path / "run.log").read_text()


def test_another_batch_size_continues_the_same_run_but_other_settings_do_not(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[object] = [prompts, *discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 20]
    stopped(monkeypatch, arguments, "edge_effects", 1)
    assert "continuing the run" in done("discover", *arguments, "--batch-size", 64, "--resume").stderr
    other = done("discover", *arguments, "--seed", 5, "--resume").stderr
    assert "is of other settings, prompts or weights. Starting afresh." in other


def test_an_interrupted_run_is_not_started_afresh_silently(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[object] = [prompts, *discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 20]
    stopped(monkeypatch, arguments, "edge_effects", 1)
    assert "holds an interrupted run, which is started afresh" in done("discover", *arguments).stderr


def test_resuming_without_an_earlier_run_says_so(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    arguments = [prompts, *discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 20, "--resume"]
    assert f"nothing to continue: the journal in {tmp_path} does not exist" in done("discover", *arguments).stderr


def test_a_damaged_journal_is_said_to_be_damaged_and_the_run_begins_afresh(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [prompts, *discover_options(tiny_folder, tmp_path)]
    stopped(monkeypatch, arguments, "circuits", 24)
    (tmp_path / "journal").write_bytes((tmp_path / "journal").read_bytes()[:-5000])
    message = done("discover", *arguments, "--resume").stderr
    assert f"nothing to continue: the journal in {tmp_path} is damaged, or of another release. Starting" in message
    assert without_provenance(tmp_path) == without_provenance(found)


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    with Journal(tmp_path / "journal"):
        result = invoke("discover", prompts, *discover_options(tiny_folder, tmp_path), "--seed", 1)
    assert result.exit_code == 1
    assert f"another run is writing to {tmp_path}" in result.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"journal"}


@pytest.mark.parametrize("damage", ["cut", "nan", "swapped"])
def test_scores_that_were_damaged_are_written_again_by_resume_and_refused_by_others(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(found, folder)
    path = folder / "scores.parquet"
    whole, arrow = path.read_bytes(), parquet.read_table(path)
    table = arrow.to_pandas()
    if damage == "cut":
        table = table.iloc[:50]
    else:
        table["score"] = table["score"].iloc[::-1].to_numpy() if damage == "swapped" else np.nan
    parquet.write_table(pyarrow.Table.from_pandas(table).replace_schema_metadata(arrow.schema.metadata), path)
    result = invoke("evaluate", folder / "circuit.json", "--behaviour", prompts, "--model", tiny_folder)
    assert result.exit_code == 1
    assert "was damaged or changed after it was written" in result.stderr
    done("discover", prompts, *discover_options(tiny_folder, folder), "--resume")
    assert path.read_bytes() == whole
    assert without_provenance(folder) == without_provenance(found)


def test_a_log_that_cannot_be_written_is_a_warning(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    result = done("discover", prompts, *discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 20)
    assert f"there is no log of this run: cannot write {tmp_path / 'run.log'}: Is a directory." in result.stderr
    assert (tmp_path / "circuit.json").is_file()


def test_a_log_that_fails_at_its_end_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = _Handler.close

    def full(handler: _Handler) -> None:
        closed(handler)
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail() -> None:
        with RunLog(tmp_path, "circuits discover"):
            monkeypatch.setattr(_Handler, "close", full)
            raise OutputError("the real error")

    with pytest.raises(OutputError, match="the real error"):
        fail()


def test_a_folder_that_is_removed_during_the_run_is_made_again(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, original = tmp_path / "run", PatchingExperiment.circuits

    def removing(self: PatchingExperiment, *arguments: Any, **options: Any) -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setattr(PatchingExperiment, "circuits", original)
        return original(self, *arguments, **options)

    monkeypatch.setattr(PatchingExperiment, "circuits", removing)
    done("discover", prompts, *discover_options(tiny_folder, folder))
    assert without_provenance(folder) == without_provenance(found)
    assert (folder / "report.html").is_file()


def test_other_commands_stop_quietly(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, "attributions", 1)
    result = invoke("score", prompts, "--model", tiny_folder, "--pairs", 6, "--out", tmp_path / "x.csv")
    assert result.exit_code == STOPPED
    assert "stopped before anything was finished." in result.stderr
    assert not (tmp_path / "x.csv").exists()


def test_a_command_that_is_stopped_before_it_begins_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(typer.main, "get_command", stopping)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit, match="130"):
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "stopped." in capsys.readouterr().err
