"""Kill workers and drivers of campaigns and of shared sweeps at random, start them again, and count what that costs.

``python -m tests.killing_many --kills 100`` runs campaigns of a tiny model, whose driver or one of whose two workers
is killed (SIGKILL) every now and then, and sweeps and exchanges of nodes that two processes share, one of which is
killed. It fails unless the tables, scores and tests are those of an uninterrupted run (nothing lost), and what was
finished before a kill is the same file, byte for byte, afterwards (nothing done twice).

Drivers and workers are forks of this process, which has loaded the packages once.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LIMIT = 900.0
"""A trial that takes longer hangs."""
SECONDS = 0.2
"""How often journals are written here; runs take a second or two."""


class Forked:
    """Stands for a started worker process: a fork of this process."""

    pids: Path

    def __init__(self, *_: object, **__: object) -> None:
        told, tell = os.pipe()
        answer, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(told, 0)
            os.dup2(answers, 1)
            os.closerange(3, 1024)  # the pipes of the other workers too, which would not end with their driver
            _become(_work)
        os.close(told)
        os.close(answers)
        self.stdin, self.stdout, self._code = os.fdopen(tell, "w"), os.fdopen(answer), None
        with self.pids.open("a") as file:
            file.write(f"{self.pid}\n")
        self._code: int | None

    def wait(self, timeout: float = LIMIT) -> int:
        until = time.monotonic() + timeout
        while self._code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                raise subprocess.TimeoutExpired("worker", timeout)
            else:
                time.sleep(0.01)
        return self._code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _work() -> None:
    from circuits.campaigns import worker

    sys.stdin = os.fdopen(0)
    worker.main()


def _become(what: Callable[[], None]) -> None:
    """Run something as the last thing this process does."""
    os.setsid()
    code = 1
    try:
        what()
        code = 0
    except BaseException as problem:  # noqa: BLE001 - what Python itself would do with it
        sys.excepthook(type(problem), problem, problem.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(code)


def forked(what: Callable[[], None], said: Path) -> int:
    """Start a process that does something; return its id."""
    child = os.fork()
    if child == 0:
        with said.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        _become(what)
    return child


@dataclass
class Trial:
    """One campaign or sweep, its kills by victim, and what went wrong."""

    kind: str
    kills: dict[str, int] = field(default_factory=dict[str, int])
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])

    def killed(self, victim: str) -> None:
        self.kills[victim] = self.kills.get(victim, 0) + 1


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Files:
    """What was finished when it was last looked at."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._folder, self._pattern, self.seen = folder, pattern, dict[Path, bytes]()

    def look(self) -> list[str]:
        """Look again; return what was finished and is another file now, or none."""
        now = {path: path.read_bytes() for path in self._folder.glob(self._pattern)}
        changed = [path.name for path, data in self.seen.items() if now.get(path) != data]
        self.seen |= now
        return changed


def campaign_trial(work: Path, folder: Path, drawn: random.Random, most: int, pace: float, expected: bytes) -> Trial:
    """Run a campaign to its end through kills of its driver and its workers."""
    found, begun, files = Trial("campaign"), time.monotonic(), Files(folder, "runs/*/run.json")
    folder.mkdir()
    Forked.pids = folder / "pids"
    Forked.pids.touch()
    while True:
        driver = forked(lambda: run_once(work / "grid.toml", folder), folder / "said")
        code = _kill_while_it_runs(driver, folder, drawn, found, files, most=most, pace=pace)
        if code == 0 or time.monotonic() - begun > LIMIT:
            break
        if code != -signal.SIGKILL:
            found.problems.append(f"the driver ended with {code}: {(folder / 'said').read_text()[-500:]}")
            break
    found.seconds = time.monotonic() - begun
    table = folder / "runs.csv"
    if not table.is_file() or table.read_bytes() != expected:
        found.problems.append("the table is not that of an uninterrupted campaign")
    found.problems += [f"{name} was made again" for name in files.look()]
    return found


