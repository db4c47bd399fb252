"""Ctrl-C keeps what is finished, says where, and --resume ends with the circuit of a run that was never interrupted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from circuits.tracing.experiment import PatchingExperiment
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


def steps(folder: Path) -> list[str]:
    return [json.loads(line).get("step", "") for line in (folder / "journal").read_text().splitlines()[1:]]


@pytest.mark.parametrize("calls", CALLS)
def test_a_search_that_was_interrupted_ends_with_the_same_circuit(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    arguments = [prompts, *discover_options(tiny_folder, tmp_path)]
    message = stopped(monkeypatch, arguments, "circuits", calls).stderr
    assert f"stopped; what is finished is kept in {tmp_path}, continue with --resume" in message
    assert not (tmp_path / "circuit.json").exists()
    kept = steps(tmp_path)
    assert kept[0] == "scored"
    scored: list[object] = []
    monkeypatch.setattr("circuits.discovery.score", lambda *_: scored.append("again"))
    resumed = done("discover", *arguments, "--resume")
    assert f"continuing the run in {tmp_path}" in resumed.stderr
    assert scored == []
    assert len(steps(tmp_path)) > len(kept)
    assert without_provenance(tmp_path) == without_provenance(found)


def test_the_interruptions_above_hit_different_stages(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for calls in CALLS:
        folder = tmp_path / str(calls)
        stopped(monkeypatch, [prompts, *discover_options(tiny_folder, folder)], "circuits", calls)
        seen.append(len(steps(folder)))
    assert seen[0] == 1
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


def test_a_journal_cut_off_by_a_kill_is_still_usable(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [prompts, *discover_options(tiny_folder, tmp_path)]
    stopped(monkeypatch, arguments, "circuits", 24)
    journal = tmp_path / "journal"
    journal.write_text(journal.read_text()[:-40])
    done("discover", *arguments, "--resume")
    assert without_provenance(tmp_path) == without_provenance(found)


def test_other_commands_stop_quietly(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, "attributions", 1)
    result = invoke("score", prompts, "--model", tiny_folder, "--pairs", 6, "--out", tmp_path / "x.csv")
    assert result.exit_code == STOPPED
    assert "stopped." in result.stderr
    assert not (tmp_path / "x.csv").exists()
