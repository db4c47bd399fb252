"""Slopes of a circuit's metric along the weights of its edges, against measured circuits and finite differences."""

import numpy as np
import pytest

from circuits.patching.experiment import PatchingExperiment
from circuits.vocabulary import Metric
from tests.reference.precision import in_float64
from tests.subjects import PAIRS, Subject, random_masks, random_pairs
from tests.zoo import ZOO

STEP = 1e-4


def random_weights(n_edges: int, *, seed: int = 1) -> np.ndarray:
    """A third of the edges left out, a third live, a third in between."""
    generator = np.random.default_rng(seed)
    return np.clip(generator.uniform(-1, 2, n_edges), 0, 1)


def assert_slopes(experiment: PatchingExperiment, weights: np.ndarray, *, edges: int = 6, step: float = STEP) -> None:
    """Compare with central differences, on edges with the largest slopes and on others of every kind."""
    _, slopes = experiment.circuit_gradient(weights)
    largest = np.argsort(-np.abs(slopes).max(0))
    for edge in np.unique([*largest[:edges], *largest[edges :: len(largest) // edges]]):
        ends = []
        for sign in (1, -1):
            moved = weights.copy()
            moved[edge] += sign * step
            ends.append(experiment.circuit_gradient(moved, among=np.array([edge]))[0])
        assert slopes[:, edge] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7), edge
    assert np.abs(slopes[:, largest[:edges]]).max(0).min() > 1e-3  # the largest are not all nothing


@pytest.mark.parametrize("metric", [Metric.LOGIT_DIFFERENCE, Metric.KL])
def test_slopes_are_the_finite_differences_of_weighted_circuits(double: Subject, metric: Metric) -> None:
    experiment = double.experiment(metric=metric)
    assert_slopes(experiment, random_weights(double.graph.n_edges))


def test_slopes_over_zero_ablation_are_its_finite_differences(double: Subject) -> None:
    """No edge is left out wholly: at a stream of zero, by whose size norms divide, no step is small enough."""
    weights = 0.5 + 0.5 * random_weights(double.graph.n_edges, seed=2)
    assert_slopes(double.experiment(ablation="zero"), weights, step=1e-6)


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "granite", "gpt_neox"])
def test_slopes_see_norms_and_factors_after_the_blocks_and_parallel_ones(family: str) -> None:
    subject = Subject(family, in_float64(ZOO[family]()).requires_grad_(False))
    assert_slopes(subject.experiment(), random_weights(subject.graph.n_edges, seed=3), edges=4)


def test_weights_of_zero_and_one_measure_what_circuits_measures(double: Subject) -> None:
    for options in ({}, {"ablation": "zero"}):
        experiment = double.experiment(**options)
        masks = random_masks(double.graph.n_edges, (0.0, 0.05, 0.3, 0.9, 1.0))
        values = [experiment.circuit_gradient(mask.astype(float), among=np.arange(3))[0] for mask in masks]
        np.testing.assert_allclose(values, experiment.circuits(masks), atol=1e-8)


def test_slopes_at_the_whole_model_are_eap(double: Subject) -> None:
    experiment = double.experiment()
    values, slopes = experiment.circuit_gradient(np.ones(double.graph.n_edges))
    np.testing.assert_allclose(values, experiment.clean, atol=1e-8)
    np.testing.assert_allclose(slopes.mean(0), experiment.attributions([1.0])[0], atol=1e-6)
    np.testing.assert_allclose(slopes.std(0, ddof=1), experiment.attributions([1.0])[1], atol=1e-5)
    assert np.abs(slopes).max() > 0.1


def test_slopes_are_given_for_live_edges_and_those_asked_for_and_are_the_same_as_among_all(double: Subject) -> None:
    experiment, weights = double.experiment(), random_weights(double.graph.n_edges)
    whole = experiment.circuit_gradient(weights)[1]
    asked = np.flatnonzero(weights == 0)[::3]
    given = np.union1d(asked, np.flatnonzero(weights))
    values, slopes = experiment.circuit_gradient(weights, among=asked)
    np.testing.assert_allclose(slopes[:, given], whole[:, given], atol=1e-10)
    assert not slopes[:, np.setdiff1d(np.arange(double.graph.n_edges), given)].any()
    np.testing.assert_allclose(values, experiment.circuit_gradient(weights)[0], atol=1e-10)


def test_edges_that_reach_nothing_have_no_slope_and_an_empty_circuit_is_the_corrupted_run(double: Subject) -> None:
    experiment = double.experiment()
    values, slopes = experiment.circuit_gradient(np.zeros(double.graph.n_edges), among=np.array([], dtype=np.int64))
    np.testing.assert_allclose(values, experiment.corrupted, atol=1e-8)
    assert not slopes.any()
    lonely = np.zeros(double.graph.n_edges)
    lonely[double.index("m0->m1")] = 1  # nothing comes in, nothing goes out
    assert not experiment.circuit_gradient(lonely)[1][:, double.index("m0->m1")].any()


def test_pairs_go_through_in_as_many_passes_as_memory_takes_and_in_any_lengths(double: Subject) -> None:
    pairs = [*PAIRS, *random_pairs(3, 5, seed=9)]
    weights = random_weights(double.graph.n_edges)
    values, slopes = double.experiment(pairs).circuit_gradient(weights)
    singly = double.experiment(pairs, batch_size=1).circuit_gradient(weights)
    np.testing.assert_allclose(values, singly[0], atol=1e-9)
    np.testing.assert_allclose(slopes, singly[1], atol=1e-9)
    alone = [double.experiment([pair]).circuit_gradient(weights) for pair in pairs]
    np.testing.assert_allclose(values, [value[0] for value, _ in alone], atol=1e-9)
    np.testing.assert_allclose(slopes, [slope[0] for _, slope in alone], atol=1e-9)
