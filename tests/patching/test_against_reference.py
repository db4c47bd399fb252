"""The engine, in float32, against plain hooks that share none of its code.

"Relative" is always the largest absolute difference over the largest absolute effect; single edges are also compared
one by one, each over its own effect but no less than a hundredth of the largest.
"""

import sys
import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from circuits.graph import ComputationalGraph, NodeKind
from circuits.metrics import AnswerTokens, measure
from circuits.vocabulary import Ablation, Direction, Metric
from tests.reference.hooks import clean_run, exact_edge_effects, masked_run
from tests.subjects import (
    ABLATIONS,
    Floats,
    Subject,
    clean_ids,
    corrupted_ids,
    metric_of,
    random_masks,
    relative,
)
from tests.toy import planted_edges


def spread_edges(graph: ComputationalGraph, count: int = 200, *, seed: int = 0) -> NDArray[np.int64]:
    """Edges spread over layers and slots: the same number, as far as there are so many, from each."""
    generator = np.random.default_rng(seed)
    groups: dict[tuple[int, str], list[int]] = {}
    for index, receiver in enumerate(graph.receivers):
        layer = receiver.node.layer if receiver.node.kind is not NodeKind.LOGITS else graph.shape.n_layers
        edges = range(int(graph.offsets[index]), int(graph.offsets[index + 1]))
        groups.setdefault((layer, str(receiver.slot)), []).extend(edges)
    queues = [generator.permutation(group).tolist() for group in groups.values()]
    chosen: list[int] = []
    while len(chosen) < min(count, graph.n_edges):
        chosen += [queue.pop() for queue in queues if queue]
    return np.sort(np.array(chosen[:count]))


def relative_by_edge(actual: Floats, expected: Floats) -> float:
    """Largest relative difference of single edges, each over its own largest effect, at least 1 % of the largest."""
    own = np.abs(expected).max(axis=1)
    return float((np.abs(actual - expected).max(axis=1) / np.maximum(own, 0.01 * own.max())).max())


def test_the_sampled_edges_are_two_hundred_over_every_layer_and_slot(subject: Subject) -> None:
    edges = spread_edges(subject.graph, 180)
    assert len(np.unique(edges)) == 180
    receivers = [subject.graph.receivers[r] for r in subject.graph.edge_receivers[edges]]
    assert {(r.node.layer, r.slot) for r in receivers} == {(r.node.layer, r.slot) for r in subject.graph.receivers}


SETTINGS = [
    (Metric.LOGIT_DIFFERENCE, Ablation.CORRUPTED, Direction.NOISING),
    (Metric.LOGIT_DIFFERENCE, Ablation.CORRUPTED, Direction.DENOISING),
    (Metric.LOGIT_DIFFERENCE, Ablation.ZERO, Direction.NOISING),
    (Metric.KL, Ablation.CORRUPTED, Direction.NOISING),
]


@pytest.mark.parametrize(("metric", "ablation", "direction"), SETTINGS)
def test_exact_effects_equal_one_plain_forward_pass_per_edge(
    subject: Subject, metric: Metric, ablation: Ablation, direction: Direction
) -> None:
    edges = spread_edges(subject.graph, 200 if metric is Metric.LOGIT_DIFFERENCE else 60)
    of = metric_of(metric, clean_run(subject.module, clean_ids()))
    expected = exact_edge_effects(
        subject.module,
        clean_ids(),
        corrupted_ids(),
        list(subject.graph.edges(edges)),
        of,
        direction=direction.value,
        ablation=ablation.value,
        lower_is_better=metric.lower_is_better,
    ).numpy()
    found = subject.experiment(metric=metric, ablation=ablation, direction=direction).edge_effects(edges)
    assert relative(found, expected, at_least=0.05) < 1e-4
    assert relative_by_edge(found, expected) < 2e-3  # float32 rounding over the smallest denominators
    assert relative(-found, expected) > 1  # a comparison that a wrong sign would pass says nothing


@pytest.mark.parametrize("metric", [Metric.LOG_ODDS, Metric.PROBABILITY_DIFFERENCE])
def test_exact_effects_in_other_metrics(double: Subject, metric: Metric) -> None:
    edges = spread_edges(double.graph, 40)
    options = (double.module, clean_ids(), corrupted_ids(), list(double.graph.edges(edges)))
    expected = exact_edge_effects(*options, metric_of(metric)).numpy()
    assert relative(double.experiment(metric=metric).edge_effects(edges), expected) < 1e-6


def several_circuits(graph: ComputationalGraph) -> list[NDArray[np.bool_]]:
    """Random masks of many densities, and sparse circuits of whole paths, which random masks never give."""
    masks = random_masks(graph.n_edges, (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97))
    for seed, size in enumerate((3, 8, 20, 40)):
        mask = np.zeros(graph.n_edges, dtype=np.bool_)
        mask[planted_edges(graph, size, seed=seed)] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_circuits_equal_a_run_that_adds_up_every_receivers_input(subject: Subject, ablation: Ablation) -> None:
    masks = several_circuits(subject.graph)
    of = metric_of(Metric.LOGIT_DIFFERENCE)
    every = list(subject.graph.edges())
    expected = np.stack(
        [
            of(
                masked_run(
                    subject.module,
                    clean_ids(),
                    corrupted_ids(),
                    [every[i] for i in np.flatnonzero(mask)],
                    ablation=ablation.value,
                )
            ).numpy()
            for mask in masks
        ]
    )
    experiment = subject.experiment(ablation=ablation)
    assert relative(experiment.circuits(masks), expected, at_least=1) < 1e-4
    one_by_one = np.concatenate([experiment.circuits([mask]) for mask in masks])
    assert relative(one_by_one, expected, at_least=1) < 1e-4
    sparse = expected[-4:] - experiment.corrupted
    assert (np.abs(sparse).max(axis=1) > 0.01).sum() >= 3  # the sparse circuits carry something


@pytest.mark.real
@pytest.mark.slow
def test_two_hundred_edges_of_the_built_in_model_agree_with_plain_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    """About a minute on one thread, with loading."""
    from circuits.behaviours import load_behaviour
    from circuits.model import load_model

    model = load_model("smollm2-135m", device="cpu", dtype="float32")
    module = model.tracer.anatomy.module
    pairs = load_behaviour("ioi").prompts(model.tokenizer, discovery=4, heldout=4).discovery[:2]
    edges = spread_edges(model.graph)
    clean, corrupted = (torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted"))
    experiment = model.experiment(pairs)
    begun = time.process_time()
    found = experiment.edge_effects(edges)
    fast = time.process_time() - begun
    expected = exact_edge_effects(
        module,
        clean,
        corrupted,
        list(model.graph.edges(edges)),
        lambda logits: measure(Metric.LOGIT_DIFFERENCE, logits, AnswerTokens.of(pairs)),
    ).numpy()
    slow = time.process_time() - begun - fast
    error, by_edge = relative(found, expected, at_least=0.1), relative_by_edge(found, expected)
    with capsys.disabled():
        sys.stdout.write(
            f"\n200 edges of SmolLM2: relative {error:.1e}, by edge {by_edge:.1e}; {fast:.0f} s, hooks {slow:.0f} s\n"
        )
    assert error < 1e-4
    assert by_edge < 1e-2
    none, every = experiment.circuits([np.full(model.graph.n_edges, live) for live in (False, True)])
    np.testing.assert_allclose(none, experiment.corrupted, atol=1e-3)
    np.testing.assert_allclose(every, experiment.clean, atol=1e-3)
