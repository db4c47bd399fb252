"""Models that are in memory already: Hugging Face models, PEFT-wrapped ones, and decoders of the user's own.

The user's module is left alone. What is measured is a second set of module objects around the *same* tensors: nnsight
leaves wrappers on the modules it traces, and measuring wants parameters that ask for no gradients.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from circuits.errors import DeviceError, UnsupportedModelError, UsageError
from circuits.models.devices import resolve_device, resolve_dtype
from circuits.models.digests import tensors_digest, tokenizer_digest
from circuits.models.lora import without_wrapper
from circuits.models.refusals import require_measurable
from circuits.models.tokenizers import usable_tokenizer
from circuits.models.weights import LoadedWeights, attention_of

IN_MEMORY = "in memory"


def weights_in_memory(
    module: nn.Module,
    tokenizer: Any = None,
    *,
    name: str | None = None,
    described: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
) -> LoadedWeights:
    """Wrap a module without changing it; ``described`` says that its architecture is given, so that its type is moot.

    ``device``, ``dtype`` and ``attention`` other than ``auto`` must be what the module already has. The digest is a
    SHA-256 over names and bytes of all parameters and buffers; it takes about a second per gigabyte. Raises
    :class:`UnsupportedModelError` (also for a module in training mode), :class:`UsageError` and :class:`DeviceError`.
    """
    tokenizer = usable_tokenizer(tokenizer)
    module = getattr(module, "_orig_mod", module)  # as it was before torch.compile
    module = without_wrapper(module, name or type(module).__name__)
    name = name or type(module).__name__
    if not described:
        _require_known(module, name)
    _require_evaluation(module, name)
    tensors = dict(_tensors(module))
    number_format = next((value.dtype for value in tensors.values() if value.is_floating_point()), None)
    if number_format is None:
        raise UnsupportedModelError(f"'{name}' has no weights; expected a decoder with parameters.")
    require_on_devices(tensors, name)
    place = next(iter(tensors.values())).device
    _require_as_it_is("device", device, str(place), device == "auto" or resolve_device(device).type == place.type)
    wanted = number_format if dtype == "auto" else resolve_dtype(dtype, place)
    _require_as_it_is("dtype", dtype, str(number_format).removeprefix("torch."), wanted in (None, number_format))
    kernel = attention_of(module)
    _require_as_it_is("attention", attention, kernel or "the module's own", attention in ("auto", kernel))
    return LoadedWeights(
        module=second_view(module, name),
        tokenizer=tokenizer,
        id=name,
        revision=IN_MEMORY,
        digest=tensors_digest(tensors),
        tokenizer_digest="" if tokenizer is None else tokenizer_digest(tokenizer),
        device=place,
        dtype=number_format,
    )


def _require_known(module: nn.Module, name: str) -> None:
    if not isinstance(module, PreTrainedModel):
        raise UnsupportedModelError(
            f"'{name}' is of the class {type(module).__name__}, which is not of transformers, so where it reads and "
            "writes its residual stream is unknown. Describe it: `load_model(module, architecture=Architecture(...))`; "
            "`circuits guide models` shows how."
        )
    classes = [kind.__name__ for kind in type(module).__mro__ if issubclass(kind, PreTrainedModel)]
    require_measurable(module.config, classes, name)


def _require_evaluation(module: nn.Module, name: str) -> None:
    parts = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
    training = next((part or "all of it" for part, child in parts if child.training), None)
    if training is not None:
        raise UsageError(
            f"'{name}' is in training mode ({training}), in which dropout makes every run another one. Call "
            "`model.eval()` first; it is not done for you, since the module is yours."
        )


def _require_as_it_is(option: str, asked: str, found: str, fits: bool) -> None:
    if not fits:
        advice = {
            "device": f"model.to({asked!r})",
            "dtype": f"model.to(torch.{asked})",
            "attention": f"model.set_attn_implementation({asked!r})",
        }[option]
        raise UsageError(
            f"{option} '{asked}' was asked for, but the model in memory has {found}, and it is not changed for you. "
            f"Call `{advice}` first, or leave {option} at 'auto'."
        )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def require_on_devices(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise :class:`DeviceError` for weights that are on no device: offloaded, or never loaded."""
    meta = next((key for key, value in tensors.items() if value.device.type == "meta"), None)
    if meta is not None:
        raise DeviceError(
            f"'{name}' keeps '{meta}' off its devices (offloaded, or never loaded). Load the whole model onto one, "
            "or over several (`device_map`); `dtype='bfloat16'` takes half of the memory of float32."
        )


def second_view(module: nn.Module, name: str) -> nn.Module:
    """Copy the module objects but no tensor; parameters that ask for gradients get a stand-in on the same memory."""
    kept: dict[int, Any] = {}
    for _, value in _tensors(module):
        kept[id(value)] = _without_gradient(value) if value.requires_grad else value
    try:
        return copy.deepcopy(module, kept)
    except (TypeError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"the modules of '{name}' cannot be copied ({str(error).strip().splitlines()[0]}); measuring needs a "
            "second set of module objects around the same weights. Keep out of them what `copy.deepcopy` cannot copy."
        ) from error


def _without_gradient(value: Tensor) -> Tensor:
    plain = value.detach()
    return nn.Parameter(plain, requires_grad=False) if isinstance(value, nn.Parameter) else plain
