"""Linear layers of any make as a matrix and a bias: plain, transposed, with LoRA inside, or quantised."""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from circuits.errors import UnsupportedModelError

_TOLERANCE = 2e-2
"""Largest relative distance from linearity: a bfloat16 layer has 0.004, one quantised to 8 bits about 0.01."""


class LinearMap(NamedTuple):
    """What a linear layer multiplies with, output features first, and what it adds."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None


def call(module: nn.Module, value: Tensor) -> Tensor:
    """Apply a module by its class's ``forward``, past any hook or wrapper on the instance."""
    return cast("Tensor", type(module).forward(module, value))


def linear_map(module: nn.Module, name: str) -> LinearMap:
    """Read a linear module of any make.

    Modules other than ``nn.Linear`` and GPT-2's transposed ``Conv1D`` are asked what they do to the identity, which
    costs one matrix of memory unless their own weight says the same. Raises :class:`UnsupportedModelError` for a module
    that is not linear.
    """
    held: Any = module
    if type(module).forward is nn.Linear.forward:
        return LinearMap(held.weight, held.bias)
    if isinstance(module, Conv1D):
        return LinearMap(held.weight.T, held.bias)
    return _measured(module, name)


@torch.no_grad()
def _measured(module: nn.Module, name: str) -> LinearMap:
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    width = getattr(module, "in_features", None)
    if parameter is None or width is None:
        raise UnsupportedModelError(
            f"the module '{name}' ({type(module).__name__}) should be a linear projection and does not say its "
            "in_features. The architecture names the wrong module, or one whose weights cannot be read."
        )
    identity = torch.eye(int(width), dtype=parameter.dtype, device=parameter.device)
    bias = module(torch.zeros_like(identity[:1]))[0]
    weight = (module(identity) - bias).T
    probe = torch.randn(4, int(width), generator=torch.Generator().manual_seed(0)).to(identity)
    made: Tensor = module(probe).float()
    expected = functional.linear(probe, weight, bias).float()
    error = float((made - expected).square().sum().sqrt() / expected.square().sum().sqrt())
    if not error <= _TOLERANCE:
        raise UnsupportedModelError(
            f"the module '{name}' ({type(module).__name__}) should be a linear projection, but it differs from one by "
            f"{error:.1%} (at most {_TOLERANCE:.0%}); heads cannot be told apart in it. Use the unquantised model."
        )
    own = getattr(module, "weight", None)
    if isinstance(own, Tensor) and own.shape == weight.shape and torch.allclose(own.to(weight), weight, atol=1e-6):
        weight = own
    return LinearMap(weight.contiguous(), bias if bool(bias.any()) else None)
