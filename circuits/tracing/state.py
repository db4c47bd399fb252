"""The state of the process and of the model in which everything is measured; what was there before is put back.

Measurements must not depend on what a notebook did before: gradients switched off, autocast, inference mode, another
default type or device. Doors of the library enter :func:`own_state`; the tracer refuses to run outside of it where
that would change numbers, so that a door that was forgotten cannot measure something else in silence.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from circuits.errors import UsageError

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def own_state() -> Generator[None]:
    """Measure as in a new process: gradients at hand, no autocast, no inference mode, float32 as default type."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for device in _autocast_devices():
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.empty(0).device.type != "cpu":  # torch.get_default_device() sees no blocks before torch 2.7
            stack.enter_context(torch.device("cpu"))
        default = torch.get_default_dtype()
        if default != torch.float32:
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield


def in_own_state(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function that runs in :func:`own_state`: a decorator for whatever measures."""

    @functools.wraps(function)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with own_state():
            return function(*args, **kwargs)

    return inside


def require_own_state() -> None:
    """Raise :class:`UsageError` where the state of the process would change what a run computes."""
    found = [
        *(f"autocast is on for {device}" for device in _autocast_devices()),
        *(["inference mode is on"] if torch.is_inference_mode_enabled() else []),
        *([f"the default type is {torch.get_default_dtype()}"] if torch.get_default_dtype() != torch.float32 else []),
    ]
    if found:
        raise UsageError(
            f"{' and '.join(found)}: what is measured here would be rounded or typed otherwise. Leave that block, or "
            "call torch.set_default_dtype(torch.float32)."
        )


def require_ordinary_weights(module: nn.Module) -> None:
    """Raise :class:`UsageError` for weights made in inference mode, of which torch takes no gradients."""
    name = next((name for name, weight in module.named_parameters() if weight.is_inference()), None)
    if name is not None:
        raise UsageError(
            f"the weights ('{name}' and others) were made inside torch.inference_mode(), where torch takes no "
            "gradients of what follows from them. Load or build the model outside of that block."
        )


def foreign_hooks(module: nn.Module) -> tuple[str, ...]:
    """Return what others have hung on a model or on all modules: hooks, by module, and replaced forward methods."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    parts: list[tuple[str, Any]] = [
        (path or "the model itself", part) for path, part in cast(Any, module).named_modules()
    ]
    found = [
        f"{_hook_name(hook)} on {path}"
        for path, part in parts
        for kind in kinds
        for hook in getattr(part, kind).values()
    ]
    found += [
        f"{_hook_name(part.forward)} in place of the forward method of {path}"
        for path, part in parts
        if "forward" in vars(part)
    ]
    everywhere: Any = torch.nn.modules.module
    for kind in ("_global_forward_pre_hooks", "_global_forward_hooks"):
        found += [f"{_hook_name(hook)} on every module of the process" for hook in getattr(everywhere, kind).values()]
    return tuple(dict.fromkeys(found))


def _hook_name(hook: Any) -> str:
    inner: Any = hook
    while isinstance(inner, functools.partial):
        inner = inner.func
    return f"'{getattr(inner, '__qualname__', type(inner).__name__)}'"


def _autocast_devices() -> list[str]:
    kinds = ["cpu"]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        kinds.append(accelerator.type)
    return [kind for kind in kinds if torch.is_autocast_enabled(kind)]


class PositionState:
    """What a model remembers of the prompts it has seen: frequencies of positions that follow the longest of them.

    Rotary embeddings of the kinds ``dynamic`` and ``longrope`` (transformers) change their frequencies with the
    length of a prompt, and the first kind keeps those of the longest prompt for shorter ones. Every run begins from
    what the model had when it was loaded, and leaves that behind.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept: list[tuple[nn.Module, dict[str, object], dict[str, tuple[Tensor, Tensor]]]] = [
            (
                part,
                {name: value for name, value in vars(part).items() if name.endswith(_REMEMBERED)},
                {name: (buffer, buffer.clone()) for name, buffer in part.named_buffers(recurse=False)},
            )
            for part in module.modules()
            if any(kind in str(getattr(part, "rope_type", "")) for kind in _CHANGING)
        ]

    @property
    def depends_on_length(self) -> bool:
        """Whether the model has positions that depend on the length of the prompt."""
        return bool(self._kept)

    @contextmanager
    def kept(self) -> Generator[None]:
        """Run the block from the state at loading, and put that back after it."""
        try:
            yield
        finally:
            self._restore()

    def _restore(self) -> None:
        for part, attributes, buffers in self._kept:
            for name, value in attributes.items():
                setattr(part, name, value)
            with torch.no_grad():
                for name, (buffer, value) in buffers.items():
                    part.register_buffer(name, buffer.copy_(value), persistent=False)


_CHANGING = ("dynamic", "longrope")
_REMEMBERED = ("max_seq_len_cached", "attention_scaling")
