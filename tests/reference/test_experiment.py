"""The fast engine against the oracle: every edge, every slot, both directions, both ablations, any batch size."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from circuits.adapters.anatomy import Anatomy
from circuits.behaviours.pairs import TokenPair
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation, Direction
from tests.reference.anatomy import anatomy_of
from tests.reference.gradients import gradient_edge_scores
from tests.reference.hooks import exact_edge_effects, masked_run
from tests.reference.small_models import logit_difference, pairs

CLEAN, CORRUPTED = pairs(4, 7, seed=3)
PAIRS = [
    TokenPair(tuple(clean), tuple(corrupted), (3,), (5,), "", "")
    for clean, corrupted in zip(CLEAN.tolist(), CORRUPTED.tolist(), strict=True)
]
SETTINGS = [("corrupted", "noising"), ("corrupted", "denoising"), ("zero", "noising")]
Make = Callable[..., PatchingExperiment]


@pytest.fixture(scope="module")
def experiment(double: nn.Module) -> Make:
    tracer, graph = Tracer(Anatomy(double)), anatomy_of(double).graph

    def make(ablation: str, direction: str = "noising", batch_size: int | None = None) -> PatchingExperiment:
        options = Options(ablation=Ablation(ablation), direction=Direction(direction))
        return PatchingExperiment(tracer, graph, PAIRS, options, resources=Resources(batch_size=batch_size))

    return make


def some_circuits(n_edges: int) -> NDArray[np.bool_]:
    """Circuits from sparse to nearly full, two that differ late only, two that differ at the logits only, both ends."""
    shares = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.97])[:, None]
    random = np.random.default_rng(0).random((6, n_edges)) < shares
    late = random[2] | (np.arange(n_edges) > 150)
    at_logits = np.ones((2, n_edges), dtype=np.bool_)
    at_logits[0, -1] = at_logits[1, -3] = False
    return np.stack([*random, late, *at_logits, np.zeros(n_edges, dtype=np.bool_), np.ones(n_edges, dtype=np.bool_)])


def relative(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    assert actual.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(("ablation", "direction"), SETTINGS)
def test_exact_effects_equal_one_plain_forward_pass_per_edge(
    double: nn.Module, experiment: Make, ablation: str, direction: str, batch_size: int | None
) -> None:
    measured = experiment(ablation, direction, batch_size)
    chosen = np.arange(0, measured.graph.n_edges, 1 if batch_size is None else 5)
    options = {"direction": direction, "ablation": ablation}
    edges = list(measured.graph.edges(chosen))
    expected = exact_edge_effects(double, CLEAN, CORRUPTED, edges, logit_difference, **options).numpy()
    assert relative(measured.edge_effects(chosen), expected) < 1e-10


@pytest.mark.parametrize("batch_size", [None, 2, 64])
@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_circuits_equal_the_sum_sender_by_sender(
    double: nn.Module, experiment: Make, ablation: str, batch_size: int | None
) -> None:
    measured = experiment(ablation, batch_size=batch_size)
    every = list(measured.graph.edges())
    masks = some_circuits(len(every))
    live = [[every[i] for i in np.flatnonzero(mask)] for mask in masks]
    logits = [masked_run(double, CLEAN, CORRUPTED, edges, ablation=ablation) for edges in live]
    expected = torch.stack([logit_difference(rows) for rows in logits]).numpy()
    assert relative(measured.circuits(masks), expected) < 1e-10
    assert relative(np.stack([measured.corrupted, measured.clean]), expected[-2:]) < 1e-10


@pytest.mark.parametrize(("ablation", "direction"), SETTINGS)
def test_attributions_equal_those_of_autograd_with_a_copy_of_the_stream_per_receiver(
    double: nn.Module, experiment: Make, ablation: str, direction: str
) -> None:
    points = (0.3, 0.9)
    from_clean_end = points if direction == "noising" else tuple(1 - point for point in points)
    options = {"points": from_clean_end, "ablation": ablation}
    expected = gradient_edge_scores(double, CLEAN, CORRUPTED, logit_difference, **options).numpy()
    mean, spread = experiment(ablation, direction).attributions(points)
    assert relative(mean, expected.mean(0)) < 1e-5
    assert relative(spread, expected.std(0, ddof=1)) < 1e-5
