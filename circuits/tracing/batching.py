"""How many rows go through one forward pass: from free memory, halved when that was too many."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psutil
import torch

from circuits.errors import DeviceError
from circuits.graph import EdgeIndices

Result = TypeVar("Result")

_SHARE_OF_FREE_MEMORY = 0.4
_TOKENS_ON_CPU = 1024
"""More tokens per pass than this cost time on a CPU, for fresh memory; measured on a 135M model (512 to 8192)."""


class RowBudget:
    """The number of rows per pass, which only ever shrinks.

    Args:
        bytes_per_row: An estimate of the memory one row needs.
        tokens_per_row: The length of a row.
        device: Where the rows run.
        rows: A number given by the user, instead of the estimate.
    """

    def __init__(self, bytes_per_row: int, tokens_per_row: int, device: torch.device, rows: int | None = None) -> None:
        if rows is None:
            rows = int(_SHARE_OF_FREE_MEMORY * free_memory(device) / bytes_per_row)
            if device.type == "cpu":
                rows = min(rows, _TOKENS_ON_CPU // tokens_per_row)
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
            continue
        yield batch, result
        left = left[len(batch) :]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error means that memory ran out, on an accelerator or on the CPU."""
    said = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def free_memory(device: torch.device) -> int:
    """Give the free memory of a device in bytes (of the host, where a device does not tell)."""
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        return int(module.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
