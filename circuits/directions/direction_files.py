"""Reading the files of directions and of linear probes.

A file holds the tensor ``direction``, or one tensor of any name; a probe's holds ``coef_`` and ``intercept_`` (also
``coef`` and ``intercept``), as scikit-learn names them. In an ``.npz`` file ``layer`` and ``pos`` may stand beside
them, in a ``.safetensors`` file in the metadata.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open

from circuits.errors import FormatError
from circuits.scores import Floats

TENSOR = "direction"
_VECTORS, _CONSTANTS, _PLACE = (TENSOR, "coef_", "coef"), ("intercept_", "intercept"), ("layer", "pos")


def read_vector(file: Path) -> tuple[Floats, dict[str, Any]]:
    """Return the vector in a file, and what the file says of it; a probe's constant is its ``bias``.

    Raises :class:`FormatError` for a file that cannot be read, and for one without one vector.
    """
    tensors, facts = _npz(file) if file.suffix.lower() == ".npz" else _safetensors(file)
    constant = next((tensors.pop(name) for name in _CONSTANTS if name in tensors), None)
    name = next((each for each in _VECTORS if each in tensors), None)
    if name is None and len(tensors) == 1:
        name = next(iter(tensors))
    if name is None:
        held = ", ".join(tensors) or "none"
        raise FormatError(f"{file} holds the tensors {held}; expected one called '{TENSOR}', or a probe's 'coef_'.")
    vector = tensors[name]
    if constant is not None:
        facts["bias"] = _one(file, constant)
    if vector.ndim > 1 and vector.size != max(vector.shape):
        raise FormatError(
            f"{file}: '{name}' has the shape {vector.shape}; expected one vector. Of a probe of several classes, save "
            "the row, and the intercept, of one of them."
        )
    return vector.reshape(-1), facts


def _one(file: Path, constant: Floats) -> float:
    if constant.size != 1:
        raise FormatError(f"{file}: a probe has one intercept, got {constant.size}; save that of one class.")
    return float(constant.reshape(-1)[0])


def _safetensors(file: Path) -> tuple[dict[str, Floats], dict[str, Any]]:
    try:
        with cast(Any, safe_open)(file, framework="numpy") as tensors:
            names: list[str] = list(tensors.keys())
            return {name: tensors.get_tensor(name) for name in names}, dict(tensors.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _npz(file: Path) -> tuple[dict[str, Floats], dict[str, Any]]:
    try:
        with np.load(file, allow_pickle=False) as held:
            arrays = cast("Mapping[str, Floats]", {name: held[name] for name in held.files})
    except (ValueError, OSError, BadZipFile, EOFError, AttributeError) as error:
        raise _unreadable(file, error) from error
    facts = {name: arrays[name].reshape(-1)[0].item() for name in _PLACE if name in arrays and arrays[name].size == 1}
    return {name: array for name, array in arrays.items() if name not in _PLACE}, facts


def _unreadable(file: Path, error: Exception) -> FormatError:
    return FormatError(
        f"{file} is no direction that can be read ({(str(error) or type(error).__name__).splitlines()[0]}); expected a "
        ".safetensors file, as `circuits direction` writes it, or a probe's .npz or .safetensors file with 'coef_' and "
        "'intercept_'."
    )
