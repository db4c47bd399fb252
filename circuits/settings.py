"""What a caller writes for an option, turned into what its type says: the one check of every settings class.

A name of a closed set may be text, a number may be numpy's; what is not a number, a whole number where one is needed,
or of another kind altogether is refused before anything runs.
"""

import math
import operator
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Self, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from circuits.errors import UnknownNameError, UsageError


class Choice(StrEnum):
    """A closed set of names; :meth:`parse` offers the closest one on a typo."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read a member from its name (a member is itself); raises :class:`UnknownNameError`."""
        if not isinstance(text, str):
            named, got = next(iter(cls)).value, type(text).__name__
            raise UsageError(f"a {cls.kind()} is given by its name, such as '{named}'; got {got}.")
        try:
            return cls(text)
        except ValueError:
            raise UnknownNameError(cls.kind(), text, [member.value for member in cls]) from None

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in error messages."""
        return cls.__name__.removesuffix("Name").lower()


NO_LIMITS: Mapping[str, float] = {}


def settle(settings: object, *, least: Mapping[str, float] = NO_LIMITS) -> None:
    """Turn every field of a frozen dataclass into what its type says; called in its ``__post_init__``.

    ``least`` gives the smallest value of some numbers. Raises :class:`UsageError` that names the field, and
    ``UnknownNameError`` with the closest name.
    """
    owner = type(settings).__name__
    for name, hint in _hints(type(settings)).items():
        value = settled(getattr(settings, name), hint, f"'{name}' of {owner}", least=least.get(name))
        object.__setattr__(settings, name, value)


def settled(value: object, hint: Any, what: str, *, least: float | None = None) -> Any:
    """Return a value as one of the types that a hint allows; ``what`` names it in messages.

    Enumerations, numbers, texts and classes are looked at; other hints (arrays, callables) allow anything.
    """
    kinds = [kind for kind in _kinds(hint) if kind is not NoneType]
    if value is None and NoneType in _kinds(hint):
        return None
    if not all(isinstance(kind, type) for kind in kinds):
        return value
    for kind in kinds:
        found = _as(kind, value)
        if found is not None and (least is None or not isinstance(found, int | float) or found >= least):
            return found
    expected = " or ".join(_words(kind, least) for kind in kinds)
    raise UsageError(f"{what} is {displayed(value)}; expected {expected}.")


def require_kind(value: object, kind: type, what: str, advice: str) -> None:
    """Raise :class:`UsageError` with the advice unless a value is of a class."""
    if not isinstance(value, kind):
        raise UsageError(f"{what} is {displayed(value)}; expected {kind.__name__}: {advice}")


def whole_number(value: object) -> int | None:
    """Return a whole number of any make (Python's, numpy's, torch's) as Python's; None for anything else.

    Numbers of more than 64 bits are nobody's: they fit no array.
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        return None
    try:
        number = operator.index(cast(Any, value))
    except TypeError:  # an array or tensor of several numbers, or of fractions
        return None
    return number if number.bit_length() < 64 else None


def displayed(value: object) -> str:
    """Return a value as a message shows it: numbers, texts and names as written, anything else by its class."""
    if isinstance(value, int) and value.bit_length() >= 64:
        return f"a number of {value.bit_length()} bits"
    plain: object = cast("Any", value).item() if isinstance(value, np.generic) else value
    text = repr(plain) if isinstance(plain, str | int | float | None) else f"a {type(plain).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _as(kind: type, value: object) -> object:
    """Return a value as this kind; None where it is none. Raises ``UnknownNameError`` for text that is no name."""
    if issubclass(kind, Choice):
        return kind.parse(value)
    if kind is bool:
        return bool(cast("Any", value)) if isinstance(value, bool | np.bool_) else None
    if kind is int:
        return whole_number(value)
    if kind is float:
        return _finite(value)
    return value if isinstance(value, kind) else None


def _finite(value: object) -> float | None:
    number = float(cast("Any", value)) if isinstance(value, float | np.floating) else whole_number(value)
    return float(number) if number is not None and math.isfinite(number) else None


def _words(kind: type, least: float | None) -> str:
    words = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}
    limit = "" if least is None or kind not in (int, float) else f" of at least {least:g}"
    return words.get(kind, kind.__name__) + limit
