"""In which form a model's modules hand on their values: alone or first in a tuple, by position or in one long row."""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from circuits.adapters.anatomy import Anatomy
from circuits.errors import GuardError


@dataclass(frozen=True)
class Form:
    """The form of one module's output: ``length`` of the tuple it is first in (None: alone), or ``flat`` rows."""

    length: int | None = None
    flat: bool = False

    def wrap(self, value: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        """Return a value of shape ``(row, pos, width)`` in this form; the rest of a tuple is None."""
        value = value.flatten(0, 1) if self.flat else value
        return value if self.length is None else (value, *[None] * (self.length - 1))


def first_of(output: object) -> Tensor:
    """Return the tensor that a module hands on, alone or first in a tuple."""
    value: object = cast("tuple[object, ...]", output)[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor):
        raise GuardError(
            f"a module hands on a {type(value).__name__} where the adapter expects a tensor, alone or first in a "
            "tuple. The architecture names the wrong module; see: circuits guide models"
        )
    return value


def unwrap(output: object, rows: int) -> Tensor:
    """Return the tensor in a module's input or output, in the shape ``(row, pos, width)``."""
    value = first_of(output)
    return value.reshape(rows, -1, value.shape[-1]) if value.ndim == 2 else value


def rewrap(value: Tensor, like: object) -> Tensor | tuple[object, ...]:
    """Return a value in the form of another output of the same module."""
    shaped = value.reshape(first_of(like).shape)
    return (shaped, *cast("tuple[object, ...]", like)[1:]) if isinstance(like, tuple) else shaped


def keywords_of(module: nn.Module) -> dict[str, object]:
    """Return the keywords that save work in a model's forward pass, as far as it takes them."""
    accepted = inspect.signature(module.forward).parameters
    return {key: value for key, value in (("use_cache", False), ("logits_to_keep", 1)) if key in accepted}


def logits_of(output: object) -> Tensor:
    """Return the logits in what a model returns: an object with them, a tuple that begins with them, or themselves.

    Shape ``(row, pos, d_vocab)``; raises :class:`GuardError` for any other.
    """
    logits = first_of(getattr(output, "logits", output))
    if logits.ndim != 3:
        raise GuardError(
            f"the model returns logits of shape {tuple(logits.shape)}; expected (row, position, token). Let it return "
            "the logits of every position, or of the last one as a position of its own."
        )
    return logits


def forms_of(anatomy: Anatomy) -> list[dict[str, Form]]:
    """Observe, for every layer, the forms of the outputs that plans replace; the layer itself is ``""``.

    Cost: one forward pass of a single token.
    """
    names = anatomy.architecture
    paths = dict.fromkeys(
        path for path in ("", names.attention, names.mlp, names.mlp_output or names.mlp) if path is not None
    )
    layers = anatomy.module.get_submodule(names.layers).children()
    forms, hooks = list[dict[str, Form]](), list[Any]()
    try:
        for layer in layers:
            forms.append({})
            for path in paths:
                hooks.append(layer.get_submodule(path).register_forward_hook(partial(_note, forms[-1], path)))
        with torch.no_grad():
            anatomy.module(torch.zeros(1, 1, dtype=torch.long, device=anatomy.device), **keywords_of(anatomy.module))
    finally:
        for hook in hooks:
            hook.remove()
    for number, found in enumerate(forms):
        missing = [path or "the layer" for path in paths if path not in found]
        if missing:
            raise GuardError(
                f"the model does not call '{missing[0]}' of layer {number}, which the adapter '{names.name}' declares; "
                "its values cannot be measured there."
            )
    return forms


def _note(found: dict[str, Form], path: str, _: nn.Module, __: object, output: object) -> None:
    flat = first_of(output).ndim == 2
    found[path] = Form(len(cast("tuple[object, ...]", output)) if isinstance(output, tuple) else None, flat)
