"""How much memory may be used, and how many rows go through one forward pass: halved when that was too many."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from circuits.errors import DeviceError
from circuits.graph import EdgeIndices
from circuits.tracing.memory import Budget, parse_budget

Result = TypeVar("Result")

_SHARE_OF_HOST = 0.5
"""Of the free memory, unless told otherwise: a host that runs out kills the process instead of raising."""
_SHARE_OF_DEVICE = 0.8
_TOKENS_ON_CPU = {"pair_tokens": 512, "pass_tokens": 1024}
"""More tokens per pass than this cost time on a CPU, for fresh memory; measured on a 135M model (512 to 8192)."""
_TOKENS_ON_DEVICE = {"pair_tokens": 8192, "pass_tokens": 65536}
"""Enough to fill a device; attention kernels take at most 65535 times as many rows as there are heads."""


class RowBudget:
    """The number of rows per pass, which only ever shrinks."""

    def __init__(self, rows: int) -> None:
        self.rows = max(1, rows)

    def halve(self, tried: int) -> None:
        """Halve the number of rows after running out of memory with ``tried``; raises :class:`DeviceError` at 1."""
        if tried <= 1:
            raise DeviceError(
                "a single row does not fit into memory. Use shorter prompts, fewer pairs (--pairs), a smaller dtype "
                "(--dtype bfloat16) or a device with more memory."
            )
        self.rows = max(1, tried // 2)


def in_batches(
    items: EdgeIndices, run: Callable[[EdgeIndices], Result], budget: RowBudget, *, rows_per_item: int
) -> Iterator[tuple[EdgeIndices, Result]]:
    """Run items in batches that fit the budget; when memory runs out, halve it and go on with the same items."""
    left = items
    while len(left):
        batch = left[: max(1, budget.rows // rows_per_item)]
        try:
            result = run(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            budget.halve(len(batch) * rows_per_item if len(batch) > 1 else 1)
        else:
            yield batch, result
            left = left[len(batch) :]
            continue
        # After the handler, whose error keeps the frames of the failed pass, and their tensors, alive.
        release()


def release() -> None:
    """Give back the memory of a failed pass: errors raised inside a trace are part of reference cycles."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error means that memory ran out, on an accelerator or on the CPU."""
    said = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def free_memory(device: torch.device) -> int:
    """Give the free memory of a device in bytes (of the host, where a device does not tell).

    What torch holds without using it counts as free.
    """
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        unused = int(module.memory_reserved(device)) - int(module.memory_allocated(device))
        return int(module.mem_get_info(device)[0]) + unused
    return host_memory()


_GROUPS = Path("/sys/fs/cgroup")
_CONTAINER = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file "),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file "),
)
"""Files with a container's limit, its use and the part of that which is given up when needed (cached files)."""


def host_memory(groups: Path = _GROUPS) -> int:
    """Give the free memory of the host in bytes, or what a container may still use, whichever is less."""
    free = int(psutil.virtual_memory().available)
    for *names, cached in _CONTAINER:
        files = [groups / name for name in names]
        if all(file.is_file() for file in files):
            limit, use, *described = (line for file in files for line in file.read_text("ascii").splitlines())
            given_up = sum(int(line.removeprefix(cached)) for line in described if line.startswith(cached))
            if limit.isdecimal():  # no limit is "max"
                free = min(free, max(0, int(limit) - int(use) + given_up))
    return free


def budget_of(device: torch.device, memory: str) -> Budget:
    """Turn what a user said about memory into a budget; see :func:`~circuits.tracing.memory.parse_budget`."""
    free = free_memory(device)
    if device.type == "cpu":
        return Budget(parse_budget(memory, free, default=_SHARE_OF_HOST), **_TOKENS_ON_CPU)
    limit = parse_budget(memory, free, default=_SHARE_OF_DEVICE)
    own = hasattr(torch.get_device_module(device), "mem_get_info")
    host = int(_SHARE_OF_HOST * host_memory()) if own else 0
    return Budget(limit, host, **_TOKENS_ON_DEVICE)
