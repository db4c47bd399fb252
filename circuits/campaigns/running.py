"""Running a campaign: what is not finished yet, failures apart, then what the circuits share and do for each other."""

from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from circuits.behaviours import load_behaviour
from circuits.campaigns.campaign import Campaign, Planned
from circuits.campaigns.jobs import DIED, Ended, Job, Processes, Workers
from circuits.campaigns.outcome import CampaignOutcome, RunOutcome, model_folders, outcome_of
from circuits.campaigns.states import CIRCUIT, NOT_FINITE, Failure, circuit_in, failed_before, finished, not_finite
from circuits.errors import CircuitsError, OutputError, UsageError
from circuits.files.atomic import make_folder
from circuits.files.documents import exists
from circuits.patching.protocol import StageProgress, no_stages

PASSING = (DIED, "DeviceError", NOT_FINITE)
"""Failures that may not happen again: these are tried again at once, others when the campaign is started again."""
_UNPARSED = ("NoSuchOption", "BadParameter", "BadOptionUsage")
"""What the command line calls options that it cannot parse."""


def run_campaign(
    campaign: Campaign | str | Path,
    folder: str | Path,
    *,
    workers: Workers | int = 1,
    retries: int = 2,
    progress: StageProgress = no_stages,
) -> CampaignOutcome:
    """Run all discoveries of a campaign that are not finished in a folder, and write one table of all.

    Args:
        campaign: What is run, or the TOML file that says so.
        folder: Where everything goes: ``runs/NAME/`` has what ``circuits discover`` leaves, ``failed/NAME.json`` why a
            run failed, ``transfer/MODEL/`` what ``circuits compare`` leaves; and tables and a page of all.
        workers: How many processes run on this machine, or what else runs jobs (:mod:`circuits.campaigns.jobs`).
        retries: How often a run is tried again whose process died, whose device failed or that computed NaN.
        progress: Is told about the stages.

    A campaign that was stopped or killed goes on where it was: a finished run is not run again unless its options or
    its prompt file changed, an interrupted one goes on from its journal. Runs that failed earlier are tried again.
    Failures do not raise; the outcome has them. Raises :class:`OutputError` where another process runs a campaign in
    the folder, or it cannot be written to, :class:`UsageError` for options that ``circuits discover`` does not take,
    and, before anything runs, what :func:`circuits.load_behaviour` does for a behaviour that is not there.
    """
    campaign = campaign if isinstance(campaign, Campaign) else Campaign.load(campaign)
    if retries < 0:
        raise UsageError(f"a run is tried again 0 times or more, got {retries}.")
    _require_behaviours(campaign)
    workers = Processes(workers) if isinstance(workers, int) else workers
    folder = Path(folder).absolute()
    make_folder(folder)
    with _alone_in(folder):
        running = _Running(campaign, folder, workers, retries, progress)
        runs = running.discoveries()
        found = outcome_of(campaign, runs, running.transfers(runs))
        found.save(folder)
    return found


def _require_behaviours(campaign: Campaign) -> None:
    """Raise, before anything runs, for a behaviour that is neither built in nor a file."""
    for name in campaign.behaviours:
        if not exists(Path(name), file=True):
            load_behaviour(name)


@contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    lock = FileLock(folder / "campaign.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another process runs a campaign in {folder} (it holds campaign.lock). Wait until it has ended, or choose "
            "another folder with --out."
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {folder / 'campaign.lock'}: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Running:
    """Runs what is not finished of a campaign in a folder."""

    campaign: Campaign
    folder: Path
    workers: Workers
    retries: int
    progress: StageProgress

    def discoveries(self) -> list[RunOutcome]:
        """Run the discoveries; return what came of each."""
        runs, jobs = self.campaign.runs(), list[Job]()
        for run in runs:
            place = self.folder / "runs" / run.name
            arguments, failed = self.campaign.arguments(run, place), failed_before(self._failure(run.name))
            if failed or not finished(place, arguments):
                job = _job(run.name, arguments, place, "journal")
                jobs.append(_afresh(job) if failed == NOT_FINITE else job)
        failures = self._run(jobs, "running discoveries", len(runs))
        return [self._outcome(run, failures.get(run.name)) for run in runs]

    def _outcome(self, run: Planned, failure: Failure | None) -> RunOutcome:
        place = self.folder / "runs" / run.name
        return RunOutcome(run, place, failure) if failure else RunOutcome(run, place, None, circuit_in(place))

    def transfers(self, runs: Sequence[RunOutcome]) -> dict[str, Path | Failure]:
        """Run the circuits of each model on each other's prompts; return where results are, or why there are none."""
        if self.campaign.transfer is None:
            return {}
        names, places, jobs = model_folders(self.campaign), dict[str, Path](), list[Job]()
        for model, chosen in _first_of_each(self.campaign, runs).items():
            place = places[model] = self.folder / "transfer" / names[model]
            circuits = [each.folder / CIRCUIT for each in chosen]
            arguments = self.campaign.comparison(circuits, [each.run.behaviour for each in chosen], place)
            if not finished(place, arguments):
                jobs.append(_job(_transfer(names[model]), arguments, place, "comparison.json.journal"))
        failures = self._run(jobs, "running circuits on each other's prompts", len(places))
        return {model: failures.get(_transfer(names[model]), place) for model, place in places.items()}

    def _run(self, jobs: list[Job], stage: str, of: int) -> dict[str, Failure]:
        """Run jobs, those again whose failure may pass; write and return the failures that stay."""
        failures: dict[str, Failure] = {}
        done = of - len(jobs)
        self.progress(stage, done, of)
        for attempt in range(1, self.retries + 2):
            again: list[Job] = []
            with closing(self.workers.run(jobs)) as ending:
                for ended in ending:
                    failure = self._settled(ended, attempt)
                    if failure is not None:
                        failures[failure.name] = failure
                    if failure is not None and failure.kind in PASSING and attempt <= self.retries:
                        again.append(_afresh(ended.job) if failure.kind == NOT_FINITE else ended.job)
                    else:
                        done += 1
                        self.progress(stage, done, of)
            for job in again:
                del failures[job.name]
            jobs = again
        return failures

    def _settled(self, ended: Ended, attempt: int) -> Failure | None:
        """Write why a job has no result, and return it; of one that has a result an earlier failure goes."""
        failure, file = _failed(ended, attempt), self._failure(ended.job.name)
        if failure is None:
            file.unlink(missing_ok=True)
        else:
            failure.save(file)
        return failure

    def _failure(self, name: str) -> Path:
        return self.folder / "failed" / f"{name}.json"


def _transfer(model: str) -> str:
    return f"transfer-{model}"


def _job(name: str, arguments: tuple[str, ...], place: Path, journal: str) -> Job:
    return Job(name, arguments, place / "messages.log", place / f"{journal}.lock", once=True)


def _failed(ended: Ended, attempt: int) -> Failure | None:
    """Return why a job has no result; raises :class:`UsageError` for what would fail in every run alike."""
    job = ended.job
    if ended.kind in _UNPARSED:
        raise UsageError(f"the options of the campaign are wrong, as circuits {job.arguments[0]} says: {ended.message}")
    if ended.code:
        return Failure(job.name, ended.kind, ended.message, ended.code, attempt)
    if job.arguments[0] != "discover":
        return None
    try:
        problem = not_finite(circuit_in(job.log.parent))
    except CircuitsError as error:
        return Failure(job.name, type(error).__name__, str(error), 1, attempt)
    return Failure(job.name, NOT_FINITE, problem, 1, attempt) if problem else None


def _afresh(job: Job) -> Job:
    """Return the job without what its journal has, which must not be trusted."""
    return replace(job, arguments=tuple(text for text in job.arguments if text != "--resume"), once=False)


def _first_of_each(campaign: Campaign, runs: Sequence[RunOutcome]) -> dict[str, list[RunOutcome]]:
    """Return of each model with several behaviours one circuit of each, of the first seed that has one."""
    chosen: dict[str, list[RunOutcome]] = {}
    for model in campaign.models:
        of_model = [each for each in runs if each.run.model == model and each.circuit]
        first = {each.run.behaviour: each for each in reversed(of_model)}
        if len(first) > 1:
            chosen[model] = [first[name] for name in campaign.behaviours if name in first]
    return chosen
