"""Discovery: from a model and a behaviour to a circuit that was judged on prompts it was not searched on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.behaviours.lint import check_gap
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.split import parted
from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.evaluation import evaluate
from circuits.experiments import AnyExperiment, experiment_on
from circuits.files.atomic import write
from circuits.files.journal import Journal
from circuits.interchange.score_files import scores_of, write_scores
from circuits.model import Model
from circuits.openings import finds_openings, suited
from circuits.patching.experiment import Options
from circuits.pruning import Selection, closest, minimal, top
from circuits.records import BehaviourInfo, Method, Provenance
from circuits.scores import EdgeScores
from circuits.scoring import Agreement, agreement, score
from circuits.scoring.budget import Budget
from circuits.scoring.scorers import Settings as ScorerSettings
from circuits.scoring.verified import TopK
from circuits.settings import settle
from circuits.vocabulary import PrunerName, ScorerName

CIRCUIT, SCORES, JOURNAL = "circuit.json", "scores.parquet", "journal"
"""The files that :func:`discover` writes."""
StageProgress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all); 0 steps in all when that is not known."""


@dataclass(frozen=True)
class DiscoverySettings:
    """How a circuit is searched.

    The pruner ``closest`` looks for the fewest edges with a fidelity of ``target``, which it needs ``choose`` pairs for
    beside the ``pairs`` it fits circuits to; it ends with the best so far after ``seconds``. ``minimal`` looks for the
    fewest with that faithfulness, and does not prune circuits of more than ``prune_limit`` edges edge by edge. ``size``
    is the number of edges of ``top``. ``sample`` edges are measured exactly to check the scorer; ``verify`` is what the
    scorer ``verified`` looks for (by default within a budget of twice as many edges as it finds). Without ``options``:
    the behaviour's own metric, corrupted ablation, noising.
    """

    scorer: ScorerName = ScorerName.EAP_IG
    pruner: PrunerName = PrunerName.MINIMAL
    target: float = 0.9
    size: int = 200
    prune_limit: int = 400
    steps: int = 5
    verify: TopK = field(default_factory=lambda: TopK(budget=Budget(edges=400)))
    pairs: int = 64
    choose: int = 64
    heldout: int = 64
    seconds: float | None = None
    seed: int = 0
    sample: int = 64
    options: Options | None = None

    def options_for(self, prompts: PromptSet) -> Options:
        """Give what is measured: unless said otherwise, the behaviour's own metric."""
        return self.options or Options(prompts.metric)

    def __post_init__(self) -> None:
        settle(self, least={"size": 1, "prune_limit": 0, "steps": 1, "sample": 0, "seed": 0})
        if not 0 < self.target < 1:
            raise UsageError(f"the target must be between 0 and 1, got {self.target}.")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"the time for pruning must be more than 0 seconds, got {self.seconds}.")
        if min(self.pairs, self.heldout) < 4:
            raise UsageError(
                f"at least 4 discovery and 4 held-out pairs are needed, got {self.pairs} and {self.heldout}."
            )


@dataclass(frozen=True)
class Discovery:
    """What :func:`discover` found: the circuit with its evaluation, all scores, how exact they are, and remarks."""

    circuit: Circuit
    scores: EdgeScores
    agreement: Agreement | None
    selection: Selection
    prompts: PromptSet
    warnings: tuple[str, ...]


