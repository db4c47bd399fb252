"""Load a language model's weights and tokenizer: built-in name, local folder or Hugging Face id."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from circuits.errors import DeviceError, MissingModelError, ModelUnavailableError, UnknownNameError, UsageError, border
from circuits.files.documents import exists, local_path
from circuits.models.configuration import attention_that_fits, read_configuration
from circuits.models.devices import resolve_attention, resolve_device, resolve_dtype
from circuits.models.digests import tokenizer_digest, weights_digest
from circuits.models.fetching import builtin, hub
from circuits.models.fetching.builtin import BUILT_IN, FetchProgress, no_fetch_progress
from circuits.models.folders import WeightFiles, find_weights, unreadable_weights
from circuits.models.in_memory import require_on_devices
from circuits.models.lora import Adapter, find_adapter, with_adapter
from circuits.models.packed_loading import load_packed
from circuits.models.placement import DeviceMap, resolve_map
from circuits.models.quiet import quiet_transformers
from circuits.models.tokenizers import usable_tokenizer
from circuits.models.weights import LoadedWeights

__all__ = ["LoadedWeights", "load_tokenizer", "load_weights"]


class _AdapterOfAdapterError(ModelUnavailableError):
    """The model that an adapter is for is an adapter itself."""


@dataclass(frozen=True)
class _Source:
    """Where a model's weights lie, which version they are, and the adapter to add, if any."""

    path: Path
    revision: str
    adapter: Adapter | None = None


def load_weights(
    model: str,
    *,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    device_map: object = None,
    packed: bool = False,
    progress: FetchProgress = no_fetch_progress,
) -> LoadedWeights:
    """Load a model by built-in name, local folder (or ``.gguf`` file) or Hugging Face id.

    ``dtype`` is ``float32``, ``bfloat16``, ``float16`` or ``auto``: float32 on the CPU, the model's own elsewhere.
    ``attention`` is ``sdpa``, ``eager`` or ``auto``: sdpa where the model has it. A folder or id of a LoRA adapter is
    merged into the model that it names, found in the same ways (a built-in model also by its Hugging Face id).
    ``device_map`` spreads it over several devices (:func:`~circuits.models.placement.resolve_map`) instead of putting
    it on ``device``. ``packed`` leaves the matrices of a ``.gguf`` file as they are there and expands each whenever it
    is used (:mod:`circuits.models.packed_weight`). ``tokenizer`` replaces the model's own. Weights are read from
    safetensors or GGUF only and no code that comes with a model is run. Raises
    :class:`UnknownNameError`, :class:`ModelUnavailableError`, :class:`UnsupportedModelError`, :class:`UsageError`,
    :class:`DeviceError` and :class:`OutputError`.
    """
    place, places = resolve_device(device), resolve_map(device_map)
    if places is not None and device != "auto":
        raise UsageError(f"device '{device}' and a device map were asked for; expected one of them. Leave one out.")
    number_format = resolve_dtype(dtype, place)
    kernel = resolve_attention(attention)
    tokenizer = usable_tokenizer(tokenizer)
    found = _locate(model, progress)
    weights = _weights(found.path)
    folder = weights.paths[0].parent
    config = read_configuration(folder, weights.gguf, name=model)
    fitting = attention_that_fits(config, weights, name=model)
    if packed:
        _require_packable(model, weights, found.adapter, places)
        module = _load_packed(config, weights, number_format, kernel or fitting, place)
    else:
        module = _load_module(config, weights, number_format, kernel or fitting, places)
    if found.adapter is not None:
        if places is not None:
            raise UsageError(
                f"'{model}' is an adapter, which is merged on one device; leave the device map out, or merge it first: "
                "`merge_and_unload()`, then `save_pretrained(folder)`."
            )
        module = with_adapter(module, found.adapter.folder)
    if tokenizer is None:
        tokenizer = _load_tokenizer(folder, weights, found.adapter)
    return LoadedWeights(
        module=_placed(module, model) if places is not None or packed else _place(module, place),
        tokenizer=tokenizer,
        id=model,
        revision=found.revision,
        digest=weights_digest([*weights.paths, *(found.adapter.files if found.adapter else ())]),
        tokenizer_digest=tokenizer_digest(tokenizer),
        device=module.device,
        dtype=module.dtype,
    )


def load_tokenizer(model: str, *, progress: FetchProgress = no_fetch_progress) -> Any:
    """Return a model's tokenizer alone: its weights are not read, and of a model of the hub not downloaded.

    Raises :class:`UnknownNameError` and :class:`ModelUnavailableError`.
    """
    folder, gguf = _tokenizer_place(model, progress)
    return _read_tokenizer(folder, gguf)


_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


