"""Where the layers of a model over several devices go: as accelerate divides them, or as a file says.

transformers loads such a model and accelerate moves rows from layer to layer; nothing here imports either.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from circuits.errors import DeviceError, FormatError, UsageError
from circuits.files.documents import read_json
from circuits.models.devices import by_number, resolve_device

BY_ACCELERATE = ("auto", "balanced")

DeviceMap = str | dict[str, str]
"""As transformers takes it: a name, or devices by the name of a module."""


def resolve_map(given: object) -> DeviceMap | None:
    """Return a device map: ``auto``, ``balanced``, a JSON file, or a mapping of modules to devices; None: one device.

    Devices are numbers, for CUDA, or names as of ``--device``. Raises :class:`DeviceError` for one that is not there,
    :class:`UsageError` and :class:`FormatError` for anything else, and what reading a file raises.
    """
    if given is None:
        return None
    if isinstance(given, str) and given in BY_ACCELERATE:
        return given
    if isinstance(given, str | Path):
        if not Path(given).is_file():
            raise UsageError(
                f"the device map is '{given}'; expected auto, balanced, or a JSON file with an object of modules and "
                'their devices, such as {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, ...}.'
            )
        return _devices(read_json(given), f"'{given}'")
    return _devices(given, "the device map")


def _devices(given: object, name: str) -> dict[str, str]:
    if not isinstance(given, Mapping) or not cast("Mapping[Any, Any]", given):
        kind = type(cast("object", given)).__name__
        raise FormatError(f"{name} holds a {kind}; expected an object of modules and their devices.")
    return {str(module): _device(str(module), each) for module, each in cast("Mapping[Any, Any]", given).items()}


def _device(module: str, given: object) -> str:
    if given in ("disk", "meta"):
        raise DeviceError(
            f"the device map puts '{module}' on {given}; expected all weights on devices. Give it a device, or use "
            "`--dtype bfloat16` or a smaller model."
        )
    if isinstance(given, int) and not isinstance(given, bool):
        given = by_number(given)
    return str(resolve_device(cast("str", given)))
