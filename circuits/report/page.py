"""The shell of the interactive pages: one self-contained file that needs no network.

The content security policy allows the page's own script and style, by their hashes, and nothing else; the script makes
no markup from text. Without scripts the page shows everything, printed it does too.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from circuits.diagrams.legend import Key
from circuits.diagrams.markup import block_text, number
from circuits.diagrams.palette import NODE_FILLS, colour_name
from circuits.drawing.dot import SIGN


@dataclass(frozen=True)
class Table:
    """A table of texts on a page; ``note`` stands below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class TableColumn:
    """A column of the table of edges."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class EdgeRow:
    """One edge of the table: ``size`` is what the slider compares, ``group`` what a checkbox hides."""

    edge: str
    sender: str
    receiver: str
    slot: str
    size: str
    cells: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class Group:
    """Edges that can be hidden together."""

    name: str
    text: str
    colour: str


@dataclass(frozen=True)
class Sample:
    """An entry of the legend."""

    sample: Markup
    text: str


def page_html(svg: str, **content: Any) -> str:
    """Fill the page's template; every text in ``content`` is escaped there, ``svg`` is put in as it is."""
    environment = Environment(
        loader=PackageLoader("circuits", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_displayed,
    )
    script, style = _source("report.js"), _source("report.css")
    shown = {"sentences": (), "heading": "How well it works", "curve": "", "groups": (), "tables": (), "evidence": ()}
    shown |= {"prompts": (), "facts": (), "commands": (), "sign": SIGN, "edge_note": ""} | content
    page = environment.get_template("page.html.j2").render(
        policy=Markup(_policy(script, style)),
        script=Markup(script),
        style=Markup(style),
        diagram=Markup(svg[svg.find("<svg") :]),
        **shown,
    )
    return page.rstrip() + "\n"


def _source(name: str) -> str:
    return files("circuits.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hashed(script)}'; style-src '{_hashed(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hashed(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def size_text(value: float) -> str:
    """Return the size of a score as the slider reads it: six significant digits; 0 for what has no score."""
    return number(abs(value)) if math.isfinite(value) else "0"


def samples(rows: Sequence[Sequence[Key]]) -> list[list[Sample]]:
    """Return the legend's keys as small drawings that follow the page's colours."""
    return [[Sample(Markup(_drawn(key)), key.text) for key in row] for row in rows]


_DASHES = {"line": "", "dashes": ' stroke-dasharray="6 3"', "dots": ' stroke-dasharray="3 3"'}


def _drawn(key: Key) -> str:
    if key.shape in _DASHES:
        shape = f'<path d="M1 6H25" stroke="{key.colour}" stroke-width="3"{_DASHES[key.shape]}/>'
        name = colour_name(key.colour)
    else:
        name = next(kind.value for kind, colour in NODE_FILLS.items() if colour == key.colour)
        radius = 4 if key.shape == "round" else 0
        shape = (
            f'<rect class="{name}" x="2" y="1" width="22" height="11" rx="{radius}" fill="{key.colour}" '
            f'stroke="{key.border}"/>'
        )
    return f'<svg class="{name}" width="26" height="13" aria-hidden="true">{shape}</svg>'


def _displayed(value: object) -> object:
    """Return text from outside without marks that a page cannot hold; what is marked as safe is as it is."""
    return block_text(value) if type(value) is str else value
