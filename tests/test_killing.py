"""The script that kills commands at random moments: here a few kills only; 100 are ``python -m tests.killing``."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.killing import Command, results


def test_killed_and_resumed_commands_end_as_uninterrupted_ones() -> None:
    command = [sys.executable, "-m", "tests.killing", "--moments", "6", "--commands", "discover,score"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [hit] = re.findall(r"^6 kills, (\d) of a running command, 0 failed$", ended.stdout, re.MULTILINE)
    assert int(hit) >= 4
    for number in ("SIGKILL", "SIGTERM", "SIGINT"):
        assert f"discover  {number}" in ended.stdout


def test_a_result_that_differs_in_more_than_its_time_is_noticed(tmp_path: Path) -> None:
    command = Command("discover", lambda _: [], ("circuit.json",))
    texts = [json.dumps({"edges": [1], "provenance": {"wall_seconds": seconds}}) for seconds in (1, 2)]
    found = []
    for text in (*texts, texts[0].replace("[1]", "[2]")):
        (tmp_path / "circuit.json").write_text(text)
        found.append(results(command, tmp_path))
    assert found[0] == found[1] != found[2]
