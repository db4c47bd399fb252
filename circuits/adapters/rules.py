"""How a metric is pulled back through a model where its plain derivatives mislead; values stay what they are.

Two sets of rules are published. *relp* (Rezaei Jafari et al. 2025, arXiv:2508.21258) takes from layer-wise relevance
propagation that the scale of a norm and the attention pattern are constants, that an activation ``y = f(x)`` has the
coefficient ``y / x``, and that each factor of a product gets half. *gim* (Edin et al. 2025, arXiv:2505.17630) takes
norms' scales as constants too, the derivative of the softmax at temperature 2, and half for each factor of every
product: of queries and keys, of pattern and values, of an MLP's gate and what it gates.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.graph import Slot


@dataclass(frozen=True)
class BackwardRules:
    """What is different from plain derivatives.

    Attributes:
        norms: Whether the scale by which a norm divides is a constant. A mean that it subtracts is not.
        activations: Whether an MLP's activation has the slope ``output / input``.
        products: Whether each factor of a gated MLP's product gets half of the gradient.
        temperature: At which temperature the softmax of the attention is differentiated.
        queries_and_keys: The share of the gradient that queries and keys get; 0 takes the pattern as a constant.
        values: The share of the gradient that values get.
    """

    norms: bool = False
    activations: bool = False
    products: bool = False
    temperature: float = 1.0
    queries_and_keys: float = 1.0
    values: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether nothing is different."""
        return self == PLAIN

    @property
    def within_mlps(self) -> bool:
        """Whether something is different inside MLPs."""
        return self.activations or self.products

    def freezing(self, *, norms: bool, patterns: bool) -> "BackwardRules":
        """Return these rules with scales of norms, or attention patterns, as constants too."""
        return replace(self, norms=self.norms or norms, queries_and_keys=0.0 if patterns else self.queries_and_keys)

    def share(self, slot: Slot) -> float:
        """Return the share of the gradient that a slot gets."""
        return self.values if slot is Slot.V else self.queries_and_keys


PLAIN = BackwardRules()
RELP = BackwardRules(norms=True, activations=True, products=True, queries_and_keys=0.0)
GIM = BackwardRules(norms=True, products=True, temperature=2.0, queries_and_keys=0.25, values=0.5)

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
