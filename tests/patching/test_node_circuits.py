"""Circuits of whole nodes are circuits of all edges among them, and their slopes are sums over those edges."""

import numpy as np
import pytest

from circuits.errors import UsageError
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.node_circuits import edges_among, node_slopes, node_values
from circuits.vocabulary import Ablation
from tests.directions.test_target import measured, model
from tests.subjects import random_pairs, relative, sorted_settings

PAIRS = random_pairs(4, 7)


def some_nodes(experiment: PatchingExperiment, seed: int) -> np.ndarray:
    kept = np.random.default_rng(seed).random(len(experiment.graph.senders)) < 0.6
    kept[0] = True
    return np.flatnonzero(kept)


def subjects(family: str) -> list[PatchingExperiment]:
    options, resources = sorted_settings({"ablation": Ablation.ZERO})
    zero = model(family).experiment(PAIRS, options, resources=resources)
    found = [measured(family, 2, PAIRS), model(family).experiment(PAIRS), zero]
    return [each for each in found if isinstance(each, PatchingExperiment)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2", "falcon"])
def test_a_circuit_of_nodes_is_the_circuit_of_all_edges_among_them(family: str) -> None:
    for seed, experiment in enumerate(subjects(family)):
        nodes, graph = some_nodes(experiment, seed), experiment.graph
        mask = graph.mask(edges_among(graph, nodes))
        expected = experiment.circuits([mask])[0]
        assert relative(node_values(experiment, nodes), expected, at_least=0.1) < 1e-3
        values, slopes = node_slopes(experiment, nodes)
        assert relative(values, expected, at_least=0.1) < 1e-3
        _, by_edge = experiment.circuit_gradient(mask.astype(np.float64))
        summed = np.zeros_like(slopes)
        live = np.flatnonzero(mask)
        np.add.at(summed.T, graph.edge_senders[live], by_edge[:, live].T)
        assert relative(slopes[:, nodes], summed[:, nodes], at_least=0.01) < 1e-2


def test_the_slope_of_a_node_outside_is_what_a_little_of_it_brings() -> None:
    experiment = measured("llama", 2, PAIRS)
    nodes = some_nodes(experiment, 3)
    (out, *_) = np.setdiff1d(np.arange(len(experiment.graph.senders)), nodes)
    _, slopes = node_slopes(experiment, nodes)
    weights = experiment.graph.mask(edges_among(experiment.graph, nodes)).astype(np.float64)
    added = edges_among(experiment.graph, np.union1d(nodes, [out]))
    among = added[experiment.graph.edge_senders[added] == out]
    weights[added] = 1
    weights[among] = 0
    _, by_edge = experiment.circuit_gradient(weights, among=among)
    assert relative(slopes[:, out], by_edge[:, among].sum(1), at_least=0.01) < 1e-2


def test_all_nodes_are_the_model_and_none_are_refused() -> None:
    experiment = measured("llama", 2, PAIRS)
    everything = np.arange(len(experiment.graph.senders))
    assert len(edges_among(experiment.graph, everything)) == experiment.graph.n_edges
    assert relative(node_values(experiment, everything), experiment.clean, at_least=0.1) < 1e-4
    with pytest.raises(UsageError, match="keeps some of 11 senders, got places"):
        node_values(experiment, everything[:0])
