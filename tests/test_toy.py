"""The toys are what the other tests lean on: their numbers are checked by hand and against each other."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.builder import build_graph
from circuits.circuit import Circuit
from circuits.graph import Edge, ModelShape
from circuits.patching.protocol import Experiment
from circuits.records import BehaviourInfo, Method, ModelInfo
from circuits.vocabulary import Direction
from tests.toy import PENCIL_EFFECTS, PENCIL_SHAPE, LinearToy, ToyExperiment, pencil_toy, planted_edges, planted_toy

SMALL = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
BIG = ModelShape(n_layers=30, n_heads=9, n_kv_heads=3, d_model=576, d_head=64)


def every_mask(n_edges: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=n_edges)))


def all_but_one(n_edges: int) -> np.ndarray:
    return ~np.eye(n_edges, dtype=np.bool_)


def dense_toy(*, seed: int = 0, saturation: float | None = None, direction: Direction = Direction.NOISING) -> LinearToy:
    weights = np.random.default_rng(seed).normal(size=build_graph(SMALL).n_edges) * 0.4 + 0.1
    return LinearToy(SMALL, weights, (1.0, 0.7), (0.1, -0.2), saturation, direction)


# ------------------------------------------------------------------------------------------------- by hand


def test_the_pencil_numbers_are_those_of_the_style_guide() -> None:
    effects = ToyExperiment().edge_effects(np.arange(8))[:, 0].tolist()
    edges = [str(edge) for edge in ToyExperiment().graph.edges()]
    named = dict(zip(edges, effects, strict=True))
    assert ToyExperiment().clean.tolist() == [12]
    assert ToyExperiment().corrupted.tolist() == [0]
    assert named == {
        "input->a0.h0<q>": 0,
        "input->a0.h0<k>": 0,
        "input->a0.h0<v>": 8,
        "input->m0": 3,
        "a0.h0->m0": 6,
        "input->logits": 1,
        "a0.h0->logits": 2,
        "m0->logits": 9,
    }


@pytest.mark.parametrize(
    "toy", [ToyExperiment(), ToyExperiment((1.0, 2.0)), pencil_toy()], ids=["pencil", "pairs", "linear"]
)
def test_edge_effects_are_what_circuits_of_all_edges_but_one_lose(toy: Experiment) -> None:
    n = toy.graph.n_edges
    np.testing.assert_allclose(toy.edge_effects(np.arange(n)), toy.clean - toy.circuits(all_but_one(n)))


@pytest.mark.parametrize("direction", list(Direction))
def test_the_linear_toy_with_pencil_weights_is_the_pencil_toy_on_every_circuit(direction: Direction) -> None:
    pencil, linear = ToyExperiment(direction=direction), pencil_toy(direction=direction)
    masks = every_mask(8)
    np.testing.assert_allclose(linear.circuits(masks), pencil.circuits(masks))
    np.testing.assert_allclose(linear.edge_effects(np.arange(8)), pencil.edge_effects(np.arange(8)))
    np.testing.assert_allclose(linear.attributions([0.5]), pencil.attributions([0.5]))
    assert linear.clean == pencil.clean == [12]


def test_a_toy_with_several_pairs_scales_with_each_pairs_input() -> None:
    toy = ToyExperiment((1.0, 3.0))
    assert toy.clean.tolist() == [12, 36]
    mean, sd = toy.attributions([1.0])[:, toy.graph.index(Edge.parse("m0->logits"))]
    assert (mean, round(sd, 3)) == (18, 12.728)


def test_a_two_layer_toy_agrees_with_a_sum_over_paths_done_by_hand() -> None:
    """Circuit input->a0.h0<v>->a1.h0<q>->logits with weights 2, 3, 5, and input->logits with 7."""
    shape = ModelShape(2, 1, 1, 1, 1)
    graph = build_graph(shape)
    weights = np.zeros(graph.n_edges)
    texts = {"input->a0.h0<v>": 2.0, "a0.h0->a1.h0<q>": 3.0, "a1.h0->logits": 5.0, "input->logits": 7.0}
    for text, weight in texts.items():
        weights[graph.index(Edge.parse(text))] = weight
    toy = LinearToy(shape, weights, (1.0,), (0.5,))
    assert toy.clean.tolist() == [37]
    assert toy.corrupted.tolist() == [18.5]
    mask = np.zeros(graph.n_edges, dtype=np.bool_)
    mask[graph.index(Edge.parse("input->logits"))] = True
    assert toy.circuits([mask]).tolist() == [[7 + 15]]


def test_a_key_value_group_feeds_each_of_its_heads() -> None:
    graph = build_graph(SMALL)
    weights = np.zeros(graph.n_edges)
    for text in ("input->a0.kv1<v>", "a0.h1->logits", "a0.h2->logits", "a0.h3->logits"):
        weights[graph.index(Edge.parse(text))] = 1.0
    assert LinearToy(SMALL, weights).clean.tolist() == [2]


# --------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("saturation", [None, 1.5])
def test_effects_of_a_dense_toy_follow_the_definition_in_both_directions(saturation: float | None) -> None:
    n = build_graph(SMALL).n_edges
    noising = dense_toy(saturation=saturation)
    effects = noising.edge_effects(np.arange(n))
    np.testing.assert_allclose(effects, noising.clean - noising.circuits(all_but_one(n)), atol=1e-12)
    assert np.abs(effects).max() > 0.1
    restored = dense_toy(saturation=saturation, direction=Direction.DENOISING).edge_effects(np.arange(n))
    swapped = LinearToy(SMALL, noising.weights, noising.corrupted_inputs, noising.clean_inputs, saturation)
    np.testing.assert_allclose(restored, -swapped.edge_effects(np.arange(n)), atol=1e-12)


def test_attributions_of_a_linear_metric_are_exact_at_every_point() -> None:
    toy = dense_toy()
    exact = toy.edge_effects(np.arange(toy.graph.n_edges))
    for points in ([0.5], [0.1, 0.3, 0.5, 0.7, 0.9]):
        np.testing.assert_allclose(toy.attributions(points)[0], exact.mean(1), atol=1e-12)
        np.testing.assert_allclose(toy.attributions(points)[1], exact.std(1, ddof=1), atol=1e-12)


def test_attributions_of_a_saturating_metric_are_the_derivative_of_the_metric() -> None:
    toy = dense_toy(saturation=0.3)
    nearby = tuple(x - 1e-6 * (x - y) for x, y in zip(toy.clean_inputs, toy.corrupted_inputs, strict=True))
    near = LinearToy(SMALL, toy.weights, toy.clean_inputs, nearby, toy.saturation)
    slope = near.edge_effects(np.arange(toy.graph.n_edges)).mean(1) * 1e6
    np.testing.assert_allclose(toy.attributions([1.0])[0], slope, atol=1e-4)
    assert np.abs(toy.attributions([1.0])[0] - toy.attributions([0.0])[0]).max() > 0.02


def test_denoising_counts_its_points_from_the_corrupted_end() -> None:
    """The slope nearest to what denoising measures is the one at the corrupted run."""
    noising = dense_toy(saturation=0.3)
    denoising = dense_toy(saturation=0.3, direction=Direction.DENOISING)
    np.testing.assert_allclose(denoising.attributions([1.0]), noising.attributions([0.0]))
    assert np.abs(denoising.attributions([1.0]) - noising.attributions([1.0])).max() > 0.02


def test_a_saturating_metric_hides_what_single_edges_do() -> None:
    toy = planted_toy(SMALL, 12, seed=3, saturation=0.2)
    alone = toy.edge_effects(toy.planted).mean(1)
    assert alone.sum() < 0.2 * toy.clean.mean()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_edges=st.integers(1, 40))
def test_a_planted_circuit_has_the_size_asked_for_and_is_all_of_the_metric(seed: int, n_edges: int) -> None:
    toy = planted_toy(SMALL, n_edges, seed=seed)
    assert len(toy.planted) == n_edges
    mask = np.zeros(toy.graph.n_edges, dtype=np.bool_)
    mask[toy.planted] = True
    np.testing.assert_allclose(toy.circuits([mask])[0], toy.clean)
    np.testing.assert_allclose(toy.circuits([~mask])[0], toy.corrupted)
    assert np.all(toy.edge_effects(toy.planted) > 0)


def test_every_planted_edge_lies_on_a_path_of_the_networkx_view() -> None:
    toy = planted_toy(BIG, 20, seed=4)
    info = ModelInfo("toy", BIG.n_layers, BIG.n_heads, BIG.n_kv_heads, BIG.d_model, BIG.d_head)
    behaviour = BehaviourInfo("toy", "logit-difference", "nats")
    circuit = Circuit(info, behaviour, Method("exact", "top"), toy.planted, toy.weights[toy.planted])
    import networkx as nx

    view = circuit.to_networkx()
    for edge in circuit.edge_list:
        assert nx.has_path(view, "input", str(edge.sender))
        assert nx.has_path(view, str(edge.receiver.node), "logits")


def test_noise_leaves_the_planted_edges_where_they_are() -> None:
    toy = planted_toy(SMALL, 10, seed=5, noise=0.01)
    hidden = planted_edges(toy.graph, 10, seed=5)
    assert len(toy.planted) == toy.graph.n_edges
    assert sorted(np.argsort(-toy.weights)[:10].tolist()) == hidden.tolist()


def test_more_planted_edges_than_the_graph_has_are_refused() -> None:
    with pytest.raises(ValueError, match="could not place 9 edges"):
        planted_edges(build_graph(PENCIL_SHAPE), 9)


def test_an_empty_list_of_circuits_gives_an_empty_table() -> None:
    assert ToyExperiment().circuits([]).shape == (0, 1)
    assert dense_toy().circuits([]).shape == (0, 2)


@pytest.mark.parametrize("toy", [ToyExperiment(), dense_toy()], ids=["pencil", "linear"])
def test_progress_ends_at_the_total(toy: Experiment) -> None:
    calls: list[tuple[int, int]] = []
    toy.circuits(np.ones((3, toy.graph.n_edges), dtype=np.bool_), progress=lambda *call: calls.append(call))
    assert calls[-1] == (3, 3)


def test_a_hundred_circuits_of_a_graph_of_seventy_thousand_edges_take_less_than_two_seconds() -> None:
    toy = planted_toy(BIG, 20, n_pairs=8)
    masks = np.random.default_rng(0).random((100, toy.graph.n_edges)) < 0.5
    start = time.process_time()
    toy.circuits(masks)
    toy.edge_effects(np.arange(toy.graph.n_edges))
    assert time.process_time() - start < 2


def test_the_pencil_effects_cover_every_edge_of_the_pencil_graph() -> None:
    assert list(PENCIL_EFFECTS) == [str(edge) for edge in build_graph(PENCIL_SHAPE).edges()]
