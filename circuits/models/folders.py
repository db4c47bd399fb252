"""What a model folder must hold before it is loaded: a configuration that can be measured, weights without pickle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuits.errors import ModelUnavailableError, UnsupportedModelError
from circuits.models.quiet import quiet_transformers
from circuits.models.refusals import require_measurable

_EXPECTED_CONFIGURATION = "expected a model folder as `save_pretrained` writes it. Download or write it again."
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a model's weights, in reading order; ``gguf`` is the file's name where they are GGUF."""

    paths: tuple[Path, ...]
    gguf: str | None = None


def find_weights(folder: Path) -> WeightFiles:
    """Find the weights of a model folder; raises :class:`ModelUnavailableError`, also when only pickles are there."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return WeightFiles((single,))
    if index.is_file():
        return WeightFiles(_shards(index))
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return WeightFiles((ggufs[0],), gguf=ggufs[0].name)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelUnavailableError(
            f"'{folder}' has its weights only as {pickles[0]}, a pickle, which can run any code when read; expected "
            "model.safetensors or a .gguf file. Convert it where you trust it: "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)`."
        )
    found = f"{len(ggufs)} .gguf files" if ggufs else "no weights"
    raise ModelUnavailableError(
        f"'{folder}' has {found}; expected model.safetensors, model.safetensors.index.json with its parts, or one "
        ".gguf file."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelUnavailableError(
            f"'{index}' is not an index of safetensors files ({error!r}); expected a 'weight_map'. Download the model "
            "again."
        ) from error
    paths = tuple(index.parent / str(name) for name in names)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelUnavailableError(
            f"'{index.parent}' lacks {missing[0]}, one of {len(paths)} files of weights. Download the model again."
        )
    return paths


def check_configuration(folder: Path, gguf: str | None, *, name: str) -> None:
    """Raise unless the folder's configuration describes a model that can be measured.

    The rules are those of :mod:`circuits.models.refusals`; ``name`` is what the user called the model. A configuration
    without a class name is taken for the language model. Raises :class:`UnsupportedModelError`, or
    :class:`ModelUnavailableError` where there is no readable configuration.
    """
    options: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    if gguf is None and not (folder / "config.json").is_file():
        raise ModelUnavailableError(f"'{name}' has no config.json; {_EXPECTED_CONFIGURATION}")
    try:
        with quiet_transformers():
            config = cast(Any, AutoConfig).from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, **options
            )
    except OSError as error:
        raise ModelUnavailableError(f"'{name}' has a config.json that is no JSON; {_EXPECTED_CONFIGURATION}") from error
    except StrictDataclassError as error:
        raise ModelUnavailableError(
            f"the config.json of '{name}' has a value that its architecture cannot have ({_last_line(error)}); "
            f"{_EXPECTED_CONFIGURATION}"
        ) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"the config.json of '{name}' describes no architecture that transformers has built in, and code that "
            f"comes with a model is never run ({_first_sentence(error)}). Use a model of a standard "
            "architecture, such as Llama."
        ) from error
    if gguf is not None:
        config.quantization_config = None  # expanded when read
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    classes = cast("list[str]", config.architectures or ([own] if isinstance(own, str) else own[:1]))
    require_measurable(config, classes[:1], name)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split(". ")[0].splitlines()[0]
