"""The journal of a discovery: finished stages, so that an interrupted run goes on where it was.

A folder with ``journal`` (JSON Lines: what was asked for, then one line per finished step) and ``scores.parquet``;
while ``verified`` scores are being measured also ``ledger.npz``, the measurements so far. A journal that was begun with
other settings is started afresh; a last line cut off by a kill is ignored.
"""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np

from circuits.errors import CircuitsError, OutputError
from circuits.export.scores import read_scores, write_scores
from circuits.graph import ComputationalGraph, Edge
from circuits.pruning.selection import Selection
from circuits.scores import EdgeScores

_FORMAT = "circuits/journal"
_VERSION = 1


class Journal:
    """Keeps a discovery's finished stages in a folder; ``settings`` are what makes two runs the same run."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool = False) -> None:
        self.folder = folder
        self._path, self._scores = folder / "journal", folder / "scores.parquet"
        head = {"format": _FORMAT, "version": _VERSION, "settings": settings}
        lines = _read(self._path) if resume else []
        same = bool(lines) and lines[0] == head
        self._steps = lines[1:] if same else []
        self.ledger = folder / "ledger.npz"
        if not same:
            self.ledger.unlink(missing_ok=True)
        self._write([head, *self._steps])  # without what a kill may have left of a last line

    @property
    def resumed(self) -> bool:
        """Whether finished stages of an earlier run were found."""
        return bool(self._steps) or self.ledger.is_file()

    def scores(self, graph: ComputationalGraph) -> EdgeScores | None:
        """Give the scores of the earlier run, if it got that far."""
        if not self._scores.is_file() or not any(step.get("step") == "scored" for step in self._steps):
            return None
        return read_scores(self._scores, graph)

    def keep_scores(self, scores: EdgeScores) -> None:
        """Keep finished scores, and no longer what they were made from."""
        write_scores(scores, self._scores)
        self._append({"step": "scored", "scorer": scores.scorer})
        self.ledger.unlink(missing_ok=True)

    def selection(self, graph: ComputationalGraph) -> Selection | None:
        """Give the smallest circuit that the earlier run's pruner had reached, if any."""
        found = [step for step in self._steps if "edges" in step]
        if not found:
            return None
        last = found[-1]
        try:
            edges = np.array([graph.index(Edge.parse(edge)) for edge in last["edges"]], dtype=np.int64)
            return Selection(edges, float(last["faithfulness"]), int(last["proposed"]), bool(last["by_magnitude"]))
        except (CircuitsError, KeyError, TypeError, ValueError):
            return None

    def keep_selection(self, graph: ComputationalGraph, step: str, selection: Selection) -> None:
        """Keep a step of the pruner."""
        self._append(
            {
                "step": step,
                "faithfulness": round(selection.faithfulness, 6),
                "proposed": selection.proposed,
                "by_magnitude": selection.by_magnitude,
                "edges": [str(edge) for edge in graph.edges(selection.edges)],
            }
        )

    def _append(self, step: dict[str, Any]) -> None:
        self._steps.append(step)
        self._write([step], append=True)

    def _write(self, lines: list[dict[str, Any]], *, append: bool = False) -> None:
        try:
            with self._path.open("a" if append else "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}. Free some space or choose another --out."
            ) from error


def _read(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            step: Any = json.loads(line)
        except ValueError:
            break
        if not isinstance(step, dict):
            break
        lines.append(cast("dict[str, Any]", step))
    return lines
