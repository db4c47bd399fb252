"""Discovery: from a model and a behaviour to a circuit that was judged on prompts it was not searched on."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.behaviours.lint import check_gap
from circuits.behaviours.pairs import TokenPair
from circuits.certainty.stability import ranked_candidates, resampled
from circuits.circuit import Circuit
from circuits.discovery_settings import DiscoverySettings, model_for, parts_of, prompts_for
from circuits.evaluation import evaluate
from circuits.files.atomic import write
from circuits.files.journal import Journal
from circuits.interchange.score_files import scores_of, write_scores
from circuits.model import Model
from circuits.patching.protocol import StageProgress, no_stages, of_stage
from circuits.patching.recorded_groups import RecordedGroups
from circuits.patching.sequences import AnyExperiment
from circuits.pruning.pruners import PRUNERS, prune
from circuits.pruning.selection import PrunerSettings, Selection
from circuits.recording.environment import versions
from circuits.records import BehaviourInfo, Method, Provenance, SearchOutcome
from circuits.scores import EdgeScores, Floats
from circuits.scoring import Agreement, agreement, score
from circuits.scoring.scorers import Settings as ScorerSettings
from circuits.showing import circuit_html, doubts_html
from circuits.vocabulary import PrunerName

CIRCUIT, SCORES, JOURNAL = "circuit.json", "scores.parquet", "journal"
"""The files that :func:`discover` writes."""
_Pairs = tuple[TokenPair, ...]
CONFIRMED = 0.05
"""Held-out faithfulness or fidelity may be this much further from 1 than the target without a doubt."""


@dataclass(frozen=True)
class Discovery:
    """What :func:`discover` found: the circuit with its evaluation, all scores, how exact they are, and remarks."""

    circuit: Circuit
    scores: EdgeScores
    agreement: Agreement | None
    selection: Selection
    prompts: PromptSet
    warnings: tuple[str, ...]
    rough: bool = False

    @property
    def doubts(self) -> tuple[str, ...]:
        """Return why the circuit should be doubted: it is rough, was not pruned edge by edge, or missed its target."""
        return (*self._rough(), *self._unpruned(), *self._unconfirmed())

    def _rough(self) -> Iterator[str]:
        if self.rough:
            behaviour = self.circuit.behaviour
            yield (
                f"This is a rough first answer (quick): searched on {behaviour.n_discovery} pairs and judged on "
                f"{behaviour.n_heldout}, its scores not checked. Search without --quick before you rely on it."
            )

    def __repr__(self) -> str:
        checked = f", {self.agreement.describe(self.scores.scorer)}" if self.agreement else ""
        return f"Discovery({self.circuit!r}{checked}; {len(self.warnings) + len(self.doubts)} warnings)"[:290]

    def _repr_html_(self) -> str:
        """Show the circuit in a notebook, and what speaks against it."""
        return doubts_html((*self.doubts, *self.warnings)) + circuit_html(self.circuit)

    def with_outcome(self) -> Self:
        """Return the discovery, its circuit saying what the search says of it."""
        outcome = SearchOutcome(self.selection.reached, self.selection.locally_minimal, self.doubts)
        return replace(self, circuit=replace(self.circuit, search=outcome))

    def _unpruned(self) -> Iterator[str]:
        if not self.selection.locally_minimal and self.circuit.method.pruner == PrunerName.MINIMAL:
            yield (
                f"the circuit has {len(self.circuit)} edges, too many to prune edge by edge in reasonable time, so it "
                "is not locally minimal. Raise --prune-limit and wait, or lower --target."
            )

    def _unconfirmed(self) -> Iterator[str]:
        """Yield a remark where held-out prompts do not confirm the circuit."""
        evaluation, target = self.circuit.evaluation, self.circuit.method.target
        if not self.selection.reached:
            yield (
                f"no circuit reaches a fidelity of {target:g} with a faithfulness within 0.1 of 1 on the pairs that "
                "circuits are chosen by; this is the smallest about as close as the closest. Use more --pairs, or a "
                "lower --target."
            )
        elif evaluation is None or target is None:
            return
        elif self.selection.error is not None:
            yield from self._unlike(self.selection.error, target)
        elif abs(1 - evaluation.faithfulness) > abs(1 - target) + CONFIRMED:
            searched, pairs = self.selection.faithfulness, self.circuit.behaviour.n_discovery
            yield (
                f"faithfulness is {searched:.2f} on the {pairs} pairs that the circuit was searched on, but "
                f"{evaluation.faithfulness:.2f} on held-out pairs: it fits the former too closely. Use more --pairs."
            )

    def _unlike(self, error: float, target: float) -> Iterator[str]:
        """Yield a remark where a circuit that was chosen for its fidelity has clearly less on held-out prompts."""
        alike = self.circuit.evaluation and self.circuit.evaluation.likeness
        if alike and alike.fidelity.value < target - CONFIRMED:
            yield (
                f"fidelity is {1 - error**2:.2f} on the {self.selection.pairs} pairs that the circuit was chosen by, "
                f"but {alike.fidelity.value:.2f} on held-out pairs: it fits the former too closely. Use more --pairs "
                "and --choose."
            )


def discover(
    model: Model,
    behaviour: Behaviour,
    settings: DiscoverySettings | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    journal: Journal | None = None,
    progress: StageProgress = no_stages,
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
    Cost with the defaults: 100 to 150 forward passes of the discovery pairs to search, and fifty of the held-out
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
    pairs = record_pairs(model, prompts, settings, progress=progress, journal=journal)
    model, fitted, experiment, warnings = pairs.model, pairs.fitted, pairs.fit, pairs.remarks
    scores = _scored(experiment, settings, progress)
    if folder is not None:
        of = scores_of(model.info.digest, prompts.digest)
        write_scores(scores, Path(folder) / SCORES, of=of, make_folder=True)
    selection = pruned(pairs, scores, settings, progress)
    del pairs
    agreed = _agreement(experiment, scores, settings, progress)
    circuit = circuit_of(model, prompts, settings, scores, selection)
    if not settings.rough:
        progress("resampling the pairs", 0, 0)
        circuit = _with_stability(circuit, experiment, clusters_of(fitted), scores, selection)
    heldout = experiment_on(model, prompts.heldout, prompts, settings, journal)
    evaluation = evaluate(
        heldout,
        selection.edges,
        clusters=clusters_of(prompts.heldout),
        scores=scores,
        by_magnitude=selection.by_magnitude,
        seed=settings.seed,
        progress=of_stage(progress, "evaluating on held-out prompts"),
    )
    provenance = _provenance(model, experiment, command, time.monotonic() - begun)
    circuit = replace(circuit, evaluation=evaluation, provenance=provenance)
    remarks = (*warnings, *_on_size(settings, selection))
    found = Discovery(circuit, scores, agreed, selection, prompts, remarks, rough=settings.rough)
    found = found.with_outcome()
    if folder is not None:
        write(Path(folder) / CIRCUIT, found.circuit.to_json(), make_folder=True)
    return found


class SearchPairs(NamedTuple):
    """What a search measures with: the model whose edges are searched, pairs to fit circuits to and to choose by.

    ``fitted`` are the pairs of ``fit``; ``fresh`` record further groups of as many.
    """

    model: Model
    fitted: _Pairs
    fit: AnyExperiment
    choose: AnyExperiment
    fresh: list[Callable[[], AnyExperiment]]
    remarks: tuple[str, ...]


def record_pairs(
    model: Model,
    prompts: PromptSet,
    settings: DiscoverySettings,
    *,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> SearchPairs:
    """Record the discovery pairs in the parts that a search needs, and check that the model shows the behaviour."""
    model = model_for(model, prompts, settings)
    (first, *others), choosing, remarks = parts_of(prompts, settings)
    fit, warnings = checked_experiment(model, replace(prompts, discovery=first), settings, progress, journal=journal)
    choose = experiment_on(model, choosing, prompts, settings, journal) if choosing else fit
    groups = [partial(experiment_on, model, group, prompts, settings, journal) for group in others]
    return SearchPairs(model, first, fit, choose, RecordedGroups(groups).each(), (*warnings, *remarks))


def pruned(
    pairs: SearchPairs,
    scores: EdgeScores,
    settings: DiscoverySettings,
    progress: StageProgress = no_stages,
    *,
    prices: Floats | None = None,
) -> Selection:
    """Choose edges as the settings say; ``prices`` as in :class:`~circuits.pruning.selection.PrunerSettings`."""
    given = settings.target, settings.size, settings.prune_limit, settings.seconds
    told = PrunerSettings(*given, progress, pairs.fresh, settings.threshold, prices)
    return prune(pairs.fit, pairs.choose, scores, settings.pruner, told)


def checked_experiment(
    model: Model,
    prompts: PromptSet,
    settings: DiscoverySettings,
    progress: StageProgress = no_stages,
    *,
    journal: Journal | None = None,
) -> tuple[AnyExperiment, tuple[str, ...]]:
    """Record the discovery pairs and check that the model shows the behaviour; give remarks on weak spots."""
    progress("recording the prompts", 0, 0)
    experiment = experiment_on(model, prompts.discovery, prompts, settings, journal)
    warnings = check_gap(
        experiment.clean, experiment.corrupted, experiment.metric, behaviour=prompts.behaviour, model=model.info.id
    )
    return experiment, (*prompts.remarks, *warnings)


def experiment_on(
    model: Model, pairs: Sequence[TokenPair], prompts: PromptSet, settings: DiscoverySettings, journal: Journal | None
) -> AnyExperiment:
    """Set up measurements on some of the prompts as the settings say."""
    options, resources = settings.options_for(prompts), settings.resources
    return model.experiment(pairs, options, resources=resources, reference=prompts.reference, journal=journal)


def _scored(experiment: AnyExperiment, settings: DiscoverySettings, progress: StageProgress) -> EdgeScores:
    told = ScorerSettings(
        steps=settings.steps,
        seed=settings.seed,
        top=settings.verify,
        progress=of_stage(progress, f"scoring ({settings.scorer})"),
    )
    return score(experiment, settings.scorer, told)


def _on_size(settings: DiscoverySettings, selection: Selection) -> list[str]:
    """Return in sentences why a circuit of the best edges has fewer than were asked for."""
    missing = settings.size - len(selection.edges)
    if not settings.pruner.sized or missing <= 0:
        return []
    return [
        f"{settings.size} edges were asked for (size), and the circuit has {len(selection.edges)}: the other {missing} "
        f"of the best {selection.proposed} are on no path from the input to the logits through these, so they carry "
        "nothing. --pruner ilp takes that many that are."
    ]


def _agreement(
    experiment: AnyExperiment, scores: EdgeScores, settings: DiscoverySettings, progress: StageProgress
) -> Agreement | None:
    if scores.measured or scores.verification is not None or not settings.sample:
        return None
    told = of_stage(progress, "comparing scores with exact ones")
    return agreement(experiment, scores, sample=settings.sample, seed=settings.seed, progress=told)


def circuit_of(
    model: Model, prompts: PromptSet, settings: DiscoverySettings, scores: EdgeScores, selection: Selection
) -> Circuit:
    """Return the circuit of a selection, not judged yet."""
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
            target=settings.target if PRUNERS[settings.pruner].targets else None,
            seed=settings.seed,
            dtype=model.dtype,
            attention=model.attention,
            rank_by="|score|" if selection.by_magnitude else "score",
        ),
        edges=selection.edges,
        scores=np.array(scores.values[selection.edges]),
        measured=bool(scores.which_measured[selection.edges].all()),
        removal=selection.removal,
        removal_se=selection.removal_se,
    )


def _with_stability(
    circuit: Circuit,
    experiment: AnyExperiment,
    clusters: NDArray[np.int64],
    scores: EdgeScores,
    selection: Selection,
) -> Circuit:
    """Return the circuit with how often resamples of the pairs select its edges, where that can be told."""
    candidates = selection.candidates
    if candidates is None:
        candidates = ranked_candidates(scores, selection.edges, by_magnitude=selection.by_magnitude)
    found = resampled(experiment, selection.edges, candidates, clusters, seed=circuit.method.seed)
    if found is None:
        return circuit
    return replace(circuit, inclusion=found.inclusion, withstands=found.withstands, stability=found.summary)


def _provenance(model: Model, experiment: AnyExperiment, command: str, seconds: float) -> Provenance:
    return Provenance(
        command=command,
        device=model.device,
        wall_seconds=round(seconds, 1),
        versions=versions(),
        prefix_cache=str(experiment.prefix_cache),
    )
