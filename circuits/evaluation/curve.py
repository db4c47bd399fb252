"""Faithfulness as a function of circuit size, and the areas under it (MIB, arXiv:2504.13151)."""

import numpy as np

from circuits.evaluation.faithfulness import faithfulness
from circuits.graph import EdgeIndices
from circuits.records import CurvePoint
from circuits.tracing.protocol import Experiment, Progress, no_progress

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which the curve is measured."""


def curve(
    experiment: Experiment, ranked: EdgeIndices, *, progress: Progress = no_progress
) -> tuple[tuple[CurvePoint, ...], float, float]:
    """Give the curve over the best edges of a ranking, its CPR and its CMD.

    CPR is the area under f, CMD that under the distance of f from 1: trapezoids on a linear axis from 0 edges (where f
    is 0) to all. Perfect are 1 and 0. Cost: up to three forward passes per point.
    """
    sizes = [max(1, round(share * experiment.graph.n_edges)) for share in SHARES]
    sizes = [min(size, len(ranked)) for size in sizes]
    values: list[float] = []
    for done, size in enumerate(sizes):
        mask = np.zeros(experiment.graph.n_edges, dtype=np.bool_)
        mask[ranked[:size]] = True
        values.append(float(faithfulness(experiment, experiment.circuits([mask])[0])))
        progress(done + 1, len(sizes))
    points = tuple(CurvePoint(size, f, share) for size, f, share in zip(sizes, values, SHARES, strict=True))
    axis = np.array([0, *sizes]) / experiment.graph.n_edges
    heights = np.array([0.0, *values])
    return points, float(np.trapezoid(heights, axis)), float(np.trapezoid(np.abs(1 - heights), axis))
