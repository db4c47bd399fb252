"""Scores at rest: one number per edge, and where it was measured per example how far examples differ."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.errors import UsageError
from circuits.graph import ComputationalGraph, EdgeIndices

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EdgeScores:
    """One score per edge of a graph.

    A positive score means that corrupting the edge moves the metric away from clean behaviour (for metrics where lower
    is better the sign is already turned). ``values[e]`` is the mean over prompt pairs in the metric's unit; NaN means
    the edge was not scored. ``sd`` is the standard deviation over the ``n`` pairs, where it is known. ``measured`` says
    whether scores are measured effects (``exact``) or estimates (everything else).
    """

    graph: ComputationalGraph
    values: Floats
    scorer: str
    measured: bool
    sd: Floats | None = None
    n: int = 0

    def __post_init__(self) -> None:
        for name in ("values", "sd"):
            array: Floats | None = getattr(self, name)
            if array is not None:
                if array.shape != (self.graph.n_edges,):
                    raise UsageError(
                        f"expected one score for each of {self.graph.n_edges} edges, got shape {array.shape}."
                    )
                object.__setattr__(self, name, array.copy())
                getattr(self, name).setflags(write=False)

    @property
    def scored(self) -> EdgeIndices:
        """Positions of the edges that have a score, in graph order."""
        return np.flatnonzero(~np.isnan(self.values))

    def ranked(self, *, by_magnitude: bool = False) -> EdgeIndices:
        """Give scored edges from the highest score down (or the largest |score|); ties keep graph order."""
        scored = self.scored
        key = np.abs(self.values[scored]) if by_magnitude else self.values[scored]
        return scored[np.argsort(-key, kind="stable")]

    def rows(self, indices: EdgeIndices | None = None) -> Iterator[dict[str, str | float | bool | int]]:
        """Walk over the rows of ``scores.csv``: the scored edges, or those asked for, in graph order."""
        for index in np.sort(self.scored if indices is None else indices):
            edge = self.graph.edge(int(index))
            row: dict[str, str | float | bool | int] = {
                "edge": str(edge),
                "sender": str(edge.sender),
                "receiver": str(edge.receiver.node),
                "slot": edge.receiver.slot.value if edge.receiver.slot else "",
                "score": float(self.values[index]),
                "measured": self.measured,
            }
            if self.sd is not None:
                row |= {"sd": float(self.sd[index]), "n": self.n}
            yield row
