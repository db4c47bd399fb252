"""How much memory may be used, and how many rows go through one forward pass: halved when that was too many."""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from circuits.errors import DeviceError
from circuits.graph import EdgeIndices
from circuits.memory.limits import free_memory, host_memory, shared_memory
from circuits.memory.memory_plan import AUTO, MemoryBudget, Modest, parse_budget

Result = TypeVar("Result")

_SHARE_OF_HOST = 0.5
"""Of the free memory at most, unless told otherwise: a host that runs out kills a process instead of raising."""
_SHARE_OF_DEVICE = 0.8
_ON_CPU = MemoryBudget(0, pair_tokens=320, pass_tokens=1280)
_FAST_ON_CPU = 320
"""Tokens at once that are as fast as more, to 2 %: 640 and 1280 gain no more, 160 cost a sixth more. Measured on a 135M
model by ``examples/benchmarks/batch_size.py``."""
_ON_DEVICE = MemoryBudget(0, pair_tokens=8192, pass_tokens=65536)
"""Enough to fill a device; attention kernels take at most 65535 times as many rows as there are heads."""


def by_length(lengths: Iterable[int], rows: Callable[[int], int]) -> Iterator[list[int]]:
    """Return the places of prompts that run at once: of one token length, so that nothing is ever padded.

    Lengths come in the order in which they are first seen, places in ascending order; ``rows`` of a length at most.
    """
    places: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        places.setdefault(length, []).append(place)
    for length, members in places.items():
        most = max(1, rows(length))
        yield from (members[first : first + most] for first in range(0, len(members), most))


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
    """Free the memory of a failed pass: errors raised inside a trace are part of reference cycles."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means that memory ran out, on an accelerator or on the CPU."""
    said = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def budget_of(devices: Iterable[torch.device], memory: str) -> MemoryBudget:
    """Turn what a user said about memory into a budget; see :func:`~circuits.memory.memory_plan.parse_budget`.

    Of several devices that of the one with the least free memory: the rows of a pass go through all of them. Recorded
    values stay with their layers, so that counting them as if they were all there is on the safe side. Beside other
    devices nothing waits in the host's memory, from where it comes back to one.
    """
    places = list(dict.fromkeys(devices))
    budgets = [_budget_of(place, memory, alone=len(places) == 1) for place in places]
    return min(budgets, key=lambda budget: budget.limit)


def _budget_of(device: torch.device, memory: str, *, alone: bool) -> MemoryBudget:
    free = free_memory(device)
    if device.type == "cpu":
        share = min(int(_SHARE_OF_HOST * free), shared_memory() // 3)
        modest = Modest(_FAST_ON_CPU, share) if memory == AUTO else None
        limit = parse_budget(memory, free, default=_SHARE_OF_HOST)
        return replace(_ON_CPU, limit=limit, modest=modest)
    limit = parse_budget(memory, free, default=_SHARE_OF_DEVICE)
    own = alone and hasattr(torch.get_device_module(device), "mem_get_info")
    host = int(_SHARE_OF_HOST * host_memory()) if own else 0
    return replace(_ON_DEVICE, limit=limit, host=host)
