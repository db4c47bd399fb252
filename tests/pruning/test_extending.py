"""Pruning back begins with a small circuit that nearly does, and edges added, not with one many times as large."""

import importlib
from dataclasses import dataclass

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.files.journal import NOWHERE
from circuits.graph import Edge, EdgeIndices, ModelShape
from circuits.patching.protocol import Progress, no_progress
from circuits.pruning import Selection, closest
from circuits.pruning.steps import extended
from circuits.scoring import score
from circuits.vocabulary import Metric, ScorerName
from tests.toy import mean_and_sd, planted_toy

SHAPE = ModelShape(n_layers=4, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)


@dataclass(frozen=True, eq=False)
class Fan:
    """MLPs that read ``m0`` for the most part and the input for a small one, ``effects[pair, (m0, input), MLP]``.

    By ``missed`` nats the model differs from all its edges together, on every pair. So some edge can always be added
    to a circuit that brings it a little closer, and none brings it all the way.
    """

    effects: np.ndarray
    missed: np.ndarray

    metric = Metric.LOGIT_DIFFERENCE
    kept = NOWHERE

    def __post_init__(self) -> None:
        n = self.effects.shape[2]
        graph = build_graph(ModelShape(n_layers=n + 1, n_heads=1, n_kv_heads=1, d_model=1, d_head=1))
        texts = [[(f"{sender}->m{k}", f"m{k}->logits") for k in range(1, n + 1)] for sender in ("m0", "input")]
        ways = np.array([[[graph.index(Edge.parse(text)) for text in way] for way in side] for side in texts])
        first = graph.index(Edge.parse("input->m0"))
        for name, value in (("graph", graph), ("ways", ways), ("first", first), ("n_pairs", len(self.effects))):
            object.__setattr__(self, name, value)

    @property
    def clean(self) -> np.ndarray:
        return self.effects.sum((1, 2)) + self.missed

    @property
    def corrupted(self) -> np.ndarray:
        return np.zeros(len(self.effects))

    def _value(self, live: np.ndarray) -> np.ndarray:
        both = live[self.ways].prod(2)
        both[0] *= live[self.first]
        return (self.effects * both).sum((1, 2))

    def circuits(self, masks: np.ndarray, *, progress: Progress = no_progress) -> np.ndarray:
        return np.stack([self._value(live) for live in np.asarray(masks, dtype=float)])

    def circuit_gradient(self, weights: np.ndarray, *, among: EdgeIndices | None = None) -> tuple:
        slopes = np.zeros((self.n_pairs, self.graph.n_edges))
        for edge in np.unique([*self.ways.flatten(), self.first]):
            there, gone = (np.where(np.arange(len(weights)) == edge, weight, weights) for weight in (1.0, 0.0))
            slopes[:, edge] = self._value(there) - self._value(gone)  # linear in every single weight
        return self._value(weights), slopes

    def attributions(self, points: list[float], *, progress: Progress = no_progress, **options: object) -> np.ndarray:
        return mean_and_sd(self.circuit_gradient(np.ones(self.graph.n_edges))[1])


def fan(n_pairs: int, seed: int, *, small: float, missed: float) -> Fan:
    generator = np.random.default_rng(seed)
    most = 0.9 * generator.uniform(0.5, 1.5, (n_pairs, 10))
    rest = generator.normal(small, small, (n_pairs, 10))
    return Fan(np.stack([most, rest], axis=1), generator.normal(0, missed, n_pairs))


def told(seed: int, small: float) -> list[tuple[str, Selection]]:
    """Return what a search reports, and what it finds, from where it begins to prune back."""
    fit, choose = fan(24, 2 * seed, small=small, missed=0.0), fan(48, 2 * seed + 1, small=small, missed=3.0)
    reports = list[tuple[str, Selection]]()
    found = closest(fit, choose, score(fit, ScorerName.EAP), report=lambda step, now: reports.append((step, now)))
    return [*((step, now) for step, now in reports if step != "closer"), ("found", found)]


def test_edges_that_bring_a_circuit_closer_are_added_and_no_others() -> None:
    toy = planted_toy(SHAPE, 15, seed=1, n_pairs=16)
    lost = [toy.graph.index(Edge.parse(text)) for text in ("input->a0.h0<q>", "input->a0.h3<q>", "a0.h0->logits")]
    broken, free = np.setdiff1d(toy.planted, lost), np.zeros(toy.graph.n_edges)
    assert np.setdiff1d(extended(toy, broken, toy.planted, 1, free), broken).tolist() == [lost[1]]
    dear = free + 5 * (np.arange(toy.graph.n_edges) == lost[1])
    assert lost[1] not in extended(toy, broken, toy.planted, 1, dear)
    assert extended(toy, toy.planted, np.arange(toy.graph.n_edges), 5, free).tolist() == toy.planted.tolist()


def test_a_circuit_that_nearly_does_is_extended_until_it_does_and_pruned_back_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("circuits.pruning.closest"), "_FAR", 1.0)
    steps = told(2, 0.1)
    added = [now for step, now in steps if step == "extended"]
    assert [now.reached for now in added] == [False, True]
    assert set(added[0].edges) < set(added[1].edges)
    begun, found = next(now for step, now in steps if step == "pruned back"), steps[-1][1]
    assert begun.edges.tolist() == added[-1].edges.tolist()
    assert found.reached
    assert len(found.edges) <= len(begun.edges)


def test_where_it_takes_as_many_edges_as_one_that_does_pruning_begins_with_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("circuits.pruning.closest"), "_FAR", 1.0)
    steps = told(5, 0.05)
    added = [now for step, now in steps if step == "extended"]
    begun = next(now for step, now in steps if step == "pruned back")
    assert len(added) > 1
    assert not any(now.reached and len(now.edges) < len(begun.edges) for now in added)
    assert begun.edges.tolist() != added[-1].edges.tolist()


def test_nothing_is_added_where_the_smallest_that_does_is_hardly_larger_than_one_that_nearly_does() -> None:
    assert "extended" not in [step for step, _ in told(2, 0.1)]


def test_after_a_few_additions_in_vain_nothing_more_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("circuits.pruning.closest")

    def useless(fit: Fan, edges: EdgeIndices, *_: object) -> EdgeIndices:
        return np.union1d(
            edges, np.setdiff1d(np.arange(fit.graph.n_edges), [*edges, *fit.ways.flatten(), fit.first])[:1]
        )

    monkeypatch.setattr(module, "_FAR", 1.0)
    monkeypatch.setattr(module, "extended", useless)
    steps = told(2, 0.1)
    added = [now for step, now in steps if step == "extended"]
    begun = next(now for step, now in steps if step == "pruned back")
    assert len({now.error for now in added}) == 1
    assert len(added) == 3
    assert len(added[-1].edges) < len(begun.edges)
    assert begun.reached
