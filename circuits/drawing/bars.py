# matplotlib leaves keyword arguments of its methods untyped
# pyright: reportUnknownMemberType=false
"""Bar charts with intervals: one bar for each layer."""

import math
from collections.abc import Sequence

import numpy as np

from circuits.diagrams.markup import one_line
from circuits.drawing.figure import chart_bytes, new_figure, write_title
from circuits.errors import UsageError
from circuits.scores import Floats

_BAR = 0.16
_WIDTHS = (3.3, 9.0)
_HEIGHT = 2.0
_COLOUR, _LINE = "#3B6FA0", "#222222"


def bars_bytes(
    values: Floats, bounds: Floats, ticks: Sequence[str], axes_labels: tuple[str, str], title: str, suffix: str
) -> bytes:
    """Return a bar for each value with its interval, as a ``.svg``, ``.png`` or ``.pdf`` file holds it.

    ``bounds`` are the intervals' ends, ``(bar, 2)``; of a bar whose ends are not numbers none is drawn. ``axes_labels``
    say what the bars and their heights are. The axis always holds 0 and 1, the two ends of a share. The same values
    give the same bytes. Raises :class:`UsageError` when labels, bounds and values do not match.
    """
    if values.shape != (len(ticks),) or bounds.shape != (len(ticks), 2) or not len(ticks):
        raise UsageError(
            f"a chart of {len(ticks)} labels needs as many values (at least 1) and pairs of bounds, got "
            f"{values.shape} and {bounds.shape}."
        )
    width = float(np.clip(_BAR * len(ticks), *_WIDTHS))
    with new_figure(width, _HEIGHT) as (figure, axes):
        places = np.arange(len(ticks))
        axes.bar(places, np.nan_to_num(values), width=0.72, color=_COLOUR, linewidth=0)
        sure = np.isfinite(bounds).all(axis=1) & np.isfinite(values)
        lengths = np.abs(bounds[sure] - values[sure, None]).T
        axes.errorbar(places[sure], values[sure], yerr=lengths, fmt="none", ecolor=_LINE, elinewidth=0.8, capsize=1.5)
        axes.axhline(0, color=_LINE, linewidth=0.6)
        axes.axhline(1, color=_LINE, linewidth=0.5, linestyle=(0, (3, 3)))
        shown = range(0, len(ticks), math.ceil(_BAR * len(ticks) / width))
        axes.set_xticks(list(shown), [one_line(ticks[place]) for place in shown], parse_math=False)
        axes.set_xlabel(one_line(axes_labels[0]), parse_math=False)
        axes.set_ylabel(one_line(axes_labels[1]), parse_math=False)
        axes.margins(x=0.01)
        axes.spines[["top", "right"]].set_visible(False)
        write_title(axes, title, width)
        return chart_bytes(figure, suffix)
