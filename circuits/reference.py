"""Every public name of a module in brief, as Markdown: its signature, and the first sentence of its docstring."""

import inspect
import re
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any

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


def _is_told(kind: type, member: str, value: Any) -> bool:
    """Return whether a member of a class needs an entry: its methods and properties, but not its fields."""
    field = is_dataclass(kind) and member in {each.name for each in fields(kind)}
    wrapped = isinstance(value, property | classmethod | staticmethod) or hasattr(value, "func")
    return not field and (wrapped or inspect.isfunction(value)) and bool(inspect.getdoc(value))


def _signature(value: Any) -> str:
    """Return the parameters by name, with short defaults; nothing for what is not called."""
    value = getattr(value, "__func__", value)
    made = isinstance(value, type) and not issubclass(value, Enum | Exception)
    if not made and not inspect.isfunction(value):
        return ""
    parameters = inspect.signature(value).parameters.values()
    shown = [_parameter(each) for each in parameters if each.name not in ("self", "cls")]
    keyword = next((i for i, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY), None)
    if keyword is not None and not any(each.kind is each.VAR_POSITIONAL for each in parameters):
        shown.insert(keyword - (len(parameters) - len(shown)), "*")
    return f"({', '.join(shown)})"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if parameter.default is parameter.empty:
        return stars + parameter.name
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    text = repr(default)
    return f"{parameter.name}={text if len(text) <= _LONGEST and '<' not in text else '…'}"


def _first_sentence(value: Any) -> str:
    """Return the first sentence of a docstring, in one line and without the marks of reStructuredText."""
    paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(paragraph.split())).replace("``", "`")
    return re.split(r"(?<=[.:]) (?=[A-Z])", line, maxsplit=1)[0]
