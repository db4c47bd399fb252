"""Processes that share one command: each is typed alike, and all meet in a folder (:mod:`circuits.patching.shards`)."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from circuits.campaigns.jobs import Ended, Job, Workers
from circuits.patching.protocol import StageProgress, no_stages

_WHERE = ("--ray", "--slurm")
"""Options that say where workers are; a worker itself starts none."""


def share_out(
    arguments: Sequence[str],
    folder: str | Path,
    workers: Workers,
    *,
    name: str = "scores.csv",
    progress: StageProgress = no_stages,
) -> list[Ended]:
    """Let every worker do its part of a command that has ``--share``, in a folder; return those that failed.

    ``arguments`` are what was typed after ``circuits``, such as ``["score", "ioi", "--scorer", "exact"]``; what they
    say of workers and of results does not hold for the workers: each writes a file of this ``name`` in a folder of its
    own. Whatever they leave undone is done by whoever runs the
    same command with the same folder afterwards.
    """
    folder = Path(folder).absolute()
    jobs = [_job(arguments, folder, folder / f"worker-{number}", name) for number in range(workers.count)]
    stage, failed = f"measuring in {len(jobs)} processes", list[Ended]()
    progress(stage, 0, len(jobs))
    with closing(workers.run(jobs)) as ending:
        for done, ended in enumerate(ending):
            progress(stage, done + 1, len(jobs))
            failed += [ended] if ended.code else []
    return failed


def _job(arguments: Sequence[str], folder: Path, place: Path, name: str) -> Job:
    given = list(_without_places(arguments))
    end = given.index("--") if "--" in given else len(given)
    own = (
        "--share",
        f"{folder}",
        "--workers",
        "1",
        "--out",
        f"{place / name}",
        "--record",
        f"{place / 'run.json'}",
    )
    typed = (*given[:end], *own, "--resume", "--json", "--quiet", *given[end:])
    return Job(place.name, typed, place / "messages.log", place / f"{name}.journal.lock")


def _without_places(arguments: Sequence[str]) -> Iterator[str]:
    value = False
    for text in arguments:
        if not value and not text.startswith(tuple(f"{name}=" for name in _WHERE)) and text not in _WHERE:
            yield text
        value = text in _WHERE and not value
