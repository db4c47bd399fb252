"""What a pruner is told, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuits.equality import by_content
from circuits.errors import UsageError
from circuits.graph import EdgeIndices
from circuits.patching.protocol import Experiment, StageProgress, no_stages
from circuits.scores import EdgeScores, Floats


@by_content
@dataclass(frozen=True, eq=False)
class Selection:
    """Chosen edges in graph order, and how they were chosen.

    ``faithfulness`` is on the prompts the pruner saw. ``proposed`` is how many edges were taken from the ranking
    before anything was removed. ``removal[i]`` is the loss of faithfulness when ``edges[i]`` alone is removed from the
    circuit, where that was measured, and ``removal_se[i]`` its standard error over pairs that nothing was fitted to;
    ``locally_minimal`` says that no single edge can go without missing the target. Where the pruner aims at the
    ``error``, all this is on the ``pairs`` by which circuits were chosen, to which none was fitted, and ``reached``
    says whether the circuit reaches its target there. ``candidates`` is the last circuit of the search with half as
    many edges again, where there was one.
    """

    edges: EdgeIndices
    faithfulness: float
    proposed: int
    by_magnitude: bool
    removal: Floats | None = None
    removal_se: Floats | None = None
    locally_minimal: bool = False
    error: float | None = None
    pairs: int = 0
    reached: bool = True
    candidates: EdgeIndices | None = None


def require_size(scores: EdgeScores, size: int) -> None:
    """Raise :class:`UsageError` for a number of edges that scores cannot give."""
    most = len(scores.scored)
    if not 1 <= size <= most:
        raise UsageError(f"the number of edges must be between 1 and {most} (the edges that have a score), got {size}.")


@dataclass(frozen=True)
class PrunerSettings:
    """What pruners can be told: a target, a number of edges, up to how many to prune one by one, a time in seconds.

    ``threshold`` is the least |score| of the pruner threshold, and the least cost of an edge that acdc keeps. ``fresh``
    record further groups of pairs, to which circuits are fitted in turn. ``prices`` is what keeping each edge of the
    graph costs the pruner closest beside the loss.
    """

    target: float = 0.9
    size: int = 200
    limit: int = 400
    seconds: float | None = None
    progress: StageProgress = no_stages
    fresh: Sequence[Callable[[], Experiment]] = ()
    threshold: float | None = None
    prices: Floats | None = None
