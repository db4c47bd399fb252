"""What a campaign costs in one process, in two, and on a local Ray of two workers; and that kills cost nothing else.

``python -m tests.campaign_costs`` runs 3 behaviours x 2 tiny models x 3 seeds by ``circuits sweep`` each of these ways,
then on Ray once more: a worker is killed (SIGKILL) in the middle of a run, later the driver is, and the same command
goes on. It fails unless every way has the same ``runs.csv`` and ``stability.csv``, byte for byte, and what was finished
before a kill is the same file afterwards.

Processor time is read from all processes that a command starts, ten times a second, and told apart: runs (the worker
processes), driver, and what else there is (Ray's own). It says more than wall time where a machine does other things as
well; the load average at the beginning of each way is written beside it. Needs Linux, and the extra ``cluster``.
"""

import argparse
import ctypes
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.killing_many import Files, say

LIMIT = 900.0
"""A way that takes longer hangs."""
_LOOK = 0.1
_ADOPTS_ORPHANS = 36
"""Linux's ``PR_SET_CHILD_SUBREAPER``: what a killed driver started stays among our descendants."""
TABLES = ("runs.csv", "stability.csv")
WAYS = {
    "one process": ("--workers", "1"),
    "two processes": ("--workers", "2"),
    "Ray, two workers": ("--workers", "2", "--ray", "local"),
}
KILLED = "Ray, two workers, killed twice"
STARTS = (("When", " went to"), ("The", " is"), ("I think that", " are"))
"""How the prompts of each behaviour begin and end."""


@dataclass
class Way:
    """One way to run the campaign: seconds, processor seconds by what they were for, and what was killed when."""

    name: str
    wall: float = 0.0
    load: float = 0.0
    processor: dict[str, float] = field(default_factory=dict[str, float])
    kills: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    problems: list[str] = field(default_factory=list[str])

    @property
    def total(self) -> float:
        """Processor seconds in all."""
        return sum(self.processor.values())


class Tree:
    """The processes that a command has started, and the processor time of each, also of those that have ended."""

    def __init__(self, driver: int) -> None:
        self.driver, self._used, self._kinds = driver, dict[tuple[int, float], float](), dict[tuple[int, float], str]()
        below = {driver, *(each.pid for each in psutil.Process(driver).children(recursive=True))}
        self._others = {each.pid for each in psutil.Process().children(recursive=True)} - below

    def look(self) -> dict[int, str]:
        """Note what every process has used; return those that run, by what they are for."""
        running: dict[int, str] = {}
        for process in psutil.Process().children(recursive=True):
            if process.pid in self._others:  # what this process had started before
                continue
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                key, times = (process.pid, process.create_time()), process.cpu_times()
                self._used[key] = times.user + times.system
                if process.status() == psutil.STATUS_ZOMBIE:
                    self._bury(process)
                    continue
                if self._kinds.get(key) != "runs":  # a process is its parent's copy for a moment
                    self._kinds[key] = self._kind(process)
                running[process.pid] = self._kinds[key]
        return running

    def _kind(self, process: psutil.Process) -> str:
        if process.pid == self.driver:
            return "driver"
        return "runs" if "circuits.campaigns.worker" in process.cmdline() else "other"

    def _bury(self, process: psutil.Process) -> None:
        """Let go of an adopted process that has ended; the driver's end is for its own handle to see."""
        if process.pid != self.driver and process.ppid() == os.getpid():
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)

    def seconds(self) -> Counter[str]:
        """Return processor seconds by what they were for."""
        found: Counter[str] = Counter()
        for key, used in self._used.items():
            found[self._kinds.get(key, "other")] += used
        return found


def prepare(work: Path, behaviours: int, models: int, seeds: int) -> int:
    """Make models, prompts that each of them shows, and the grid; return how many runs it has."""
    from tests.cli.conftest import swapped, write_pairs
    from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

    made = {"llama": tiny_llama(), "gpt2": tiny_gpt2()}
    names = list(made)[:models]
    for name in names:
        made[name].save_pretrained(work / name)
        tiny_tokenizer().save_pretrained(work / name)
    files = [f"prompts-{number}.jsonl" for number in range(behaviours)]
    for file, (start, end) in zip(files, STARTS, strict=False):
        write_pairs(work / file, list(shown_by_all([made[name] for name in names], swapped(start, end))))
    (work / "grid.toml").write_text(
        f"behaviours = {json.dumps(files)}\nmodels = {json.dumps(names)}\nseeds = {seeds}\n"
        '[options]\npairs = 8\nheldout = 8\ntarget = 0.8\nheads = false\nscorer = "eap"\nprune-limit = 1\n'
        "[transfer]\npairs = 6\nrandom = 2\n"
    )
    return behaviours * models * seeds


