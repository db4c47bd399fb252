"""The built-in behaviours on the built-in model, by plain forward passes."""

from itertools import groupby

import pytest
import torch

from circuits.behaviours import BUILT_IN
from circuits.behaviours.lint import check_gap
from circuits.errors import BehaviourNotShownError
from circuits.metrics import AnswerTokens, measure
from circuits.models.loading import load_weights

pytestmark = pytest.mark.real

EXPECTED = {
    "ioi": (4.0, -1.1),
    "ioi-sentences": (4.7, -0.1),
    "greater-than": (4.9, -2.4),
    "greater-than-sentences": (4.7, -2.4),
    "capital": (12.6, -12.7),
    "capital-sentences": (11.3, -11.5),
    "agreement": (7.0, -6.8),
    "agreement-sentences": (6.4, -6.6),
    "induction": (7.3, -4.8),
    "pronoun": (4.5, -4.9),
    "pronoun-sentences": (2.8, -2.6),
}
"""Mean logit difference of 64 clean and corrupted held-out prompts."""


@pytest.fixture(scope="module")
def loaded():
    return load_weights("smollm2-135m", device="cpu")


def values(loaded, behaviour, count):
    pairs = sorted(
        behaviour.prompts(loaded.tokenizer, discovery=4, heldout=count).heldout, key=lambda pair: pair.length
    )
    answers = AnswerTokens.of(pairs)
    together = [list(group) for _, group in groupby(pairs, key=lambda pair: pair.length)]
    with torch.no_grad():
        logits = [
            torch.cat(
                [
                    loaded.module(torch.tensor([getattr(pair, side) for pair in group]), logits_to_keep=1).logits[:, -1]
                    for group in together
                ]
            )
            for side in ("clean", "corrupted")
        ]
    return [measure(behaviour.metric, side, answers).double().numpy() for side in logits]


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_model_shows_the_behaviour(loaded, name):
    clean, corrupted = values(loaded, BUILT_IN[name], 64)
    check_gap(clean, corrupted, BUILT_IN[name].metric, behaviour=name, model="smollm2-135m")
    assert (clean > 0).mean() >= (0.96 if name == "ioi-sentences" else 1)
    assert (clean > corrupted).all()
    assert (clean.mean(), corrupted.mean()) == pytest.approx(EXPECTED[name], abs=0.1)


def test_the_model_does_not_refuse_and_is_said_not_to(loaded):
    clean, corrupted = values(loaded, BUILT_IN["refusal"], 32)
    assert (clean < 0).all()
    with pytest.raises(BehaviourNotShownError, match="smollm2-135m does not show refusal"):
        check_gap(clean, corrupted, BUILT_IN["refusal"].metric, behaviour="refusal", model="smollm2-135m")


@pytest.mark.parametrize(("name", "accuracy"), [("smollm2-135m", 0.85), ("smollm2-135m-refusal", 0.65)])
def test_both_models_recognise_harm_whatever_their_threshold(name, accuracy):
    clean, corrupted = values(load_weights(name, device="cpu"), BUILT_IN["harm"], 64)
    check_gap(clean, corrupted, BUILT_IN["harm"].metric, behaviour="harm", model=name)
    assert (clean > 0).mean() >= accuracy
    assert (clean[:, None] > corrupted).mean() >= 0.9  # the area under the ROC curve, which knows no threshold
