"""Values that hold arrays: made from any sequence, read-only, and with the equality and hash numpy does not give."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from circuits.errors import UsageError

Kind = TypeVar("Kind", bound=type)


def frozen(values: ArrayLike, dtype: DTypeLike, name: str) -> NDArray[Any]:
    """Return a read-only copy of numbers in one dimension; ``name`` says in errors what they are."""
    try:
        array = np.asarray(values)
        held = array.astype(dtype, casting="same_kind") if array.size else np.array([], dtype)
    except (TypeError, ValueError):
        raise UsageError(
            f"{name} are {values!r:.80}; expected {np.dtype(dtype).name} numbers, one for an edge."
        ) from None
    if array.ndim != 1:
        raise UsageError(f"{name} have the shape {array.shape}; expected one dimension, one number for an edge.")
    held.setflags(write=False)
    return held


def by_content(kind: Kind) -> Kind:
    """Compare and hash the instances of a frozen dataclass (``eq=False``) by what their fields hold.

    Arrays are equal with the same shape and numbers; a number that is missing (NaN) is equal to another missing one.
    """

    def equal(self: object, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, each.name), getattr(other, each.name)) for each in _fields(self))

    def hashed(self: object) -> int:
        return hash((type(self).__name__, *(_key(getattr(self, each.name)) for each in _fields(self))))

    cast(Any, kind).__eq__, cast(Any, kind).__hash__ = equal, hashed
    return kind


def _fields(value: object) -> tuple[Any, ...]:
    return tuple(each for each in fields(cast(Any, value)) if each.compare)


def _same(one: Any, other: Any) -> bool:
    numbers = (np.ndarray, float)
    if issubclass(type(one), numbers) and issubclass(type(other), numbers):
        first, second = np.asarray(one), np.asarray(other)
        return np.array_equal(first, second, equal_nan=first.dtype.kind == second.dtype.kind == "f")
    if type(one) is not type(other):
        return bool(one == other)
    if isinstance(one, Mapping):
        left, right = cast("Mapping[Any, Any]", one), cast("Mapping[Any, Any]", other)
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(one, list | tuple):
        several = cast("list[Any]", one), cast("list[Any]", other)
        return len(several[0]) == len(several[1]) and all(map(_same, *several))
    if is_dataclass(one):
        return all(_same(getattr(one, each.name), getattr(other, each.name)) for each in _fields(one))
    return bool(one == other)


def _key(value: Any) -> object:
    """Return something hashable that is equal for equal values; numbers of arrays are left out (0.0 equals -0.0)."""
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        return array.shape, array.tobytes() if array.dtype.kind in "iub" else b""
    if isinstance(value, Mapping | list | tuple):
        return len(cast("list[Any]", value))
    if is_dataclass(value):
        return type(value).__name__
    return None if isinstance(value, float) else value
