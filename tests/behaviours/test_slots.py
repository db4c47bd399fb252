"""Template files: slots and words that make pairs of prompts."""

import re

import pytest

from circuits.behaviours import load_behaviour
from circuits.errors import CircuitsError, FormatError, PromptError

IOI = """
clean = "When {A} and {B} went to the {place}, {B} gave a {thing} to"
corrupted = "When {A} and {B} went to the {place}, {C} gave a {thing} to"
answer = " {A}"
wrong_answer = " {B}"
pairs = 40

[slots]
"A B C" = ["Mary", "John", "James", "Robert", "Xylophonia"]
place = ["store", "park"]
thing = ["book", "drink"]
"""


@pytest.fixture
def write(tmp_path):
    def file(text, name="mine.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return file


def test_a_template_makes_as_many_different_pairs_as_are_wanted_with_different_words(write, tokenizer):
    behaviour = load_behaviour(write(IOI))
    pairs = behaviour.pairs(tokenizer)
    assert behaviour.name == "mine"
    assert len({(pair.clean, pair.corrupted) for pair in pairs}) == len(pairs) == 40
    for pair in pairs:
        a, b, c = (pair.tags[slot] for slot in "ABC")
        assert len({a, b, c}) == 3
        place, thing = pair.tags["place"], pair.tags["thing"]
        assert pair.clean == f"When {a} and {b} went to the {place}, {b} gave a {thing} to"
        assert pair.corrupted == f"When {a} and {b} went to the {place}, {c} gave a {thing} to"
        assert (pair.answers, pair.wrong_answers) == ((f" {a}",), (f" {b}",))
    assert behaviour.pairs(tokenizer) == pairs
    assert load_behaviour(write(IOI.replace("pairs = 40", "pairs = 40\nseed = 1"))).pairs(tokenizer) != pairs


def test_words_that_the_tokenizer_splits_are_left_out_with_a_remark_unless_they_are_wanted(write, tokenizer):
    behaviour = load_behaviour(write(IOI))
    prompts = behaviour.prompts(tokenizer, discovery=8, heldout=8)
    assert not any("Xylophonia" in pair.clean for pair in behaviour.pairs(tokenizer))
    assert len({pair.length for pair in behaviour.checked(tokenizer)}) == 1
    assert prompts.remarks == (
        "mine.toml: 1 words are left out, of which this tokenizer makes several tokens: Xylophonia.",
    )
    all_words = load_behaviour(write(IOI.replace("pairs = 40", "pairs = 40\nsingle_tokens = false")))
    assert any("Xylophonia" in pair.clean for pair in all_words.pairs(tokenizer))


def test_rows_of_words_stay_together(write, tokenizer):
    text = """
    clean = "The capital of {country} is the city of"
    corrupted = "The capital of {other} is the city of"
    answer = " {city}"
    wrong_answer = " {other_city}"
    [slots]
    "country city other other_city" = [["France", "Paris"], ["Italy", "Rome"], ["Spain", "Madrid"]]
    """
    behaviour = load_behaviour(write(text))
    pairs = behaviour.pairs(tokenizer)
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
    assert {(pair.tags["country"], pair.tags["other"]) for pair in pairs} == {
        (one, other) for one in capitals for other in capitals if one != other
    }
    assert all(pair.answers == (f" {capitals[pair.tags['country']]}",) for pair in pairs)
    assert behaviour.remarks(tokenizer, 6) == ("mine.toml: 6 of 200 pairs were made; there are no more. Add words.",)


def test_chat_messages_and_lists_of_answers_have_slots_too(write, tokenizer):
    text = """
    clean = [{role = "user", content = "How do I {bad} a museum?"}]
    corrupted = [{role = "user", content = "How do I {good} a museum?"}]
    answers = [" {bad}", " I"]
    wrong_answers = [" {good}"]
    [slots]
    bad = ["rob", "poison"]
    good = ["water"]
    """
    first, second = load_behaviour(write(text)).pairs(tokenizer)
    assert {pair.clean[0].content for pair in (first, second)} == {
        "How do I rob a museum?",
        "How do I poison a museum?",
    }
    assert first.answers[1] == " I"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("clean = ", "clean "), r"mine\.toml: not valid TOML"),
        (("[slots]", "[words]"), r"mine\.toml has no \[slots\]; expected lists of words"),
        (("{place}", "{Place}"), r"there are no words for \{Place\}; the slots are A, B, C, place, thing"),
        (('thing = ["book", "drink"]', 'thing = ["book", "drink"]\nsize = ["a"]'), "the slot 'size' is in no text"),
        (('thing = ["book", "drink"]', 'thing = ["book"]\n"B D" = ["a", "b"]'), "the slot 'B' is there twice"),
        (('"James", "Robert", "Xylophonia"', ""), r"'A B C': 2 different rows of 1 words cannot fill 3 slots"),
        (('["store", "park"]', "[]"), "slots, 'place': expected a list of words"),
        (('["store", "park"]', '["store", ["park", "city"]]'), "slots, 'place': expected a list of words"),
        (('["store", "park"]', "[1, 2]"), "slots, 'place': expected a list of words"),
        (("pairs = 40", "pairs = 0"), "'pairs' is 0; expected a whole number from 1 up"),
        (("pairs = 40", "pairs = 4\nseed = -1"), "'seed' is -1; expected a whole number from 0 up"),
        (("pairs = 40", "single_tokens = 1"), "'single_tokens' is 1; expected true or false"),
        (("corrupted = ", "other = "), r"mine\.toml: there is no 'corrupted'"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_what_is_wrong(write, change, message):
    assert change[0] in IOI
    with pytest.raises(FormatError, match=message):
        load_behaviour(write(re.sub(re.escape(change[0]), lambda _: change[1], IOI)))


def test_a_tokenizer_that_splits_all_words_is_told(write, tokenizer):
    path = write(IOI.replace('"Mary", "John", "James", "Robert"', '"Xyx", "Qyq", "Vzv"'))
    with pytest.raises(PromptError, match=r"of the 4 words for A B C this tokenizer has 0 as single tokens, and 3 are"):
        load_behaviour(path).pairs(tokenizer)
    with pytest.raises(CircuitsError, match=r"cannot read .*No such file"):
        load_behaviour("nowhere.toml")
