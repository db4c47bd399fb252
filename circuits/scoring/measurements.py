"""Exact effects of edges on the first pairs of an experiment, more pairs for some edges than for others."""

import time
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from circuits.errors import OutputError
from circuits.graph import EdgeIndices
from circuits.scores import Floats
from circuits.scoring.budget import Meter
from circuits.tracing.protocol import Experiment, Progress

_EDGES_AT_ONCE = 4096
_SECONDS_BETWEEN_SAVES = 20.0


class Measurements:
    """Measures as far as a budget goes; with a ``ledger``, what was measured survives a kill and is not measured again.

    ``effects[e, :counts[e]]`` are the effects of edge e on the first pairs. The ledger does not know which model and
    prompts it belongs to: that is the caller's to keep apart.
    """

    def __init__(
        self, experiment: Experiment, meter: Meter, *, planned: int, ledger: Path | None, progress: Progress
    ) -> None:
        n_edges, n_pairs = experiment.graph.n_edges, experiment.n_pairs
        self._experiment, self._ledger, self._progress = experiment, ledger, progress
        self.meter, self.planned = meter, planned
        self.effects: Floats = np.zeros((n_edges, n_pairs))
        self.counts: NDArray[np.int64] = np.zeros(n_edges, dtype=np.int64)
        self._known, self._known_effects = self._kept()
        self._saved = time.monotonic()

    @property
    def n_pairs(self) -> int:
        """How many pairs there are in all."""
        return self._experiment.n_pairs

    def means(self, edges: EdgeIndices) -> Floats:
        """Give the mean effect of each edge over the pairs it was measured on."""
        return self.effects[edges].sum(axis=1) / self.counts[edges]

    def measure(self, edges: EdgeIndices, upto: int) -> None:
        """Measure edges on the first ``upto`` pairs; those first in the list go first if the budget does not last."""
        for begin in np.unique(self.counts[edges]).tolist():
            waiting = edges[self.counts[edges] == begin]
            while begin < upto and len(waiting):
                room = self.meter.room(len(waiting), upto - begin)
                if room <= 0:
                    break
                now, waiting = np.sort(waiting[:room]), waiting[room:]
                for first in range(0, len(now), _EDGES_AT_ONCE):
                    self._measure(now[first : first + _EDGES_AT_ONCE], begin, upto)
        self.save()

    def _measure(self, edges: EdgeIndices, begin: int, upto: int) -> None:
        kept = self._known[edges] >= upto
        old, new = edges[kept], edges[~kept]
        if len(old):
            self.effects[old, begin:upto] = self._known_effects[old, begin:upto]
        if len(new):
            self.effects[new, begin:upto] = self._experiment.part(begin, upto).edge_effects(new)
        self.counts[edges] = upto
        self.meter.spent += len(edges) * (upto - begin)
        self._progress(*self.meter.steps(self.planned))
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write the ledger, so that a kill at any moment leaves a whole file."""
        if self._ledger is None:
            return
        self._saved = time.monotonic()
        counts = np.maximum(self.counts, self._known)
        known = np.flatnonzero(counts)
        effects = np.where((self.counts >= self._known)[known, None], self.effects[known], self._known_effects[known])
        beside = self._ledger.with_name(self._ledger.name + ".part")
        try:
            with beside.open("wb") as file:
                np.savez(file, edges=known, counts=counts[known], effects=effects)
            beside.replace(self._ledger)
        except OSError as error:
            raise OutputError(
                f"cannot write {self._ledger}: {error.strerror}. Free some space or choose another --out."
            ) from error

    def _kept(self) -> tuple[NDArray[np.int64], Floats]:
        counts, effects = np.zeros_like(self.counts), self.effects
        if self._ledger is None or not self._ledger.is_file():
            return counts, effects
        try:
            with self._ledger.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                edges, found, values = kept["edges"], kept["counts"], kept["effects"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return counts, effects
        if values.shape[1:] != effects.shape[1:] or (len(edges) and edges.max() >= len(counts)):
            return counts, effects
        effects = np.zeros_like(effects)
        counts[edges], effects[edges] = found, values
        return counts, effects