def shown_by_all(models: list[Any], texts: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield prompt pairs with the answers that all models prefer on the clean side most, the corrupted beside it."""
    import torch

    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    for clean, corrupted in texts:
        with torch.no_grad():
            sides = [
                torch.stack([model(torch.tensor([tokenizer.encode(text)])).logits[0, -1] for model in models])
                for text in (clean, corrupted)
            ]
        prefers, before = (side[:, :, None] - side[:, None, :] for side in sides)
        worth = torch.minimum(prefers, prefers - before).amin(0)
        answer, wrong = divmod(int(worth.argmax()), worth.shape[1])
        yield {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong_answer": wrong}


def run_way(name: str, work: Path, drawn: random.Random | None, runs: int) -> Way:
    """Run the campaign one way, through two kills where there is something to draw them from."""
    way, folder, begun = Way(name, load=os.getloadavg()[0]), work / name.replace(",", "").replace(" ", "-"), 0.0
    folder.mkdir()
    plan = iter([] if drawn is None else kills_of(drawn, runs))
    files, spent, begun = Files(folder, "runs/*/run.json"), Counter[str](), time.monotonic()
    while True:
        driver = started(work / "grid.toml", folder, WAYS[name.removesuffix(", killed twice")])
        tree = Tree(driver.pid)
        code = watch(driver, tree, way, folder, plan, files)
        spent += tree.seconds()
        if code != -signal.SIGKILL:
            break
    way.wall, way.processor = time.monotonic() - begun, dict(spent)
    way.problems += [f"{each} was made again" for each in files.look()]
    if code:
        way.problems.append(f"it ended with {code}: {(folder / 'said').read_text()[-500:]}")
    return way


def kills_of(drawn: random.Random, runs: int) -> list[tuple[str, int, float]]:
    """Draw whom to kill, after how many finished runs, and how many seconds later: a worker early, the driver late."""
    half = runs // 2
    early, late = drawn.randint(1, max(1, half - 1)), drawn.randint(half, runs - 2)
    return [("worker", early, drawn.uniform(0, 1.5)), ("driver", late, drawn.uniform(0, 1.5))]


def started(grid: Path, folder: Path, places: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "circuits", "sweep", f"{grid}", "--out", f"{folder}", "--threads", "1"]
    with (folder / "said").open("ab") as said:
        return subprocess.Popen([*command, *places, "--json", "--quiet"], stdout=said, stderr=said)


def watch(
    driver: "subprocess.Popen[bytes]",
    tree: Tree,
    way: Way,
    folder: Path,
    plan: Iterator[tuple[str, int, float]],
    files: Files,
) -> int:
    """Watch a command until it and all that it started have ended, and kill as planned; return its exit code."""
    until, due = time.monotonic() + LIMIT, 0.0
    planned = next(plan, None)
    while True:
        running = tree.look()
        code = driver.poll()
        if code is not None and not running:
            return code
        if time.monotonic() > until:
            way.problems.append(f"still there after {LIMIT:.0f} s: {sorted(running.values())}")
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return driver.wait()
        if planned is not None and len(list(folder.glob("runs/*/run.json"))) >= planned[1]:
            due = due or time.monotonic() + planned[2]
            workers, busy = [pid for pid, kind in running.items() if kind == "runs"], at_work(folder)
            if time.monotonic() >= due and workers and busy:
                way.problems += [f"{each} was made again" for each in files.look()]
                victim, finished = planned[0], len(list(folder.glob("runs/*/run.json")))
                os.kill(driver.pid if victim == "driver" else workers[0], signal.SIGKILL)
                way.kills.append({"victim": victim, "finished": finished, "interrupted": busy})
                planned, due = (None, 0.0) if victim == "driver" else (next(plan, None), 0.0)
        time.sleep(_LOOK)


def at_work(folder: Path) -> list[str]:
    """Return the runs that have begun and not ended."""
    return sorted(each.name for each in folder.glob("runs/*") if not (each / "run.json").exists())


def main() -> None:
    """Run the campaign all ways that the command line asks for, compare tables, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behaviours", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--models", type=int, default=2, choices=(1, 2))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0, metavar="SEED", help="draws when is killed")
    parser.add_argument("--ways", nargs="+", default=[*WAYS, KILLED], choices=[*WAYS, KILLED])
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(_ADOPTS_ORPHANS, 1, 0, 0, 0)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        runs = prepare(work, given.behaviours, given.models, given.seeds)
        found = [
            run_way(name, work, random.Random(given.kills) if name == KILLED else None, runs) for name in given.ways
        ]
        for way, table in itertools.product(found[1:], TABLES):
            one, other = (work / each.name.replace(",", "").replace(" ", "-") / table for each in (found[0], way))
            if one.read_bytes() != other.read_bytes():
                way.problems.append(f"{table} is not that of {found[0].name}")
        rows = len((work / found[0].name.replace(",", "").replace(" ", "-") / TABLES[0]).read_text().splitlines()) - 1
    for way in found:
        parts = ", ".join(f"{kind} {used:.1f}" for kind, used in sorted(way.processor.items()))
        say(
            f"{way.name}: {way.wall:.1f} s, processor {way.total:.1f} s ({parts}), {way.total / found[0].total:.3f} of "
            f"{found[0].name}, load {way.load:.1f} {way.kills} {way.problems}"
        )
    say(json.dumps({"runs": runs, "rows": rows, "ways": [asdict(way) for way in found]}))
    raise SystemExit(1 if any(way.problems for way in found) else 0)


if __name__ == "__main__":
    main()