def discover(
    model: Model,
    behaviour: Behaviour,
    settings: DiscoverySettings | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    journal: Journal | None = None,
    progress: StageProgress = lambda _stage, _done, _total: None,
    command: str = "",
) -> Discovery:
    """Find a circuit: check the behaviour, score every edge, choose edges, judge them on held-out prompts.

    Args:
        model: The model.
        behaviour: The behaviour.
        settings: How it is searched.
        folder: Where ``scores.parquet`` and ``circuit.json`` are written as soon as they are there, and a journal
            is kept.
        resume: Go on from the journal of an earlier run in the folder: whatever it has measured is not measured again.
        journal: An open journal, in place of the folder's.
        progress: Is told about the stages.
        command: What to record as the command that found the circuit.

    Raises ``PromptError`` for unusable pairs, ``BehaviourNotShownError`` when the gap between clean and corrupted
    runs is degenerate, and ``OutputError`` for a folder that cannot be written to or that another run is writing to.
    Cost with the defaults: about a hundred forward passes of the discovery pairs to search, and fifty of the held-out
    pairs to judge.
    """
    if folder is not None and journal is None:
        with Journal(Path(folder) / JOURNAL, resume=resume) as opened:
            return discover(
                model, behaviour, settings, folder=folder, journal=opened, progress=progress, command=command
            )
    begun = time.monotonic()
    settings = settings or DiscoverySettings()
    prompts = prompts_for(model, behaviour, settings)
    fitted, choosing = _parts(prompts, settings)
    experiment, warnings = shown(model, replace(prompts, discovery=fitted), settings, progress, journal=journal)
    scores = _scored(experiment, settings, progress)
    if folder is not None:
        of = scores_of(model.info.digest, prompts.digest)
        write_scores(scores, Path(folder) / SCORES, of=of, make_folder=True)
    if settings.pruner is PrunerName.CLOSEST:
        choose = experiment_on(model, choosing, experiment.options, reference=prompts.reference, journal=journal)
        selection = _closest(experiment, choose, scores, settings, progress)
    else:
        selection = _selected(experiment, scores, settings, progress)
    agreed = _agreement(experiment, scores, settings, progress)
    circuit = _circuit(model, prompts, settings, scores, selection)
    heldout = experiment_on(model, prompts.heldout, experiment.options, reference=prompts.reference, journal=journal)
    evaluation = evaluate(
        heldout,
        selection.edges,
        clusters=clusters_of(prompts.heldout),
        scores=scores,
        by_magnitude=selection.by_magnitude,
        seed=settings.seed,
        progress=_stage(progress, "evaluating on held-out prompts"),
    )
    provenance = _provenance(model, experiment, command, time.monotonic() - begun)
    circuit = replace(circuit, evaluation=evaluation, provenance=provenance)
    if folder is not None:
        write(Path(folder) / CIRCUIT, circuit.to_json(), make_folder=True)
    return Discovery(circuit, scores, agreed, selection, prompts, warnings)


def prompts_for(model: Model, behaviour: Behaviour, settings: DiscoverySettings) -> PromptSet:
    """Draw the discovery and held-out pairs for a model's tokenizer, with openings of the model where it needs its own.

    See :mod:`circuits.openings`.
    """
    if finds_openings(model, behaviour):
        behaviour = suited(model, behaviour)[0]
    discovery = settings.pairs + (settings.choose if settings.pruner is PrunerName.CLOSEST else 0)
    return behaviour.prompts(model.tokenizer, discovery=discovery, heldout=settings.heldout, seed=settings.seed)


def _parts(prompts: PromptSet, settings: DiscoverySettings) -> tuple[tuple[TokenPair, ...], tuple[TokenPair, ...]]:
    """Part discovery pairs into those that circuits are fitted to and those they are chosen by, as was asked for."""
    if settings.pruner is not PrunerName.CLOSEST:
        return prompts.discovery, ()
    return parted(prompts.discovery, settings.pairs / (settings.pairs + settings.choose))


def shown(
    model: Model,
    prompts: PromptSet,
    settings: DiscoverySettings,
    progress: StageProgress = lambda _s, _d, _t: None,
    *,
    journal: Journal | None = None,
) -> tuple[AnyExperiment, tuple[str, ...]]:
    """Record the discovery pairs and check that the model shows the behaviour; give remarks on weak spots."""
    progress("recording the prompts", 0, 0)
    options, reference = settings.options_for(prompts), prompts.reference
    experiment = experiment_on(model, prompts.discovery, options, reference=reference, journal=journal)
    warnings = check_gap(
        experiment.clean, experiment.corrupted, experiment.metric, behaviour=prompts.behaviour, model=model.info.id
    )
    return experiment, (*prompts.remarks, *warnings)


