"""Text that comes from outside, made safe for DOT, HTML-like labels and Mermaid; numbers as they are shown."""

import html
import math
import unicodedata

_NO_XML = "\ufffe\uffff"
"""What no XML document may hold, in addition to control characters and halves of characters."""


def number(value: float) -> str:
    """Show a stored number exactly as ``circuit.json`` stores it: six significant digits."""
    return f"{value:.6g}" if math.isfinite(value) else "not measured"


def short_number(value: float) -> str:
    """Show a number with three significant digits and a true minus sign, for labels."""
    return f"{value:.3g}".replace("-", "−") if math.isfinite(value) else "?"


def one_line(text: str, *, limit: int = 300) -> str:
    """Return text as one line: no control characters, no runs of white space, nothing that is not Unicode text."""
    apart = ("Cc", "Cs", "Zl", "Zp")
    kept = "".join(" " if unicodedata.category(mark) in apart or mark in _NO_XML else mark for mark in text)
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def block_text(text: str) -> str:
    """Return text with its line breaks, but without what is not Unicode text and without other control characters."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _unprintable(mark) else mark for mark in text)


def _unprintable(mark: str) -> bool:
    return (unicodedata.category(mark) in ("Cc", "Cs") and mark not in "\n\t") or mark in _NO_XML


def html_text(text: str) -> str:
    """Escape text for an HTML-like label or an HTML page."""
    return html.escape(one_line(text))


def dot_string(text: str, *, limit: int = 300) -> str:
    r"""Quote text for DOT.

    Graphviz reads backslashes (``\N`` is the node's name) and entities (``&lt;``) inside strings, so both are escaped.
    """
    return '"' + one_line(text, limit=limit).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') + '"'
