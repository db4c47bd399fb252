"""Splitting the MLPs of a circuit, or of a model, into the neurons that matter: :func:`find_neurons`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from circuits.behaviours.behaviour import Behaviour, TokenPair
from circuits.behaviours.pairs import clusters_of
from circuits.behaviours.split import parted
from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.files.journal import Journal
from circuits.graph import NodeKind
from circuits.model import Model
from circuits.neurons.neuron_experiment import Floats, NeuronExperiment, Places
from circuits.neurons.neuron_names import FoundNeuron
from circuits.neurons.neuron_split import NeuronSplit
from circuits.neurons.shrinking import neuron_scores, ranked, shrinking_sets
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import StageProgress, no_stages, of_stage
from circuits.patching.sequences import of_one_token
from circuits.pruning.stopping import Candidate, candidate, chosen
from circuits.records import CurvePoint
from circuits.statistics import error, faithfulness, likeness
from circuits.vocabulary import Ablation, ScorerName

PAIRS = 64
"""How many pairs are searched on, and how many held out, unless others are named."""
MOST_MEASURED = 400
"""Of so many neurons the effects are measured one by one, those of largest |score|."""
_RANDOM = 5


class _Ends(NamedTuple):
    clean: Floats
    corrupted: Floats


@dataclass(frozen=True)
class _Prompts:
    """The pairs of a search, and those that means are taken over."""

    fit: Sequence[TokenPair]
    choose: Sequence[TokenPair]
    heldout: Sequence[TokenPair]
    reference: Sequence[TokenPair]


def find_neurons(
    model: Model,
    behaviour: Behaviour,
    circuit: Circuit | None = None,
    *,
    neurons: int | None = None,
    target: float = 0.9,
    scorer: ScorerName | str = ScorerName.EAP_IG,
    options: Options | None = None,
    resources: Resources | None = None,
    pairs: int = PAIRS,
    heldout: int = PAIRS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> NeuronSplit:
    """Split the MLPs of a circuit, or of the whole model, into the neurons that carry a behaviour and the rest.

    A neuron is a hidden unit just before an MLP's down projection. Those that are kept have the values of the run, the
    others those of the corrupted run (or means, constants, 0); everything else of the circuit or model is as it is.

    Args:
        model: The model.
        behaviour: The behaviour; its discovery pairs are halved, to fit sets of neurons and to choose one.
        circuit: Whose MLPs are split, measured inside it. None: those of the whole model.
        neurons: How many neurons to keep. None: as few as reach the target on the pairs that sets are chosen by.
        target: The fidelity looked for, against all neurons as they are, with faithfulness within 0.1 of 1.
        scorer: Proposes the neurons that the search begins with: eap-ig, eap, relp or gim.
        options: What is measured. Default: the behaviour's own metric; with a circuit its ablation.
        resources: What measuring may use.
        pairs: How many pairs are searched on.
        heldout: How many held-out pairs everything is judged on.
        seed: Draws pairs and random neurons.
        progress: Is told about the stages.
        journal: Keeps what is measured.

    Cost: about 50 forward and backward passes of the fit pairs, 40 forward passes of the choose pairs and 90 of the
    held-out ones; and for each neuron that is found the layers from its own on. Raises :class:`UsageError` for a
    circuit without MLPs or of another shape, :class:`UnsupportedModelError` for mixtures of experts.
    """
    layers, remarks = _layers(model, circuit)
    ablation = Ablation.CORRUPTED if circuit is None else Ablation.parse(circuit.method.ablation)
    options = options or Options(behaviour.metric, ablation)
    drawn = behaviour.prompts(model.tokenizer, discovery=pairs, heldout=heldout, seed=seed)
    prompts = _Prompts(*parted(drawn.discovery, 0.5), drawn.heldout, drawn.reference)
    progress("recording the prompts", 0, 0)

    def measured(each: Sequence[TokenPair], *, inside: Circuit | None = circuit) -> NeuronExperiment:
        given: dict[str, Any] = {"resources": resources, "reference": prompts.reference, "journal": journal}
        experiment = of_one_token(model.experiment(each, options, **given), "splitting MLPs into neurons")
        edges = None if inside is None else inside.edges
        return NeuronExperiment(experiment, layers, edges=edges, reference=prompts.reference)

    fit = measured(prompts.fit)
    _require_count(neurons, fit.n_neurons, target)
    progress("scoring neurons", 0, 0)
    whole = fit if circuit is None else measured(prompts.fit, inside=None)
    scores = neuron_scores(whole, fit, scorer)
    wanted = () if neurons is None else (neurons,)
    told = of_stage(progress, "dropping neurons")
    sets = shrinking_sets(fit, scores, target=target, sizes=wanted, report=told)
    best, reached = _chosen(measured(prompts.choose), sets, target, neurons)
    return NeuronSplit(
        model=model.info.id,
        behaviour=drawn.behaviour,
        metric=options.metric.value,
        unit=options.metric.unit,
        ablation=options.ablation.value,
        scorer=ScorerName.parse(scorer).value,
        circuit="" if circuit is None else circuit.digest,
        layers=layers,
        fit=len(prompts.fit),
        choose=len(prompts.choose),
        target=target,
        reached=reached,
        remarks=(*remarks, *drawn.remarks),
        **_judged(measured(prompts.heldout), sets, best, scores, seed, progress),
    )


def _layers(model: Model, circuit: Circuit | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the layers whose MLPs are split, and remarks."""
    if circuit is None:
        return tuple(range(model.graph.shape.n_layers)), ()
    remark = circuit.remark_on(model.info)
    layers = tuple(sorted({edge.sender.layer for edge in circuit.edge_list if edge.sender.kind is NodeKind.MLP}))
    if not layers:
        raise UsageError("no MLP sends along an edge of this circuit, so it has no neurons to split. Leave it out.")
    return layers, ((remark,) if remark else ())


