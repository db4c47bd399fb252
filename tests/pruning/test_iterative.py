"""Slopes inside circuits, and shrinking by them: hand-made numbers, and every claim measured again."""

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.graph import Edge, EdgeIndices, ModelShape
from circuits.patching.protocol import no_progress
from circuits.pruning import Selection, minimal
from circuits.pruning.iterative import dispensable_first, grown_and_pruned, pruned_iteratively
from circuits.pruning.judge import Judge
from circuits.scoring import score
from circuits.statistics import faithfulness
from circuits.vocabulary import ScorerName
from tests.toy import LinearToy, ToyExperiment, pencil_toy, planted_toy

SHAPE = ModelShape(n_layers=4, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
MLPS = ModelShape(n_layers=9, n_heads=1, n_kv_heads=1, d_model=1, d_head=1)


def judge_of(toy: LinearToy | ToyExperiment, tolerance: float = 0.1) -> Judge:
    return Judge(toy, tolerance, no_progress)


def edges_of(toy: LinearToy, *names: str) -> EdgeIndices:
    return np.sort(np.array([toy.graph.index(Edge.parse(name)) for name in names], dtype=np.int64))


def ways_toy(weights: list[float], direct: float) -> LinearToy:
    """``input->m_i->logits`` multiplies by ``weights[i]``; ``input->logits`` by ``direct``."""
    graph = build_graph(MLPS)
    values = np.zeros(graph.n_edges)
    for layer, weight in enumerate(weights):
        values[graph.index(Edge.parse(f"input->m{layer}"))] = 1.0
        values[graph.index(Edge.parse(f"m{layer}->logits"))] = weight
    values[graph.index(Edge.parse("input->logits"))] = direct
    return LinearToy(MLPS, values)


def way(toy: LinearToy, *layers: int) -> EdgeIndices:
    return edges_of(toy, *(name for i in layers for name in (f"input->m{i}", f"m{i}->logits")))


# --------------------------------------------------------------------------------------------------------------- slopes


def test_slopes_by_pencil_are_those_inside_the_circuit_not_those_of_the_model() -> None:
    """Without ``a0.h0->m0`` (which carries 6 of the 12), the head's value matters only through ``a0.h0->logits``."""
    toy = pencil_toy()
    live = ["input->a0.h0<v>", "input->m0", "a0.h0->logits", "m0->logits"]
    edges = edges_of(toy, *live)
    f, slopes = judge_of(toy).slopes(edges)
    assert f == pytest.approx(5 / 12)
    given = dict(zip([str(edge) for edge in toy.graph.edges(edges)], (slopes * 12).tolist(), strict=True))
    assert given == pytest.approx({"input->a0.h0<v>": 2, "input->m0": 3, "a0.h0->logits": 2, "m0->logits": 3})
    everywhere = judge_of(toy).all_slopes(edges) * 12
    assert everywhere[toy.graph.index(Edge.parse("a0.h0->m0"))] == pytest.approx(6)  # what adding it brings
    assert everywhere[toy.graph.index(Edge.parse("input->logits"))] == pytest.approx(1)
    np.testing.assert_allclose(judge_of(ToyExperiment()).all_slopes(edges) * 12, everywhere)


@pytest.mark.parametrize("saturation", [None, 3.0])
def test_slopes_of_the_toy_are_the_finite_differences_of_weighted_circuits(saturation: float | None) -> None:
    toy = planted_toy(SHAPE, 25, seed=3, noise=0.1, saturation=saturation)
    weights = np.clip(np.random.default_rng(0).uniform(-1, 2, toy.graph.n_edges), 0, 1)
    _, slopes = toy.circuit_gradient(weights)
    assert np.abs(slopes).max() > 0.1
    for edge in np.argsort(-np.abs(slopes).max(0))[:40]:
        ends = []
        for sign in (1, -1):
            moved = weights.copy()
            moved[edge] += sign * 1e-5
            ends.append(toy.circuit_gradient(moved)[0])
        assert slopes[:, edge] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_edges_that_hurt_go_before_those_that_help_as_much_but_not_before_weak_ones() -> None:
    slopes = np.array([0.5, -0.5, 0.1, -3.0, 0.0])
    assert np.argsort(dispensable_first(slopes)).tolist() == [4, 2, 1, 0, 3]


# -------------------------------------------------------------------------------------------------- iterative pruning


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_reaches_the_target_with_fewer_edges_than_the_scores_of_the_whole_model_need(seed: int) -> None:
    toy = planted_toy(SHAPE, 30, seed=seed, noise=0.08)
    judge = judge_of(toy)
    scores = score(toy, ScorerName.EAP).values
    by_score = next(n for n in range(1, toy.graph.n_edges) if judge.one(np.argsort(-scores)[:n]) >= 0.9)
    abundant = np.sort(np.argsort(-np.abs(scores))[: 6 * by_score])
    found = pruned_iteratively(judge, abundant, below=len(abundant))
    assert found is not None
    assert set(found.tolist()) < set(abundant.tolist())
    mask = np.zeros(toy.graph.n_edges, dtype=np.bool_)
    mask[found] = True
    assert abs(1 - float(faithfulness(toy, toy.circuits([mask])[0]))) <= 0.1
    assert len(found) < 0.7 * len(abundant)


def test_a_circuit_that_beats_the_model_is_shrunk_until_it_does_not() -> None:
    """Eight helping ways of 2 and one harmful of -9: all give 7; without the harmful one 16, which is no better."""
    toy = ways_toy([2.0] * 8 + [-9.0], 0.0)
    judge = judge_of(toy, 0.2)
    helping = way(toy, *range(8))
    assert judge.one(helping) == pytest.approx(16 / 7)
    found = pruned_iteratively(judge, helping, below=len(helping))
    assert found is not None
    assert judge.one(found) in (pytest.approx(6 / 7), pytest.approx(8 / 7))
    assert len(found) in (6, 8)


def test_nothing_is_given_back_where_so_few_edges_do_not_suffice_or_the_target_is_missed_from_the_start() -> None:
    toy = ways_toy([1.0] * 9, 0.0)
    judge, every = judge_of(toy), way(toy, *range(9))
    assert pruned_iteratively(judge, every, below=18) is None  # at a target of 0.9, every one of the nine ways counts
    assert pruned_iteratively(judge, way(toy, 0, 1), below=100) is None
    found = pruned_iteratively(judge_of(toy, 0.5), every, below=18)
    assert found is not None
    assert judge.one(found) >= 0.5
    assert len(found) <= 12


# ------------------------------------------------------------------------------------------------------------- swapping


def test_a_strong_left_out_edge_replaces_many_weak_ones() -> None:
    """The direct edge carries as much as the nine ways that make a locally minimal circuit."""
    toy = ways_toy([1.0] * 9, 9.0)
    judge = judge_of(toy, 0.5)
    weak = way(toy, *range(9))
    assert judge.one(weak) == pytest.approx(0.5)
    grown = grown_and_pruned(judge, weak)
    assert grown is not None
    assert toy.graph.index(Edge.parse("input->logits")) in grown
    begin = Selection(weak, 0.5, proposed=18, by_magnitude=False)
    steps: list[tuple[str, int]] = []
    found = minimal(
        toy,
        score(toy, ScorerName.EAP),
        target=0.5 - 1e-9,
        begin=begin,
        report=lambda step, selection: steps.append((step, len(selection.edges))),
    )
    assert [str(edge) for edge in toy.graph.edges(found.edges)] == ["input->logits"]
    assert steps == [("proposed", 18), ("swapped", 1)]
    assert found.locally_minimal
    assert found.removal == pytest.approx([0.5])


def test_nothing_is_swapped_where_no_left_out_edge_helps() -> None:
    toy = ways_toy([1.0] * 9, 0.0)
    found = minimal(toy, score(toy, ScorerName.EAP), target=0.9)
    assert found.edges.tolist() == way(toy, *range(9)).tolist()
