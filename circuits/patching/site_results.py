"""What activation patching found: shares of the gap between two runs, with intervals, as a picture and as a table."""

import csv
import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from circuits.drawing.bars import bars_bytes
from circuits.drawing.figure import chart_suffix
from circuits.drawing.heatmap import heatmap_bytes
from circuits.equality import by_content
from circuits.files.atomic import write
from circuits.scores import Floats
from circuits.statistics import share_of
from circuits.vocabulary import Direction, Metric, Site

BY_CONSTRUCTION = (
    "the stream at all positions of a layer is everything that later layers read, so every layer restores 1.00 by "
    "construction and tells nothing; patch position by position (--by layer,position), or the site attn or mlp."
)
ALL = "all positions"


@by_content
@dataclass(frozen=True, eq=False)
class SitePatching:
    """The metric after patching each place, of each pair: ``per_pair[layer, column, pair]``.

    Columns are positions, heads, or all positions at once. ``direction`` denoising puts clean values into the corrupted
    run, noising corrupted ones into the clean run. With site ``resid`` a layer's row is the stream that enters it.
    ``clean`` and ``corrupted`` are the metric of both runs by pair, in the metric's unit. Pairs with the same number in
    ``clusters`` are no independent evidence, and are resampled together.
    """

    site: Site
    direction: Direction
    metric: Metric
    columns: tuple[str, ...]
    per_pair: NDArray[np.float64]
    clean: Floats
    corrupted: Floats
    clusters: NDArray[np.int64]

    @property
    def values(self) -> Floats:
        """The mean metric after patching, ``(layer, column)``."""
        return self.per_pair.mean(axis=-1)

    @property
    def _ends(self) -> tuple[Floats, Floats]:
        """The metric of the run that is patched, and of the run that values come from, by pair."""
        denoising = self.direction is Direction.DENOISING
        return (self.corrupted, self.clean) if denoising else (self.clean, self.corrupted)

    @property
    def restored(self) -> Floats:
        """The share of the gap that patching closes, ``(layer, column)``: 0 the patched run, 1 the other one.

        A ratio of means over pairs.
        """
        start, end = (each.mean() for each in self._ends)
        return (self.values - start) / (end - start)

    @cached_property
    def intervals(self) -> Floats:
        """The 95 % intervals of ``restored`` over pairs, ``(layer, column, 2)``; NaN of a single pair or cluster."""
        start, end = self._ends
        bounds = np.full((*self.per_pair.shape[:2], 2), math.nan)
        for place in np.ndindex(*self.per_pair.shape[:2]):
            found = share_of(self.per_pair[place] - start, end - start, clusters=self.clusters)
            if found.low is not None and found.high is not None:
                bounds[place] = found.low, found.high
        return bounds

    @property
    def by_layer(self) -> bool:
        """Whether all positions of a layer were patched at once."""
        return self.columns == (ALL,)

    @property
    def remark(self) -> str:
        """A remark where the values are what they are by construction; else nothing."""
        return BY_CONSTRUCTION if self.by_layer and self.site is Site.RESID else ""

    @property
    def action(self) -> str:
        """What was done, in words."""
        source, run = self._run_names
        return f"{self.site} of the {source} run put into the {run} run ({self.direction})"

    @property
    def share(self) -> str:
        """What the shares mean, in words."""
        source, run = self._run_names
        verb = "restored" if self.direction is Direction.DENOISING else "lost"
        return f"share of the gap {verb} (0: the {run} run, 1: the {source} run)"

    @property
    def _run_names(self) -> tuple[str, str]:
        return ("clean", "corrupted") if self.direction is Direction.DENOISING else ("corrupted", "clean")

    @property
    def measured_on(self) -> str:
        """The metric of both runs and the number of pairs, in words."""
        ends = f"clean {self.clean.mean():.3f}, corrupted {self.corrupted.mean():.3f} {self.metric.unit}"
        return f"{self.metric}: {ends}; {len(self.clean)} pairs"

    def __repr__(self) -> str:
        restored = self.restored
        layer, column = np.unravel_index(int(np.argmax(np.abs(restored))), restored.shape)
        best = f"largest share {restored[layer, column]:.2f} at layer {layer}, {self.columns[column]}"
        return f"SitePatching({self.action}; {best}; {self.measured_on})"[:290]

    def _repr_png_(self) -> bytes:
        """Show the picture in a notebook."""
        return self.picture(".png")

    def draw(self, path: str | Path, *, title: str = "") -> None:
        """Draw the picture into a ``.svg``, ``.png`` or ``.pdf`` file; see :meth:`picture`.

        Raises :class:`UnknownNameError` for another suffix and :class:`OutputError` for a place that cannot be written.
        """
        write(path, self.picture(chart_suffix(path), title=title))

    def picture(self, suffix: str, *, title: str = "") -> bytes:
        """Return the picture as a file of that suffix: bars with intervals by layer, else a heatmap.

        ``title`` says of which behaviour and model it is. Below it stand what was done, the metric of both runs and the
        number of pairs.
        """
        lines = [title, self.action, self.measured_on, self.remark]
        heading, layers = "\n".join(line for line in lines if line), [str(i) for i in range(len(self.per_pair))]
        if self.by_layer:
            bounds = self.intervals[:, 0]
            note = " (95 % interval)" if np.isfinite(bounds).any() else ""
            label = self.share.partition(" (")[0] + note
            return bars_bytes(self.restored[:, 0], bounds, layers, ("layer", label), heading, suffix)
        ticks = layers, self.columns
        across = "head" if self.site is Site.HEAD else "token position"
        return heatmap_bytes(self.restored, ticks, ("layer", across), (heading, self.share), suffix)

    def to_csv(self) -> str:
        """Return the text of a CSV file: a row for every place, with its metric and its share, with an interval."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["layer", "column", "label", "metric", "share", "share_low", "share_high"])
        restored, values = self.restored, self.values
        for layer, column in np.ndindex(*values.shape):
            numbers = values[layer, column], restored[layer, column], *self.intervals[layer, column]
            cells = [f"{number:.6g}" if math.isfinite(number) else "" for number in numbers]
            writer.writerow([layer, column, self.columns[column], *cells])
        return buffer.getvalue()
