"""Turn DOT text into pictures: the only module that imports ``graphviz`` and ``pygraphviz``.

An installed ``dot`` is used through the ``graphviz`` package; without one, or where it fails, the Graphviz that comes
inside pygraphviz's wheel is used, so that pip alone is enough.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from circuits.errors import RenderError, UnknownNameError
from circuits.files.atomic import write

PNG_DPI = 200
STDERR = 2


class ImageFormat(StrEnum):
    """The kinds of picture."""

    SVG = "svg"
    PNG = "png"
    PDF = "pdf"


def render(dot: str, path: str | Path) -> None:
    """Draw DOT text into a ``.svg``, ``.png`` or ``.pdf`` file.

    Raises :class:`RenderError` when Graphviz is missing or refuses the text, :class:`OutputError` when the place cannot
    be written to.
    """
    suffix = Path(path).suffix.lower()
    known = [f".{kind.value}" for kind in ImageFormat]
    if suffix not in known:
        raise UnknownNameError("file format", suffix or str(path), known)
    write(path, image(dot, ImageFormat(suffix[1:])))


def image(dot: str, kind: ImageFormat) -> bytes:
    """Draw DOT text and give the picture's bytes."""
    if kind is ImageFormat.PNG:
        dot = dot.replace("{", f"{{\n  graph [dpi={PNG_DPI}];", 1)
    ways: list[Callable[[str, str], bytes]] = [_installed] if shutil.which("dot") else []
    failures: list[str] = []
    for way in [*ways, _bundled]:
        try:
            return way(dot, kind.value)
        except RenderError as error:
            failures.append(str(error))
    raise RenderError(" ".join(failures))


def _installed(dot: str, kind: str) -> bytes:
    import graphviz

    try:
        return graphviz.Source(dot).pipe(format=kind, quiet=True)
    except (graphviz.CalledProcessError, graphviz.ExecutableNotFound, OSError) as error:
        raise RenderError(f"the installed 'dot' failed: {error}.") from error


def _bundled(dot: str, kind: str) -> bytes:
    try:
        import pygraphviz
    except ImportError as error:
        raise RenderError(
            "no Graphviz was found: pygraphviz cannot be imported. Run 'pip install pygraphviz' (its wheels bring "
            "Graphviz along) or install Graphviz, or write a .dot or .mmd file instead."
        ) from error
    try:
        graph: Any = pygraphviz.AGraph(string=dot)
        with graph, _native_messages_logged():
            data: bytes | None = graph.draw(format=kind, prog="dot")
    except (ValueError, OSError) as error:
        raise RenderError(f"Graphviz could not draw this text: {error}.") from error
    if not data:
        raise RenderError(f"Graphviz gave an empty {kind} picture.")
    return data


@contextmanager
def _native_messages_logged() -> Generator[None]:
    """Log what libraries in this process write past Python (fontconfig warns of the system's own files)."""
    sys.stderr.flush()
    try:
        before = os.dup(STDERR)
    except OSError:  # closed, so nobody reads it
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, STDERR)
            os.close(before)
            kept.seek(0)
            for line in kept.read().decode(errors="replace").splitlines():
                logging.getLogger(__name__).info("%s", line)
