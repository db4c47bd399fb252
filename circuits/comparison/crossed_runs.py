"""Run circuits on each other's prompts: alone, and knocked out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.equality import by_content
from circuits.evaluation.random_circuits import random_circuits
from circuits.graph import ComputationalGraph, EdgeIndices
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.scores import Floats

Masks = NDArray[np.bool_]


@by_content
@dataclass(frozen=True, eq=False)
class Crossed:
    """Metric values per prompt pair: of edges alone, of the model without them, and of random circuits for both."""

    alone: dict[str, Floats]
    without: dict[str, Floats]
    random_alone: dict[str, Floats]
    random_without: dict[str, Floats]


def cross(
    experiment: Experiment,
    alone: Mapping[str, EdgeIndices],
    knocked_out: Mapping[str, EdgeIndices],
    *,
    controlled: Sequence[str] = (),
    controlled_knock_outs: Sequence[str] = (),
    draws: int = 10,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Crossed:
    """Measure sets of edges on one experiment, those in ``controlled*`` against ``draws`` random circuits.

    Random circuits have the same size and wiring, on other heads of the same layers. Cost in forward passes of the
    pairs: one or fewer per set that runs alone, about three per set that is knocked out.
    """
    jobs: list[tuple[str, str, Masks]] = []
    for name, edges in alone.items():
        jobs.append(("alone", name, _masks(experiment.graph, [edges])))
        if name in controlled:
            jobs.append(("random_alone", name, random_circuits(experiment.graph, edges, draws, seed)))
    for name, edges in knocked_out.items():
        jobs.append(("without", name, ~_masks(experiment.graph, [edges])))
        if name in controlled_knock_outs:
            jobs.append(("random_without", name, ~random_circuits(experiment.graph, edges, draws, seed)))
    found: dict[str, dict[str, Floats]] = {"alone": {}, "without": {}, "random_alone": {}, "random_without": {}}
    for done, (kind, name, masks) in enumerate(jobs):
        progress(done, len(jobs))
        values = experiment.circuits(masks)
        if len(masks):
            found[kind][name] = values if kind.startswith("random") else values[0]
    progress(len(jobs), len(jobs))
    return Crossed(**found)


def _masks(graph: ComputationalGraph, sets: Sequence[EdgeIndices]) -> Masks:
    return np.array([graph.mask(edges) for edges in sets], dtype=np.bool_).reshape(len(sets), graph.n_edges)
