import math

import pytest
import torch
from torch.testing import assert_close

from circuits.behaviours.behaviour import TokenPair
from circuits.errors import UsageError
from circuits.metrics import METRICS, AnswerTokens, measure
from circuits.vocabulary import Metric

QUARTERS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log() + 3.0  # probabilities 1/2, 1/4, 1/8, 1/8
OF_LOGITS = [metric for metric in Metric if metric is not Metric.PROJECTION]
WITH_WRONG = (Metric.LOGIT_DIFFERENCE, Metric.MEAN_LOGIT_DIFFERENCE, Metric.PROBABILITY_DIFFERENCE)


def answers(*rows):
    return AnswerTokens.of([TokenPair((1, 2), (1, 3), right, wrong, "", "") for right, wrong in rows])


@pytest.mark.parametrize(
    ("metric", "right", "wrong", "expected"),
    [
        (Metric.LOGIT_DIFFERENCE, (0,), (1,), math.log(2)),
        (Metric.LOGIT_DIFFERENCE, (0, 1), (2, 3), math.log(3)),
        (Metric.LOGIT_DIFFERENCE, (2,), (0, 1), -math.log(6)),
        (Metric.MEAN_LOGIT_DIFFERENCE, (0,), (1,), math.log(2)),
        (Metric.MEAN_LOGIT_DIFFERENCE, (0, 1), (2, 3), 1.5 * math.log(2)),
        (Metric.MEAN_LOGIT_DIFFERENCE, (2,), (0, 1, 3), -math.log(2)),
        (Metric.LOG_PROBABILITY, (1,), (), -math.log(4)),
        (Metric.LOG_PROBABILITY, (0, 1), (), math.log(3 / 4)),
        (Metric.LOG_ODDS, (0,), (), 0.0),
        (Metric.LOG_ODDS, (0, 1), (), math.log(3)),
        (Metric.LOG_ODDS, (3,), (), -math.log(7)),
        (Metric.PROBABILITY_DIFFERENCE, (0,), (1,), 0.25),
        (Metric.PROBABILITY_DIFFERENCE, (2,), (0, 1), -0.625),
    ],
)
def test_metrics_equal_hand_worked_numbers(metric, right, wrong, expected):
    value = measure(metric, QUARTERS, answers((right, wrong)))
    assert_close(value.double(), torch.tensor([expected], dtype=torch.float64), atol=1e-6, rtol=0)


def test_kl_is_from_clean_to_run_and_equals_the_hand_worked_number():
    run = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    pair = answers(((0,), ()))
    # 1/2 log 2 + 1/4 log 1 + 1/8 log 1/2 + 1/8 log 1/2 = 1/4 log 2, the same in either direction
    assert_close(measure(Metric.KL, run, pair, QUARTERS).float(), torch.tensor([math.log(2) / 4]))
    skewed = torch.tensor([[0.5, 0.25, 0.2, 0.05]]).log()
    expected = 0.125 * math.log(0.125 / 0.2) + 0.125 * math.log(0.125 / 0.05)
    assert_close(measure(Metric.KL, skewed, pair, QUARTERS).float(), torch.tensor([expected]))
    reverse = 0.2 * math.log(0.2 / 0.125) + 0.05 * math.log(0.05 / 0.125)
    assert abs(expected - reverse) > 0.005


def test_kl_of_the_clean_run_to_itself_is_zero():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 10
    assert measure(Metric.KL, logits, answers(*[((0,), ())] * 5), logits).tolist() == [0.0] * 5


def test_answers_of_different_number_do_not_disturb_one_another():
    logits = torch.cat([QUARTERS, QUARTERS])
    together = measure(Metric.LOGIT_DIFFERENCE, logits, answers(((0,), (1, 2, 3)), ((0, 1, 2), (3,))))
    assert_close(together, torch.tensor([0.0, math.log(7)]))


def test_the_mean_difference_of_unequal_numbers_of_answers_is_not_disturbed_by_its_padding():
    logits = torch.tensor([[6.0, 1.0, 3.0, 50.0], [6.0, 1.0, 3.0, 50.0]])
    together = measure(Metric.MEAN_LOGIT_DIFFERENCE, logits, answers(((0,), (1, 2)), ((0, 1, 2), (3,))))
    assert together.tolist() == [4.0, pytest.approx(10 / 3 - 50)]


