# matplotlib leaves keyword arguments of its methods untyped
# pyright: reportUnknownMemberType=false
"""Labelled heatmaps of activation patching: tokens on one axis, layers or heads on the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuits.diagrams.markup import one_line
from circuits.drawing.figure import chart_bytes, chart_suffix, new_figure, write_title
from circuits.errors import UsageError
from circuits.files.atomic import write
from circuits.scores import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NUMBERS = 150
"""Up to this many cells carry their value as text."""

_CELL = 0.27
_NUMBERED_CELL = 0.42


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
    """Draw :func:`heatmap_bytes` into a ``.svg``, ``.png`` or ``.pdf`` file; errors as there, and of writing."""
    labels, captions = (row_label, column_label), (title, colour_label)
    write(path, heatmap_bytes(values, (rows, columns), labels, captions, chart_suffix(path)))


def heatmap_bytes(
    values: Floats,
    ticks: tuple[Sequence[str], Sequence[str]],
    axes_labels: tuple[str, str],
    captions: tuple[str, str],
    suffix: str,
) -> bytes:
    """Return a matrix as a labelled heatmap, as a file of that suffix holds it; the first row is at the bottom.

    ``ticks`` and ``axes_labels`` are of rows and columns, ``captions`` the title (of one line or more) and what the
    colours mean. Colours diverge from white at 0 (red above, blue below, told apart by colour-blind readers) and cover
    the largest |value| on both sides. What is not a number is grey. The same values give the same bytes. Raises
    :class:`UsageError` when labels and values do not match.
    """
    import matplotlib as mpl

    shape = len(ticks[0]), len(ticks[1])
    if values.ndim != 2 or values.shape != shape or 0 in values.shape:
        raise UsageError(
            f"a heatmap of {shape[0]} row labels and {shape[1]} column labels needs values of that shape, at "
            f"least 1 x 1, got {values.shape}."
        )
    cell = _NUMBERED_CELL if values.size <= MAX_NUMBERS else _CELL
    with new_figure(max(2.4, cell * shape[1]), max(1.2, cell * shape[0])) as (figure, axes):
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
        return chart_bytes(figure, suffix)


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
    write_title(axes, title, _CELL * len(columns))
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
