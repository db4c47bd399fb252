"""Measurements shared among processes that meet in a folder: every one measures what no other has or is at.

Edges are cut into *shards*: those into one layer through one kind of receiver, which share the run of that layer's
attention and everything before it. Circuits are cut by their number, slopes of a circuit by pairs
(:mod:`circuits.patching.shared_experiment`). The result of a piece is a file under the digest of what it depends on
(model, prompt pairs, metric, ablation, direction, edges), so that it does not matter who measured it, when, in which
order, or how often. A process locks the piece it is at; where it is killed the lock is gone, and another measures it.

Where the memory plan is the same everywhere, batches of edges are those of one process, and so is every bit of the
result.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from circuits.errors import DeviceError, OutputError
from circuits.files.atomic import make_folder, write
from circuits.files.journal import Arrays, arrays_in, bytes_of
from circuits.graph import ComputationalGraph, EdgeIndices
from circuits.passes.exact import receiver_groups
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import Progress
from circuits.patching.sequences import AnyExperiment

_LOGGER = logging.getLogger(__name__)
MOST = 512
"""Edges of a shard, about: a shard takes minutes at most, and there are enough for many workers."""
_LOOK = 0.2
"""Seconds between looks at a shard that another process is at."""
PATIENCE = 60.0
"""A shard that another process is at is measured here too after so many seconds, or three times what one took here."""


@dataclass(frozen=True)
class Shard:
    """Edges that are measured together; ``cost`` is in passes of one layer."""

    edges: EdgeIndices
    cost: int


def shards_of(graph: ComputationalGraph, edges: EdgeIndices, *, at_once: int | None = 1) -> list[Shard]:
    """Cut edges into shards of :data:`MOST` edges or little more, the most costly first.

    ``at_once`` edges run in one batch: pieces of one group are whole batches, so that batches are those of a sweep in
    one process. ``None``: groups are not cut.
    """
    shards: list[Shard] = []
    for group in receiver_groups(graph, edges):
        layers = graph.shape.n_layers + 1 - group.layer
        most = len(group.edges) if at_once is None else at_once * math.ceil(MOST / at_once)
        pieces = [group.edges[first : first + most] for first in range(0, len(group.edges), most)]
        shards += [Shard(piece, layers * len(piece)) for piece in pieces]
    return sorted(shards, key=lambda shard: -shard.cost)


@dataclass(frozen=True)
class Piece:
    """What one process measures at once.

    Attributes:
        name: Says from what it is measured: pieces of the same name are the same.
        what: Says it to people, such as ``512 edges``.
        size: How much of the whole it is, for the progress report.
        shapes: Those of the arrays that it gives.
        measure: Measures it.
    """

    name: bytes
    what: str
    size: int
    shapes: Mapping[str, tuple[int, ...]]
    measure: Callable[[], Arrays]


def measured_together(pieces: Sequence[Piece], folder: Path, *, progress: Progress) -> list[Arrays]:
    """Return what is measured of every piece, by this process or by others that do the same in the same folder.

    Pieces are taken in their order. After :data:`PATIENCE` one that another process is at is measured here too;
    ``progress`` is told the sizes of pieces that are there, by whomever. Raises :class:`OutputError` for a folder that
    cannot be written to, and :class:`DeviceError` for what is no number in two tries: such a piece is never kept.
    """
    make_folder(folder)
    return _Meeting(folder, progress).measured(pieces)


class _Meeting:
    """Measures pieces that nobody else has measured or is at, and reads the others."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress, self._slowest = folder, progress, 0.0

    def measured(self, pieces: Sequence[Piece]) -> list[Arrays]:
        """Return what is measured of every piece."""
        found: dict[int, Arrays] = {}
        left, total = list(range(len(pieces))), sum(piece.size for piece in pieces)
        while left:
            busy: list[int] = []
            for place in left:
                arrays = self._found(pieces[place], wait=0.0)
                if arrays is None:
                    busy.append(place)
                    continue
                found[place] = arrays
                self._progress(sum(pieces[each].size for each in found), total)
            left = busy
            if left:  # others are at all that is left: wait for the first of it
                piece = pieces[left[0]]
                if self._found(piece, wait=max(PATIENCE, 3 * self._slowest)) is None:
                    _LOGGER.warning("another process has %s for long; they are measured here too", piece.what)
                    self._measure(piece)
        return [found[place] for place in range(len(pieces))]

    def _found(self, piece: Piece, *, wait: float) -> Arrays | None:
        """Return what is measured of a piece, here unless another process is at it; None where that lasts."""
        file, until = self._file(piece), time.monotonic() + wait
        while True:
            found = self._read(piece)
            if found is not None:
                return found
            try:
                with FileLock(f"{file}.lock", timeout=0):
                    found = self._read(piece)
                    return self._measure(piece) if found is None else found
            except Timeout:
                if time.monotonic() >= until:
                    return None
                time.sleep(_LOOK)
            except OSError as error:
                if isinstance(error, OutputError):
                    raise
                raise OutputError(f"cannot write {file}.lock: {error.strerror}.") from error

    def _measure(self, piece: Piece) -> Arrays:
        begun = time.monotonic()
        arrays = piece.measure()
        if _wrong(arrays):
            arrays = piece.measure()
        if _wrong(arrays):
            raise DeviceError(
                f"{_wrong(arrays)} numbers measured of {piece.what} are no numbers, twice; measure with --dtype "
                "float32, or on another device."
            )
        write(self._file(piece), bytes_of(arrays), make_folder=True)
        self._slowest = max(self._slowest, time.monotonic() - begun)
        return arrays

    def _read(self, piece: Piece) -> Arrays | None:
        """Return what is kept of a piece; None where nothing whole is."""
        try:
            kept = arrays_in(self._file(piece).read_bytes())
        except OSError:
            return None
        if kept is None or {name: array.shape for name, array in kept.items()} != dict(piece.shapes):
            return None
        return None if _wrong(kept) else kept

    def _file(self, piece: Piece) -> Path:
        return self._folder / f"{hashlib.sha256(piece.name).hexdigest()[:32]}.npz"


def _wrong(arrays: Arrays) -> int:
    """Return how many numbers are none."""
    return sum(int(np.count_nonzero(~np.isfinite(array))) for array in arrays.values())


def edges_at_once(experiment: AnyExperiment) -> int | None:
    """Return how many edges, or a multiple, run in one batch whatever the pairs; None where that cannot be told."""
    if not isinstance(experiment, PatchingExperiment):
        return None
    sizes = [max(1, experiment.budget(batch).rows // len(batch.index)) for batch in experiment.batches]
    return math.lcm(*sizes)
