"""Exact effects of edges on the first pairs of an experiment, more pairs for some edges than for others."""

import numpy as np
from numpy.typing import NDArray

from circuits.graph import EdgeIndices
from circuits.patching.protocol import Experiment, Progress
from circuits.scores import Floats
from circuits.scoring.budget import Meter

_EDGES_AT_ONCE = 4096


class Measurements:
    """Measures as far as a budget goes; ``effects[e, :counts[e]]`` are the effects of edge e on the first pairs."""

    def __init__(self, experiment: Experiment, meter: Meter, *, planned: int, progress: Progress) -> None:
        n_edges, n_pairs = experiment.graph.n_edges, experiment.n_pairs
        self._experiment, self._progress = experiment, progress
        self.meter, self.planned = meter, planned
        self.effects: Floats = np.zeros((n_edges, n_pairs))
        self.counts: NDArray[np.int64] = np.zeros(n_edges, dtype=np.int64)

    @property
    def n_pairs(self) -> int:
        """How many pairs there are in all."""
        return self._experiment.n_pairs

    def means(self, edges: EdgeIndices) -> Floats:
        """Return the mean effect of each edge over the pairs it was measured on."""
        return self.effects[edges].sum(axis=1) / self.counts[edges]

    def measure(self, edges: EdgeIndices, upto: int) -> None:
        """Measure edges on the first ``upto`` pairs; those first in the list go first if the budget does not last."""
        for begin in np.unique(self.counts[edges]).tolist():
            waiting = edges[self.counts[edges] == begin]
            while begin < upto and len(waiting):
                room = self.meter.room(len(waiting), upto - begin)
                if room <= 0:
                    break
                now, waiting = np.sort(waiting[:room]), waiting[room:]
                for first in range(0, len(now), _EDGES_AT_ONCE):
                    self._measure(now[first : first + _EDGES_AT_ONCE], begin, upto)

    def _measure(self, edges: EdgeIndices, begin: int, upto: int) -> None:
        self.effects[edges, begin:upto] = self._experiment.part(begin, upto).edge_effects(edges)
        self.counts[edges] = upto
        self.meter.spent += len(edges) * (upto - begin)
        self._progress(*self.meter.steps(self.planned))
