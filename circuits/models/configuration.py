"""The configuration of a model folder, a file of unknown origin: read, bounded and cleaned before it is used.

What a configuration may decide is the model's architecture. Which code computes attention or experts, which file the
weights are read from and what is fused or patched is decided here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import TypeAdapter, ValidationError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuits.errors import FormatError, ModelUnavailableError, UnsupportedModelError, border
from circuits.files.documents import read_json
from circuits.models.folders import WeightFiles, tensor_sizes
from circuits.models.quiet import quiet_transformers
from circuits.models.refusals import require_measurable

MOST_PARTS = 10_000
"""No configuration may ask for more layers, heads, groups or experts; the largest known has some hundreds of each."""
ROOM = 100_000_000
"""So many numbers may a model have in addition to twice what its files hold: tables that it computes itself."""
_PARTS = ("layer", "head", "expert", "block", "group")
_NO_PARTS = ("size", "dim", "width", "_id")
_EXPECTED = "expected a model folder as `save_pretrained` writes it. Download or write it again."
_CAPITAL = _EXPECTED.replace("expected", "Expected", 1)


@dataclass(frozen=True)
class _Facts:
    """What is read of a configuration here itself; the rest is for transformers to judge."""

    model_type: str = ""
    architectures: list[str] | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    transformers_weights: str | None = None


def read_configuration(folder: Path, gguf: str | None, *, name: str) -> Any:
    """Return the configuration of a folder (or of a GGUF file in it) if it describes a model that can be measured.

    The rules are those of :mod:`circuits.models.refusals`; ``name`` is what the user called the model. A configuration
    without a class name is taken for the language model. Raises :class:`UnsupportedModelError`, or
    :class:`ModelUnavailableError` where there is no readable configuration.
    """
    if gguf is None:
        _check_file(folder / "config.json", name)
    config = _of_transformers(folder, gguf, name)
    if gguf is not None:
        config.quantization_config = None  # expanded when read
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    classes = cast("list[str]", config.architectures or ([own] if isinstance(own, str) else own[:1]))
    with border(UnsupportedModelError, lambda problem: _nonsense(name, problem)):
        require_measurable(config, classes[:1], name)
    config._attn_implementation = config._experts_implementation = None
    config.fusion_config = None
    return config


def _check_file(path: Path, name: str) -> None:
    if not path.is_file():
        raise ModelUnavailableError(f"'{name}' has no config.json; {_EXPECTED}")
    try:
        content = read_json(path)
        facts = TypeAdapter(_Facts).validate_json(json.dumps(content), strict=True)
    except FormatError as error:
        raise ModelUnavailableError(f"'{name}' has a config.json that cannot be read: {error} {_CAPITAL}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UnsupportedModelError(_nonsense(name, f"{where}: {first['msg']}, got {first['input']!r:.60}")) from error
    absurd = next((each for each in _numbers(content) if not abs(each[1]) <= MOST_PARTS), None)
    if absurd is not None:
        raise UnsupportedModelError(
            _nonsense(name, f"{absurd[0]} is {absurd[1]}; no model has more than {MOST_PARTS:,} of them")
        )
    if facts.transformers_weights is not None:
        raise UnsupportedModelError(
            f"the config.json of '{name}' names a file of weights, {facts.transformers_weights!r}; expected "
            "model.safetensors. Rename the file, and remove transformers_weights from config.json."
        )


def _numbers(content: Any) -> Iterator[tuple[str, int]]:
    """Walk over the numbers at any depth that say how many parts of a kind there are."""
    if isinstance(content, list):
        for part in cast("list[Any]", content):
            yield from _numbers(part)
    if not isinstance(content, dict):
        return
    for key, value in cast("dict[str, Any]", content).items():
        sizes = cast("list[Any]", value) if isinstance(value, list) else [value]
        if any(part in key for part in _PARTS) and not any(other in key for other in _NO_PARTS):
            yield from ((key, size) for size in sizes if isinstance(size, int))
        yield from _numbers(value)


def _of_transformers(folder: Path, gguf: str | None, name: str) -> Any:
    options: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    try:
        with quiet_transformers(), border(UnsupportedModelError, lambda problem: _nonsense(name, problem)):
            return cast(Any, AutoConfig).from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, **options
            )
    except UnsupportedModelError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            raise ModelUnavailableError(f"'{name}' has a configuration that cannot be read; {_EXPECTED}") from cause
        if isinstance(cause, StrictDataclassError):
            raise ModelUnavailableError(
                f"the config.json of '{name}' has a value that its architecture cannot have ({_last_line(cause)}); "
                f"{_EXPECTED}"
            ) from cause
        raise


def _nonsense(name: str, problem: str) -> str:
    return (
        f"the config.json of '{name}' describes no architecture that transformers has built in, and code that comes "
        f"with a model is never run ({problem.split('. ', maxsplit=1)[0]}). Use a model of a standard architecture, "
        "such as Llama."
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def attention_that_fits(config: Any, weights: WeightFiles, *, name: str) -> str:
    """Return the attention implementation that suits a model, ``sdpa`` or ``eager``, by making it without any memory.

    Raises :class:`UnsupportedModelError` where the configuration contradicts itself, and
    :class:`ModelUnavailableError` where it asks for a larger model than the files of weights hold, before that is made.
    """
    sizes = tensor_sizes(weights)
    layers, held = getattr(config, "num_hidden_layers", None), sum(sizes)
    if isinstance(layers, int) and layers > len(sizes):
        raise ModelUnavailableError(_not_together(name, f"{layers} layers", f"{len(sizes)} tensors"))
    with (
        quiet_transformers(),
        border(UnsupportedModelError, lambda problem: _nonsense(name, problem)),
        torch.device("meta"),
    ):
        empty = cast(Any, AutoModelForCausalLM).from_config(config, trust_remote_code=False)
        needed = sum(int(tensor.numel()) for tensor in (*empty.parameters(), *empty.buffers()))
    if needed > 2 * held + ROOM:
        raise ModelUnavailableError(_not_together(name, f"{needed:.3g} numbers", f"{held:.3g}"))
    return "eager" if empty.config._attn_implementation == "eager" else "sdpa"


def _not_together(name: str, needed: str, held: str) -> str:
    return (
        f"the config.json of '{name}' describes a model of {needed}, and its weights hold {held}; they do not belong "
        f"together. {_CAPITAL}"
    )
