"""What reads the residual stream where a circuit ends: along a direction, by a head's projection, by a neuron.

A reading stands where a model that is cut off has its final norm. It is a function of the stream at one token, so runs
end in it as they end in the logits, and gradients go through it. Tensors are buffers, and norms modules of its own.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from circuits.adapters.forms import first_of
from circuits.adapters.linear import LinearMap

Stream = Float[Tensor, "*any d_model"]


class Reading(nn.Module):
    """Reads numbers in the stream, through ``norm`` where there is one; zeros fill them up to the stream's width.

    Some models bring what follows the final norm into the shape of the stream.
    """

    def __init__(self, norm: nn.Module | None = None, made_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.made_norm = norm, made_norm

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The norms that it reads through."""
        return tuple(norm for norm in (self.norm, self.made_norm) if norm is not None)

    def normed(self, stream: Stream) -> Stream:
        """Return the stream as it is read."""
        return stream if self.norm is None else self.norm(stream)

    def read(self, stream: Stream) -> Float[Tensor, "*any number"]:
        """Return the numbers."""
        raise NotImplementedError

    def forward(self, stream: Stream) -> Stream:
        """Return the numbers, and zeros after them."""
        numbers = self.read(stream)
        return functional.pad(numbers, (0, stream.shape[-1] - numbers.shape[-1]))


class LengthReading(Reading):
    """The length along a vector and a constant, in at least float32."""

    def __init__(self, vector: Float[Tensor, " d_model"], bias: float) -> None:
        super().__init__()
        self.register_buffer("vector", vector)
        self.bias = bias

    def read(self, stream: Stream) -> Float[Tensor, "*any number"]:
        """Return the length, as the only number."""
        vector: Any = self.vector
        return (stream.to(vector) @ vector + self.bias).unsqueeze(-1)


class SlotReading(Reading):
    """The query, key or value of one unit, before positions are turned into it."""

    def __init__(
        self, norm: nn.Module | None, projection: LinearMap, made_norm: nn.Module | None, columns: list[int]
    ) -> None:
        super().__init__(norm, made_norm)
        weight, bias = projection
        if made_norm is None:  # else the norm is over all units at once
            weight, bias, columns = weight[columns], None if bias is None else bias[columns], list(range(len(columns)))
        self.columns = columns
        self.register_buffer("weight", weight.detach())
        self.register_buffer("offset", None if bias is None else bias.detach())

    def read(self, stream: Stream) -> Float[Tensor, "*any number"]:
        """Return the unit's numbers."""
        weight: Any = self.weight
        offset: Any = self.offset
        made = functional.linear(self.normed(stream).to(weight.device), weight, offset)
        return (made if self.made_norm is None else self.made_norm(made))[..., self.columns]


class NeuronReading(Reading):
    """One hidden unit of an MLP: ``parts`` in turn make all of them."""

    def __init__(self, norm: nn.Module | None, parts: list[nn.Module], index: int) -> None:
        super().__init__(norm)
        self.parts, self.index = nn.ModuleList(parts), index

    def read(self, stream: Stream) -> Float[Tensor, "*any number"]:
        """Return the unit's activation, as the only number."""
        made = self.normed(stream)
        for part in self.parts:
            made = first_of(part(made))
        return made[..., self.index, None]


def norms_of(module: nn.Module) -> list[nn.Module]:
    """Return the norms of the readings in a model."""
    return [norm for part in module.modules() if isinstance(part, Reading) for norm in part.norms]


class Nothing(nn.Module):
    """Stands for an MLP that is not run: it adds nothing to the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, read: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return zeros in the shape of the stream."""
        return torch.zeros(*read.shape[:-1], self.width, dtype=read.dtype, device=read.device)
