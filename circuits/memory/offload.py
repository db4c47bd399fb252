"""Recorded values that wait in the host's memory and are copied to the device whenever they are used."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast, overload

import torch
from torch import Tensor

Item = TypeVar("Item")
Move = Callable[[Tensor], Tensor]


class Kept(Sequence[Item], Generic[Item]):
    """Items made of tensors, in order: at hand, or stored elsewhere and loaded anew each time one is asked for.

    Args:
        items: Taken one after the other, so that with ``store`` only one of them is on the device at a time.
        store: Moves a tensor to where it waits; None: everything stays where it is.
        load: Moves a tensor back.
    """

    def __init__(self, items: Iterable[Item], store: Move | None = None, load: Move | None = None) -> None:
        self._store, self._load = store, load
        self.stored: tuple[Item, ...] = tuple(item if store is None else moved(item, store) for item in items)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, place: int | slice) -> Item | tuple[Item, ...]:
        found = self.stored[place]
        return found if self._load is None else moved(found, self._load)

    def __len__(self) -> int:
        return len(self.stored)

    def __iter__(self) -> Iterator[Item]:
        return (self[place] for place in range(len(self)))

    def changed(self, change: Callable[[Item], Item], *, kept: Callable[[Item], bool]) -> "Kept[Item]":
        """Return changed items, where they are, so far as ``kept`` says."""
        made = Kept[Item]((), None, self._load)
        made._store = self._store
        made.stored = tuple(filter(kept, map(change, self.stored)))
        return made


def kept_on_host(items: Iterable[Item], device: torch.device) -> Kept[Item]:
    """Keep items in the host's memory, pinned, so that copies to the device need not be waited for."""
    return Kept(items, _to_host, partial(_to_device, device))


def moved(value: Any, move: Move, done: dict[int, Any] | None = None) -> Any:
    """Move every tensor in nested frozen dataclasses, tuples and dicts; what is shared stays shared."""
    done = {} if done is None else done
    if id(value) not in done:
        done[id(value)] = _moved(value, move, done)
    return done[id(value)]


def _moved(value: Any, move: Move, done: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, tuple):
        return tuple(moved(each, move, done) for each in cast("tuple[Any, ...]", value))
    if isinstance(value, Mapping):
        return {key: moved(each, move, done) for key, each in cast("Mapping[Any, Any]", value).items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: moved(getattr(value, each.name), move, done) for each in fields(value)})
    return value


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _to_device(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.to(device, non_blocking=True)
