"""The type checker that tests/conftest.py hooks into the package's tensor code."""

from typing import Any, get_args

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception
from jaxtyping import AbstractArray


def checked(function: Any) -> Any:
    """Check calls of functions that state tensor shapes with beartype; types alone are checked before anything runs.

    Methods that mention ``Self`` are left out: beartype knows it only in classes that it decorates as a whole.
    """
    hints = getattr(function, "__annotations__", {}).values()
    if not any(_states_a_shape(hint) for hint in hints):
        return function
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function


def _states_a_shape(hint: object) -> bool:
    own = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return own or any(_states_a_shape(part) for part in get_args(hint))
