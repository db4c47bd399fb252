"""Several devices, pretended on a machine without any: tensors that know where they are and refuse to be mixed.

A :class:`Placed` tensor is an ordinary tensor on the CPU that says to be on ``cpu:1``, ``cpu:2`` ... Only ``.to``,
``copy_`` and the like move it. Whatever else is given tensors of two devices raises :class:`MixedDevicesError`, as a
GPU would; the exceptions are torch's own: numbers without axes, and indices, may come from the host (``cpu``). Tensors
that torch makes by itself, such as gradients on their way back, do not say where they are and are let through.

:func:`spread` lets accelerate distribute a model, with the hooks that it puts on one over several GPUs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from circuits.adapters.anatomy import Anatomy

_untyped: Any = torch
_tensor: Any = Tensor
HOST = torch.device("cpu")
_FACTORIES = ("tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "eye", "randn", "randint", "rand")
_MOVES = {_tensor.to, _tensor.cpu, _tensor.copy_, _tensor.type, _tensor.numpy, _tensor.tolist, _tensor.item}
_INDEXING = {_tensor.__getitem__, _tensor.__setitem__}


class MixedDevicesError(RuntimeError):
    """Something was given tensors of several devices."""


class Placed(Tensor):
    """A tensor on the CPU that says to be elsewhere."""

    place: torch.device

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride] -- what is pretended
        """Where it says to be."""
        return self.__dict__.get("place", HOST)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch where all tensors are on one device; what comes out is there too."""
        del types
        given = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.autograd.grad:
                return _gradients(func, args, given)
            if func in _MOVES:
                return _moved(func, args, given)
            place = _common(func, args, given)
            wanted = given.pop("device", None)
            return tree_map(
                lambda each: _put(each, place if wanted is None else torch.device(wanted)), func(*args, **given)
            )


def _place_of(value: Tensor) -> torch.device | None:
    return value.__dict__.get("place")


def _put(value: Any, place: torch.device | None) -> Any:
    if not isinstance(value, Tensor) or place is None:
        return value
    placed = value if isinstance(value, Placed) else cast("Placed", value.as_subclass(Placed))
    placed.place = place
    return placed


def _common(func: Callable[..., Any], args: Sequence[Any], given: Mapping[str, Any]) -> torch.device | None:
    tensors = [each for each in tree_leaves((args, given)) if isinstance(each, Tensor) and _place_of(each) is not None]
    if func in _INDEXING:
        own = _place_of(args[0])
        indices = [each for each in tree_leaves(args[1]) if isinstance(each, Tensor)]
        tensors = [each for each in tensors if not (_is_among(each, indices) and _place_of(each) == HOST)]
        tensors = [each for each in tensors if each is not args[0]]
    else:
        own = None
    places = dict.fromkeys(_place_of(each) for each in tensors if each.dim() or _place_of(each) != HOST)
    if own is not None:
        places = dict.fromkeys([own, *places])
    if len(places) > 1:
        name = getattr(func, "__name__", repr(func))
        raise MixedDevicesError(f"{name} was given tensors on {' and '.join(map(str, places))}")
    return next(iter(places), HOST if tensors else None)


def _is_among(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    return any(tensor is other for other in others)


def _gradients(func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Any:
    inputs = given["inputs"] if "inputs" in given else args[1]
    found = func(*args, **given)
    asked = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    return tuple(_put(each, _place_of(leaf)) for each, leaf in zip(found, asked, strict=True))


def _moved(func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Any:
    """Move: to the device that is asked for, or where another tensor is; nothing happens where that is here."""
    if func is not _tensor.to:
        made = func(*args, **given)
        return _put(made, HOST if func is _tensor.cpu else _place_of(args[0]))
    self, *rest = args
    place = _place_of(self)
    for each in (*rest, given.pop("device", None), given.get("other")):
        if isinstance(each, Tensor):
            place = _place_of(each) or place
        elif isinstance(each, torch.device | str):
            place = torch.device(each)
    kept = [each for each in rest if not isinstance(each, torch.device | str)]
    made = func(self, *kept, **given) if kept or given else self
    if made is self and place != _place_of(self):
        made = self.view_as(self)
    return _put(made, place)


@contextmanager
def devices_pretended() -> Iterator[None]:
    """Let what torch makes anew be where it is asked for, the host included."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _FACTORIES:
            patch.setattr(torch, name, _placing(getattr(torch, name)))
        yield


def _placing(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, device: Any = None, **given: Any) -> Tensor:
        like = next((each for each in args if isinstance(each, Placed)), None)
        place = torch.device(device) if device is not None else HOST if like is None else like.device
        return _put(make(*args, **given), place)

    return made


class _OnDevice(AlignDevicesHook):
    """Accelerate's own hook, on weights that are placed already."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Move no weights."""
        return module


def spread(module: nn.Module) -> nn.Module:
    """Put every layer of a model on a device of its own, ``cpu:1`` and so on; the module is changed.

    What comes before the first layer is with it; the final norm and the unembedding are with nothing else.
    """
    anatomy = Anatomy(module)
    layers = f"{anatomy.architecture.layers}."
    ends, last = {anatomy.reader, anatomy.unembedding}, anatomy.shape.n_layers + 1
    blocks = {f"{layers}{number}": number + 1 for number in range(anatomy.shape.n_layers)}
    for name, part in module.named_modules():
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        if own and not name.startswith(layers):
            blocks[name] = last if name in ends else 1
    for name, number in blocks.items():
        block, place = module.get_submodule(name), torch.device("cpu", number)
        add_hook_to_module(block, _OnDevice(execution_device=place))
        for part in block.modules() if name.startswith(layers) else [block]:
            for kind in (part._parameters, part._buffers):
                tensors: Any = kind
                tensors.update({key: placed_weight(value, place) for key, value in kind.items() if value is not None})
    return module


def placed_weight(value: Tensor, place: torch.device) -> Tensor:
    """Return a weight that says to be on a device."""
    placed = _put(value.detach(), place)
    if isinstance(value, nn.Parameter):
        placed._is_param = True
    return placed
