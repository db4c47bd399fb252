"""Measure what circuits do on each other's prompts and in each other's models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from circuits.behaviours import load_behaviour
from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.behaviours.lint import check_gap
from circuits.circuit import Circuit
from circuits.comparison import Column, Comparison, EdgeChanges, ModelEffects
from circuits.comparison.crossed_runs import cross
from circuits.comparison.crossing import shared_by, without
from circuits.comparison.names import names_of
from circuits.errors import BehaviourNotShownError, UsageError
from circuits.files.journal import Journal
from circuits.graph import EdgeIndices
from circuits.model import Model
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import StageProgress, no_stages
from circuits.patching.sequences import AnyExperiment
from circuits.settings import settle
from circuits.vocabulary import Ablation, Metric

_ADVICE = " A circuit explains"
"""How the advice begins that ends the message of a behaviour that is not shown: not to be heeded in a comparison."""
Models = Model | Callable[[Circuit], Model]
"""The model of every circuit, or what gives a circuit's own; it is asked once per model, one after the other."""


@dataclass(frozen=True)
class Crossing:
    """How circuits are run on each other's prompts.

    ``pairs`` held-out pairs of each behaviour, ``draws`` random circuits for each circuit. ``behaviours`` are those
    that are not built in, by the name that the circuits give them. ``resources`` is what measuring may use; a
    ``journal`` keeps what is measured.
    """

    pairs: int = 32
    draws: int = 10
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict[str, Behaviour])
    resources: Resources = field(default_factory=Resources)
    journal: Journal | None = None

    def __post_init__(self) -> None:
        settle(self, least={"pairs": 1, "draws": 0})

    def prompts(self, circuit: Circuit, model: Model) -> PromptSet:
        """Draw the held-out prompts of a circuit's behaviour, with the circuit's metric and seed."""
        name = circuit.behaviour.name
        given = self.behaviours.get(name)
        behaviour = replace(given, variant=circuit.behaviour.variant) if given else None
        behaviour = behaviour or load_behaviour(name, recorded=circuit.behaviour)
        behaviour = replace(behaviour, metric=Metric.parse(circuit.behaviour.metric))
        return behaviour.prompts(model.tokenizer, discovery=0, heldout=self.pairs, seed=circuit.method.seed)

    def options(self, circuit: Circuit) -> Options:
        """Measure as the circuit was."""
        return Options(Metric.parse(circuit.behaviour.metric), Ablation.parse(circuit.method.ablation))

    def experiment(self, circuit: Circuit, model: Model, prompts: PromptSet) -> AnyExperiment:
        """Set up measurements on held-out prompts, by the circuit's metric."""
        return model.with_roles_of(circuit.model).experiment(
            prompts.heldout,
            self.options(circuit),
            resources=self.resources,
            reference=prompts.reference,
            journal=self.journal,
        )


def measure_comparison(
    comparison: Comparison,
    models: Models,
    settings: Crossing | None = None,
    *,
    progress: StageProgress = no_stages,
) -> Comparison:
    """Run every circuit on every behaviour's held-out prompts in that behaviour's model, alone and knocked out.

    Also, for circuits of one behaviour in two models, measures the edges of both in both. Cost in forward passes of a
    behaviour's pairs, for c circuits and d draws: about ``c (d + 2)`` for transfer and ``9 c (d + 1)`` for knocking
    out; for edges in two models what :func:`circuits.score` costs for as many edges.
    """
    settings = settings or Crossing()
    prompts: dict[int, PromptSet] = {}
    columns: dict[int, Column] = {}
    effects: dict[tuple[tuple[int, int], int], ModelEffects] = {}
    changing = _same_behaviour(comparison.circuits)
    for members in _by_model(comparison.circuits):
        model = models if isinstance(models, Model) else models(comparison.circuits[members[0]])
        for place in members:
            circuit, name = comparison.circuits[place], comparison.names[place]
            require_runs(circuit, model)
            prompts[place] = settings.prompts(circuit, model)
            progress(f"recording the prompts of {name}", 0, 0)
            drawn = prompts[place]
            experiment = settings.experiment(circuit, model, drawn)
            columns[place] = _column(comparison, name, experiment, (prompts[place], model), settings, progress)
        for pair in changing:
            for place in (place for place in pair if place in members):
                drawn = prompts.setdefault(pair[0], settings.prompts(comparison.circuits[pair[0]], model))
                union = _union(comparison, pair)
                effects[pair, place] = measure_edges(union, model, drawn, settings, progress=progress)
    changes = [_changes(comparison, pair, effects) for pair in changing]
    return comparison.with_columns([columns[i] for i in range(len(columns))]).with_changes(changes)


def compare_models(
    circuit: Circuit,
    here: Models,
    there: Models,
    settings: Crossing | None = None,
    *,
    progress: StageProgress = no_stages,
) -> EdgeChanges:
    """Measure a circuit's edges in its own model and in another of the same shape, on the same held-out prompts.

    For a behaviour that the other model does not show, and of which it therefore has no circuit. The models may be
    functions that load them, so that only one is in memory at a time. Raises :class:`UsageError` for another shape or
    tokenizer.
    """
    settings = settings or Crossing()
    model = here if isinstance(here, Model) else here(circuit)
    require_runs(circuit, model)
    prompts, tokenizer = settings.prompts(circuit, model), model.info.tokenizer_digest
    own = measure_edges(circuit, model, prompts, settings, progress=progress)
    del model
    other = there if isinstance(there, Model) else there(circuit)
    require_runs(circuit, other)
    if tokenizer and other.info.tokenizer_digest and tokenizer != other.info.tokenizer_digest:
        raise UsageError(
            f"{other.info.id} has another tokenizer than {circuit.model.id}, so the same prompts are other tokens to "
            "it; compare models of one tokenizer."
        )
    if other.info.digest and other.info.digest == own.model.digest:
        raise UsageError(f"{other.info.id} has the same weights as the circuit's own model; name another model.")
    found = measure_edges(circuit, other, prompts, settings, progress=progress)
    return EdgeChanges(circuit.behaviour.name, circuit, own, found)


