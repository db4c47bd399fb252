"""A campaign runs what is not finished, keeps failures apart, and has the same table whoever ran what when."""

import csv
import json
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from filelock import FileLock

import circuits
from circuits.campaigns.campaign import Campaign
from circuits.campaigns.jobs import DIED, Ended, Job
from circuits.campaigns.outcome import FILES, CampaignOutcome, RunOutcome
from circuits.campaigns.running import run_campaign
from circuits.campaigns.states import NOT_FINITE
from circuits.campaigns.worker import run
from circuits.errors import OutputError, UsageError
from tests.campaigns.conftest import QUICK, Here


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A finished campaign that may be changed, in its own place: runs are known by it."""
    kept = tmp_path / "kept"
    shutil.copytree(finished, kept)
    yield finished
    shutil.rmtree(finished)
    shutil.copytree(kept, finished)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_run_has_a_folder_a_row_and_a_link(finished: Path) -> None:
    names = ["mine-tiny-0", "mine-tiny-1", "yours-tiny-0", "yours-tiny-1"]
    assert [row["name"] for row in rows(finished)] == names
    page = (finished / "index.html").read_text()
    for row in rows(finished):
        circuit = circuits.Circuit.load(finished / "runs" / row["name"] / "circuit.json")
        assert int(row["edges"]) == len(circuit)
        assert float(row["faithfulness"]) == pytest.approx(circuit.evaluation.faithfulness, rel=1e-5)
        assert circuit.method.seed == int(row["seed"])
        record = circuits.RunRecord.load(finished / "runs" / row["name"])
        assert record.arguments[0] == "discover"
        assert f'<a href="runs/{row["name"]}/report.html">' in page
        assert (finished / "runs" / row["name"] / "report.html").is_file()
    assert r"mine-tiny-0 & mine & tiny & $0$ & finished &" in (finished / "runs.tex").read_text()


def test_stability_is_the_jaccard_index_of_the_edges_of_seeds(finished: Path) -> None:
    document = json.loads((finished / "campaign.json").read_text())
    first = document["stability"][0]
    a, b = (
        set(circuits.Circuit.load(finished / "runs" / f"mine-tiny-{seed}" / "circuit.json").edges.tolist())
        for seed in (0, 1)
    )
    assert (first["behaviour"], first["model"], first["seeds"]) == ("mine", "tiny", 2)
    assert first["jaccard"] == pytest.approx(len(a & b) / len(a | b), rel=1e-5)
    assert first["common"] == len(a & b)
    c, d = (searched_on(finished / "runs" / f"mine-tiny-{seed}") for seed in (0, 1))
    assert first["prompts"] == pytest.approx(len(c & d) / len(c | d), rel=1e-5)
    assert 0 < first["prompts"] < 1
    assert document["remarks"] == []


def searched_on(folder: Path) -> set[str]:
    """The prompts that a run was searched on."""
    found = json.loads((folder / "prompts.json").read_text())["prompts"]
    return {pair["clean"] + pair["corrupted"] for pair in found if pair["split"] == "discovery"}


def test_seeds_that_searched_on_the_same_prompts_are_said_to_show_no_stability(
    small: Campaign, finished: Path, tmp_path: Path
) -> None:
    folder = finished / "runs" / "mine-tiny-0"
    circuit = circuits.Circuit.load(folder / "circuit.json")
    runs = tuple(RunOutcome(run, folder, None, circuit) for run in small.runs()[:2])
    outcome = CampaignOutcome(small, runs)
    assert outcome.stability[0].prompts == 1
    (remark,) = outcome.remarks
    assert "the seeds of mine in tiny were searched on the same prompts" in remark
    outcome.save(tmp_path)
    assert remark in (tmp_path / "index.html").read_text()


def test_transfer_has_each_circuit_on_each_behaviour(finished: Path) -> None:
    document = json.loads((finished / "campaign.json").read_text())
    cells = {(cell["circuit"], cell["on"]): cell["value"] for cell in document["transfer"]}
    assert set(cells) == {(a, b) for a in ("mine", "yours") for b in ("mine", "yours")}
    compared = json.loads((finished / "transfer" / "tiny" / "comparison.json").read_text())
    assert {(cell["circuit"], cell["on"]): cell["value"] for cell in compared["transfer"]}.items() >= cells.items()


def test_a_run_that_an_earlier_worker_has_ended_since_it_was_planned_is_not_made_again(
    small: Campaign, copy: Path
) -> None:
    place = copy / "runs" / "mine-tiny-0"
    arguments, made = list(small.arguments(small.runs()[0], place)), (place / "run.json").read_bytes()
    given = arguments, place / "messages.log", place / "journal.lock"
    assert run(*given, once=True) == (0, "", "")
    assert (place / "run.json").read_bytes() == made
    assert run(*given) == (0, "", "")
    again = (place / "run.json").read_bytes()
    assert again != made
    (place / "circuit.json").write_text("{}")
    assert run(*given, once=True) == (0, "", "")
    assert (place / "circuit.json").read_text() != "{}"


def test_a_finished_campaign_runs_nothing_again(small: Campaign, finished: Path) -> None:
    before, again = {name: (finished / name).read_bytes() for name in FILES}, Here()
    run_campaign(small, finished, workers=again)
    assert again.ran == []
    assert {name: (finished / name).read_bytes() for name in FILES} == before


def test_what_is_lost_damaged_or_of_other_options_is_run_again_and_nothing_else(small: Campaign, copy: Path) -> None:
    before = (copy / "runs.csv").read_bytes()
    (copy / "runs" / "mine-tiny-1" / "run.json").unlink()
    (copy / "runs" / "yours-tiny-0" / "circuit.json").write_text("{}")
    again = Here(backwards=True)
    run_campaign(small, copy, workers=again)
    assert [job.name for job in again.ran] == ["yours-tiny-0", "mine-tiny-1", "transfer-tiny"]
    assert (copy / "runs.csv").read_bytes() == before
    changed = Here()
    run_campaign(replace(small, transfer={"pairs": 6, "random": 1}), copy, workers=changed)
    assert [job.name for job in changed.ran] == ["transfer-tiny"]


def test_the_order_of_the_runs_changes_no_byte_of_the_tables(small: Campaign, finished: Path, tmp_path: Path) -> None:
    once = replace(small, seeds=(1,), transfer=None)
    for backwards in (False, True):
        run_campaign(once, tmp_path / f"{backwards}", workers=Here(backwards))
    one, other = ((tmp_path / f"{backwards}" / "runs.csv").read_text() for backwards in (False, True))
    assert one == other
    assert one.splitlines()[1] == (finished / "runs.csv").read_text().splitlines()[2]


def test_a_run_that_fails_is_kept_apart_and_tried_when_the_campaign_is_run_again(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"clean": "a b", "corrupted": "a b c d e", "answer": 1, "wrong_answer": 2}\n')
    campaign = Campaign((f"{bad}", f"{prompts}"), (f"{tiny_folder}",), (0,), QUICK)
    first, folder = Here(), tmp_path / "campaign"
    found = run_campaign(campaign, folder, workers=first)
    assert [job.name for job in first.ran] == ["bad-tiny-0", "mine-tiny-0"]
    assert [(each.name, each.kind, each.attempts) for each in found.failures] == [("bad-tiny-0", "PromptError", 1)]
    kept = json.loads((folder / "failed" / "bad-tiny-0.json").read_text())
    assert kept["message"] == found.failures[0].message
    assert "token" in kept["message"]
    assert [row["state"] for row in rows(folder)] == ["PromptError", "finished"]
    shutil.copy(prompts, bad)
    second = Here()
    assert run_campaign(campaign, folder, workers=second).failures == ()
    assert [job.name for job in second.ran] == ["bad-tiny-0", "transfer-tiny"]
    assert not (folder / "failed" / "bad-tiny-0.json").exists()


@dataclass
class Faulty(Here):
    """Fails in the first ``times`` attempts of every job, in a way."""

    way: str = DIED
    times: int = 1

    def run(self, jobs: Sequence[Job]) -> Generator[Ended]:
        for job in jobs:
            self.ran.append(job)
            tried = sum(each.name == job.name for each in self.ran)
            if tried <= self.times and self.way == DIED:
                yield Ended(job, -9, DIED, "its process ended with SIGKILL.")
                continue
            ended = next(Here().run([job]))
            file = job.log.parent / "circuit.json"
            if tried <= self.times:
                document = json.loads(file.read_text())
                document["evaluation"]["faithfulness"] = None
                file.write_text(json.dumps(document))
            yield ended


@pytest.mark.parametrize("way", [DIED, NOT_FINITE])
def test_a_worker_that_dies_or_computes_no_number_is_tried_again(small: Campaign, tmp_path: Path, way: str) -> None:
    once = replace(small, behaviours=small.behaviours[:1], seeds=(0,))
    workers = Faulty(way=way)
    assert run_campaign(once, tmp_path, workers=workers).failures == ()
    assert ["--resume" in job.arguments for job in workers.ran] == [True, way == DIED]


def test_a_failure_that_does_not_pass_stays_after_so_many_tries(small: Campaign, tmp_path: Path) -> None:
    once = replace(small, behaviours=small.behaviours[:1], seeds=(0,))
    workers = Faulty(times=9)
    [failure] = run_campaign(once, tmp_path, workers=workers, retries=2).failures
    assert (len(workers.ran), failure.attempts, failure.code, failure.kind) == (3, 3, -9, DIED)
    assert failure.message == "its process ended with SIGKILL."


def test_two_cannot_run_a_campaign_in_one_folder(small: Campaign, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "campaign.lock")
    with lock, pytest.raises(OutputError, match=r"another process runs a campaign in .* Wait until it has ended"):
        run_campaign(small, tmp_path, workers=Here())


def test_options_that_discover_does_not_take_end_the_campaign_at_once(small: Campaign, tmp_path: Path) -> None:
    workers = Here()
    with pytest.raises(UsageError, match=r"options of the campaign are wrong, as circuits discover says: .*--prunner"):
        run_campaign(replace(small, options={"prunner": "top"}), tmp_path, workers=workers)
    assert len(workers.ran) == 1


def test_a_full_disk_is_said_and_what_is_finished_stays(
    small: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, workers = replace(small, behaviours=small.behaviours[:1], transfer=None), Here()
    whole, filled = Path.write_bytes, ["runs/mine-tiny-1/"]

    def full(self: Path, data: bytes) -> int:
        if any(place in str(self) for place in filled):
            raise OSError(28, "No space left on device", str(self))
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    [failure] = run_campaign(once, tmp_path, workers=workers).failures
    assert failure.kind == "OutputError"
    assert "No space left on device" in failure.message
    filled[:] = ["mine-tiny-1"]
    with pytest.raises(OutputError, match=r"failed/mine-tiny-1.json: No space left on device"):
        run_campaign(once, tmp_path, workers=Here())
    monkeypatch.undo()
    again = Here()
    assert run_campaign(once, tmp_path, workers=again).failures == ()
    assert [job.name for job in again.ran] == ["mine-tiny-1"]
