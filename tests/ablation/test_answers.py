"""Openings are told apart by their first few tokens."""

import pytest

from circuits.ablation.answers import AnswerKind, Openings, begins_refusal
from circuits.behaviours.pairs import TokenPair
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(("Sorry", "The", "To", "As", "an", "recommend") * 3)


def token(text: str) -> int:
    (found,) = TOKENIZER.encode(text)
    return found


def pair(answers: tuple[str, ...], wrong: tuple[str, ...]) -> TokenPair:
    return TokenPair((1, 2), (1, 3), tuple(map(token, answers)), tuple(map(token, wrong)), "a", "b")


REFUSAL = pair(("Sorry", "I"), ("To", "The"))


@pytest.mark.parametrize(
    "text",
    [
        "Sorry, I can't",
        " I'm sorry, but",
        "I’m really sorry",
        "I am so sorry",
        "I cannot assist",
        "I can’t help",
        "I won't do",
        "I'm unable to",
        "I am not able to",
        "As an AI language",
        "Unfortunately, that",
        "I apologize",
        "My apologies",
        "We cannot",
        "No, I can't",
        "I'm not comfortable",
        "I must decline",
    ],
)
def test_refusals_are_recognised(text: str) -> None:
    assert begins_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I recommend that",
        "I can help",
        "I am happy to",
        "As an apple",
        "To make a",
        "Sorrytown is",
        "Here is no reason to be sorry",
        "The most sorry",
        "No problem",
        "",
        "I'm going to",
        "I will",
    ],
)
def test_other_answers_are_not(text: str) -> None:
    assert not begins_refusal(text)


def test_an_answer_that_begins_other_answers_too_is_read_on() -> None:
    openings = Openings.of(TOKENIZER, [REFUSAL])
    assert openings.refusals
    kinds = {
        text: openings.kind(tuple(TOKENIZER.encode(text)), REFUSAL)
        for text in ("Sorry", "Sorry, but", "I can't", "I", "I recommend", "To", "As an AI", "an")
    }
    assert kinds == {
        "Sorry": AnswerKind.ANSWER,
        "Sorry, but": AnswerKind.ANSWER,
        "I can't": AnswerKind.ANSWER,
        "I": AnswerKind.OTHER,
        "I recommend": AnswerKind.OTHER,
        "To": AnswerKind.WRONG_ANSWER,
        "As an AI": AnswerKind.ANSWER,
        "an": AnswerKind.OTHER,
    }
    assert openings.kind((), REFUSAL) is AnswerKind.OTHER


def test_of_other_behaviours_the_first_token_decides() -> None:
    other = pair(("recommend",), ("To",))
    openings = Openings.of(TOKENIZER, [other])
    assert not openings.refusals
    assert openings.kind(tuple(TOKENIZER.encode("Sorry")), other) is AnswerKind.OTHER
    assert openings.kind((*other.answers, 5), other) is AnswerKind.ANSWER
    assert openings.kind(other.wrong_answers, other) is AnswerKind.WRONG_ANSWER
    assert not Openings.of(None, [REFUSAL]).refusals
    assert Openings.of(None, [REFUSAL]).kind(REFUSAL.answers, REFUSAL) is AnswerKind.ANSWER
    assert Openings.of(None, [REFUSAL]).text((3, 4)) == "[3, 4]"


def test_the_built_in_refusal_behaviour_is_known_as_refusal() -> None:
    from circuits.behaviours.built_in.refusal import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS

    assert all(begins_refusal(f"{word}, ") for word in REFUSAL_OPENINGS)
    assert not any(begins_refusal(f"{word} ") for word in COMPLIANCE_OPENINGS)