def test_log_odds_stay_finite_at_both_ends():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    values = measure(Metric.LOG_ODDS, logits, answers(((0,), ()), ((0,), ())))
    limit = math.log(1e8)
    assert_close(values.detach(), torch.tensor([limit, -limit], dtype=torch.float64), atol=1e-6, rtol=0)
    values.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("metric", OF_LOGITS)
def test_metrics_do_not_change_when_all_logits_shift(metric):
    pair = answers(((0,), (1,)))
    clean = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    logits = clean.flip(-1)
    assert_close(measure(metric, logits + 7, pair, clean), measure(metric, logits, pair, clean))


@pytest.mark.parametrize("metric", OF_LOGITS)
def test_gradients_are_those_of_finite_differences(metric):
    generator = torch.Generator().manual_seed(1)
    logits, clean = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator)
    pairs = answers(((0,), (1, 2)), ((3, 4), (5,)), ((6,), (0,)))
    assert torch.autograd.gradcheck(lambda x: measure(metric, x, pairs, clean), logits.requires_grad_())


@pytest.mark.parametrize("metric", OF_LOGITS)
def test_every_metric_has_a_function_and_computes_bfloat16_logits_in_float32_or_wider(metric):
    assert metric in METRICS
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(2)).bfloat16()
    pairs = answers(((0,), (1,)), ((2,), (3,)))
    value = measure(metric, logits, pairs, logits.flip(0))
    assert value.dtype in (torch.float32, torch.float64)
    assert_close(value, measure(metric, logits.float(), pairs, logits.flip(0).float()))


def test_rows_selects_pairs_in_the_order_asked_for():
    pairs = answers(((0,), (1,)), ((2, 3), (1,)))
    chosen = pairs.rows(torch.tensor([1, 0, 1]))
    assert chosen.answers.tolist() == [[2, 3], [0, -1], [2, 3]]
    assert chosen.wrong_answers.tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("metric", WITH_WRONG)
@pytest.mark.parametrize("rows", [[((0,), ())], [((0,), (1,)), ((0,), ())]])
def test_a_pair_without_wrong_answers_is_refused_by_metrics_that_compare(metric, rows):
    with pytest.raises(UsageError, match="no answer or no wrong answer"):
        measure(metric, QUARTERS.expand(len(rows), -1), answers(*rows))


def test_kl_without_clean_logits_is_refused():
    with pytest.raises(UsageError, match="kl compares with the clean run"):
        measure(Metric.KL, QUARTERS, answers(((0,), (1,))))


def test_rows_that_do_not_fit_together_are_refused():
    with pytest.raises(UsageError, match="2 rows of logits need 2 rows of answers, got 1"):
        measure(Metric.LOGIT_DIFFERENCE, QUARTERS.expand(2, -1), answers(((0,), (1,))))


def test_metrics_say_whether_zero_divides_right_from_wrong():
    compared = {Metric.LOGIT_DIFFERENCE, Metric.MEAN_LOGIT_DIFFERENCE, Metric.PROBABILITY_DIFFERENCE}
    assert {metric for metric in Metric if metric.compares} == compared
    assert {metric for metric in Metric if metric.signed} == compared | {Metric.LOG_ODDS}


def test_a_projection_is_what_was_read_instead_of_logits_and_refuses_logits():
    read = torch.tensor([[2.5], [-1.0]])
    assert measure(Metric.PROJECTION, read, answers(((0,), ()), ((0,), ()))).tolist() == [2.5, -1.0]
    with pytest.raises(UsageError, match="reads the residual stream along a direction, and got the logits of 4 tokens"):
        measure(Metric.PROJECTION, QUARTERS, answers(((0,), ())))
    assert set(METRICS) == set(Metric)


def test_units_name_what_is_measured():
    assert [Metric.PROJECTION.unit, Metric.PROBABILITY_DIFFERENCE.unit] == ["length", "probability"]
    assert {metric.unit for metric in OF_LOGITS} == {"nats", "probability"}
