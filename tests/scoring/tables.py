"""Experiments whose single-edge effects are a table, for scorers that only measure and attribute single edges."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.builder import build_graph
from circuits.files.journal import NOWHERE
from circuits.graph import ComputationalGraph, EdgeIndices, ModelShape
from circuits.patching.protocol import Progress, no_progress
from circuits.vocabulary import Metric

Floats = NDArray[np.float64]
SHAPE = ModelShape(n_layers=6, n_heads=6, n_kv_heads=3, d_model=8, d_head=2)
GRAPH = build_graph(SHAPE)


@dataclass(frozen=True)
class TableExperiment:
    """Effects ``(edge, pair)`` and attributions ``(2, edge)`` as given; ``spent`` lists (edges, pairs) of each call."""

    effects: Floats
    estimates: Floats
    spent: list[tuple[int, int]] = field(default_factory=list)
    graph: ComputationalGraph = GRAPH

    metric = Metric.LOGIT_DIFFERENCE
    kept = NOWHERE

    @property
    def n_pairs(self) -> int:
        return self.effects.shape[1]

    @property
    def measurements(self) -> int:
        return sum(edges * pairs for edges, pairs in self.spent)

    @property
    def exact(self) -> Floats:
        return self.effects.mean(axis=1)

    def exact_top(self, k: int) -> set[int]:
        return set(np.argsort(-np.abs(self.exact), kind="stable")[:k].tolist())

    def part(self, begin: int, end: int) -> "TableExperiment":
        return TableExperiment(self.effects[:, begin:end], self.estimates, self.spent, self.graph)

    def edge_effects(self, edges: EdgeIndices, *, progress: Progress = no_progress) -> Floats:
        assert len(np.unique(edges)) == len(edges)
        self.spent.append((len(edges), self.n_pairs))
        progress(len(edges), len(edges))
        return self.effects[edges]

    def attributions(
        self,
        points: Sequence[float],
        *,
        stepwise: bool = False,
        rules: BackwardRules = PLAIN,
        progress: Progress = no_progress,
    ) -> Floats:
        progress(len(points), len(points))
        return self.estimates


def table(seed: int, *, n_pairs: int = 32, skew: float = 0.0, shuffled: bool = False) -> TableExperiment:
    """Effects over four orders of magnitude, as in a real model: most edges vary more over pairs than they matter.

    Attribution is off by a factor of 1.5 up or down, typically, its spread by 1.3. With ``skew`` the effects of an edge
    over pairs are log-normal rather than normal. ``shuffled``: attributions belong to other edges.
    """
    rng = np.random.default_rng([seed, 7])
    n = GRAPH.n_edges
    means = rng.choice([-1, 1], n) * np.exp(rng.normal(-4, 2.2, n))
    spread = np.abs(means) * np.exp(rng.normal(0.5, 0.6, n))
    noise = rng.normal(size=(n, n_pairs))
    if skew:
        noise = np.exp(skew * noise)
        noise = (noise - np.exp(skew**2 / 2)) / (np.exp(skew**2 / 2) * np.sqrt(np.exp(skew**2) - 1))
    effects = means[:, None] + spread[:, None] * noise * rng.choice([-1, 1], n)[:, None]
    exact, sd = effects.mean(axis=1), effects.std(axis=1, ddof=1)
    estimates = np.stack([exact * np.exp(rng.normal(0, 0.4, n)), sd * np.exp(rng.normal(0, 0.26, n))])
    return TableExperiment(effects, estimates[:, rng.permutation(n)] if shuffled else estimates)
