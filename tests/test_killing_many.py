"""The script that kills campaigns: here a few kills only; 100 are ``python -m tests.killing_many``."""

import json
import subprocess
import sys
from pathlib import Path

from tests.killing_many import Files, Trial, summary


def test_a_campaign_that_is_killed_loses_nothing_and_does_nothing_twice() -> None:
    command = [sys.executable, "-m", "tests.killing_many", "--kills", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert sum(found["kills"].values()) == 3
    assert (found["lost"], found["made again"], found["failed"]) == (0, 0, 0)


def test_a_result_that_is_lost_or_made_again_is_noticed(tmp_path: Path) -> None:
    files = Files(tmp_path, "*.json")
    (tmp_path / "a.json").write_text("1")
    assert files.look() == []
    (tmp_path / "b.json").write_text("1")
    assert files.look() == []
    (tmp_path / "a.json").write_text("2")
    (tmp_path / "b.json").unlink()
    assert files.look() == ["a.json", "b.json"]
    trial = Trial("campaign", {"worker": 2}, problems=["a.json was made again"])
    assert summary([trial, Trial("sweep", {"sharer": 1})]) == {
        "trials": 2,
        "kills": {"worker": 2, "sharer": 1},
        "lost": 0,
        "made again": 1,
        "failed": 1,
    }
