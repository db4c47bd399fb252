"""The best edges of a ranking."""

import numpy as np

from circuits.patching.protocol import Experiment
from circuits.pruning.connected import connected
from circuits.pruning.selection import Selection, require_size
from circuits.scores import EdgeScores
from circuits.statistics import faithfulness


def top(experiment: Experiment, scores: EdgeScores, size: int, *, by_magnitude: bool = False) -> Selection:
    """Take the ``size`` best edges, then drop those on no path from input to logits. Cost: one circuit."""
    require_size(scores, size)
    ranked = scores.ranked(by_magnitude=by_magnitude)
    edges = connected(scores.graph, np.sort(ranked[:size]))
    found = float(faithfulness(experiment, experiment.circuits([scores.graph.mask(edges)])[0]))
    return Selection(edges, found, proposed=size, by_magnitude=by_magnitude)
