"""What scoring, pruning and evaluation may ask of a model: the protocol of an experiment."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.errors import UsageError
from circuits.files.journal import Shelf
from circuits.graph import ComputationalGraph, EdgeIndices
from circuits.vocabulary import Metric

if TYPE_CHECKING:
    from circuits.passes.estimate import EdgeEstimate

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all) during long work."""

StageProgress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all); 0 steps in all when that is not known."""

INTERIM = "gradient, interim"
"""Under this a journal keeps slopes of more edges than it has room for in the long run: forget them when summed up."""

Masks = Sequence[NDArray[np.bool_]] | NDArray[np.bool_]
"""Circuits: one row of booleans over the graph's edges each."""


def stacked_masks(graph: ComputationalGraph, masks: Masks) -> NDArray[np.bool_]:
    """Return circuits as one array of booleans, shape ``(circuit, edge)``; numbers may be 0 and 1 only.

    Raises :class:`UsageError` for rows that are not one boolean per edge.
    """
    rows = [np.asarray(mask) for mask in masks]
    for row in rows:
        if row.shape != (graph.n_edges,):
            raise UsageError(
                f"a circuit is one boolean for each of {graph.n_edges:,} edges, got shape {row.shape}. Of edges: "
                "`graph.mask(edges)`."
            )
        if row.dtype != np.bool_ and not np.isin(row, (0, 1)).all():
            raise UsageError(f"a circuit's edges are in it or not (True or False), got {row.dtype} values.")
    return np.array(rows, dtype=np.bool_)


def one_per_edge(graph: ComputationalGraph, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of edges as they are; raises :class:`UsageError` unless each edge has a finite one."""
    if weights.shape != (graph.n_edges,) or not np.isfinite(weights).all():
        raise UsageError(
            f"expected a finite weight for each of {graph.n_edges:,} edges, got shape {weights.shape} with "
            f"{int(np.sum(~np.isfinite(weights)))} that are not finite."
        )
    return weights


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def no_stages(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def of_stage(progress: StageProgress, stage: str) -> Progress:
    """Return what reports the progress of one stage."""

    def step(done: int, total: int) -> None:
        progress(stage, done, total)

    return step


def gaps(experiment: "Experiment") -> NDArray[np.float64]:
    """Return how far the clean and the corrupted run of each pair are apart, shape ``(pair,)``.

    In the metric's unit; positive where the behaviour is lost by corrupting, also by metrics where lower is better.
    """
    return experiment.metric.sign * (experiment.clean - experiment.corrupted)


class Experiment(Protocol):
    """One model, one set of prompt pairs, one metric and one ablation: everything that can be measured on them.

    All results are in the metric's unit, one column per prompt pair, in the pairs' order. Nothing here changes the
    model, the graph or earlier results.
    """

    @property
    def graph(self) -> ComputationalGraph:
        """The model's graph."""
        ...

    @property
    def metric(self) -> Metric:
        """The metric."""
        ...

    @property
    def n_pairs(self) -> int:
        """How many prompt pairs there are."""
        ...

    @property
    def clean(self) -> NDArray[np.float64]:
        """Metric of the clean run, shape ``(pair,)``."""
        ...

    @property
    def corrupted(self) -> NDArray[np.float64]:
        """Metric with every edge corrupted (the empty circuit), shape ``(pair,)``."""
        ...

    @property
    def kept(self) -> Shelf:
        """Where a journal keeps what is measured on these pairs; what is derived from it may be kept there too."""
        ...

    def part(self, begin: int, end: int) -> "Experiment":
        """Return the same experiment on the pairs ``begin .. end - 1`` only, without running anything."""
        ...

    def circuits(self, masks: Masks, *, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Measure circuits: the masked edges carry this run's values, all others corrupted ones.

        ``masks`` has one row of ``n_edges`` booleans per circuit; the result has shape ``(circuit, pair)``. Cost:
        about one to three forward passes of the pairs per circuit, less for circuits that leave whole layers out.
        """
        ...

    def circuit_gradient(
        self, weights: NDArray[np.float64], *, among: EdgeIndices | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what one circuit with weighted edges gives, shape ``(pair,)``, and its slope along every weight.

        An edge of weight ``w`` carries ``corrupted + w * (this run's - corrupted)`` value; weights of 0 and 1 make a
        circuit of :meth:`circuits`. The slope of a live edge is, to first order, what removing it costs, and that of an
        edge that is left out what adding it brings, inside this circuit, in the metric's unit. It is given for live
        edges and those ``among`` (None: all; 0 elsewhere), shape ``(pair, edge)``. Cost: a forward and a backward pass.
        """
        ...

    def edge_effects(self, edges: EdgeIndices, *, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Measure single edges exactly, shape ``(edge, pair)``; positive: corrupting the edge hurts the behaviour.

        Noising: metric of the clean run minus metric with only this edge corrupted. Denoising: metric with only this
        edge restored in the corrupted run minus metric of the corrupted run. The sign is turned for metrics where lower
        is better. Downstream is recomputed.
        """
        ...

    def attributions(
        self,
        points: Sequence[float],
        *,
        stepwise: bool = False,
        rules: BackwardRules = PLAIN,
        progress: Progress = no_progress,
    ) -> NDArray[np.float64]:
        """Estimate all edges to first order: ``sum_pos <a_u(clean) - a_u(corrupted), dm/dx_v>``, shape ``(2, edge)``.

        The gradient is averaged over runs whose input embedding is ``corrupted + point * (clean - corrupted)``,
        everything downstream recomputed. Row 0 is the mean over pairs, row 1 the standard deviation. Sign as in
        :meth:`edge_effects`. With ``stepwise``, the gradient of each point is multiplied by what the sender changes
        from halfway to the point before to halfway to the one after (the ends at the first and the last), and these
        are summed. ``rules`` take the place of plain derivatives. Cost: one forward and one backward pass per point.
        Raises :class:`UnsupportedModelError` for a model that the rules cannot be applied to.
        """
        ...

    def estimates(
        self, estimate: "EdgeEstimate", *, rules: BackwardRules = PLAIN, progress: Progress = no_progress
    ) -> NDArray[np.float64]:
        """Estimate all edges some other way, shape ``(2, edge)``: the mean over pairs and the standard deviation.

        Sign as in :meth:`edge_effects` where the estimate is one of the metric. Cost: its own; a forward pass of both
        sides of the pairs more where it needs whole prompts and a prefix was cached. Raises
        :class:`UnsupportedModelError` for a model that it cannot be made of.
        """
        ...
