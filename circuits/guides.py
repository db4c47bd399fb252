"""The guides to this package, as texts in Markdown: what ``circuits guide TOPIC`` prints."""

import re
from importlib import import_module
from pathlib import Path

from circuits.errors import UnknownNameError
from circuits.reference import names_in_brief

REFERENCE = "reference"
"""The guide that is completed from the package itself when it is read."""
_NAMES = "<!-- names -->"
_COMMENT = re.compile("<!--.*?-->\n*", re.DOTALL)
"""What scripts find their place by; nobody reads it."""
_INSTALLED = Path(__file__).parent / "_guides"
_CHECKOUT = Path(__file__).parents[1]
_OF_PROJECT = ("contributing", "changelog")
"""Guides that lie beside the README, where people look for them; installed they are with the others."""


def topics() -> dict[str, str]:
    """Return the topics there are, in alphabetical order, each with the heading of its guide."""
    return {topic: _text(topic).partition("\n")[0].lstrip("# ") for topic in sorted(_files())}


def guide(topic: str) -> str:
    """Return a guide in Markdown: ``evidence``, ``prompts``, ``costs`` …; :func:`circuits.guides.topics` lists them.

    ``reference`` is a short description of every public name, made from the package itself. Raises
    :class:`UnknownNameError` for a topic that does not exist.
    """
    text = _text(topic)
    if topic == REFERENCE:
        text = text.replace(_NAMES, names_in_brief(import_module("circuits")))
    return _COMMENT.sub("", text)


def _text(topic: str) -> str:
    files = _files()
    if topic not in files:
        raise UnknownNameError("guide", topic, sorted(files), hint="Read one with: circuits guide TOPIC")
    return files[topic].read_text(encoding="utf-8")


def _files() -> dict[str, Path]:
    """Return where each guide is: in an installed package beside the code, in a checkout among the examples."""
    if _INSTALLED.is_dir():
        return {path.stem: path for path in _INSTALLED.glob("*.md")}
    found = {path.stem: path for path in (_CHECKOUT / "examples" / "guides").glob("*.md")}
    return found | {name: _CHECKOUT / f"{name.upper()}.md" for name in _OF_PROJECT}
