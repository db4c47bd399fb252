"""Estimates of all edges at once, one number by pair: what they are made from, and what every one of them says."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from jaxtyping import Float
from torch import Tensor

from circuits.graph import ComputationalGraph
from circuits.passes.role_sums import RoleSums
from circuits.tracing.runs import Run
from circuits.tracing.taps import Loss
from circuits.tracing.tracer import Tracer


@dataclass(frozen=True)
class Given:
    """Recorded pairs of one token length, and how they are measured.

    ``base`` is what corrupted edges carry. ``denoising`` looks from there, where noising looks from the clean run.
    ``tile`` is how many senders' changes fit into memory at a time (None: all); with ``checkpointing`` no backward pass
    should hold the activations of all layers. ``roles`` are those of the positions, for a graph with roles.
    """

    tracer: Tracer
    graph: ComputationalGraph
    clean: Run
    base: Run
    loss: Loss
    denoising: bool = False
    tile: int | None = None
    checkpointing: bool = False
    roles: RoleSums | None = None

    @property
    def ends(self) -> tuple[Run, Run]:
        """The run in which an edge is replaced, and the one it is replaced from."""
        return (self.base, self.clean) if self.denoising else (self.clean, self.base)


class EdgeEstimate(Protocol):
    """A way to estimate all edges; two of the same ``name`` give the same numbers.

    ``of_metric`` says whether it is in the metric's unit, and turns its sign with the metric's; ``whole_prompts``,
    whether it needs the positions that clean and corrupted prompts share, too.
    """

    of_metric: ClassVar[bool]
    whole_prompts: ClassVar[bool]

    @property
    def name(self) -> str:
        """What it is and what it was told, for the journal."""
        ...

    def __call__(self, given: Given) -> Float[Tensor, "pair edge"]:
        """Return the estimate of every edge for each pair; positive: the clean value is the larger."""
        ...
