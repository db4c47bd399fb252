"""Over-refusal: which harmless prompts a model refuses is what it says itself, and twins are alike."""

import pytest
import torch

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.errors import BehaviourNotShownError
from circuits.steering.over_refusal import over_refusal
from tests.test_openings import WORDS, model


def behaviour(refusing: int | None = None) -> Behaviour:
    """Requests whose last word decides what the model says; what it says to the first one is taken to refuse."""
    names = ("Paul", "John")
    rows = [tuple(f"When {word} the {names[(i + j) % 2]}" for j in (1, 0)) for i, word in enumerate(WORDS)]
    answer = said(rows[0][1]) if refusing is None else refusing
    pairs = [
        Pair(
            here,
            there,
            answer_ids=(answer,),
            wrong_ids=(answer + 1,),
            tags={"split": "discovery" if i % 3 else "heldout", "template": "one"},
        )
        for i, (here, there) in enumerate(rows)
    ]
    return Behaviour("mine", "a test", lambda _: pairs)


def said(text: object) -> int:
    ids = model().tokenizer.encode(str(text))
    with torch.no_grad():
        return int(model().tracer.anatomy.module(torch.tensor([ids])).logits[0, -1].argmax())


def test_clean_prompts_are_refused_and_corrupted_ones_answered_in_the_same_form_and_length() -> None:
    asked = behaviour()
    found = over_refusal(model(), asked.varied(wrong_answers=[" to"]))
    assert found.behaviour.name == "over-refusal"
    assert 0 < found.paired <= found.refused < found.requests == len(WORDS)
    pairs = found.behaviour.usable(model().tokenizer).pairs
    assert len(pairs) == found.paired
    assert {pair.wrong_answers for pair, _ in pairs} == {(" to",)}
    (refusing,) = {made.answers[0] for _, made in pairs}
    for pair, made in pairs:
        assert said(pair.clean) == refusing
        assert said(pair.corrupted) != refusing
        assert len(made.clean) == len(made.corrupted)
    harmless = {pair.corrupted: pair.tags["split"] for pair in asked.pairs(model().tokenizer)}
    assert all(harmless[pair.clean] == harmless[pair.corrupted] == pair.tags["split"] for pair, _ in pairs)
    assert f"refuses on {found.refused} of {len(WORDS)}" in found.describe()


def test_a_model_that_refuses_none_has_no_pairs() -> None:
    never = next(
        token for token in range(200) if token not in {said(pair.corrupted) for pair in behaviour().pairs(None)}
    )
    with pytest.raises(BehaviourNotShownError, match=rf"sharp refuses 0 of {len(WORDS)} harmless requests"):
        over_refusal(model(), behaviour(never))
