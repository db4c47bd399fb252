"""How a diagram is drawn: its size on paper, its legend, and what stands in its nodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from circuits.errors import UsageError
from circuits.graph import Node
from circuits.settings import Choice, settle

NARROWEST, WIDEST = 20.0, 1000.0
"""Millimetres."""
_TALLEST = 230.0
"""Millimetres of a page that a figure may take."""


class Level(Choice):
    """What one arrow of a diagram stands for: an edge, or all edges between two nodes or two layers' parts."""

    EDGE = "edge"
    NODE = "node"
    LAYER = "layer"

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "level of a diagram"


class Flow(Choice):
    """Where the end of a diagram is, seen from the input."""

    UP = "up"
    RIGHT = "right"

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "direction of a diagram"

    @property
    def rankdir(self) -> str:
        """What Graphviz calls it."""
        return "BT" if self is Flow.UP else "LR"


@dataclass(frozen=True)
class DiagramStyle:
    """How a diagram is drawn.

    Attributes:
        width: How wide it is, in millimetres, such as 84 for a column; it then has larger letters, and is at most 230
            high. None: as large as it comes.
        legend: Whether there is a legend below it.
        roles: What stands below the names of nodes.
        level: What one arrow stands for.
        flow: Whether layers are rows, from the input up, or columns, from the input to the right, as slides want it.
    """

    width: float | None = None
    legend: bool = True
    roles: Mapping[Node, str] = field(default_factory=dict[Node, str])
    level: Level = Level.EDGE
    flow: Flow = Flow.UP

    def __post_init__(self) -> None:
        settle(self)
        if self.width is not None and not NARROWEST <= self.width <= WIDEST:
            raise UsageError(
                f"a figure is {NARROWEST:g} to {WIDEST:g} mm wide, got {self.width:g}; a column has about 84."
            )

    @property
    def letters(self) -> float:
        """How much larger letters are than in a figure that is as large as it comes."""
        return 1.0 if self.width is None else 1.6

    @property
    def size(self) -> str | None:
        """The size in inches as Graphviz takes it; None where it is free."""
        return None if self.width is None else f'"{self.width / 25.4:.3f},{_TALLEST / 25.4:.3f}!"'


PLAIN = DiagramStyle()
"""As large as it comes, with a legend."""
