"""Adapters (LoRA and other PEFT adapters) in folders: found, and merged into the weights they were trained on."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import PreTrainedModel

from circuits.errors import ModelUnavailableError, UnsupportedModelError

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_IN_A_FOLDER = "expected an adapter folder as `save_pretrained` writes it"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, and the name or path of the model it was trained on (as it says itself)."""

    folder: Path
    base: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that decide what the adapter does."""
        return self.folder / CONFIGURATION, self.folder / WEIGHTS


def find_adapter(folder: Path, *, complete: bool = True) -> Adapter | None:
    """Give the adapter that a folder holds, or None where it holds none; ``complete`` says that weights must be there.

    Raises :class:`ModelUnavailableError` for one that cannot be used.
    """
    path = folder / CONFIGURATION
    if not path.is_file():
        return None
    if (folder / "config.json").is_file():
        raise ModelUnavailableError(
            f"'{folder}' holds a model and an adapter ({CONFIGURATION}), so it is unclear which is meant; expected one "
            "of them. Move the adapter's files into a folder of their own and load that: the model is found by its "
            "base_model_name_or_path."
        )
    try:
        base = json.loads(path.read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnavailableError(
            f"'{path}' does not name the model that the adapter is for ({error!r}); {_IN_A_FOLDER}, with "
            "'base_model_name_or_path'."
        ) from error
    if not isinstance(base, str) or not base:
        raise ModelUnavailableError(
            f"'{path}' names {base!r} as the model that the adapter is for; set base_model_name_or_path to its folder "
            "or Hugging Face id."
        )
    if complete and not (folder / WEIGHTS).is_file():
        raise ModelUnavailableError(
            f"'{folder}' has an adapter's configuration but no {WEIGHTS}; {_IN_A_FOLDER}. Pickled weights are not read."
        )
    return Adapter(folder, base)


def with_adapter(module: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add an adapter to the weights of a model, so that what comes out is the plain architecture.

    Raises :class:`UnsupportedModelError` for an adapter that is more than a change of weights, and
    :class:`ModelUnavailableError` for one that does not fit.
    """
    from peft import PeftConfig, PeftModel

    try:
        with warnings.catch_warnings():
            # peft asks transformers for a property that has a new name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("error", message=".*missing adapter keys")
            kind = cast(Any, PeftConfig).from_pretrained(str(folder), local_files_only=True)
            if kind.is_prompt_learning:
                raise UnsupportedModelError(_not_weights(str(folder), kind))
            adapted = cast(Any, PeftModel).from_pretrained(module, str(folder), local_files_only=True)
            return cast(PreTrainedModel, adapted.merge_and_unload())
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, UserWarning, SafetensorError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise ModelUnavailableError(
            f"the adapter in '{folder}' does not fit {type(module).__name__} ({str(error).strip().splitlines()[0]}); "
            "expected one that was trained on this model."
        ) from error


def without_wrapper(module: Any, name: str) -> Any:
    """Give the model inside a PEFT wrapper, its adapter layers in place; any other module is given back as it is.

    Raises :class:`UnsupportedModelError` for an adapter outside the layers (prompt or prefix tuning).
    """
    if not (hasattr(module, "peft_config") and hasattr(module, "get_base_model")):
        return module
    if module.active_peft_config.is_prompt_learning:
        raise UnsupportedModelError(_not_weights(name, module.active_peft_config))
    return module.get_base_model()


def _not_weights(name: str, config: Any) -> str:
    kind = str(config.peft_type).rpartition(".")[2]
    return (
        f"'{name}' is an adapter of the kind {kind}, which adds positions that no prompt has rather than changing "
        "weights; expected LoRA or another adapter that can be merged. Use the model without it."
    )
