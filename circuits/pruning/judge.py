"""Measuring circuits given as edges, and saying which reach the target."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.graph import EdgeIndices
from circuits.patching.protocol import INTERIM, Experiment, Progress, no_progress
from circuits.pruning.connected import connected
from circuits.scores import Floats
from circuits.statistics import faithfulness


@dataclass(frozen=True)
class Judge:
    """Measures circuits given as edges; they reach the target when ``|1 - f| <= tolerance``."""

    experiment: Experiment
    tolerance: float
    progress: Progress

    def many(self, circuits: list[EdgeIndices]) -> Floats:
        """Return the faithfulness of circuits."""
        masks = [self.experiment.graph.mask(edges) for edges in circuits]
        return faithfulness(
            self.experiment, self.experiment.circuits(masks, progress=self.progress if len(masks) > 1 else no_progress)
        )

    def one(self, edges: EdgeIndices) -> float:
        """Return the faithfulness of one circuit."""
        return float(self.many([edges])[0])

    def removals(self, edges: EdgeIndices, blocks: list[EdgeIndices]) -> Floats:
        """Return the faithfulness of the circuit without each block of edges."""
        return self.many([np.setdiff1d(edges, block) for block in blocks])

    def slopes(self, edges: EdgeIndices) -> tuple[float, Floats]:
        """Return the faithfulness of a circuit and, to first order, what removing each of its edges costs of it."""
        values, slopes = self.experiment.circuit_gradient(
            self.experiment.graph.mask(edges).astype(np.float64), among=edges
        )
        return float(faithfulness(self.experiment, values)), slopes.mean(0)[edges] / self._gap

    def all_slopes(self, edges: EdgeIndices) -> Floats:
        """Return, to first order, what removing each edge costs and what adding each left-out edge brings, by edge."""
        weights, kept = self.experiment.graph.mask(edges).astype(np.float64), self.experiment.kept
        found = kept.arrays(
            "mean slopes", edges.tolist(), lambda: {"slopes": self.experiment.circuit_gradient(weights)[1].mean(0)}
        )
        kept.forget(INTERIM)
        return found["slopes"] / self._gap

    @property
    def _gap(self) -> float:
        return float(self.experiment.clean.mean() - self.experiment.corrupted.mean())

    def tidied(self, edges: EdgeIndices) -> EdgeIndices:
        """Drop edges on no path from input to logits, unless (zero ablation and biases) they matter all the same."""
        shorter = connected(self.experiment.graph, edges)
        return shorter if len(shorter) < len(edges) and self.reaches(self.one(shorter)) else edges

    def reaches(self, f: Floats | float) -> NDArray[np.bool_]:
        """Return which faithfulness reaches the target."""
        return np.abs(1 - f) <= self.tolerance
