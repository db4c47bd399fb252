"""What one traced run does, as plain data: where it starts, what it skips, what it reads and replaces."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from jaxtyping import Float, Int
from torch import Tensor

Visit = Callable[[Tensor], Tensor | None]
"""Called with the value at a site; what it returns, if anything, replaces the value."""


def put(value: Tensor, _: Tensor) -> Tensor:
    """Replace whatever a site holds by a value: as a visit, ``partial(put, value)``."""
    return value


class LayerSite(IntEnum):
    """Places of one layer, in the order a forward pass reaches them. A fused projection is visited once, as ``Q``.

    Values have the shape ``(row, pos, width)`` whatever form the model's modules give them.
    """

    STREAM = 0
    """Residual stream entering the layer."""
    Q = 1
    K = 2
    V = 3
    Z = 4
    """Input of the output projection: all head outputs, concatenated."""
    ATTENTION = 5
    """Output of the output projection: the sum of all heads and the bias, before a norm or factor."""
    MLP_IN = 6
    """Residual stream as the MLP's norm reads it; replacing it leaves the stream itself alone."""
    NEURONS = 7
    """Input of an MLP's last projection: its hidden units. Only visited by plans that name it."""
    MLP_OUT = 8
    """What the MLP adds to the stream, after a norm or factor."""


@dataclass(frozen=True)
class Plan:
    """One run from layer ``start`` to the logits, or until the site ``stop`` (layer and site) has been visited.

    ``stream`` is the residual stream entering ``start`` (needed when layers are skipped before it). ``attention`` gives
    values for the site of that name without running what leads to it; ``mlp`` gives values that a layer's MLP puts out
    (before a norm or factor) without running it; ``idle`` layers are passed over altogether. ``visits`` are keyed by
    layer and site; ``final`` sees the stream as the final norm reads it, ``logits`` those of the last position: of all
    tokens, or of ``columns`` only, where the model has a plain unembedding.
    """

    start: int = 0
    stop: tuple[int, LayerSite] | None = None
    stream: Float[Tensor, "row pos d_model"] | None = None
    attention: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    mlp: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    idle: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    visits: Mapping[tuple[int, LayerSite], Visit] = field(default_factory=dict[tuple[int, LayerSite], Visit])
    final: Visit | None = None
    logits: Visit | None = None
    columns: Int[Tensor, " token"] | None = None
