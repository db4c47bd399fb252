"""Torch's functions with other derivatives, inside norms and attention: what the rules of a backward pass need.

A norm of any family divides by a scale that one of a few functions of torch makes, and a pattern is made by softmax,
alone or inside scaled dot product attention. So these functions are replaced while such a module runs, whatever its
code; a module that calls none of them is refused by name.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from circuits.adapters.slopes import with_slope_of
from circuits.errors import UnsupportedModelError

_untyped: Any = torch
_tensor: Any = Tensor

_SCALES = {
    *(_untyped.rsqrt, _tensor.rsqrt, _untyped.sqrt, _tensor.sqrt, _untyped.std, _tensor.std, _untyped.norm),
    *(_tensor.norm, _untyped.linalg.vector_norm, _untyped.linalg.norm),
}
"""What makes the scale of a norm that is written out."""
_POWERS = {_untyped.pow, _tensor.pow, _tensor.__pow__}
_SOFTMAXES = {functional.softmax, _untyped.softmax, _tensor.softmax}


class Surrogates(TorchFunctionMode):
    """Replaces functions inside the blocks :meth:`norm` and :meth:`attention`, and counts what it replaced."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.replaced: Counter[str] = Counter()
        self._inside: list[str] = []

    @property
    def in_attention(self) -> bool:
        """Whether functions inside attention are replaced."""
        return self.temperature != 1.0

    def enter(self, kind: str) -> None:
        """Begin a module: a ``norm`` or the ``attention``."""
        self._inside.append(kind)

    def leave(self) -> None:
        """End the module that was begun last."""
        self._inside.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or what takes its place."""
        del types
        given, inside = dict(kwargs or {}), self._inside[-1] if self._inside else ""
        if inside == "norm":
            return self._in_norm(func, args, given)
        if inside == "attention" and self.in_attention:
            return self._in_attention(func, args, given)
        return func(*args, **given)

    def _in_norm(self, func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Any:
        if func in (functional.layer_norm, functional.rms_norm):
            self.replaced["norm"] += 1
            plain = cast("Tensor", func(*args, **given))
            mean = func is functional.layer_norm
            return with_slope_of(plain, _normed(*args, **given) if mean else _rms_normed(*args, **given))
        made = func(*args, **given)
        power = args[1] if func in _POWERS and len(args) > 1 else None
        if func in _SCALES or (isinstance(power, float) and abs(power) == 0.5):
            self.replaced["norm"] += 1
            return made.detach()
        return made

    def _in_attention(self, func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Any:
        if func in _SOFTMAXES:
            self.replaced["attention"] += 1
            return self._tempered(func, args, given)
        if func is functional.scaled_dot_product_attention:
            self.replaced["attention"] += 1
            return self._attend(*args, **given)
        return func(*args, **given)

    def _tempered(self, func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Tensor:
        """Return the softmax, with the Jacobian of that of ``scores / temperature`` at these scores."""
        scores, *rest = args or (given.pop("input"),)
        plain = func(scores, *rest, **given)
        flat = func(scores / self.temperature, *rest, **given)
        return with_slope_of(plain, self.temperature * flat)

    def _attend(  # noqa: PLR0917 -- torch's own signature
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Write scaled dot product attention out, without dropout."""
        del dropout_p
        if enable_gqa:
            times = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            hides = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if hides else scores + attn_mask
        return self._tempered(functional.softmax, (scores,), {"dim": -1}) @ value


def frozen(module: nn.Module, value: Tensor) -> Tensor:
    """Apply a norm, its scale a constant, by its class's ``forward``, past any hook or wrapper on the instance."""
    with Surrogates() as surrogates, _counted(surrogates, module, "norm"):
        return cast("Tensor", type(module).forward(module, value))


@contextmanager
def _counted(surrogates: Surrogates, module: nn.Module, kind: str) -> Generator[None]:
    before = surrogates.replaced[kind]
    surrogates.enter(kind)
    try:
        yield
    finally:
        surrogates.leave()
    require_replaced(surrogates.replaced[kind] - before, module, kind)


def require_replaced(count: int, module: nn.Module, kind: str, name: str = "") -> None:
    """Raise :class:`UnsupportedModelError` unless something was replaced while a module ran."""
    if count:
        return
    what = {
        "norm": "the scale of the norm cannot be taken as a constant: it is made by none of torch's rsqrt, sqrt, std, "
        "norm, layer_norm, rms_norm and powers of 0.5",
        "attention": "the softmax of the attention cannot be given another derivative: it calls neither torch's "
        "softmax nor scaled_dot_product_attention",
    }[kind]
    raise UnsupportedModelError(
        f"{name or type(module).__name__} ({type(module).__name__}): {what}. Write it with one of these, or use a "
        "scorer that takes plain derivatives, such as eap-ig."
    )


def _normed(
    value: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Write a layer norm out, its scale a constant."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = value - value.mean(axes, keepdim=True)
    made = centred * (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()
    made = made if weight is None else made * weight
    return made if bias is None else made + bias


def _rms_normed(
    value: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Write a norm by the root of the mean square out, its scale a constant."""
    axes = tuple(range(-len(normalized_shape), 0))
    small = torch.finfo(value.dtype).eps if eps is None else eps
    made = value * (value.detach().square().mean(axes, keepdim=True) + small).rsqrt()
    return made if weight is None else made * weight
