"""What is measured before and after, beside random ablations, on a model whose one head makes the answer."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from circuits.ablation.generation import ablated
from circuits.ablation.intervention import Intervention
from circuits.ablation.measuring import AblationReport, measure_ablation, neutral_texts
from circuits.errors import UsageError
from circuits.graph import Node, NodeKind
from circuits.metrics import AnswerTokens, measure
from circuits.model import load_model
from circuits.vocabulary import Metric, NodeAblation
from tests.ablation.conftest import ANSWER, PLANTED, TOKENIZER, pairs_of, plant, planted_model, tiny_model
from tests.tiny import tiny_qwen2

ZERO = Intervention(NodeAblation.ZERO)
PAIRS = pairs_of()
RATE, METRIC = "opens with an answer on clean prompts", "logit-difference on clean prompts"


@pytest.fixture(scope="module")
def planted() -> AblationReport:
    return measure_ablation(planted_model(), (PLANTED,), PAIRS, ZERO, new_tokens=2)


def test_ablating_the_planted_head_takes_the_answer_and_random_ablation_does_not(planted: AblationReport) -> None:
    rate = planted.quantity(RATE)
    assert (rate.before.value, rate.after.value, rate.random) == (1.0, 0.0, (1.0,) * 5)
    assert rate.change.high < 0
    assert rate.beyond_random is True
    metric = planted.quantity(METRIC)
    assert metric.before.low > 5 * abs(metric.after.value)
    assert metric.beyond_random is True
    assert planted.quantity("answer above wrong answer").before.value == 1.0
    assert planted.overlap == 0.0
    text = planted.describe()
    assert "went from 1.00 to 0.00" in text
    assert "Of 5 random ablations" in text
    assert "all changed it less" in text
    assert "may explain" not in text


def test_ablating_another_head_is_no_more_than_chance() -> None:
    found = measure_ablation(planted_model(), (Node(NodeKind.HEAD, 1, 0),), PAIRS, ZERO, new_tokens=1, draws=6)
    rate = found.quantity(RATE)
    assert (rate.before.value, rate.after.value) == (1.0, 1.0)
    assert 0.0 in rate.random  # one of the three other heads of the layer is the planted one
    assert rate.beyond_random is False
    assert "not all changed it less, so size alone may do it" in found.describe()
    assert "which chance may explain" in found.describe()


def test_the_answers_are_those_of_the_models_own_runs(planted: AblationReport) -> None:
    model = planted_model()
    without = ablated(model, (PLANTED,), ZERO)
    clean, corrupted = (torch.tensor([getattr(pair, side) for pair in PAIRS]) for side in ("clean", "corrupted"))
    answers = AnswerTokens.of(PAIRS)
    expected = measure(Metric.LOGIT_DIFFERENCE, without.logits(clean), answers).mean().item()
    assert planted.quantity(METRIC).after.value == pytest.approx(expected, rel=1e-4)
    odds = measure(Metric.LOG_ODDS, without.logits(corrupted), answers).mean().item()
    assert planted.quantity("log-odds on corrupted prompts").after.value == pytest.approx(odds, rel=1e-4)
    share = float((without.logits(corrupted).argmax(-1) == ANSWER).double().mean())
    assert planted.quantity("opens with an answer on corrupted prompts").after.value == share
    first = planted.openings[0]
    assert (first.side, first.prompt, first.before_class, first.after_class) == (
        "clean",
        PAIRS[0].clean_text,
        "answer",
        "other",
    )
    assert len(planted.openings) == 2 * len(PAIRS)
    assert len(TOKENIZER.encode(first.before)) <= 2


def test_perplexity_is_of_the_neutral_sentences_that_are_shipped(planted: AblationReport) -> None:
    model = planted_model()
    texts = neutral_texts(model)
    assert len(texts) == 20
    assert min(len(text) for text in texts) > 10
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                model.tracer.anatomy.module(torch.tensor([text])).logits[0, :-1], torch.tensor(text[1:])
            )
            for text in texts
        ]
    tokens = np.array([len(text) - 1 for text in texts])
    mean = float(np.sum(tokens * np.array([loss.item() for loss in losses])) / tokens.sum())
    quantity = planted.quantity("perplexity on neutral text")
    assert quantity.n == 20
    assert quantity.before.value == pytest.approx(np.exp(mean), rel=1e-3)
    assert quantity.change.value == pytest.approx(quantity.after.value / quantity.before.value)


def test_a_model_broken_in_general_is_said_to_be() -> None:
    model = tiny_model()
    nodes = tuple(node for node in model.graph.senders if node.kind is not NodeKind.INPUT)
    found = measure_ablation(model, nodes, PAIRS, Intervention(NodeAblation.ZERO, scale=3.0), new_tokens=1, draws=1)
    ratio = found.quantity("perplexity on neutral text").change.value
    assert ("the model is broken in general" in found.describe()) is (ratio > 2)
    assert found.overlap == 1.0
    assert "share 100% of the nodes acted on" in found.describe()
    from dataclasses import replace

    quantities = list(found.quantities)
    last = quantities[-1]
    quantities[-1] = replace(last, change=replace(last.change, value=2.1))
    assert "2.1 times as high: the model is broken" in replace(found, quantities=tuple(quantities)).describe()
    quantities[-1] = replace(last, change=replace(last.change, value=1.9))
    assert "broken" not in replace(found, quantities=tuple(quantities)).describe()


def test_refusals_are_called_refusals() -> None:
    sorry = TOKENIZER.encode("I")
    pairs = pairs_of(answers=sorry[:1])
    found = measure_ablation(planted_model(), (PLANTED,), pairs, ZERO, draws=0, new_tokens=1)
    names = {quantity.name for quantity in found.quantities}
    assert {"refusal rate on harmful prompts", "over-refusal on harmless prompts"} <= names
    assert "refusal log-odds on harmless prompts" in names
    assert found.quantities[0].beyond_random is None
    assert "random" not in found.describe()
    assert "'over-refusal on harmless prompts' went from" in found.describe()


def test_the_metric_kl_compares_with_the_model_as_it_is() -> None:
    found = measure_ablation(
        planted_model(), (PLANTED,), PAIRS, ZERO, metric=Metric.KL, draws=1, new_tokens=1
    ).quantity("kl on clean prompts")
    assert found.before.value == pytest.approx(0, abs=1e-6)
    assert found.after.value > 1


def test_without_a_tokenizer_there_is_no_perplexity() -> None:
    model = load_model(plant(tiny_qwen2(tied=False)), name="bare")
    found = measure_ablation(model, (PLANTED,), PAIRS, ZERO, draws=1, new_tokens=1)
    assert all(quantity.unit != "perplexity" for quantity in found.quantities)
    assert found.quantity(RATE).after.value == 0.0
    assert found.openings[0].before == str([ANSWER])


def test_the_report_is_json_and_the_same_each_time(planted: AblationReport) -> None:
    again = measure_ablation(planted_model(), (PLANTED,), PAIRS, ZERO, new_tokens=2)
    text = json.dumps(planted.to_dict())
    assert json.dumps(again.to_dict()) == text
    document = json.loads(text)
    assert document["nodes"] == ["a1.h2"]
    assert document["intervention"] == asdict(ZERO)
    assert [row["name"] for row in document["quantities"]] == [quantity.name for quantity in planted.quantities]


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(UsageError, match="got 0 nodes, 12 pairs and 5 draws"):
        measure_ablation(planted_model(), (), PAIRS, ZERO)
    with pytest.raises(UsageError, match="got 1 nodes, 12 pairs and -1 draws"):
        measure_ablation(planted_model(), (PLANTED,), PAIRS, ZERO, draws=-1)
    with pytest.raises(UsageError, match="at least one pair"):
        measure_ablation(planted_model(), (PLANTED,), PAIRS)
