"""How far apart two values are, relative to their size: what guards compare with a tolerance."""

from jaxtyping import Float
from torch import Tensor


def distance(value: Tensor, expected: Tensor) -> float:
    """Return the largest relative distance of vectors along the last axis."""
    return float(distances(value, expected).amax())


def distances(value: Float[Tensor, "*any width"], expected: Float[Tensor, "*any width"]) -> Float[Tensor, "*any"]:
    """Return the distances of vectors along the last axis, relative to the size of the expected ones."""
    error = (value.float() - expected.float()).square().sum(-1).sqrt()
    size = expected.float().square().sum(-1).sqrt()
    floor = 1e-6 + 1e-3 * float(size.amax())
    return error / size.clamp_min(floor)
