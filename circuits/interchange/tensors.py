"""Files of plain tensors, texts and numbers as torch saves them: the one place where such a file is read or made.

Always with ``weights_only=True``: what would run code in a file is refused.
"""

import io
import warnings
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (only the name of what torch raises)
from typing import Any

from circuits.errors import FormatError

SUFFIXES = (".pt", ".pkl")


def read_tensors(path: Path) -> Any:
    """Return what a file holds; raises :class:`FormatError` for one that holds more than tensors, texts and numbers."""
    import torch

    if not path.is_file():
        raise FormatError(f"cannot read {path}: there is no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise FormatError(
            f"{path} cannot be read without running what is in it ({reason}); expected tensors, texts and numbers "
            "only, as EAP-IG's to_pt writes them. Write it as JSON there."
        ) from error


def tensor_file(document: dict[str, Any]) -> bytes:
    """Return the bytes of a file; arrays of numpy become tensors. It was read back by the rule of this module."""
    import torch

    made = {key: torch.asarray(value) if hasattr(value, "dtype") else value for key, value in document.items()}
    buffer = io.BytesIO()
    torch.save(made, buffer)
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return buffer.getvalue()
