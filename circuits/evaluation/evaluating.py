"""Everything that is said about a circuit on prompts that discovery did not see."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from circuits.evaluation.curve import curve
from circuits.evaluation.random_circuits import random_circuits
from circuits.graph import EdgeIndices, Edges
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.patching.shared_experiment import SharedExperiment
from circuits.records import Areas, CurvePoint, Evaluation, RandomBaseline
from circuits.scores import EdgeScores, Floats
from circuits.statistics import faithfulness, faithfulness_interval, fidelity, likeness
from circuits.vocabulary import Metric, Universe

RANDOM_CIRCUITS = 20


def evaluate(
    experiment: Experiment,
    edges: Edges,
    *,
    scores: EdgeScores | None = None,
    by_magnitude: bool = False,
    universes: Sequence[Universe] = (),
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure how closely a circuit follows the model, its necessity, random circuits and, given scores, the curve.

    ``clusters`` has a number for each pair (:func:`circuits.behaviours.clusters_of`): pairs with the same one share a
    text, and intervals resample them together. The curve is that of the ranking by score, or ``by_magnitude``, and so
    has one of MIB's areas; both, CPR and CMD, are measured for the ``universes`` named. Cost in forward passes of the
    experiment's pairs: about 2 for the circuit, 3 for its complement, 20 or fewer for the random circuits, up to 15 for
    the curve, 15 more for the other area, 30 more for another universe.
    """
    mask = experiment.graph.mask(edges)
    circuit, complement = experiment.circuits([mask])[0], experiment.circuits([~mask])[0]
    points, areas = tuple[CurvePoint, ...](), tuple[Areas, ...]()
    if scores is not None:
        points, areas = curve(experiment, scores, by_magnitude=by_magnitude, universes=universes, progress=progress)
    signed = experiment.metric.signed
    return Evaluation(
        n=experiment.n_pairs,
        metric_clean=float(experiment.clean.mean()),
        metric_corrupted=float(experiment.corrupted.mean()),
        metric_circuit=float(circuit.mean()),
        faithfulness=float(faithfulness(experiment, circuit)),
        faithfulness_ci=faithfulness_interval(experiment, circuit, clusters=clusters, seed=seed),
        necessity=float(faithfulness(experiment, complement)),
        random_baseline=_random_baseline(experiment, np.flatnonzero(mask), seed),
        curve=points,
        areas=areas,
        accuracy_clean=accuracy(experiment.clean) if signed else None,
        accuracy_circuit=accuracy(circuit) if signed else None,
        likeness=likeness(
            experiment,
            circuit,
            compares=signed,
            kl=_divergences(experiment, mask),
            clusters=clusters,
            seed=seed,
        ),
    )


def accuracy(values: Floats) -> float:
    """Return the share of pairs with a positive metric (for logit differences: the answer beats the wrong answer)."""
    return float(np.mean(values > 0))


def _divergences(experiment: Experiment, mask: NDArray[np.bool_]) -> Floats | None:
    """Return each pair's divergence of the next-token distribution from the model's, where there is one to speak of."""
    alone = experiment.alone if isinstance(experiment, SharedExperiment) else experiment
    if not isinstance(alone, PatchingExperiment) or experiment.metric.along_direction:
        return None
    other = experiment if isinstance(experiment, SharedExperiment) else alone
    return other.with_metric(Metric.KL).circuits([mask])[0]


def _random_baseline(experiment: Experiment, edges: EdgeIndices, seed: int) -> RandomBaseline | None:
    masks = random_circuits(experiment.graph, edges, RANDOM_CIRCUITS, seed)
    if not len(masks):
        return None
    values = experiment.circuits(masks)
    low, median, high = np.quantile(faithfulness(experiment, values), [0.05, 0.5, 0.95]).tolist()
    fidelities = np.quantile(fidelity(experiment, values), [0.05, 0.5, 0.95]).tolist()
    return RandomBaseline(len(masks), median, low, high, heads=True, fidelities=tuple(fidelities))
