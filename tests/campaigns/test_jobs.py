"""Worker processes: they answer how commands end, are started again where they die, and stop with what started them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from circuits.campaigns.jobs import DIED, Job, Processes, WorkerProcess
from circuits.campaigns.worker import run


def job(folder: Path, *arguments: str) -> Job:
    return Job(arguments[0], arguments, folder / "messages.log", folder / "journal.lock")


def test_a_worker_runs_commands_and_says_why_one_fails(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "guide", "costs", "--json"), job(tmp_path, "guide", "cists", "--json")]
    good, bad = Processes().run(jobs)
    assert (good.code, good.kind, good.message) == (0, "", "")
    assert (bad.code, bad.kind) == (2, "UnknownNameError")
    assert bad.message.startswith("there is no guide 'cists'. Closest: 'costs'.")
    assert "there is no guide 'cists'" in (tmp_path / "messages.log").read_text()


def test_a_killed_worker_costs_its_job_only_and_is_started_again(tmp_path: Path) -> None:
    worker = WorkerProcess(threads=1)
    try:
        assert worker.run(job(tmp_path, "guide", "--json")).code == 0
        process = worker._process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        ended = worker.run(job(tmp_path, "guide", "--json"))
        assert (ended.code, ended.kind, ended.died) == (-9, DIED, True)
        assert ended.message == f"its process ended with SIGKILL; its messages are in {tmp_path / 'messages.log'}."
        assert worker.run(job(tmp_path, "guide", "--json")).code == 0
    finally:
        worker.stop()
    assert worker.run(job(tmp_path, "guide", "--json")).died


def started(tmp_path: Path, **options: Any) -> "subprocess.Popen[str]":
    """A worker that was told one job."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "circuits.campaigns.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    places = {"log": f"{tmp_path}/log", "lock": f"{tmp_path}/lock", "directory": f"{tmp_path}", "once": False}
    worker.stdin.write(json.dumps({"arguments": ["guide", "--json"]} | places) + "\n")
    worker.stdin.flush()
    return worker


def test_a_worker_stops_when_what_started_it_is_killed(tmp_path: Path) -> None:
    worker = started(tmp_path)
    assert json.loads(worker.stdout.readline()) == {"code": 0, "kind": "", "message": ""}
    worker.stdin.close()
    assert worker.wait(20) == 0
    worker.stdout.close()


def test_a_worker_stops_in_the_middle_also_where_a_shell_lets_it_ignore_ctrl_c(tmp_path: Path) -> None:
    """As with ``nohup circuits sweep grid.toml &``; here it waits for a file that another holds."""
    with FileLock(tmp_path / "lock"):
        worker = started(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        until = time.monotonic() + 60
        while not (tmp_path / "log.lock").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)
        assert worker.poll() is None
        worker.stdin.close()
        assert worker.wait(20) == 0
        worker.stdout.close()


def test_a_job_that_an_earlier_worker_is_at_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["guide", "--json"], tmp_path / "messages.log", tmp_path / "journal.lock"
    earlier = FileLock(tmp_path / "messages.lock", thread_local=False)
    earlier.acquire()
    letting_go = threading.Timer(1, earlier.release)
    letting_go.start()
    begun = time.monotonic()
    assert run(*given) == (0, "", "")
    assert time.monotonic() - begun > 0.9
    letting_go.join()
    monkeypatch.setattr("circuits.campaigns.worker.PATIENCE", 0.2)
    with FileLock(tmp_path / "messages.lock"):
        assert run(*given) == (0, "", "")  # it went on: what the command itself locks it says


def test_workers_share_the_cores_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Popen:
        stdin = stdout = None
        returncode = 1

        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env["OMP_NUM_THREADS"])

        def wait(self, timeout: float = 0) -> int:
            return 1

    monkeypatch.setattr("circuits.campaigns.jobs.subprocess.Popen", Popen)
    monkeypatch.setattr("circuits.campaigns.jobs.cores", lambda: 8)
    several = [job(tmp_path, "guide", "--json")] * 3
    for workers in (Processes(1), Processes(3), Processes(3, threads=5)):
        assert all(ended.died for ended in workers.run(several))
    assert [seen[0], seen[3], seen[-1]] == ["8", "2", "5"]


def test_stopping_in_the_middle_ends_the_processes(tmp_path: Path) -> None:
    running = Processes(2).run([job(tmp_path, "guide", "--json")] * 4)
    assert next(running).code == 0
    begun = time.monotonic()
    running.close()
    assert time.monotonic() - begun < 20
