"""Adapters (LoRA and other PEFT adapters) in folders: found, and merged into the weights they were trained on."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from transformers import PreTrainedModel

from circuits.errors import FormatError, ModelUnavailableError, UnsupportedModelError, border
from circuits.files.documents import read_json
from circuits.models.patterns import PATTERN_SECONDS, slow_pattern

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MEGATRON = "megatron.core"
_MOST_TURNS = 100
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
    """Return the adapter that a folder holds, or None if it holds none; ``complete`` says that weights must be there.

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
    base = _settings(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelUnavailableError(
            f"'{path}' does not name the model that the adapter is for (base_model_name_or_path is {base!r}); "
            f"{_IN_A_FOLDER}. Set base_model_name_or_path to the model's folder or Hugging Face id."
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

    _check_settings(module, folder)
    with (
        border(
            ModelUnavailableError,
            lambda problem: (
                f"the adapter in '{folder}' does not fit {type(module).__name__} ({problem}); expected one that was "
                "trained on this model."
            ),
        ),
        warnings.catch_warnings(),
    ):
        # peft asks transformers for a property that has a new name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("error", message=".*missing adapter keys")
        kind = cast(Any, PeftConfig).from_pretrained(str(folder), local_files_only=True)
        if kind.is_prompt_learning:
            raise UnsupportedModelError(_not_weights(str(folder), kind))
        adapted = cast(Any, PeftModel).from_pretrained(module, str(folder), local_files_only=True)
        return cast(PreTrainedModel, adapted.merge_and_unload())


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FormatError as error:
        raise ModelUnavailableError(f"the adapter cannot be read: {error} {_IN_A_FOLDER.capitalize()}.") from error
    if not isinstance(found, dict):
        raise ModelUnavailableError(f"'{path}' holds no settings of an adapter; {_IN_A_FOLDER}.")
    return cast("dict[str, Any]", found)


def _check_settings(module: PreTrainedModel, folder: Path) -> None:
    """Raise :class:`ModelUnavailableError` for settings that take without end, or choose code to import."""
    settings = _settings(folder / CONFIGURATION)

    def refused(reason: str) -> ModelUnavailableError:
        return ModelUnavailableError(f"the adapter in '{folder}' cannot be used: {reason}")

    if settings.get("megatron_config") or settings.get("megatron_core", _MEGATRON) not in (None, _MEGATRON):
        raise refused("it is made for megatron, whose code is not imported. Export it for transformers.")
    turns = re.fullmatch(r"pissa_niter_([0-9]+)", str(settings.get("init_lora_weights")))
    if turns and (len(turns[1]) > 3 or int(turns[1]) > _MOST_TURNS):
        raise refused(f"{turns[0]} asks for more than {_MOST_TURNS} turns. Save it as plain LoRA.")
    widest = max((max(shape, default=1) for shape in _shapes(folder)), default=1)
    ranks = settings.get("rank_pattern")
    sizes = [settings.get("r"), settings.get("init_r"), *(_texts(ranks).values() if isinstance(ranks, dict) else ())]
    absurd = next((size for size in sizes if isinstance(size, int | float) and not 0 <= size <= widest), None)
    if absurd is not None:
        raise refused(f"its rank is {absurd}, and its largest tensor is {widest} wide. {_IN_A_FOLDER.capitalize()}.")
    names = [name for name, _ in cast("Iterator[tuple[str, object]]", module.named_modules())]
    slow = slow_pattern(_patterns(settings), names)
    if slow is not None:
        raise refused(
            f"matching the pattern {slow!r} with the names of the modules takes more than {PATTERN_SECONDS} s. Write "
            'target_modules as a list of plain names, such as ["q_proj", "v_proj"].'
        )


def _texts(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value)


def _patterns(settings: dict[str, Any]) -> list[str]:
    """Return the regular expressions among an adapter's settings, in the forms in which peft matches them."""
    plain = [settings.get(key) for key in ("target_modules", "exclude_modules", "target_parameters")]
    layers = settings.get("layers_pattern")
    several = cast("list[Any]", layers) if isinstance(layers, list) else [layers]
    keyed = [settings.get(key) for key in ("rank_pattern", "alpha_pattern")]
    return [
        *(pattern for pattern in plain if isinstance(pattern, str)),
        *(rf".*\.{pattern}\.(\d+)\." for pattern in several if isinstance(pattern, str) and pattern),
        *(rf"(.*\.)?({key})$" for patterns in keyed if isinstance(patterns, dict) for key in _texts(patterns)),
    ]


def _shapes(folder: Path) -> list[list[int]]:
    def unreadable(problem: str) -> str:
        return f"the weights of the adapter in '{folder}' cannot be read ({problem}); {_IN_A_FOLDER}."

    with (
        border(ModelUnavailableError, unreadable),
        cast(Any, safe_open)(folder / WEIGHTS, framework="pt") as file,
    ):
        return [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - no dict


def without_wrapper(module: Any, name: str) -> Any:
    """Return the model inside a PEFT wrapper, its adapter layers in place; any other module as it is.

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
