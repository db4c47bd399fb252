"""How much of a circuit other pairs would have chosen, where effects of edges are known; and what certificates hold."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.certainty import stability
from circuits.certainty.stability import SUBSAMPLES, ranked_candidates, resampled, withstood
from circuits.graph import ComputationalGraph, ModelShape
from circuits.scores import EdgeScores

SHAPE = ModelShape(n_layers=2, n_heads=2, n_kv_heads=2, d_model=4, d_head=2)
PAIRS, USED = 32, 30


@dataclass(frozen=True, eq=False)
class Additive:
    """Each live edge adds its own effect, ``(pair, edge)``: the first order is all there is."""

    effects: np.ndarray

    @cached_property
    def graph(self) -> ComputationalGraph:
        return build_graph(SHAPE)

    @property
    def n_pairs(self) -> int:
        return len(self.effects)

    @property
    def clean(self) -> np.ndarray:
        return self.effects.sum(1)

    @property
    def corrupted(self) -> np.ndarray:
        return np.zeros(self.n_pairs)

    def circuit_gradient(self, weights: np.ndarray, *, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slopes = np.zeros_like(self.effects)
        slopes[:, among] = self.effects[:, among]
        return self.effects @ weights, slopes


def toy(seed: int = 0) -> Additive:
    """Ten strong edges, the same on every pair; twenty that do little, and on average nothing; the rest nothing."""
    generator = np.random.default_rng(seed)
    effects = np.zeros((PAIRS, build_graph(SHAPE).n_edges))
    effects[:, :10] = 1.0
    effects[:, 10:USED] = generator.normal(scale=0.3, size=(PAIRS, USED - 10))
    return Additive(effects)


EACH = np.arange(PAIRS)


def test_edges_that_every_pair_needs_are_core_and_those_of_a_few_pairs_are_not() -> None:
    circuit, candidates = np.arange(14), np.arange(USED)
    found = resampled(toy(), circuit, candidates, EACH)
    assert found is not None
    assert (found.inclusion[:10] == 1).all()
    assert (found.inclusion[10:] < 0.9).all()
    assert (found.withstands[:10] >= 1).all()
    assert (found.withstands[10:] < 1).all()
    summary = found.summary
    assert (summary.candidates, summary.pairs, summary.subsample) == (30, 32, 8)
    assert 10 / 18 < summary.jaccard_edges < 1
    assert summary.jaccard_nodes >= summary.jaccard_edges


def test_a_circuit_that_its_pairs_select_is_reproduced_and_what_most_resamples_select_beside_it_is_named() -> None:
    whole = resampled(toy(), np.arange(10), np.arange(USED), EACH)
    assert whole is not None
    assert whole.summary.reproduced == 1
    assert whole.summary.left_out == ()
    without = resampled(toy(), np.arange(1, 11), np.arange(USED), EACH)
    assert without is not None
    assert without.summary.left_out == (str(build_graph(SHAPE).edge(0)),)
    assert without.summary.reproduced == pytest.approx(9 / 11)


def test_the_same_seed_gives_the_same_and_clusters_are_drawn_together() -> None:
    args = toy(), np.arange(14), np.arange(USED)
    one, same, other = (resampled(*args, EACH, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.inclusion, same.inclusion)
    assert one.summary == same.summary != other.summary
    halves = resampled(*args, EACH // 2)
    assert halves.summary.pairs == PAIRS // 2
    doubled = Additive(np.repeat(toy().effects[::2], 2, axis=0))
    alone = resampled(Additive(toy().effects[::2]), np.arange(14), np.arange(USED), EACH[: PAIRS // 2])
    together = resampled(doubled, np.arange(14), np.arange(USED), EACH // 2)
    np.testing.assert_allclose(alone.inclusion, together.inclusion)


def test_large_circuits_and_few_pairs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.minimum(EACH, 6)
    assert resampled(toy(), np.arange(14), np.arange(USED), few) is None
    assert resampled(toy(), np.arange(0), np.arange(USED), EACH) is None
    monkeypatch.setattr(stability, "MOST_RESAMPLED", 13)
    assert resampled(toy(), np.arange(14), np.arange(USED), EACH) is None
    assert resampled(toy(), np.arange(13), np.arange(USED), EACH) is not None


def test_candidates_of_a_ranking_are_half_as_many_edges_again() -> None:
    graph = build_graph(SHAPE)
    scores = EdgeScores(graph, np.arange(graph.n_edges) * -1.0, "exact", measured=True)
    found = ranked_candidates(scores, np.array([0, 1, graph.n_edges - 1, 40]), by_magnitude=True)
    assert found.tolist() == sorted({0, 1, 40, graph.n_edges - 1, *range(graph.n_edges - 6, graph.n_edges)})


# ------------------------------------------------------------------------------------------------------- certificates


def test_a_certificate_is_the_bound_of_clopper_and_pearson_against_the_chance_to_meet_a_replaced_pair() -> None:
    """All of 400 subsamples of 16 of 64 pairs: at least 0.987. One pair is met by 1/4, two by 0.44, three by 0.58."""
    selections = np.zeros((400, 3), dtype=bool)
    selections[:, 0] = True
    selections[:300, 1] = True
    low = (0.05 / 3) ** (1 / 400)
    assert low - (1 - math.comb(62, 16) / math.comb(64, 16)) > 0.5 > low - (1 - math.comb(61, 16) / math.comb(64, 16))
    assert withstood(selections, pairs=64, size=16).tolist() == [2, 0, -1]


def test_no_certified_edge_leaves_when_pairs_are_replaced_by_the_worst() -> None:
    """Replaced pairs want the weak edges ten times as much and the certified ones not at all."""
    circuit, candidates = np.arange(14), np.arange(USED)
    found = resampled(toy(), circuit, candidates, EACH)
    certified = 0
    for count in range(1, int(found.withstands.max()) + 1):
        sure = circuit[found.withstands >= count]
        for seed in range(3):
            effects = toy().effects.copy()
            bad = np.random.default_rng(seed).choice(PAIRS, count, replace=False)
            effects[np.ix_(bad, sure)] = 0
            effects[np.ix_(bad, np.arange(10, USED))] *= 10
            majority = majority_selects(Additive(effects), candidates, len(circuit), size=found.summary.subsample)
            assert majority[sure].all(), (count, seed)
            certified += len(sure)
    assert certified >= 30


def majority_selects(experiment: Additive, candidates: np.ndarray, size_of: int, *, size: int) -> np.ndarray:
    """Which edges most of 1,000 fresh subsamples select, by the selector itself."""
    values, slopes = experiment.circuit_gradient(
        np.isin(np.arange(experiment.graph.n_edges), candidates) * 1.0, among=candidates
    )
    selector = stability._Selector(experiment.clean, experiment.corrupted, values, slopes[:, candidates], size_of)
    generator = np.random.default_rng(5)
    rows = [selector.selected(generator.choice(PAIRS, size, replace=False)) for _ in range(1000)]
    return np.mean(rows, axis=0) > 0.5


def test_fewer_subsamples_certify_less() -> None:
    few, many = (withstood(np.ones((n, 50), dtype=bool), pairs=64, size=8) for n in (20, SUBSAMPLES))
    assert (few <= many).all()
    assert few[0] < many[0]
