"""The script that measures what campaigns cost: here the smallest; the whole is ``python -m tests.campaign_costs``."""

import json
import random
import resource
import subprocess
import sys
import time

import pytest

from tests.campaign_costs import Tree, kills_of

BURNING = "import time\nwhile time.process_time() < 1: pass"


@pytest.mark.slow
def test_every_way_has_the_tables_of_one_process_and_says_what_it_took() -> None:
    command = [sys.executable, "-m", "tests.campaign_costs", "--behaviours", "2", "--models", "1", "--seeds", "1"]
    ended = subprocess.run(
        [*command, "--ways", "one process", "two processes"], capture_output=True, text=True, timeout=800, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["runs"] == found["rows"] == 2
    one, two = found["ways"]
    for way in (one, two):
        assert way["problems"] == way["kills"] == []
        assert way["processor"]["runs"] > way["processor"]["driver"] > 0
    assert two["processor"]["runs"] > one["processor"]["runs"]  # packages are loaded twice


def test_a_worker_is_killed_early_and_the_driver_late() -> None:
    for seed in range(200):
        (first, early, _), (second, late, _) = kills_of(random.Random(seed), 18)
        assert (first, second) == ("worker", "driver")
        assert 1 <= early < 9 <= late <= 16


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of processes")
def test_processor_time_of_processes_that_have_ended_is_counted() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURNING!r}])"]
    )
    tree = Tree(child.pid)
    while child.poll() is None:
        tree.look()
        time.sleep(0.05)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = tree.seconds()
    assert found["other"] > 0.7
    assert used - 0.4 < found["other"] + found["driver"] <= used + 0.05
