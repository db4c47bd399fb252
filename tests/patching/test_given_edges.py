"""Experiments take edges, circuits and paths as a caller gives them, and refuse what is none before any run."""

from typing import Any

import numpy as np
import pytest

from circuits.errors import UnknownNameError, UsageError
from circuits.evaluation import evaluate
from circuits.graph import Edge
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.paths import Path, path_effects
from circuits.patching.sites import patch_sites
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.vocabulary import Site
from tests.subjects import PAIRS, subject_of

NAMES = ["L1H2->logits", "m0->a2.h1<q>", "0.3->m1"]


@pytest.fixture(scope="module")
def experiment() -> PatchingExperiment:
    return subject_of("gpt2").experiment()


def test_edges_by_name_have_the_effects_of_their_positions(experiment: PatchingExperiment) -> None:
    places = np.array([experiment.graph.index(Edge.parse(name)) for name in NAMES])
    expected = experiment.edge_effects(places)
    assert np.abs(expected).max() > 0.01
    for given in (NAMES, [Edge.parse(name) for name in NAMES], places.tolist(), np.array(NAMES)):
        assert np.array_equal(experiment.edge_effects(given), expected)
    assert np.array_equal(experiment.edge_effects(NAMES[0]), expected[:1])
    for scorer in ("exact", "eap"):
        scores = score(experiment, scorer, Settings(edges=NAMES))
        assert set(scores.scored) == set(places.tolist())
    by_name, by_place = (evaluate(experiment, given) for given in (NAMES, np.sort(places)))
    assert by_name == by_place
    slopes = experiment.circuit_gradient(np.zeros(experiment.graph.n_edges), among=NAMES)[1]
    assert set(np.flatnonzero(slopes)) <= set(places.tolist())


def test_a_path_or_a_site_may_be_text(experiment: PatchingExperiment) -> None:
    text = "L0H1->a1.h2<q>->logits"
    expected = path_effects(experiment, [Path.parse(text, experiment.graph)])
    assert np.array_equal(path_effects(experiment, [text]), expected)
    assert np.array_equal(path_effects(experiment, text), expected)
    labels = [str(place) for place in range(len(PAIRS[0].clean))]
    by_text, by_member = (patch_sites(experiment, site, labels).values for site in ("mlp", Site.MLP))
    assert np.array_equal(by_text, by_member)
    with pytest.raises(UnknownNameError, match=r"there is no site 'heads'\. Closest: 'head'"):
        patch_sites(experiment, "heads", labels)


@pytest.mark.parametrize(
    "edges", [["a10.h7->logits"], ["a1.h2->a2.h1"], [10**6], [-1], [0.5], [None], 10**6, "m0", [["m0->m1"]], {"m0": 1}]
)
def test_edges_that_are_none_are_refused_by_every_measurement(experiment: PatchingExperiment, edges: Any) -> None:
    for measurement in (
        lambda: experiment.edge_effects(edges),
        lambda: score(experiment, "exact", Settings(edges=edges)),
        lambda: score(experiment, "random", Settings(edges=edges)),
        lambda: evaluate(experiment, edges),
        lambda: experiment.circuit_gradient(np.ones(experiment.graph.n_edges), among=edges),
    ):
        with pytest.raises((UsageError, UnknownNameError)):
            measurement()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([np.ones(5, dtype=bool)], r"a circuit is one boolean for each of 262 edges, got shape \(5,\)"),
        ([["m0->m1"]], r"got shape \(1,\)"),
        ([np.full(262, 0.5)], r"edges are in it or not \(True or False\), got float64 values"),
        ([np.full(262, np.nan)], r"in it or not"),
        ([np.full(262, 2)], r"in it or not"),
        ([np.ones(262, dtype=bool), np.ones(261, dtype=bool)], r"got shape \(261,\)"),
        (np.ones((2, 3, 262), dtype=bool), r"got shape \(3, 262\)"),
        ([None], r"got shape \(\)"),
        ([np.array(["m0"] * 262)], r"in it or not"),
        (np.ones(262, dtype=bool), r"got shape \(\)"),
    ],
)
def test_circuits_that_are_no_masks_are_refused(experiment: PatchingExperiment, masks: Any, message: str) -> None:
    assert experiment.graph.n_edges == 262
    with pytest.raises(UsageError, match=message):
        experiment.circuits(masks)


@pytest.mark.parametrize("weights", [np.ones(5), np.full(262, np.nan), np.full(262, np.inf)])
def test_weights_that_are_not_finite_or_not_one_per_edge_are_refused(
    experiment: PatchingExperiment, weights: Any
) -> None:
    with pytest.raises(UsageError, match="expected a finite weight for each of 262 edges"):
        experiment.circuit_gradient(weights)
