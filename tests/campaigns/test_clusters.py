"""Jobs on a Ray cluster of this machine, and as submitit runs them without Slurm; without these packages, what is said.

Ray and submitit are an extra (``cluster``); where they are not installed, only the last tests run.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

from circuits.campaigns.jobs import DIED, Job
from circuits.errors import UsageError
from tests.cli.conftest import invoke


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def jobs(folder: Path) -> list[Job]:
    topics = ("costs", "cists", "heads")
    return [Job(each, ("guide", each, "--json"), folder / each, folder / f"{each}.lock") for each in topics]


@pytest.mark.skipif(not installed("ray"), reason="the extra 'cluster' is not installed")
@pytest.mark.filterwarnings("ignore")
def test_ray_runs_jobs_in_worker_processes_and_survives_the_loss_of_an_actor(tmp_path: Path) -> None:
    import ray  # noqa: TID251

    from circuits.campaigns.ray_workers import RayWorkers, _RayWorker

    try:
        ended = {each.job.name: each for each in RayWorkers(2, "local").run(jobs(tmp_path))}
        assert {name: each.code for name, each in ended.items()} == {"costs": 0, "cists": 2, "heads": 0}
        assert ended["cists"].message.startswith("there is no guide 'cists'.")
        worker = _RayWorker(1, 0)
        first = jobs(tmp_path)[0]
        assert worker.run(first).code == 0
        ray.kill(worker._actor)
        lost = worker.run(first)
        assert (lost.kind, lost.died) == (DIED, True)
        assert worker.run(first).code == 0
        worker.stop()
        assert worker.run(first).died
    finally:
        ray.shutdown()


@pytest.mark.skipif(not installed("submitit"), reason="the extra 'cluster' is not installed")
@pytest.mark.filterwarnings("ignore")
def test_submitit_runs_jobs_in_worker_processes(tmp_path: Path) -> None:
    from circuits.campaigns.slurm_workers import SlurmWorkers

    workers = SlurmWorkers(tmp_path / "slurm", 2, cluster="local")
    ended = {each.job.name: each for each in workers.run(jobs(tmp_path))}
    assert {name: each.code for name, each in ended.items()} == {"costs": 0, "cists": 2, "heads": 0}
    assert ended["cists"].kind == "UnknownNameError"


@pytest.mark.skipif(not installed("submitit"), reason="the extra 'cluster' is not installed")
def test_without_slurm_it_is_said_where_to_run_it(tmp_path: Path) -> None:
    from circuits.campaigns.slurm_workers import SlurmWorkers

    with pytest.raises(UsageError, match=r"jobs cannot be submitted .* run this where sbatch is, or without --slurm"):
        list(SlurmWorkers(tmp_path / "slurm").run(jobs(tmp_path)))


@pytest.mark.parametrize(("option", "package"), [("--ray", "ray"), ("--slurm", "submitit")])
def test_without_the_extra_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("ray_workers", "slurm_workers"):
        monkeypatch.delitem(sys.modules, f"circuits.campaigns.{module}", raising=False)
    (tmp_path / "grid.toml").write_text('behaviours = ["ioi"]\n')
    ended = invoke("sweep", tmp_path / "grid.toml", "--out", tmp_path / "out", option, "auto")
    assert ended.exit_code == 2
    assert f"{package.replace('ray', 'Ray')} is not installed; install this package with its extra" in ended.stderr


def test_two_clusters_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text('behaviours = ["ioi"]\n')
    ended = invoke("sweep", tmp_path / "grid.toml", "--out", tmp_path / "out", "--ray", "auto", "--slurm", "auto")
    assert ended.exit_code == 2
    assert "either on Ray or under Slurm" in ended.stderr
