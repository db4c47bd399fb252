"""Running circuits on each other's prompts, with numbers worked out on the toys."""

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.comparison.crossed_runs import cross
from circuits.evaluation.random_circuits import random_circuits
from circuits.graph import Edge, ModelShape
from tests.toy import ToyExperiment, planted_edges, planted_toy

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)


def test_edges_run_alone_and_are_knocked_out_as_worked_out_by_hand() -> None:
    """input->m0->logits alone is 3 of 12; without it 3 are lost through m0, and with m0->logits the head's 6 too."""
    toy = ToyExperiment((1.0, 2.0))
    edges = np.sort([toy.graph.index(Edge.parse(text)) for text in ("input->m0", "m0->logits")])
    found = cross(toy, {"through the MLP": edges}, {"through the MLP": edges, "direct": edges[:0]})
    np.testing.assert_allclose(found.alone["through the MLP"], [3, 6])
    np.testing.assert_allclose(found.without["through the MLP"], [3, 6])  # input->logits 1 and head->logits 2
    np.testing.assert_allclose(found.without["direct"], [12, 24])
    assert not found.random_alone
    assert not found.random_without


def test_controls_are_the_same_random_circuits_on_every_experiment() -> None:
    graph = build_graph(SHAPE)
    edges = planted_edges(graph, 15, seed=3)
    toys = [planted_toy(SHAPE, 15, seed=3, n_pairs=n, noise=0.1) for n in (4, 6)]
    found = [
        cross(toy, {"a": edges}, {"a": edges}, controlled=["a"], controlled_knock_outs=["a"], draws=5, seed=1)
        for toy in toys
    ]
    masks = random_circuits(graph, edges, 5, 1)
    for toy, each in zip(toys, found, strict=True):
        np.testing.assert_allclose(each.random_alone["a"], toy.circuits(masks))
        np.testing.assert_allclose(each.random_without["a"], toy.circuits(~masks))
        assert each.random_alone["a"].shape == (5, toy.n_pairs)
    assert not np.array_equal(masks, random_circuits(graph, edges, 5, 2))


def test_without_draws_or_edges_there_are_no_controls() -> None:
    toy = planted_toy(SHAPE, 15, seed=3)
    edges = planted_edges(toy.graph, 15, seed=3)
    assert not cross(toy, {"a": edges}, {}, controlled=["a"], draws=0).random_alone
    assert random_circuits(toy.graph, edges[:0], 5, 0).shape == (0, toy.graph.n_edges)


def test_progress_ends_with_everything_done() -> None:
    toy = ToyExperiment()
    calls: list[tuple[int, int]] = []
    edges = np.array([0, 1])
    cross(toy, {"a": edges}, {"a": edges}, controlled=["a"], draws=2, progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 3)
    assert calls[-1] == (3, 3)


def test_a_planted_circuit_is_necessary_for_its_behaviour_and_not_for_the_others() -> None:
    """Two toys with one planted circuit each: knocking out either costs its own everything and the other nothing."""
    first, second = (planted_toy(SHAPE, 12, seed=seed, n_pairs=6) for seed in (1, 2))
    own = np.setdiff1d(first.planted, second.planted)
    assert len(own)
    lost = [cross(toy, {}, {"a": own}).without["a"].mean() / toy.clean.mean() for toy in (first, second)]
    assert lost[0] < 0.5
    assert lost[1] == pytest.approx(1)
