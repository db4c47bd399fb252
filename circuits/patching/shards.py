"""One exact sweep shared among processes that meet in a folder: every one measures what no other has or is at.

Edges are cut into *shards*: those into one layer through one kind of receiver, which share the run of that layer's
attention and everything before it. A shard's result is a file under the digest of what it depends on (model, prompt
pairs, metric, ablation, direction, edges), so that it does not matter who measured it, when, in which order, or how
often. A process locks the shard it is at; where it is killed the lock is gone, and another measures the shard.

Where the memory plan is the same everywhere, batches are those of one process, and so is every bit of the result.
"""

import hashlib
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from circuits.errors import DeviceError, OutputError, UsageError
from circuits.files.atomic import make_folder, write
from circuits.files.journal import NOWHERE, arrays_in, bytes_of
from circuits.graph import ComputationalGraph, EdgeIndices
from circuits.passes.exact import receiver_groups
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.patching.sequences import AnyExperiment, SequenceExperiment
from circuits.scores import Floats

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


def shared_effects(
    experiment: Experiment,
    edges: EdgeIndices,
    folder: Path,
    *,
    progress: Progress = no_progress,
) -> Floats:
    """Return the exact effects of sorted edges, shape ``(edge, pair)``, measured together with other processes.

    They do the same in the same folder. After :data:`PATIENCE` a shard that another is at is measured here too;
    ``progress`` is told how many edges are measured, by whomever. Raises :class:`UsageError` for an experiment without
    journal, by which it is known what belongs together; :class:`OutputError` for a folder that cannot be written to;
    and :class:`DeviceError` for effects that are no numbers in two tries: such a shard is never kept.
    """
    if experiment.kept is NOWHERE or not isinstance(experiment, PatchingExperiment | SequenceExperiment):
        raise UsageError(
            "shards are known by what they are measured from; make the experiment with a journal: "
            "model.experiment(pairs, journal=circuits.Journal(path))."
        )
    make_folder(folder)
    return _Sharing(experiment, folder, progress).measured(edges)


class _Sharing:
    """Measures shards that nobody else has measured or is at, and reads the others."""

    def __init__(self, experiment: AnyExperiment, folder: Path, progress: Progress) -> None:
        self._experiment, self._folder, self._progress, self._slowest = experiment, folder, progress, 0.0

    def measured(self, edges: EdgeIndices) -> Floats:
        """Return the effects of all edges, shape ``(edge, pair)``."""
        left = shards_of(self._experiment.graph, edges, at_once=_edges_at_once(self._experiment))
        effects = np.full((len(edges), self._experiment.n_pairs), np.nan)
        while left:
            busy: list[Shard] = []
            for shard in left:
                found = self._found(shard, wait=0.0)
                if found is None:
                    busy.append(shard)
                    continue
                effects[np.searchsorted(edges, shard.edges)] = found
                self._progress(int(np.count_nonzero(~np.isnan(effects[:, 0]))), len(edges))
            left = busy
            if left:  # others are at all that is left: wait for the first of it
                found = self._found(left[0], wait=max(PATIENCE, 3 * self._slowest))
                if found is None:
                    count = len(left[0].edges)
                    _LOGGER.warning("another process has %d edges for long; they are measured here too", count)
                    self._measure(left[0])
        return effects

    def _found(self, shard: Shard, *, wait: float) -> Floats | None:
        """Return a shard's effects, measured here unless another process is at it; None where that lasts."""
        file, until = self._file(shard), time.monotonic() + wait
        while True:
            found = self._read(shard)
            if found is not None:
                return found
            try:
                with FileLock(f"{file}.lock", timeout=0):
                    found = self._read(shard)
                    return self._measure(shard) if found is None else found
            except Timeout:
                if time.monotonic() >= until:
                    return None
                time.sleep(_LOOK)
            except OSError as error:
                if isinstance(error, OutputError):
                    raise
                raise OutputError(f"cannot write {file}.lock: {error.strerror}.") from error

    def _measure(self, shard: Shard) -> Floats:
        begun = time.monotonic()
        effects = self._experiment.edge_effects(shard.edges)
        if not np.isfinite(effects).all():
            effects = self._experiment.edge_effects(shard.edges)
        if not np.isfinite(effects).all():
            count = int((~np.isfinite(effects)).any(axis=1).sum())
            raise DeviceError(
                f"the effects of {count} of {len(shard.edges)} edges are no numbers, twice; measure with --dtype "
                "float32, or on another device."
            )
        write(self._file(shard), bytes_of({"edges": shard.edges, "effects": effects}), make_folder=True)
        self._slowest = max(self._slowest, time.monotonic() - begun)
        return effects

    def _read(self, shard: Shard) -> Floats | None:
        """Return what is kept of a shard; None where nothing whole is."""
        try:
            kept = arrays_in(self._file(shard).read_bytes())
        except OSError:
            return None
        if kept is None or not np.array_equal(kept.get("edges", ()), shard.edges):
            return None
        effects = kept.get("effects", np.empty(0))
        whole = effects.shape == (len(shard.edges), self._experiment.n_pairs)
        return effects if whole and np.isfinite(effects).all() else None

    def _file(self, shard: Shard) -> Path:
        digest = hashlib.sha256(self._experiment.kept.of + self._experiment.options.direction.encode())
        digest.update(np.ascontiguousarray(shard.edges, dtype="<i8").tobytes())
        return self._folder / f"{digest.hexdigest()[:32]}.npz"


def _edges_at_once(experiment: AnyExperiment) -> int | None:
    """Return how many edges, or a multiple, run in one batch whatever the pairs; None where that cannot be told."""
    if not isinstance(experiment, PatchingExperiment):
        return None
    sizes = [max(1, experiment.budget(batch).rows // len(batch.index)) for batch in experiment.batches]
    return math.lcm(*sizes)
