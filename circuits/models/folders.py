"""The weights of a model folder: which files they are, without pickles and nothing outside the folder."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gguf import GGUFReader
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open

from circuits.errors import FormatError, ModelUnavailableError, border
from circuits.files.documents import read_json

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


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
    folder = index.parent
    try:
        content = TypeAdapter(_Index).validate_python(read_json(index))
    except (FormatError, ValidationError) as error:
        raise ModelUnavailableError(
            f"'{index}' is not an index of safetensors files ({_first_line(error)}); expected a 'weight_map' of "
            "tensors and files. Download the model again."
        ) from error
    names = sorted(set(content.weight_map.values()))
    strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name]
    if strange or not names:
        what = f"the file {strange[0]!r}" if strange else "no file"
        raise ModelUnavailableError(
            f"'{index}' names {what} as weights; expected names of .safetensors files in its own folder: pickles are "
            "never read, nor files elsewhere. Download the model again."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelUnavailableError(
            f"'{folder}' lacks {missing[0]}, one of {len(names)} files of weights. Download the model again."
        )
    return tuple(folder / name for name in names)


def tensor_sizes(weights: WeightFiles) -> list[int]:
    """Return how many numbers each tensor has that the files hold, from their headers; raises ModelUnavailableError."""
    with border(ModelUnavailableError, lambda problem: unreadable_weights(weights.paths[0].parent, problem)):
        if weights.gguf is not None:
            return [int(tensor.n_elements) for tensor in cast(Any, GGUFReader(str(weights.paths[0]))).tensors]
        sizes: list[int] = []
        for path in weights.paths:
            with cast(Any, safe_open)(path, framework="pt") as file:
                sizes += [math.prod(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118 - no dict
        return sizes


def unreadable_weights(folder: Path, problem: str) -> str:
    """Return the message on weights that cannot be read."""
    return (
        f"the weights in '{folder}' could not be read ({problem}); expected those of the model that its config.json "
        "describes. Download or write them again."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
