"""Kill commands at random moments, resume them, and compare what they write with an uninterrupted run.

``python -m tests.killing --moments 100`` kills discover, score, compare and ablate on a tiny model by SIGKILL, SIGTERM
and SIGINT in turn, at moments drawn uniformly over the passes that the command runs (so that a kill hits however busy
the machine is), and prints a table. It fails unless every resumed command ends in the same bytes (the time taken and
the command line aside).

Each run is a fork of this process, which has loaded the packages once. ``circuits.files.journal.SECONDS`` is
``--seconds`` there, so that a run of a few seconds writes as often as one of minutes does.
"""

import argparse
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LIMIT = 300.0
"""A run that takes longer hangs."""
_COUNTS = struct.Struct("qd")


@dataclass(frozen=True)
class Command:
    """A command on files that are there, which writes into a folder; ``results`` are the files to compare."""

    name: str
    arguments: Callable[[Path], list[str]]
    results: tuple[str, ...]


@dataclass
class Ended:
    """How a run ended: its exit code (minus the signal), what it said, passes run, and when it last wrote."""

    code: int
    said: str
    passes: int
    seconds: float
    unwritten: float


@dataclass
class Trial:
    """One kill and what came of it."""

    command: str
    signal: str
    moment: float
    code: int
    unwritten: float
    repeated: int
    problems: list[str] = field(default_factory=list[str])


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(arguments: Sequence[str], said: Path, *, seconds: float, kill: tuple[float, int] | None = None) -> Ended:
    """Run the command line in a fork; ``kill`` is when and by which signal.

    *When* is a number of passes begun; its fraction is waited for as that share of the mean time of a pass so far.
    """
    shared = mmap.mmap(-1, _COUNTS.size)
    shared[:] = _COUNTS.pack(0, time.monotonic())
    said.write_text("")
    begun, due = time.monotonic(), float("inf")
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none may reach a child that is not the command line yet
    child = os.fork()
    if child == 0:
        _become(arguments, said, shared, seconds)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    killed = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if done:
            break
        if kill is not None and not killed:
            passes = _COUNTS.unpack(shared[:])[0]
            if due == float("inf") and passes >= int(kill[0]):
                due = now + kill[0] % 1 * (now - begun) / (passes + 1)
            if now >= due:
                os.kill(child, kill[1])
                killed = True
        if now - begun > LIMIT:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    passes, written = _COUNTS.unpack(shared[:])
    return Ended(os.waitstatus_to_exitcode(status), said.read_text(), passes, now - begun, now - written)


