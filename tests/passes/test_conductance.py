"""Conductance against plain autograd, its completeness, and where it is the same as integrated gradients."""

import numpy as np
import pytest

from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.vocabulary import Ablation, Direction, Metric
from tests.every_family import double, subject
from tests.reference.gradients import gradient_edge_scores
from tests.subjects import ABLATIONS, PAIRS, Subject, clean_ids, corrupted_ids, metric_of, random_pairs, relative

__all__ = ["double", "subject"]

POINTS = (1 / 6, 1 / 2, 5 / 6)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_it_equals_plain_autograd_on_every_family(double: Subject, ablation: Ablation) -> None:
    metric = metric_of(Metric.LOGIT_DIFFERENCE)
    expected = gradient_edge_scores(
        double.module, clean_ids(), corrupted_ids(), metric, points=POINTS, ablation=ablation.value, stepwise=True
    )
    experiment = double.experiment(ablation=ablation)
    found = experiment.attributions(POINTS, stepwise=True)
    assert relative(found[0], expected.mean(0).numpy(), at_least=0.02) < 1e-6
    assert relative(found[1], expected.std(0).numpy(), at_least=0.02) < 1e-6
    assert relative(found[0], experiment.attributions(POINTS)[0]) > 0.01  # something else than integrated gradients


def test_edges_into_the_logits_sum_to_the_gap(subject: Subject) -> None:
    experiment = subject.experiment()
    gap = experiment.clean.mean() - experiment.corrupted.mean()
    into_logits = slice(int(experiment.graph.offsets[len(experiment.graph.receivers) - 1]), None)

    def off(steps: int, scorer: str) -> float:
        return abs(float(score(experiment, scorer, Settings(steps=steps)).values[into_logits].sum()) - gap)

    scale = np.abs(experiment.clean - experiment.corrupted).mean()
    assert off(64, "conductance") < 0.01 * scale
    assert off(64, "conductance") < off(64, "eap-ig")


def test_neither_batches_nor_the_way_round_nor_checkpointing_matter(subject: Subject) -> None:
    pairs = (*random_pairs(3, 6), *random_pairs(3, 8))
    plain = subject.experiment(pairs).attributions(POINTS, stepwise=True)
    for changes in (
        {"batch_size": 2},
        {"prefix_cache": False},
        {"checkpointing": True},
        {"direction": Direction.DENOISING},
    ):
        other = subject.experiment(pairs, **changes).attributions(POINTS, stepwise=True)
        assert relative(other, plain) < 1e-4, changes


def test_one_point_is_integrated_gradients_with_one_step(subject: Subject) -> None:
    experiment = subject.experiment(PAIRS)
    one, other = (experiment.attributions([0.5], stepwise=each) for each in (True, False))
    np.testing.assert_allclose(one, other, atol=1e-5)