def _scored(experiment: AnyExperiment, settings: DiscoverySettings, progress: StageProgress) -> EdgeScores:
    told = ScorerSettings(
        steps=settings.steps,
        seed=settings.seed,
        top=settings.verify,
        progress=_stage(progress, f"scoring ({settings.scorer})"),
    )
    return score(experiment, settings.scorer, told)


def _closest(
    fit: AnyExperiment,
    choose: AnyExperiment,
    scores: EdgeScores,
    settings: DiscoverySettings,
    progress: StageProgress,
) -> Selection:
    stage = "pruning"

    def report(_: str, found: Selection) -> None:
        nonlocal stage
        stage = f"pruning {len(found.edges)} edges (error {found.error:.2f}, faithfulness {found.faithfulness:.2f})"

    return closest(
        fit,
        choose,
        scores,
        target=settings.target,
        seconds=settings.seconds,
        report=report,
        progress=lambda done, total: progress(stage, done, total),
    )


def _selected(
    experiment: AnyExperiment, scores: EdgeScores, settings: DiscoverySettings, progress: StageProgress
) -> Selection:
    if settings.pruner is PrunerName.TOP:
        return top(experiment, scores, min(settings.size, len(scores.scored)))

    stage = "proposing edges"

    def report(step: str, found: Selection) -> None:
        nonlocal stage
        del step
        stage = f"pruning {len(found.edges)} edges (faithfulness {found.faithfulness:.2f})"

    return minimal(
        experiment,
        scores,
        target=settings.target,
        limit=settings.prune_limit,
        report=report,
        progress=lambda done, total: progress(stage, done, total),
    )


def _agreement(
    experiment: AnyExperiment, scores: EdgeScores, settings: DiscoverySettings, progress: StageProgress
) -> Agreement | None:
    if scores.measured or scores.verification is not None or not settings.sample:
        return None
    told = _stage(progress, "comparing scores with exact ones")
    return agreement(experiment, scores, sample=settings.sample, seed=settings.seed, progress=told)


def _circuit(
    model: Model, prompts: PromptSet, settings: DiscoverySettings, scores: EdgeScores, selection: Selection
) -> Circuit:
    options = settings.options_for(prompts)
    return Circuit(
        model=model.info,
        behaviour=BehaviourInfo(
            name=prompts.behaviour,
            metric=options.metric.value,
            unit=options.metric.unit,
            n_discovery=prompts.n_discovery,
            n_heldout=prompts.n_heldout,
            digest=prompts.digest,
            variant=prompts.variant,
        ),
        method=Method(
            scorer=settings.scorer.value,
            pruner=settings.pruner.value,
            ablation=options.ablation.value,
            direction=options.direction.value,
            target=None if settings.pruner is PrunerName.TOP else settings.target,
            seed=settings.seed,
            dtype=model.dtype,
            attention=model.attention,
            rank_by="|score|" if selection.by_magnitude else "score",
        ),
        edges=selection.edges,
        scores=np.array(scores.values[selection.edges]),
        measured=bool(scores.which_measured[selection.edges].all()),
        removal=selection.removal,
    )


def _provenance(model: Model, experiment: AnyExperiment, command: str, seconds: float) -> Provenance:
    packages = ("path-patching-circuits", "torch", "transformers", "nnsight", "numpy")
    versions = {package: _version(package) for package in packages}
    return Provenance(
        command=command,
        device=model.device,
        wall_seconds=round(seconds, 1),
        versions=versions,
        prefix_cache=str(experiment.prefix_cache),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _stage(progress: StageProgress, stage: str) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        progress(stage, done, total)

    return step
