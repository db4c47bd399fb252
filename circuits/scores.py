"""Scores as a value: one number per edge, and where it was measured per example how far examples differ."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.equality import by_content, frozen
from circuits.errors import UsageError
from circuits.graph import ComputationalGraph, EdgeIndices

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Verification:
    """How sure a verified top k is, and what it took.

    ``top`` edges of the ``wanted`` were measured on all pairs and are the largest found; ``threshold`` is the least of
    their sizes. With probability at least ``1 - error``, at most ``uncertain + missed_at_most`` edges of the exact top
    k are not among them: ``uncertain`` were measured, but the budget ended before they were decided;
    ``missed_at_most`` bounds those among the edges never measured, and ``missed_likely`` estimates them from the rate
    in what was measured. ``share_of_sweep`` is the number of measurements of one edge on one pair, over that of
    measuring all ``edges`` on all pairs.
    """

    top: int
    wanted: int
    threshold: float
    edges: int
    edges_measured: int
    edges_exact: int
    share_of_sweep: float
    error: float
    uncertain: int
    missed_at_most: int
    missed_likely: float

    @property
    def certain(self) -> bool:
        """Whether this is the exact top k, but for the stated error."""
        return self.top == self.wanted and self.uncertain == self.missed_at_most == 0

    @property
    def missing_at_most(self) -> int:
        """How many edges of the exact top k may not be among those found."""
        return min(self.wanted, self.uncertain + self.missed_at_most)

    def describe(self) -> str:
        """Return it as one line of text."""
        cost = f"{self.edges_measured:,} edges measured, {self.share_of_sweep:.1%} of the full sweep"
        if self.certain:
            return f"the exact top {self.top} with probability {1 - self.error:.0%}; {cost}"
        if self.top < self.wanted:
            return f"uncertain: the budget ended when only {self.top} edges were measured on all pairs; {cost}"
        about = "an unknown number of" if math.isnan(self.missed_likely) else f"about {self.missed_likely:.0f}"
        return (
            f"the exact top {self.top} but for {about} never measured and {self.uncertain} undecided edges; proven: at "
            f"most {self.missing_at_most} missing, with probability {1 - self.error:.0%}; {cost}"
        )


@by_content
@dataclass(frozen=True, eq=False)
class EdgeScores:
    """One score per edge of a graph.

    A positive score means that corrupting the edge moves the metric away from clean behaviour (for metrics where lower
    is better the sign is already turned). ``values[e]`` is the mean over prompt pairs in the metric's unit; NaN means
    the edge was not scored. ``sd`` is the standard deviation over the ``n`` pairs, where it is known. ``measured`` says
    whether all scores are measured effects (``exact``) rather than estimates; where only some are (``verified``),
    ``measured_edges`` says which.
    """

    graph: ComputationalGraph
    values: Floats
    scorer: str
    measured: bool
    sd: Floats | None = None
    n: int = 0
    measured_edges: Flags | None = None
    verification: Verification | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("values", np.float64), ("sd", np.float64), ("measured_edges", np.bool_)):
            if getattr(self, name) is not None:
                array = frozen(getattr(self, name), dtype, f"the {name} of scores")
                if array.shape != (self.graph.n_edges,):
                    raise UsageError(
                        f"expected one score for each of {self.graph.n_edges} edges, got shape {array.shape}."
                    )
                object.__setattr__(self, name, array)

    @property
    def scored(self) -> EdgeIndices:
        """Positions of the edges that have a score, in graph order."""
        return np.flatnonzero(~np.isnan(self.values))

    @property
    def which_measured(self) -> Flags:
        """For every edge, whether its score is a measured effect."""
        if self.measured_edges is not None:
            return self.measured_edges
        return np.full(self.graph.n_edges, self.measured) & ~np.isnan(self.values)

    @property
    def by_role(self) -> Floats:
        """The scores of each role, ``(role, edge)``, edges in the order of the graph without roles.

        Of first-order scorers their sum over roles is the score of the edge without roles. One row without roles.
        """
        return self.values[self.graph.edges_by_role]

    @property
    def cancelling(self) -> float:
        """Which share of all |score| cancels where the scores of an edge's roles are summed up: from 0 to 1."""
        by_role = np.nan_to_num(self.by_role)
        total = float(np.abs(by_role).sum())
        return 1 - float(np.abs(by_role.sum(axis=0)).sum()) / total if total else 0.0

    def __repr__(self) -> str:
        scored, kind = len(self.scored), "measured" if self.measured else "estimated"
        return f"EdgeScores({self.scorer}, {kind}: {scored:,} of {self.graph.n_edges:,} edges, {self.n or '?'} pairs)"

    def _repr_html_(self) -> str:
        """Show the strongest edges in a notebook."""
        from circuits.showing import scores_table

        return scores_table(self).to_html()

    def intervals(self, indices: EdgeIndices) -> Floats | None:
        """Return 95 % intervals (normal) of edges' mean scores over pairs: rows of (low, high), NaN where unknown.

        Of an estimate it says how the estimate varies over pairs, not how far it is from the effect. Where only some
        edges were measured, the others have none. ``None`` where nothing is known per pair.
        """
        if self.sd is None or self.n < 2:
            return None
        reach = 1.96 * self.sd[indices] / math.sqrt(self.n)
        if self.measured_edges is not None:
            reach = np.where(self.measured_edges[indices], reach, math.nan)
        return np.stack([self.values[indices] - reach, self.values[indices] + reach], axis=1)

    def ranked(self, *, by_magnitude: bool = False) -> EdgeIndices:
        """Return scored edges from the highest score down (or the largest |score|); ties keep graph order."""
        scored = self.scored
        key = np.abs(self.values[scored]) if by_magnitude else self.values[scored]
        return scored[np.argsort(-key, kind="stable")]

    def rows(self, indices: EdgeIndices | None = None) -> Iterator[dict[str, str | float | bool | int]]:
        """Walk over the rows of ``scores.csv``: the scored edges, or those asked for, in graph order."""
        measured = self.which_measured
        for index in np.sort(self.scored if indices is None else indices):
            edge = self.graph.edge(int(index))
            row: dict[str, str | float | bool | int] = {
                "edge": str(edge),
                "sender": str(edge.sender),
                "receiver": str(edge.receiver.node),
                "slot": edge.receiver.slot.value if edge.receiver.slot else "",
                **({"role": edge.receiver.role} if edge.receiver.role else {}),
                "score": float(self.values[index]),
                "measured": bool(measured[index]),
            }
            if self.sd is not None:
                row |= {"sd": float(self.sd[index]), "n": self.n}
            yield row
