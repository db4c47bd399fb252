# matplotlib leaves keyword arguments of its methods untyped
# pyright: reportUnknownMemberType=false
"""What all charts have in common: their form by suffix, their text as text, the same bytes for the same values."""

import io
import textwrap
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.diagrams.markup import one_line
from circuits.errors import UnknownNameError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
_STYLE: Any = {
    "svg.hashsalt": "circuits",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
}
DPI = 200


def chart_suffix(path: str | Path) -> str:
    """Return the suffix of a chart's file; raises :class:`UnknownNameError` for one that there is not."""
    suffix = Path(path).suffix.lower()
    if suffix not in _METADATA:
        raise UnknownNameError("file format", suffix or str(path), _METADATA)
    return suffix


@contextmanager
def new_figure(width: float, height: float) -> "Generator[tuple[Figure, Axes]]":
    """Yield a figure with one axes of so many inches, in the style of all charts; matplotlib's own stays as it is."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # tokens may be in any script
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def chart_bytes(figure: "Figure", suffix: str) -> bytes:
    """Return a figure as a file's contents, cut to what is drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], dpi=DPI, bbox_inches="tight", metadata=_METADATA[suffix])
    return buffer.getvalue()


def write_title(axes: "Axes", title: str, width: float) -> None:
    """Write the lines of a title above the axes, each wrapped to so many inches."""
    characters = max(24, int(14 * width))
    lines = [part for line in title.splitlines() for part in textwrap.wrap(one_line(line), characters)]
    axes.set_title("\n".join(lines), fontsize=8, loc="left", parse_math=False)
