"""Workers that run jobs in this process, and what a small campaign runs on."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from circuits.campaigns.campaign import Campaign
from circuits.campaigns.jobs import Ended, Job
from circuits.campaigns.worker import run
from tests.cli.conftest import other_prompts, prompts

__all__ = ["other_prompts", "prompts"]
QUICK = {"quick": True, "pairs": 6, "heldout": 6, "target": 0.8, "prune-limit": 1, "heads": False, "scorer": "eap"}


@dataclass
class Here:
    """Runs jobs in this process, from the last to the first where ``backwards``, and remembers them."""

    backwards: bool = False
    count: int = 1
    ran: list[Job] = field(default_factory=list[Job])

    def run(self, jobs: Sequence[Job]) -> Generator[Ended]:
        for job in reversed(jobs) if self.backwards else jobs:
            self.ran.append(job)
            yield Ended(job, *run(list(job.arguments), job.log, job.lock))


@pytest.fixture(scope="session")
def small(tiny_folder: Path, prompts: Path, other_prompts: Path) -> Campaign:
    """Two behaviours, one model, two seeds."""
    transfer = {"pairs": 6, "random": 0}
    return Campaign((f"{prompts}", f"{other_prompts}"), (f"{tiny_folder}",), (0, 1), QUICK, transfer)


@pytest.fixture(scope="session")
def finished(small: Campaign, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small campaign, finished; not to be changed."""
    from circuits.campaigns.running import run_campaign

    folder = tmp_path_factory.mktemp("campaign")
    run_campaign(small, folder, workers=Here())
    return folder
