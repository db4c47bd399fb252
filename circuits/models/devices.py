"""Where a model runs, in which number format, and with which attention implementation."""

import torch

from circuits.errors import DeviceError, UnknownNameError
from circuits.settings import Choice, require_kind

ATTENTION = ("auto", "sdpa", "eager")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MatmulPrecision(Choice):
    """How precisely float32 matrices are multiplied, in torch's names; without effect on devices with one way only."""

    HIGHEST = "highest"
    HIGH = "high"
    """TF32, or two bfloat16 numbers each."""
    MEDIUM = "medium"
    """One bfloat16 number each."""

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in error messages."""
        return "matmul precision"

    def use(self) -> None:
        """Multiply so from now on, in the whole process."""
        torch.set_float32_matmul_precision(self.value)


def gpu_use() -> tuple[str, int]:
    """Return the GPU's name and the most bytes that torch has held on it; an empty name and 0 without one."""
    if not torch.cuda.is_available():
        return "", 0
    return torch.cuda.get_device_name(), int(torch.cuda.max_memory_allocated())


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that is there.

    ``auto`` is the first of CUDA, MPS and CPU that is there. Raises :class:`UnknownNameError` and, for a device that is
    asked for and absent, :class:`DeviceError`.
    """
    require_kind(name, str, "the device", "auto, cpu, cuda or mps.")
    kind, _, number = name.lower().partition(":")
    known = ("auto", "cpu", "cuda", "mps")
    if kind not in known or (number and not (kind == "cuda" and number.isdigit())):
        raise UnknownNameError("device", name, known)
    count, mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    if kind == "auto":
        return torch.device("cuda" if count else "mps" if mps else "cpu")
    if kind == "cuda" and int(number or 0) >= count:
        raise DeviceError(
            f"device '{name}' was asked for, but torch {torch.__version__} sees {count} CUDA devices here. Use "
            "`--device cpu` or `--device auto`, or install a CUDA driver and a CUDA build of torch."
        )
    if kind == "mps" and not mps:
        raise DeviceError(
            f"device '{name}' was asked for, but this machine has none. Use `--device cpu` or `--device auto`."
        )
    return torch.device(name.lower())


def by_number(number: int) -> str:
    """Return the name of a device that is given by its number alone, as in device maps."""
    return f"cuda:{number}"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Turn a format's name into torch's; ``auto`` is float32 on the CPU, elsewhere None: the model's own."""
    require_kind(name, str, "the dtype", f"auto, {', '.join(_DTYPES)}.")
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    if name not in _DTYPES:
        raise UnknownNameError("dtype", name, ["auto", *_DTYPES])
    return _DTYPES[name]


def resolve_attention(name: str) -> str | None:
    """Check the name of an attention implementation; ``auto`` is None: sdpa where the model has it, else eager."""
    require_kind(name, str, "the attention", f"{', '.join(ATTENTION)}.")
    if name not in ATTENTION:
        raise UnknownNameError("attention", name, ATTENTION)
    return None if name == "auto" else name