def _become(arguments: Sequence[str], said: Path, shared: mmap.mmap, seconds: float) -> None:
    """Be the command line: never returns."""
    from circuits import cli
    from circuits.files import journal
    from circuits.tracing.tracer import Tracer

    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    journal.SECONDS = seconds
    run_plan, write = Tracer.run, journal.Journal.write

    def counting(*given: Any, **options: Any) -> Any:
        passes, written = _COUNTS.unpack(shared[:])
        shared[:] = _COUNTS.pack(passes + 1, written)
        return run_plan(*given, **options)

    def noting(kept: journal.Journal) -> None:
        write(kept)
        shared[:] = _COUNTS.pack(_COUNTS.unpack(shared[:])[0], time.monotonic())

    Tracer.run, journal.Journal.write = counting, noting  # type: ignore[method-assign]
    sys.argv = ["circuits", *arguments]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException as problem:  # noqa: BLE001 - what Python itself would do with it
        sys.excepthook(type(problem), problem, problem.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def results(command: Command, folder: Path) -> dict[str, bytes]:
    """Return what a command wrote, without times and command lines."""
    return {name: _timeless((folder / name).read_bytes(), name) for name in command.results}


def _timeless(data: bytes, name: str) -> bytes:
    if not name.endswith(".json"):
        return data
    document = json.loads(data)
    document.pop("command", None)
    for place in (document, *document.get("circuits", [])):
        if isinstance(place, dict) and "provenance" in place:
            del place["provenance"]
    return json.dumps(document).encode()


def prepared(work: Path) -> list[Command]:
    """Make the model, prompts and circuits that the commands work on."""
    from tests.cli.conftest import pairs_shown_by, swapped, write_pairs
    from tests.tiny import tiny_llama, tiny_tokenizer

    model = work / "tiny"
    tiny_llama().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    mine = write_pairs(work / "mine.jsonl", pairs_shown_by(model, swapped("When", " went to")))
    yours = write_pairs(work / "yours.jsonl", pairs_shown_by(model, swapped("The", " is")))
    common = ["--model", f"{model}"]
    search = [*common, "--pairs", "6", "--heldout", "6", "--target", "0.8"]
    circuits: list[str] = []
    for prompts in (mine, yours):
        out = work / f"of-{prompts.stem}"
        ended = run(["discover", f"{prompts}", *search, "--no-heads", "--out", f"{out}"], work / "said", seconds=1)
        if ended.code:
            raise SystemExit(ended.said)
        circuits.append(f"{out / 'circuit.json'}")
    behaviours = ["--behaviour", f"{mine}", "--behaviour", f"{yours}"]
    return [
        Command(
            "discover",
            lambda out: ["discover", f"{mine}", *search, "--out", f"{out}"],
            ("circuit.json", "scores.parquet", "heads.json", "prompts.json", "circuit.dot"),
        ),
        Command(
            "score",
            lambda out: ["score", f"{mine}", *common, "--scorer", "exact", "--out", f"{out / 'scores.csv'}"],
            ("scores.csv",),
        ),
        Command(
            "compare",
            lambda out: ["compare", *circuits, *behaviours, "--pairs", "6", "--out", f"{out}"],
            ("comparison.json",),
        ),
        Command(
            "ablate",
            lambda out: ["ablate", circuits[0], "--prompts", f"{mine}", "--pairs", "12", "--out", f"{out / 'x.json'}"],
            ("x.json",),
        ),
    ]


def trial(command: Command, whole: Ended, expected: dict[str, bytes], folder: Path, chosen: tuple[float, int]) -> Trial:
    """Kill a command once and resume it."""
    arguments, said, (moment, number) = command.arguments(folder), folder / "said", chosen
    folder.mkdir()
    first = run(arguments, said, seconds=SECONDS, kill=chosen)
    found = Trial(command.name, signal.Signals(number).name, moment, first.code, first.unwritten, 0)
    if first.code == -signal.SIGKILL and number != signal.SIGKILL:
        found.problems.append("did not stop")
    if "Traceback" in first.said or "not foreseen" in first.said:
        found.problems.append(f"said when stopped: {first.said}")
    if first.code != 0:
        second = run([*arguments, "--resume"], said, seconds=SECONDS)
        found.repeated = first.passes + second.passes - whole.passes
        if second.code != 0:
            found.problems.append(f"resumed with {second.code}: {second.said}")
            return found
    for name, data in results(command, folder).items():
        if data != expected[name]:
            found.problems.append(f"{name} is not that of an uninterrupted run")
    return found


SECONDS = 0.2


def trials(moments: int, names: Sequence[str], seed: int, work: Path) -> list[Trial]:
    """Kill each command in turn, by each signal in turn."""
    commands = [command for command in prepared(work) if command.name in names]
    drawn, found = random.Random(seed), list[Trial]()
    whole: dict[str, tuple[Ended, dict[str, bytes]]] = {}
    for command in commands:
        folder = work / f"whole-{command.name}"
        folder.mkdir()
        ended = run(command.arguments(folder), folder / "said", seconds=SECONDS)
        if ended.code:
            raise SystemExit(ended.said)
        whole[command.name] = ended, results(command, folder)
        say(f"{command.name}: {ended.passes} passes in {ended.seconds:.1f} s, uninterrupted")
    for i in range(moments):
        command = commands[i % len(commands)]
        ended, expected = whole[command.name]
        number = SIGNALS[i // len(commands) % len(SIGNALS)]
        moment = drawn.uniform(0, ended.passes + 1)
        found.append(trial(command, ended, expected, work / f"{i}", (moment, number)))
        for problem in found[-1].problems:
            say(f"{i} {found[-1].command} {found[-1].signal} after {moment:.2f} passes: {problem}")
    return found


def main() -> None:
    """Run the trials that the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--commands", default="discover,score,compare,ablate")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    import circuits.cli
    import circuits.discovery
    import circuits.heads  # noqa: F401 - loaded once, before the forks

    with tempfile.TemporaryDirectory() as work:
        found = trials(given.moments, given.commands.split(","), given.seed, Path(work))
    say("command   signal   kills  stopped  finished before  most passes repeated  longest unwritten (s)  problems")
    for name, number in sorted({(each.command, each.signal) for each in found}):
        mine = [each for each in found if (each.command, each.signal) == (name, number)]
        finished = sum(each.code == 0 for each in mine)
        say(
            f"{name:9} {number:8} {len(mine):5}  {len(mine) - finished:7}  {finished:15}  "
            f"{max(each.repeated for each in mine):20}  {max(each.unwritten for each in mine):21.2f}  "
            f"{sum(bool(each.problems) for each in mine):8}"
        )
    failed = sum(bool(each.problems) for each in found)
    hit = sum(each.code != 0 for each in found)
    say(f"{len(found)} kills, {hit} of a running command, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
