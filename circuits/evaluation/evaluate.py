"""Everything that is said about a circuit on prompts that discovery did not see."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from circuits.evaluation.curve import curve
from circuits.evaluation.faithfulness import accuracy, faithfulness, faithfulness_interval
from circuits.evaluation.random_circuits import transplanted
from circuits.graph import Edges
from circuits.records import Areas, CurvePoint, Evaluation, RandomBaseline
from circuits.scores import EdgeScores
from circuits.tracing.protocol import Experiment, Progress, no_progress
from circuits.vocabulary import Universe

RANDOM_CIRCUITS = 20


def evaluate(
    experiment: Experiment,
    edges: Edges,
    *,
    scores: EdgeScores | None = None,
    by_magnitude: bool = False,
    universes: Sequence[Universe] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a circuit's faithfulness with interval, its necessity, random circuits and, given scores, the curve.

    The curve is that of the ranking by score, or ``by_magnitude``, and so has one of MIB's areas; both, CPR and CMD,
    are measured for the ``universes`` named. Cost in forward passes of the experiment's pairs: about 1 for the circuit,
    3 for its complement, 20 or fewer for the random circuits (they leave most of the model out), up to 15 for the
    curve, 15 more for the other area, 30 more for another universe.
    """
    mask = np.zeros(experiment.graph.n_edges, dtype=np.bool_)
    mask[experiment.graph.indices(edges)] = True
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
        faithfulness_ci=faithfulness_interval(experiment, circuit, seed=seed),
        necessity=float(faithfulness(experiment, complement)),
        random_baseline=_random_baseline(experiment, mask, seed) if mask.sum() > 1 else None,
        curve=points,
        areas=areas,
        accuracy_clean=accuracy(experiment.clean) if signed else None,
        accuracy_circuit=accuracy(circuit) if signed else None,
    )


def _random_baseline(experiment: Experiment, mask: NDArray[np.bool_], seed: int) -> RandomBaseline:
    edges = np.flatnonzero(mask)
    generator = np.random.default_rng(seed)
    masks = [transplanted(experiment.graph, edges, generator) for _ in range(RANDOM_CIRCUITS)]
    found = faithfulness(experiment, experiment.circuits(masks))
    low, median, high = np.quantile(found, [0.05, 0.5, 0.95])
    return RandomBaseline(len(masks), float(median), float(low), float(high))