def _tokenizer_place(model: str, progress: FetchProgress, *, of: str | None = None) -> tuple[Path, str | None]:
    """Return the folder of a model's tokenizer, and the name of the ``.gguf`` file that holds it, if one does."""
    if model in BUILT_IN:
        return builtin.find(model, progress=progress).path, None
    path = local_path(model)
    if not exists(path):
        _require_hub_name(model, path)
        try:
            path = hub.download_snapshot(model, hub.TOKENIZER_FILES)
        except ModelUnavailableError as error:
            raise _unknown_model(model, error) from error
    if path.suffix == ".gguf":
        return path.parent, path.name
    if any((path / name).is_file() for name in _TOKENIZER):
        return path, None
    adapter = find_adapter(path, complete=False) if of is None else None
    if adapter is not None:
        return _tokenizer_place(_base_of(path, adapter), progress, of=model)
    return path, next((file.name for file in sorted(path.glob("*.gguf"))), None)


def _base_of(folder: Path, adapter: Adapter) -> str:
    """Return what to load as the model that an adapter is for: a folder in its own, a built-in model, or as it says."""
    names = {entry.hub_id: name for name, entry in BUILT_IN.items() if entry.adapter is None}
    beside = folder / adapter.base
    return str(beside) if beside.is_dir() else names.get(adapter.base, adapter.base)


def _require_hub_name(model: str, path: Path) -> None:
    """Raise for a text that can only be a path, where there is nothing."""
    if path.is_absolute() or len(path.parts) > 2 or model.startswith((".", "~")):
        raise MissingModelError(
            f"there is no folder '{model}'; expected a model folder, a Hugging Face id such as "
            f"'openai-community/gpt2', or a built-in model ({', '.join(BUILT_IN)})."
        )


def _locate(model: str, progress: FetchProgress, *, of: str | None = None) -> _Source:
    """Find a model; ``of`` is the adapter that it is the base of, and must then be no adapter itself."""
    if model in BUILT_IN:
        found = builtin.find(model, progress=progress)
        added = BUILT_IN[model].adapter
        return _Source(found.path, found.revision, Adapter(added, BUILT_IN[model].hub_id) if added else None)
    path = local_path(model)
    if exists(path):
        return _adapted(model, _Source(path, "local"), progress, of=of)
    _require_hub_name(model, path)
    try:
        # A model that cannot be used is refused before its weights are downloaded.
        folder = hub.download_snapshot(model, hub.CONFIGURATION)
        if not (folder / "config.json").is_file():
            folder = hub.download_snapshot(model, hub.ADAPTER_CONFIGURATION)
        if find_adapter(folder, complete=False):
            folder = hub.download_snapshot(model, hub.ADAPTER_FILES)
        else:
            read_configuration(folder, None, name=model)
            folder = hub.download_snapshot(model)
    except ModelUnavailableError as error:
        raise _unknown_model(model, error) from error
    return _adapted(model, _Source(folder, folder.name), progress, of=of)


def _adapted(model: str, found: _Source, progress: FetchProgress, *, of: str | None) -> _Source:
    """Where a folder holds an adapter, find the model that it is for."""
    adapter = find_adapter(found.path) if found.path.is_dir() else None
    if adapter is None:
        return found
    if of is not None:
        raise _AdapterOfAdapterError
    try:
        base = _locate(_base_of(found.path, adapter), progress, of=model)
        if base.adapter is not None:
            raise _AdapterOfAdapterError
    except _AdapterOfAdapterError:
        raise ModelUnavailableError(
            f"'{model}' is an adapter for '{adapter.base}', which is an adapter itself; expected a model. Merge that "
            "one first: `merge_and_unload()`, then `save_pretrained(folder)`."
        ) from None
    except (ModelUnavailableError, UnknownNameError) as error:
        raise ModelUnavailableError(
            f"'{model}' is an adapter for '{adapter.base}', which was not found: {error}"
        ) from error
    return replace(base, revision=f"{found.revision} on {adapter.base}, {base.revision}", adapter=adapter)


def _unknown_model(model: str, error: ModelUnavailableError) -> UnknownNameError | ModelUnavailableError:
    """Choose between a mistyped built-in name and a model that could not be had."""
    if "/" not in model and (isinstance(error, hub.NotOnHubError) or get_close_matches(model.lower(), BUILT_IN)):
        return UnknownNameError("model", model, BUILT_IN, hint=str(error))
    same = [name for name, entry in BUILT_IN.items() if entry.hub_id.lower() == model.lower()]
    advice = f"The built-in '{same[0]}' is the same model." if same else f"Built in are: {', '.join(BUILT_IN)}."
    return ModelUnavailableError(
        f"{error} Check the name and the network, or name a model folder of this machine. {advice}"
    )


def _weights(path: Path) -> WeightFiles:
    if path.is_dir():
        return find_weights(path)
    if path.suffix == ".gguf":
        return WeightFiles((path,), gguf=path.name)
    raise ModelUnavailableError(f"'{path}' is a file; expected a model folder or a .gguf file.")


