"""The same edges on the same prompts in two models: what tuning, an edit or training changed."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison.chance import UNKNOWN, ScoreEstimate, spearman
from circuits.comparison.names import names_of
from circuits.comparison.pair import CircuitDiff, difference
from circuits.equality import by_content
from circuits.files.documents import plain
from circuits.graph import Node
from circuits.records import ModelInfo
from circuits.scores import Flags, Floats
from circuits.statistics import central, picks

NAMED = 5
"""How many of the most changed nodes and edges the sentences name."""


@by_content
@dataclass(frozen=True, eq=False)
class ModelEffects:
    """Edges of a circuit measured in one model: ``effects[edge, pair]`` exactly, one by one; ``alone`` all together.

    ``alone[pair]`` is the metric when only these edges carry clean values. ``remark`` says why the model does not show
    the behaviour, where it does not.
    """

    model: ModelInfo
    clean: Floats
    corrupted: Floats
    effects: Floats
    alone: Floats
    remark: str = ""

    @cached_property
    def gap(self) -> float:
        """The mean metric of clean minus corrupted prompts."""
        return float(self.clean.mean() - self.corrupted.mean())

    @cached_property
    def gap_alone(self) -> float:
        """How much of the gap these edges alone make, in the metric's unit."""
        return float(self.alone.mean() - self.corrupted.mean())

    @cached_property
    def bounds(self) -> Floats:
        """The mean effect of every edge and its 95 % interval over prompts, ``(3, edge)``."""
        return _bounds(self.effects)

    @cached_property
    def acting(self) -> Flags:
        """Which edges have an effect whose interval does not hold 0."""
        return _off_zero(self.bounds)


@dataclass(frozen=True)
class NodeChange:
    """By how much the summed effects of the edges that a node sends differ between two models."""

    node: str
    here: float
    there: float
    change: ScoreEstimate