def _require_count(neurons: int | None, total: int, target: float) -> None:
    if neurons is not None and not 1 <= neurons <= total:
        raise UsageError(f"the number of neurons to keep is between 1 and {total:,}, got {neurons}.")
    if not 0 < target < 1:
        raise UsageError(f"the target fidelity must be between 0 and 1, got {target}.")


def _chosen(
    choose: NeuronExperiment, sets: Sequence[Places], target: float, neurons: int | None
) -> tuple[Places, bool]:
    """Return the set that was asked for, or the smallest good enough on choose pairs; and whether it reaches."""
    values = choose.sets(sets)
    ways: list[Candidate] = [candidate(choose, *each) for each in zip(sets, values, strict=True)]
    best = chosen(ways, target) if neurons is None else next(way for way in ways if len(way.edges) == neurons)
    return best.edges, best.reaches(target)


def _judged(
    there: NeuronExperiment,
    sets: Sequence[Places],
    best: Places,
    scores: Floats,
    seed: int,
    progress: StageProgress,
) -> dict[str, Any]:
    """Measure on held-out pairs all sets, as many of the best by score, the rest, random sets, and single neurons."""
    order, rest = ranked(scores), np.setdiff1d(there.everything, best)
    by_score = [np.sort(order[: len(places)]) for places in sets]
    ways = [*sets, *by_score, best, rest, *_random_sets(there, best, seed)]
    values = there.sets(ways, progress=of_stage(progress, "measuring sets of neurons"))
    kept, metric = values[2 * len(sets)], there.experiment.metric
    clusters = clusters_of(there.experiment.pairs)
    alike = partial(likeness, compares=metric.signed, clusters=clusters, seed=seed)
    model = _Ends(there.experiment.clean, there.experiment.corrupted)
    return {
        "total": there.n_neurons,
        "heldout": there.n_pairs,
        "neurons": _found(there, best, scores, progress),
        "metric_all": float(there.clean.mean()),
        "metric_none": float(there.corrupted.mean()),
        "metric_kept": float(kept.mean()),
        "metric_rest": float(values[2 * len(sets) + 1].mean()),
        "likeness": alike(there, kept),
        "against_model": alike(model, kept),
        "curve": _curve(there, sets, values[: len(sets)]),
        "by_score": _curve(there, by_score, values[len(sets) : 2 * len(sets)]),
        "random": tuple((1 - error(there, values[2 * len(sets) + 2 :]) ** 2).tolist()),
    }


def _curve(there: NeuronExperiment, sets: Sequence[Places], values: Floats) -> tuple[CurvePoint, ...]:
    """Return the points of sets of neurons, the smallest first; their ``edges`` are neurons."""
    found = zip(sets, faithfulness(there, values).tolist(), error(there, values).tolist(), strict=True)
    points = [CurvePoint(len(places), f, len(places) / there.n_neurons, wrong) for places, f, wrong in found]
    return tuple(sorted(points, key=lambda point: point.edges))


def _random_sets(there: NeuronExperiment, best: Places, seed: int) -> list[Places]:
    """Draw sets with as many neurons of each layer as a set has, none of them of the set where that can be."""
    generator, sets = np.random.default_rng(seed), list[Places]()
    counts = np.histogram(best, bins=there.offsets)[0].tolist()
    for _ in range(_RANDOM):
        parts = list[Places]()
        for block, count in enumerate(counts):
            own: Places = np.arange(int(there.offsets[block]), int(there.offsets[block + 1]))
            others = np.setdiff1d(own, best)
            parts.append(generator.choice(others if len(others) >= count else own, count, replace=False))
        sets.append(np.sort(np.concatenate(parts)))
    return sets


def _found(there: NeuronExperiment, best: Places, scores: Floats, progress: StageProgress) -> tuple[FoundNeuron, ...]:
    """Return the neurons of a set with their exact effects, the largest first."""
    strong = best[np.argsort(-np.abs(scores[best]), kind="stable")][:MOST_MEASURED]
    effects = np.full((len(best), 2), np.nan)
    measured = there.effects(np.sort(strong), progress=of_stage(progress, "measuring single neurons"))
    spread = measured.std(axis=1, ddof=1) / np.sqrt(there.n_pairs) if there.n_pairs > 1 else np.nan
    effects[np.isin(best, strong)] = np.stack([measured.mean(axis=1), np.broadcast_to(spread, len(measured))], axis=1)
    found = [
        FoundNeuron(str(name), name.layer, name.index, float(scores[place]), *effects[row].tolist())
        for row, place in enumerate(best.tolist())
        for name in (there.neuron(place),)
    ]
    return tuple(sorted(found, key=lambda each: -abs(np.nan_to_num(each.effect))))
