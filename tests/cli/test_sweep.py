"""Many processes: a campaign runs in processes of its own, a sweep is shared; exit codes say what came through."""

import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from circuits.campaigns.jobs import Ended, Job
from circuits.campaigns.sharing import share_out
from circuits.circuit import Circuit
from tests.cli.conftest import done, invoke


def test_a_campaign_runs_in_processes_and_failures_are_in_the_exit_code(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"clean": "a b", "corrupted": "a b c d", "answer": 1, "wrong_answer": 2}\n')
    (tmp_path / "grid.toml").write_text(
        f'behaviours = ["{prompts}", "bad.jsonl"]\nmodels = ["{tiny_folder}"]\n[options]\nquick = true\n'
        'heads = false\nprune-limit = 1\npairs = 6\nheldout = 6\ntarget = 0.8\nscorer = "eap"\n'
    )
    out = tmp_path / "campaign"
    ended = invoke("sweep", tmp_path / "grid.toml", "--out", out, "--workers", 2, "--threads", 1, "--json")
    assert ended.exit_code == 1, ended.output
    document = json.loads(ended.stdout)
    assert [(run["name"], run["state"]) for run in document["runs"]] == [
        ("mine-tiny-0", "finished"),
        ("bad-tiny-0", "PromptError"),
    ]
    assert document["runs"][0]["edges"] == len(Circuit.load(out / "runs" / "mine-tiny-0" / "circuit.json"))
    assert "warning: bad-tiny-0 failed: " in ended.stderr
    assert "running discoveries: 2 of 2" in ended.stderr
    record = json.loads((out / "run.json").read_text())
    assert [file["path"] for file in record["outputs"]] == [*document["files"]]


def test_a_wrong_campaign_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text("behaviours = []\n")
    ended = invoke("sweep", tmp_path / "grid.toml", "--out", tmp_path / "out")
    assert ended.exit_code == 2
    assert "a campaign needs at least one of its behaviours" in ended.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("iio", "no behaviour 'iio'. Closest: 'ioi'"),
        ("mine.jsonl", "mine.jsonl does not exist; give the path of a prompt file"),
    ],
)
def test_a_behaviour_that_is_not_there_is_said_before_anything_runs(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "grid.toml").write_text(f'behaviours = ["ioi", "{name}"]\n')
    ended = invoke("sweep", tmp_path / "grid.toml", "--out", tmp_path / "out")
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("scorer", [("exact",), ("verified", "--top", 5)], ids=["exact", "verified"])
def test_processes_share_a_sweep_and_the_scores_are_those_of_one(
    tiny_folder: Path, prompts: Path, tmp_path: Path, scorer: tuple[object, ...]
) -> None:
    common = ["score", prompts, "--model", tiny_folder, "--scorer", *scorer, "--pairs", 4, "--quiet"]
    done(*common, "--out", tmp_path / "one.csv")
    meeting = tmp_path / "meeting"
    done(*common, "--out", tmp_path / "two.csv", "--workers", 2, "--threads", 1, "--share", meeting)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    for number in (0, 1):  # each worker did its part and ended with all scores
        assert (meeting / f"worker-{number}" / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert list(meeting.glob("*.npz"))


def test_processes_share_an_interchange_and_the_tests_are_those_of_one(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    common = [
        "interchange",
        prompts,
        "--model",
        tiny_folder,
        "--pairs",
        6,
        "--nodes",
        "a0.h1,m0,m2",
        "--gates",
        "--quiet",
    ]
    done(*common, "--out", tmp_path / "one" / "tests.json")
    meeting = tmp_path / "meeting"
    done(*common, "--out", tmp_path / "two" / "tests.json", "--workers", 2, "--threads", 1, "--share", meeting)
    for name in ("tests.json", "gates.json"):
        expected = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == expected
        for number in (0, 1):  # each worker did its part and ended with all tests
            assert (meeting / f"worker-{number}" / name).read_bytes() == expected
    assert list(meeting.glob("*.npz"))
    without = tmp_path / "three" / "tests.json"
    done(*common, "--out", without, "--workers", 2, "--threads", 1)
    assert without.read_bytes() == (tmp_path / "one" / "tests.json").read_bytes()
    assert not Path(f"{without}.shards").exists()


def test_only_sweeps_of_measured_edges_are_shared(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    ended = invoke("score", prompts, "--model", tiny_folder, "--workers", 2, "--out", tmp_path / "scores.csv")
    assert ended.exit_code == 2
    assert "processes share the edges of the scorers exact and verified, and eap-ig is not shared" in ended.stderr


def test_what_says_where_workers_are_is_not_typed_for_the_workers(tmp_path: Path) -> None:
    seen: list[Job] = []

    class Nobody:
        count = 2

        def run(self, jobs: Sequence[Job]) -> Generator[Ended]:
            seen.extend(jobs)
            yield from (Ended(job, 1, "Died", "it died.") for job in jobs)

    typed = ["score", "--ray", "auto", "--slurm=gpu", "--pairs", "4", "--workers", "8", "--", "ioi"]
    assert [each.job.name for each in share_out(typed, tmp_path, Nobody())] == ["worker-0", "worker-1"]
    assert seen[0].arguments == (
        *("score", "--pairs", "4", "--workers", "8", "--share", f"{tmp_path}", "--workers", "1"),
        *("--out", f"{tmp_path}/worker-0/scores.csv", "--record", f"{tmp_path}/worker-0/run.json"),
        *("--resume", "--json", "--quiet", "--", "ioi"),
    )