def _load_module(
    config: Any, weights: WeightFiles, dtype: torch.dtype | None, attention: str, places: DeviceMap | None
) -> PreTrainedModel:
    folder = weights.paths[0].parent
    source: dict[str, Any] = {"use_safetensors": True, "config": config}
    if weights.gguf is not None:
        source = {"gguf_file": weights.gguf}
    if places is not None:
        source["device_map"] = places
    try:
        with (
            quiet_transformers(),
            border(ModelUnavailableError, lambda problem: unreadable_weights(folder, problem)),
        ):
            loaded = cast(Any, AutoModelForCausalLM).from_pretrained(
                folder,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **source,
            )
    except ModelUnavailableError as error:
        if "attention implementation" in str(error.__cause__):
            raise UsageError(
                f"attention '{attention}' was asked for, but the model in '{folder}' has none of that kind "
                f"({str(error.__cause__).partition(chr(10))[0]}). Use `--attention auto`."
            ) from error
        raise
    module, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    _require_complete(module, info, folder)
    return module


def _require_packable(model: str, weights: WeightFiles, adapter: Adapter | None, places: DeviceMap | None) -> None:
    """Raise :class:`UsageError` for what is not loaded packed."""
    if weights.gguf is None:
        raise UsageError(
            f"'{model}' holds its weights as safetensors, and packed is for .gguf files of 8 bits and fewer, which are "
            "expanded matrix by matrix. Leave packed out; `--dtype bfloat16` takes half of the memory of float32."
        )
    if adapter is not None:
        raise UsageError(f"'{model}' is an adapter, which is merged with expanded weights; leave packed out.")
    if places is not None:
        raise UsageError("packed and a device map were asked for; expected one of them. Leave one out.")


def _load_packed(
    config: Any, weights: WeightFiles, dtype: torch.dtype | None, attention: str, place: torch.device
) -> PreTrainedModel:
    folder = weights.paths[0].parent
    with quiet_transformers(), border(ModelUnavailableError, lambda problem: unreadable_weights(folder, problem)):
        module, info = load_packed(config, weights, dtype or torch.float32, attention, place)
    _require_complete(module, info, folder)
    return module


def _require_complete(module: PreTrainedModel, info: dict[str, Any], folder: Path) -> None:
    """Raise for a model that lacks weights, or does not use what its files hold."""
    missing = sorted(str(key) for key in info["missing_keys"])
    if missing:
        raise ModelUnavailableError(
            f"the weights in '{folder}' lack {len(missing)} tensors that the model needs, such as '{missing[0]}', "
            "which would be random; expected all of them. Download or write them again."
        )
    _require_used(module, sorted(str(key) for key in info["unexpected_keys"]), folder)


def _require_used(module: PreTrainedModel, unexpected: list[str], folder: Path) -> None:
    """Raise for weights of parts that the model has, but without them: biases, norms or layers that its config denies.

    Weights of parts that it lacks altogether (a value head next to the language model) change nothing in it.
    """
    modules = cast("Iterator[tuple[str, object]]", module.named_modules())
    parts = {name for name, _ in modules} - {"", module.base_model_prefix}
    for key in unexpected:
        above = key.split(".")[:-1]
        owners = [".".join(above[:length]) for length in range(len(above), 0, -1)]
        known = {*owners, *(f"{module.base_model_prefix}.{owner}" for owner in owners)} & parts
        if known and key.endswith((".weight", ".bias")):
            raise ModelUnavailableError(
                f"the weights in '{folder}' hold '{key}', one of {len(unexpected)} tensors that a model as its "
                "config.json describes it does not use: it would compute something else than the model they are of. "
                "Correct config.json (a setting such as attention_bias, or the number of layers), or download it again."
            )


def _load_tokenizer(folder: Path, weights: WeightFiles, adapter: Adapter | None) -> PreTrainedTokenizerBase:
    """Read the tokenizer that was saved with an adapter, else the model's."""
    if adapter is not None and (adapter.folder / "tokenizer_config.json").is_file():
        return _read_tokenizer(adapter.folder, None)
    return _read_tokenizer(folder, weights.gguf)


def _read_tokenizer(folder: Path, gguf: str | None) -> PreTrainedTokenizerBase:
    options: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    with (
        quiet_transformers(),
        border(
            ModelUnavailableError,
            lambda problem: (
                f"'{folder}' has no tokenizer that can be read ({problem}); expected tokenizer.json or what "
                "`tokenizer.save_pretrained(folder)` writes."
            ),
        ),
    ):
        return cast(Any, AutoTokenizer).from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **options
        )


def _placed(module: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return a model that is spread over devices; raises :class:`DeviceError` where some of it did not fit."""
    require_on_devices(dict(module.named_parameters()), name)
    return module.eval().requires_grad_(False)


def _place(module: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    module = module.eval().requires_grad_(False)
    try:
        return cast(PreTrainedModel, cast(Any, module).to(device))
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the model's {module.num_parameters() / 1e6:.0f} million parameters do not fit into the memory of "
            f"'{device}'. Use `--dtype bfloat16`, `--device cpu` or a smaller model."
        ) from error
