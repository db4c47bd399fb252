"""Sums over the positions of each token role: what an edge of one role carries, and what it is worth.

An edge with a role carries its sender's change at the positions of that role alone. So what a receiver reads at a
position is a sum over senders with the weights of that position's role, and what an edge is worth is a sum over the
role's positions instead of all. Both take as many products as without roles.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RoleSums:
    """Which of ``n`` roles every position of a batch of pairs has: ``roles[pair, pos]``."""

    roles: Int[Tensor, "pair pos"]
    n: int

    def rows(self, chosen: slice) -> Self:
        """Return the roles of some of the pairs."""
        return type(self)(self.roles[chosen], self.n)

    def at(self, positions: slice) -> Self:
        """Return the roles of some of the positions."""
        return self if positions == slice(None) else type(self)(self.roles[:, positions], self.n)

    @cached_property
    def _places(self) -> list[tuple[int, Int[Tensor, " place"]]]:
        """The roles that there are, each with its places among all positions of all pairs."""
        found = ((role, (self.roles.flatten() == role).nonzero()[:, 0]) for role in range(self.n))
        return [(role, places) for role, places in found if len(places)]

    def marks(self, roles: NDArray[np.int64], dtype: torch.dtype) -> Shaped[Tensor, "chosen pair pos 1"]:
        """Return for each of some roles 1 at its positions, 0 elsewhere."""
        chosen = torch.as_tensor(roles, device=self.roles.device)
        return (self.roles == chosen[:, None, None]).to(dtype).unsqueeze(-1)

    def carried(
        self,
        weights: Float[Tensor, "*circuit receiver role sender"],
        changes: Float[Tensor, "*circuit sender pair pos d"],
    ) -> Float[Tensor, "*circuit receiver pair pos d"]:
        """Return what edges with weights carry to each receiver."""
        *circuits, _, pairs, positions, width = changes.shape
        flat = changes.flatten(-3, -2)
        total = flat.new_zeros(*circuits, weights.shape[-3], pairs * positions, width)
        for role, places in self._places:
            found = weights[..., role, :] @ flat[..., places, :].flatten(-2)
            total[..., places, :] = found.reshape(*found.shape[:-1], len(places), width)
        return total.reshape(*total.shape[:-2], pairs, positions, width)

    def worth(
        self, gradients: Float[Tensor, "pair receiver pos d"], changes: Float[Tensor, "pair sender pos d"]
    ) -> Float[Tensor, "pair receiver role sender"]:
        """Return the sum over each role's positions of the product of a gradient with a change."""
        by_position = gradients.transpose(1, 2) @ changes.permute(0, 2, 3, 1)
        belongs = functional.one_hot(self.roles, self.n).to(by_position.dtype)
        return torch.einsum("bpr,bpvu->bvru", belongs, by_position)

    def handed_back(
        self, weights: Float[Tensor, "receiver role sender"], gradients: Float[Tensor, "receiver pair pos d"]
    ) -> Float[Tensor, "sender pair pos d"]:
        """Return the gradient at every sender's change from those at what receivers read (:meth:`carried`)."""
        return self.carried(weights.permute(2, 1, 0), gradients)