@dataclass(frozen=True)
class EdgeChanges:
    """What the same edges do in two models: ``here`` in the circuit's own, ``there`` in another, on the same prompts.

    ``circuit`` has the edges, those of one circuit or of either of two. Changes are ``here`` minus ``there``: positive
    where an edge does more for the behaviour here.
    """

    name: str
    circuit: Circuit
    here: ModelEffects
    there: ModelEffects

    @cached_property
    def bounds(self) -> Floats:
        """The mean change of every edge and its 95 % interval over prompts, ``(3, edge)``."""
        return _bounds(self.here.effects - self.there.effects)

    @cached_property
    def changed(self) -> Flags:
        """Which edges' change has an interval that does not hold 0."""
        return _off_zero(self.bounds)

    @cached_property
    def flipped(self) -> Flags:
        """Which edges act in both models, with opposite signs."""
        opposite = self.here.bounds[0] * self.there.bounds[0] < 0
        return opposite & self.here.acting & self.there.acting

    @cached_property
    def ranks(self) -> float:
        """Spearman's correlation of the effects in the two models."""
        return spearman(self.here.bounds[0], self.there.bounds[0])

    @cached_property
    def strength(self) -> ScoreEstimate:
        """The sum of |effect| there over that here, with an interval over prompts."""
        here, there = (np.abs(each.effects.mean(1)).sum() for each in (self.here, self.there))
        weights = _weights(self.here.effects.shape[1])
        drawn = [np.abs(each.effects @ weights.T).sum(0) for each in (self.here, self.there)]
        if here == 0:
            return UNKNOWN
        low, high = central(drawn[1] / np.maximum(drawn[0], 1e-300))
        return ScoreEstimate(float(there / here), float(low), float(high), "prompts")

    @property
    def gap_ratio(self) -> float:
        """The gap between clean and corrupted prompts there over that here."""
        return self.there.gap / self.here.gap if self.here.gap else math.nan

    @cached_property
    def model_names(self) -> tuple[str, str]:
        """What to call the two models."""
        made = [replace(self.circuit, model=each.model) for each in (self.here, self.there)]
        names = names_of(made)
        return (names[0], names[1])

    @cached_property
    def strongest_edges(self) -> list[int]:
        """Places of the changed edges, the largest change first."""
        order = np.argsort(-np.abs(self.bounds[0]), kind="stable")
        return [int(place) for place in order if self.changed[place]]

    @cached_property
    def nodes(self) -> tuple[NodeChange, ...]:
        """Every sending node, the largest change first; effects of single edges are summed, not measured together."""
        senders = [edge.sender for edge in self.circuit.edge_list]
        nodes: Sequence[Node] = list(dict.fromkeys(senders))
        places = {node: i for i, node in enumerate(nodes)}
        sums = np.zeros((2, len(nodes), self.here.effects.shape[1]))
        for row, each in enumerate((self.here, self.there)):
            np.add.at(sums[row], [places[sender] for sender in senders], each.effects)
        bounds = _bounds(sums[0] - sums[1])
        found = [
            NodeChange(
                str(node),
                float(sums[0, i].mean()),
                float(sums[1, i].mean()),
                _estimate(bounds[:, i]),
            )
            for node, i in places.items()
        ]
        return tuple(sorted(found, key=lambda each: -abs(each.change.value)))

    def difference(self) -> CircuitDiff:
        """Return the edges that act in either model as two circuits with measured effects, for a difference diagram."""
        made = [
            self.circuit.with_edges(
                self.circuit.edges[each.acting],
                each.bounds[0][each.acting],
                model=each.model,
                measured=True,
                method=replace(self.circuit.method, scorer="exact"),
            )
            for each in (self.here, self.there)
        ]
        return difference(made[0], made[1], names=self.model_names)

    def draw(self, path: str | Path, *, title: str | None = None) -> None:
        """Draw the edges that act in either model into one diagram; the suffix (.svg .pdf .png .dot) says as what."""
        self.difference().draw(path, title=self.title if title is None else title)

    @property
    def title(self) -> str:
        """The title of its diagram."""
        here, there = self.model_names
        return f"edges of {self.name} that have an effect in {here} (A) or {there} (B)"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values, the most changed edges first."""
        order = np.argsort(-np.abs(self.bounds[0]), kind="stable")
        document = {
            "name": self.name,
            "pairs": self.here.effects.shape[1],
            "models": [
                {
                    "model": each.model.id,
                    "metric_clean": float(each.clean.mean()),
                    "metric_corrupted": float(each.corrupted.mean()),
                    "metric_edges_alone": float(each.alone.mean()),
                    "edges_acting": int(each.acting.sum()),
                    "remark": each.remark,
                }
                for each in (self.here, self.there)
            ],
            "strength_there_over_here": asdict(self.strength),
            "gap_there_over_here": self.gap_ratio,
            "rank_correlation": self.ranks,
            "edges": [self._edge(int(place)) for place in order],
            "nodes": [asdict(node) for node in self.nodes],
        }
        return cast("dict[str, Any]", plain(document))

    def estimate(self, place: int) -> ScoreEstimate:
        """Return the change of one edge of the circuit."""
        return _estimate(self.bounds[:, place])

    def _edge(self, place: int) -> dict[str, Any]:
        return {
            "edge": str(self.circuit.edge_list[place]),
            "here": float(self.here.bounds[0, place]),
            "there": float(self.there.bounds[0, place]),
            "change": asdict(self.estimate(place)),
            "changed": bool(self.changed[place]),
            "sign_flip": bool(self.flipped[place]),
        }

    def sentences(self) -> list[str]:
        """Return in sentences what changed and what that does and does not support."""
        here, there = self.model_names
        unit, total = self.circuit.behaviour.unit, len(self.circuit)
        return [
            f"The same {total} edges of {self.name} on the same {self.here.effects.shape[1]} prompt pairs: "
            f"{self.circuit.behaviour.metric} is {_ends(self.here)} {unit} in {here}, {_ends(self.there)} in {there}.",
            *(
                f"{name} does not show the behaviour, so there is no circuit of it there to compare with: {each.remark}"
                for name, each in ((here, self.here), (there, self.there))
                if each.remark
            ),
            f"Alone, these edges move it by {self.here.gap_alone:.2f} of {self.here.gap:.2f} {unit} in {here} and by "
            f"{self.there.gap_alone:.2f} of {self.there.gap:.2f} in {there}.",
            f"{int(self.here.acting.sum())} of the {total} have an effect whose interval does not hold 0 in {here}, "
            f"{int(self.there.acting.sum())} in {there} (about {0.05 * total:.0f} would by chance); together their "
            f"effects in {there} are {self.strength.describe()} of the size of those in {here} (the whole gap: "
            f"{self.gap_ratio:.2f}){self._alike()}.",
            *self._changes_in_words(),
        ]

    def _alike(self) -> str:
        return "" if np.isnan(self.ranks) else f", and their ranks correlate at {self.ranks:.2f}"

    def _changes_in_words(self) -> list[str]:
        here, there = self.model_names
        changed = int(self.changed.sum())
        if changed <= 0.1 * len(self.circuit):
            return [
                f"{changed} of {len(self.circuit)} edges changed (95 % intervals): hardly more than by chance, so this "
                f"does not show that these edges do anything else in {here} than in {there}."
            ]
        more = int(np.sum(self.changed & (self.bounds[0] > 0)))
        edges = ", ".join(
            f"{self.circuit.edge_list[place]} ({self.there.bounds[0, place]:.2f} to {self.here.bounds[0, place]:.2f})"
            for place in self.strongest_edges[:NAMED]
        )
        nodes = ", ".join(f"{each.node} ({each.there:.2f} to {each.here:.2f})" for each in self.nodes[:NAMED])
        return [
            f"{changed} of {len(self.circuit)} edges changed (95 % intervals): {more} do more for the behaviour in "
            f"{here}, {changed - more} less, {int(self.flipped.sum())} change sign.",
            f"Most changed edges, from {there} to {here}: {edges}.",
            f"Most changed senders (sums over their edges): {nodes}.",
            "That an edge does more does not show that its weights were changed: what reaches it and what reads it may "
            "have been.",
        ]


def _ends(each: ModelEffects) -> str:
    return f"{each.clean.mean():.2f} clean and {each.corrupted.mean():.2f} corrupted"


def _weights(n: int) -> Floats:
    """Return the weight of every pair in every resample, the same for the same number of pairs."""
    chosen = picks(n)
    weights = np.zeros(chosen.shape)
    np.add.at(weights, (np.arange(len(chosen))[:, None], chosen), 1 / n)
    return weights


def _bounds(values: Floats) -> Floats:
    """Return mean, low and high of each row over resampled columns."""
    resampled = values @ _weights(values.shape[1]).T
    low, high = central(resampled)
    return np.stack([values.mean(1), low, high])


def _estimate(bounds: Floats) -> ScoreEstimate:
    return ScoreEstimate(float(bounds[0]), float(bounds[1]), float(bounds[2]), "prompts")


def _off_zero(bounds: Floats) -> Flags:
    return (bounds[1] > 0) | (bounds[2] < 0)
