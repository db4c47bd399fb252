"""Values that pass on other gradients than their own: what rules of a backward pass are made of."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_SMALL = 1e-9
"""What keeps the coefficient of an activation finite where its input is nothing."""


def with_slope_of(value: Float[Tensor, "*any"], other: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return a value to which gradients flow as if it were another."""
    return value.detach() + (other - other.detach())


def by_ratio(value: Float[Tensor, "*any"], read: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return an activation's value with the slope ``value / read``."""
    with torch.no_grad():
        away = torch.where(read < 0, -_SMALL, _SMALL)
        coefficient = value / (read + away)
    return with_slope_of(value, coefficient * read)


def passing_on(fresh: Tensor, share: float | Tensor) -> Tensor:
    """Return a tensor that nothing else uses yet, which passes on a share of the gradient that it gets."""
    if fresh.requires_grad:
        untyped: Any = fresh
        untyped.register_hook(partial(_scaled, share))
    return fresh


def _scaled(share: float | Tensor, gradient: Tensor) -> Tensor:
    return gradient * share
