"""A model in float64 all the way, so that two correct computations agree to the last digits."""

import copy
import functools
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _Double(TorchFunctionMode):
    """Let every request for float32 give float64.

    Hugging Face's norms, softmaxes, routers and rotations compute in float32 whatever the model's dtype is.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        options = kwargs and {name: _doubled(value) for name, value in kwargs.items()}
        return func(*map(_doubled, args), **(options or {}))


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


_state = threading.local()


@functools.cache
def _in_double(kind: type[nn.Module]) -> type[nn.Module]:
    """Give a class of the same name whose ``forward`` computes in float64, also when called as ``type(x).forward``."""

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        if getattr(_state, "active", False):
            return kind.forward(self, *args, **options)
        _state.active = True
        try:
            with _Double():
                return kind.forward(self, *args, **options)
        finally:
            _state.active = False

    return type(
        kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "computes_in_float64": True}
    )


def in_float64(model: nn.Module) -> nn.Module:
    """Give a float64 copy of a Hugging Face model whose own code computes in float64 throughout."""
    double = copy.deepcopy(model).double()
    for module in double.modules():
        if type(module).__module__.startswith("transformers.models."):
            module.__class__ = _in_double(type(module))
    double.config._experts_implementation = "eager"  # torch's grouped matrix product has no float64
    return double.eval()
