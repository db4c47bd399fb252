"""What a pruner gives back."""

from dataclasses import dataclass

from circuits.equality import by_content
from circuits.graph import EdgeIndices
from circuits.scores import Floats


@by_content
@dataclass(frozen=True, eq=False)
class Selection:
    """Chosen edges in graph order, and how they were chosen.

    ``faithfulness`` is on the prompts the pruner saw. ``proposed`` is how many edges were taken from the ranking
    before anything was removed. ``removal[i]`` is the loss of faithfulness when ``edges[i]`` alone is removed from the
    circuit, where that was measured; ``locally_minimal`` says that no single edge can go without missing the target.
    """

    edges: EdgeIndices
    faithfulness: float
    proposed: int
    by_magnitude: bool
    removal: Floats | None = None
    locally_minimal: bool = False