def measure_edges(
    circuit: Circuit,
    model: Model,
    prompts: PromptSet,
    settings: Crossing,
    *,
    progress: StageProgress = no_stages,
) -> ModelEffects:
    """Measure a circuit's edges in a model on held-out prompts, each exactly and all alone."""
    experiment = settings.experiment(circuit, model, prompts)
    stage = f"measuring {len(circuit)} edges in {model.info.id}"
    effects = experiment.edge_effects(circuit.edges, progress=lambda done, total: progress(stage, done, total))
    return ModelEffects(
        model.info,
        experiment.clean,
        experiment.corrupted,
        effects,
        experiment.circuits([circuit.mask()])[0],
        _remark(experiment, circuit.behaviour.name, model),
    )


def require_runs(circuit: Circuit, model: Model) -> None:
    """Raise :class:`UsageError` for a model of another shape."""
    if model.with_roles_of(circuit.model).info.shape != circuit.model.shape:
        raise UsageError(
            f"the circuit is of {circuit.model.id} with {circuit.model.shape.describe()}, but {model.info.id} has "
            f"{model.info.shape.describe()}; give a model of the same shape."
        )


def _column(
    comparison: Comparison,
    name: str,
    experiment: AnyExperiment,
    recorded: tuple[PromptSet, Model],
    settings: Crossing,
    progress: StageProgress,
) -> Column:
    prompts, model = recorded
    circuits = dict(zip(comparison.names, (circuit.edges for circuit in comparison.circuits), strict=True))
    stage = f"running {len(circuits)} circuits on {name}"
    knock_outs = _knock_outs(circuits, name)
    found = cross(
        experiment,
        circuits | {part.name: part.circuit.edges for part in comparison.parts},
        knock_outs,
        controlled=comparison.names,
        controlled_knock_outs=[each for each in knock_outs if each not in _shared(circuits)],
        draws=settings.draws,
        progress=lambda done, total: progress(stage, done, total),
    )
    return Column(
        name=name,
        behaviour=prompts.behaviour,
        model=model.info.id,
        metric=experiment.metric.value,
        digest=prompts.digest,
        clean=experiment.clean,
        corrupted=experiment.corrupted,
        remark=_remark(experiment, prompts.behaviour, model),
        alone=found.alone,
        without=found.without,
        random_alone=found.random_alone,
        random_without=found.random_without,
    )


def _knock_outs(circuits: Mapping[str, EdgeIndices], name: str) -> dict[str, EdgeIndices]:
    """Name what is knocked out on one behaviour's prompts: every circuit, and the parts of pairs it belongs to."""
    sets = dict(circuits)
    for a, b in combinations(circuits, 2):
        if name in (a, b):
            sets[without(a, b)] = np.setdiff1d(circuits[a], circuits[b])
            sets[without(b, a)] = np.setdiff1d(circuits[b], circuits[a])
            sets[shared_by(a, b)] = np.intersect1d(circuits[a], circuits[b])
    return {each: edges for each, edges in sets.items() if len(edges)}


def _shared(circuits: Mapping[str, EdgeIndices]) -> list[str]:
    return [shared_by(a, b) for a, b in combinations(circuits, 2)]


def _remark(experiment: AnyExperiment, behaviour: str, model: Model) -> str:
    try:
        check_gap(experiment.clean, experiment.corrupted, experiment.metric, behaviour=behaviour, model=model.info.id)
    except BehaviourNotShownError as error:
        return str(error).partition(_ADVICE)[0]
    return ""


def _by_model(circuits: Sequence[Circuit]) -> list[list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for place, circuit in enumerate(circuits):
        groups.setdefault((circuit.model.digest, circuit.model.id if not circuit.model.digest else ""), []).append(
            place
        )
    return list(groups.values())


def _same_behaviour(circuits: Sequence[Circuit]) -> list[tuple[int, int]]:
    """Return pairs of circuits of one behaviour and metric in two models with one tokenizer."""
    return [
        (i, j)
        for (i, a), (j, b) in combinations(enumerate(circuits), 2)
        if (a.behaviour.name, a.behaviour.metric) == (b.behaviour.name, b.behaviour.metric)
        and a.model.digest != b.model.digest
        and a.model.tokenizer_digest == b.model.tokenizer_digest
    ]


def _union(comparison: Comparison, pair: tuple[int, int]) -> Circuit:
    """Make one circuit of the edges of both, without scores."""
    a, b = (comparison.circuits[place] for place in pair)
    edges = np.union1d(a.edges, b.edges)
    return a.with_edges(edges, np.full(len(edges), np.nan))


def _changes(
    comparison: Comparison, pair: tuple[int, int], effects: Mapping[tuple[tuple[int, int], int], ModelEffects]
) -> EdgeChanges:
    """Take the second model as the later one: changes are from the first to the second."""
    union = _union(comparison, pair)
    later, earlier = effects[pair, pair[1]], effects[pair, pair[0]]
    names = names_of([comparison.circuits[place] for place in pair])
    return EdgeChanges(f"{names[0]} or {names[1]}", union, later, earlier)
