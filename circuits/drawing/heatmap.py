# matplotlib leaves keyword arguments of its methods untyped
# pyright: reportUnknownMemberType=false
"""Labelled heatmaps of activation patching: tokens on one axis, layers or heads on the other."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.diagrams.markup import one_line
from circuits.errors import UnknownNameError, UsageError
from circuits.files.atomic import write
from circuits.scores import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NUMBERS = 150
"""Up to this many cells carry their value as text."""

_CELL = 0.27
_NUMBERED_CELL = 0.42
_METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}


def heatmap(
    values: Floats,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    colour_label: str,
    path: str | Path,
    row_label: str = "",
    column_label: str = "",
) -> None:
    """Draw a matrix as a labelled heatmap into a ``.svg``, ``.png`` or ``.pdf`` file; the first row is at the bottom.

    Colours diverge from white at 0 (red above, blue below, told apart by colour-blind readers) and cover the largest
    |value| on both sides. What is not a number is grey. The same values give the same bytes. Raises
    :class:`UsageError` when labels and values do not match, :class:`UnknownNameError` for another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _METADATA:
        raise UnknownNameError("file format", suffix or str(path), _METADATA)
    if values.ndim != 2 or values.shape != (len(rows), len(columns)) or 0 in values.shape:
        raise UsageError(
            f"a heatmap of {len(rows)} row labels and {len(columns)} column labels needs values of that shape, at "
            f"least 1 x 1, got {values.shape}."
        )
    write(path, _figure_bytes(values, (rows, columns), (row_label, column_label), (title, colour_label), suffix))


def _figure_bytes(
    values: Floats,
    ticks: tuple[Sequence[str], Sequence[str]],
    axes_labels: tuple[str, str],
    captions: tuple[str, str],
    suffix: str,
) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": "circuits",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.family": ["DejaVu Sans"],
        "font.size": 8,
    }
    cell = _NUMBERED_CELL if values.size <= MAX_NUMBERS else _CELL
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # tokens may be in any script
        figure = Figure(figsize=(max(2.4, cell * values.shape[1]), max(1.2, cell * values.shape[0])))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
        limit = largest or 1.0
        colours = mpl.colormaps["RdBu_r"].with_extremes(bad="#D5D5D5")
        masked = np.ma.masked_invalid(values)
        picture = axes.imshow(masked, cmap=colours, vmin=-limit, vmax=limit, origin="lower", aspect="auto")
        _label_axes(axes, ticks, axes_labels, captions[0])
        if values.size <= MAX_NUMBERS:
            _write_numbers(axes, values, limit)
        bar_width = 0.14 / figure.get_figwidth()
        gap = 0.18 / figure.get_figwidth()
        bar = figure.colorbar(picture, cax=figure.add_axes((1.0 + gap, 0.0, bar_width, 1.0)))
        bar.set_label(one_line(captions[1]), parse_math=False)
        bar.outline.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=200, bbox_inches="tight", metadata=_METADATA[suffix])
    return buffer.getvalue()


def _label_axes(
    axes: "Axes", ticks: tuple[Sequence[str], Sequence[str]], axes_labels: tuple[str, str], title: str
) -> None:
    rows, columns = ([one_line(label, limit=24) or "␣" for label in labels] for labels in ticks)
    flat = max(len(label) for label in columns) <= 3
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_xticks(
        range(len(columns)),
        columns,
        parse_math=False,
        rotation=0 if flat else 55,
        ha="center" if flat else "right",
        rotation_mode="anchor" if not flat else "default",
    )
    axes.set_ylabel(one_line(axes_labels[0]), parse_math=False)
    axes.set_xlabel(one_line(axes_labels[1]), parse_math=False)
    characters = max(24, int(12 * _CELL * len(columns)))
    axes.set_title("\n".join(textwrap.wrap(one_line(title), characters)), fontsize=9, loc="left", parse_math=False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _write_numbers(axes: "Axes", values: Floats, limit: float) -> None:
    for row, column in np.argwhere(np.isfinite(values)).tolist():
        value = float(values[row, column])
        dark = abs(value) > 0.6 * limit
        rounded = round(value, 2 if limit < 10 else 1) + 0.0  # -0.0 becomes 0.0
        text = (f"{rounded:.2f}" if limit < 10 else f"{rounded:.1f}").replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "#222222")
