"""Every public name of a module in brief, as Markdown: its signature, and the first sentence of its docstring."""

import inspect
import re
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property
from types import ModuleType
from typing import Any

_WRAPPED = (property, cached_property, classmethod, staticmethod)
_LONGEST = 30
"""Default values of more characters are left out."""


def names_in_brief(module: ModuleType) -> str:
    """Return one entry for every name in a module's ``__all__``: functions first, then classes with their members."""
    named = {name: getattr(module, name) for name in module.__all__}
    functions = [_entry(name, value) for name, value in named.items() if not isinstance(value, type)]
    classes = [_of_class(name, value) for name, value in named.items() if isinstance(value, type)]
    return "\n".join(["## Functions", "", *functions, "", "## Classes", "", *classes])


def _entry(name: str, value: Any, indent: str = "") -> str:
    return f"{indent}- `{name}{_signature(value)}`: {_first_sentence(value)}"


def _of_class(name: str, kind: type) -> str:
    members = [
        _entry(f".{member}", value, indent="  ")
        for member, value in vars(kind).items()
        if not member.startswith("_") and _is_told(kind, member, value)
    ]
    return "\n".join([_entry(name, kind), *members])


def _is_told(kind: type, member: str, value: object) -> bool:
    """Return whether a member of a class needs an entry: its methods and properties, but not its fields."""
    field = is_dataclass(kind) and member in {each.name for each in fields(kind)}
    return not field and (inspect.isfunction(value) or type(value) in _WRAPPED)


def _signature(value: Any) -> str:
    """Return the parameters by name, with short defaults; nothing for what is not called."""
    called: Any = getattr(value, "__func__", value)
    made = inspect.isclass(called) and not issubclass(called, Enum | Exception)
    if not made and not inspect.isfunction(called):
        return ""
    signature = inspect.signature(called)
    shown = [
        each.replace(
            annotation=each.empty, default=each.empty if each.default is each.empty else _Default(each.default)
        )
        for each in signature.parameters.values()
        if each.name not in ("self", "cls")
    ]
    return str(signature.replace(parameters=shown, return_annotation=inspect.Signature.empty))


class _Default:
    """A default value, shown only where that is short."""

    def __init__(self, value: Any) -> None:
        self._value: object = value.value if isinstance(value, Enum) else value

    def __repr__(self) -> str:
        text = repr(self._value)
        return text if len(text) <= _LONGEST and "<" not in text else "…"


def _first_sentence(value: Any) -> str:
    """Return the first sentence of a docstring, in one line and without the marks of reStructuredText."""
    paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(paragraph.split())).replace("``", "`")
    return re.split(r"(?<=[.:]) (?=[A-Z])", line, maxsplit=1)[0]
