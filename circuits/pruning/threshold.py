"""The edges of large score, however many they are."""

import numpy as np

from circuits.errors import UsageError
from circuits.patching.protocol import Experiment
from circuits.pruning.connected import connected
from circuits.pruning.selection import Selection
from circuits.scores import EdgeScores
from circuits.statistics import faithfulness


def threshold(experiment: Experiment, scores: EdgeScores, least: float) -> Selection:
    """Take the edges of at least so large |score|, then drop those on no path from input to end. Cost: one circuit.

    Raises :class:`UsageError` where no edge is as large.
    """
    scored = scores.scored
    chosen = scored[np.abs(scores.values[scored]) >= least]
    if not len(chosen):
        largest = float(np.abs(scores.values[scored]).max())
        raise UsageError(
            f"no edge has a |score| of {least:g} or more; the largest is {largest:.3g}. Lower --threshold."
        )
    edges = connected(scores.graph, chosen)
    found = float(faithfulness(experiment, experiment.circuits([scores.graph.mask(edges)])[0]))
    return Selection(edges, found, proposed=len(chosen), by_magnitude=True)