def _kill_while_it_runs(
    driver: int, folder: Path, drawn: random.Random, found: Trial, files: Files, *, most: int, pace: float
) -> int:
    """Kill workers until the driver ends, or is killed itself; return its exit code."""
    due, victim = time.monotonic() + drawn.uniform(0, 2 * pace), drawn.choice(["driver", "worker"])
    while True:
        done, status = os.waitpid(driver, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= due and sum(found.kills.values()) < most:
            found.problems += [f"{name} was made again" for name in files.look()]
            workers = [int(pid) for pid in (folder / "pids").read_text().split() if alive(int(pid))]
            if victim == "driver":
                os.kill(driver, signal.SIGKILL)
                found.killed(victim)
            elif workers:
                os.kill(drawn.choice(workers), signal.SIGKILL)
                found.killed(victim)
            due, victim = time.monotonic() + drawn.uniform(0, 2 * pace), drawn.choice(["driver", "worker"])
        time.sleep(0.01)


def run_once(grid: Path, folder: Path) -> None:
    """Run the campaign with two forks as workers."""
    from circuits.campaigns import jobs
    from circuits.campaigns.running import run_campaign

    jobs.subprocess = SimpleNamespace(Popen=Forked, PIPE=-1, TimeoutExpired=subprocess.TimeoutExpired)  # type: ignore[assignment]
    # Workers that are killed all the time are no broken runs.
    found = run_campaign(grid, folder, workers=jobs.Processes(2, 1), retries=100)
    if found.failures:
        raise SystemExit(f"{found.failures}")


def shared_trial(work: Path, folder: Path, drawn: random.Random, most: int, pace: float, name: str) -> Trial:
    """Let two processes make a file of :data:`SHARED`; one is killed and started again every now and then."""
    found, begun, files = Trial(SHARED[name]), time.monotonic(), Files(folder / "meeting", "*.npz")
    folder.mkdir()
    running: dict[int, int] = {}
    finished: set[int] = set()
    while len(finished) < 2 and time.monotonic() - begun < LIMIT:
        for number in {0, 1} - finished - set(running.values()):
            doing = partial(share_once, work, folder, f"{number}-{name}")
            running[forked(doing, folder / "said")] = number
        due = time.monotonic() + drawn.uniform(0, 2 * pace)
        while running and time.monotonic() < due:
            for child in list(running):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    number = running.pop(child)
                    if os.waitstatus_to_exitcode(status) == 0:
                        finished.add(number)
                    else:
                        found.problems.append(f"a process ended badly: {(folder / 'said').read_text()[-500:]}")
                        return found
            time.sleep(0.01)
        if running and sum(found.kills.values()) < most:
            found.problems += [f"{name} was made again" for name in files.look()]
            child = drawn.choice(list(running))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            del running[child]
            found.killed("sharer")
    found.seconds = time.monotonic() - begun
    for number in (0, 1):
        made = folder / f"{number}-{name}"
        if not made.is_file() or made.read_bytes() != (work / name).read_bytes():
            found.problems.append(f"the {name} of process {number} is not that of one process")
    found.problems += [f"{name} was made again" for name in files.look()]
    return found


SHARED = {"scores.csv": "sweep", "tests.json": "exchange"}
"""Files that processes make together, and what that is."""


def shared_arguments(work: Path, out: Path) -> list[str]:
    wanted = ["interchange"] if out.suffix == ".json" else ["score", "--scorer", "exact"]
    wanted += [f"{work / 'mine.jsonl'}", "--model", f"{work / 'tiny'}", "--pairs", "6"]
    return [*wanted, "--out", f"{out}", "--quiet", "--json", "--resume"]


def share_once(work: Path, folder: Path, name: str) -> None:
    """Do a part of what is shared, as the command does."""
    run_command([*shared_arguments(work, folder / name), "--share", f"{folder / 'meeting'}"], folder)


def run_command(arguments: list[str], folder: Path) -> None:
    from circuits.campaigns.worker import run

    code, kind, message = run(arguments, folder / "messages.log", folder / "none.lock")
    if code:
        raise SystemExit(f"{kind}: {message}")


def prepared(work: Path) -> None:
    """Make the model, the prompts and the grid."""
    from tests.cli.conftest import pairs_shown_by, swapped, write_pairs
    from tests.tiny import tiny_llama, tiny_tokenizer

    tiny_llama().save_pretrained(work / "tiny")
    tiny_tokenizer().save_pretrained(work / "tiny")
    write_pairs(work / "mine.jsonl", pairs_shown_by(work / "tiny", swapped("When", " went to")))
    write_pairs(work / "yours.jsonl", pairs_shown_by(work / "tiny", swapped("The", " is")))
    (work / "grid.toml").write_text(
        'behaviours = ["mine.jsonl", "yours.jsonl"]\nmodels = ["tiny"]\nseeds = 2\n'
        "[options]\nquick = true\npairs = 6\nheldout = 6\ntarget = 0.8\nheads = false\n"
        'prune-limit = 1\nscorer = "eap"\n'
        "[transfer]\npairs = 6\nrandom = 0\n"
    )


def trials(kills: int, seed: int, work: Path) -> list[Trial]:
    """Run campaigns and sweeps in turn until there were so many kills."""
    drawn, found = random.Random(seed), list[Trial]()
    begun = time.monotonic()
    os.waitpid(forked(lambda: run_whole(work), work / "said"), 0)
    pace = (time.monotonic() - begun) / 12
    table = (work / "whole" / "runs.csv").read_bytes()
    while sum(sum(each.kills.values()) for each in found) < kills:
        left = kills - sum(sum(each.kills.values()) for each in found)
        folder = work / f"trial-{len(found)}"
        if len(found) % 4 > 1:
            name = list(SHARED)[len(found) % 2]
            found.append(shared_trial(work, folder, drawn, min(left, 6), pace / 2, name))
        else:
            found.append(campaign_trial(work, folder, drawn, min(left, 12), pace, table))
        last = found[-1]
        say(f"{len(found) - 1} {last.kind} {last.kills} {last.seconds:.1f} s {last.problems}")
    return found


def run_whole(work: Path) -> None:
    """Run the campaign, the sweep and the exchange without interruption."""
    (work / "whole").mkdir()
    Forked.pids = work / "whole" / "pids"
    run_once(work / "grid.toml", work / "whole")
    for name in SHARED:
        run_command(shared_arguments(work, work / name), work)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def summary(found: list[Trial]) -> dict[str, Any]:
    """Return the kills by victim, and how many trials went wrong."""
    kills: dict[str, int] = {}
    for each in found:
        for victim, count in each.kills.items():
            kills[victim] = kills.get(victim, 0) + count
    return {
        "trials": len(found),
        "kills": kills,
        "lost": sum("not th" in problem for each in found for problem in each.problems),
        "made again": sum("made again" in problem for each in found for problem in each.problems),
        "failed": sum(bool(each.problems) for each in found),
    }


def main() -> None:
    """Run the trials that the command line asks for, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    import circuits.campaigns.running
    import circuits.campaigns.worker
    import circuits.discovery
    import circuits.patching.shards  # noqa: F401 - loaded once, before the forks
    from circuits.files import journal

    journal.SECONDS = SECONDS
    with tempfile.TemporaryDirectory() as work:
        prepared(Path(work))
        found = summary(trials(given.kills, given.seed, Path(work)))
    say(json.dumps(found))
    raise SystemExit(1 if found["failed"] else 0)


if __name__ == "__main__":
    main()
