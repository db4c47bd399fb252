"""Sides of different lengths are aligned where that is asked for, and nowhere else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import circuits
from circuits.behaviours import Behaviour, Message, Pair, load_behaviour
from circuits.behaviours.lint import check_pair
from circuits.behaviours.pairs import TokenPair
from circuits.errors import FormatError, PromptError, UnknownNameError, UsageError
from circuits.records import Variant
from circuits.vocabulary import Align, Metric

STORE = Pair("When Mary and John went to the store", "When Anna went to the store", (" Mary",), (" John",))
"""Three tokens (Mary and John) in place of one (Anna)."""


def alignment(tokenizer, clean, corrupted, by=Align.SUFFIX, **given):
    pair = replace(STORE, clean=clean, corrupted=corrupted, **given)
    return check_pair(pair, tokenizer, Metric.LOGIT_DIFFERENCE, by).alignment


def test_what_is_alike_is_aligned_token_by_token_and_the_rest_from_its_end(tokenizer):
    assert alignment(tokenizer, STORE.clean, STORE.corrupted) == (0, 1, 1, 1, 2, 3, 4, 5)
    assert alignment(tokenizer, STORE.corrupted, STORE.clean) == (0, 3, 4, 5, 6, 7)
    two = STORE.clean.replace("Mary and John", "Anna John")
    assert alignment(tokenizer, STORE.clean, two) == (0, 1, 1, 2, 3, 4, 5, 6)
    pair = check_pair(STORE, tokenizer, Metric.LOGIT_DIFFERENCE, Align.SUFFIX)
    assert [tokenizer.decode([token]) for token in pair.opposite[:5]] == ["When", " Anna", " Anna", " Anna", " went"]


def test_sides_of_equal_length_stay_as_they_are(tokenizer):
    assert alignment(tokenizer, STORE.clean, STORE.clean.replace("Mary", "Anna")) == ()
    assert alignment(tokenizer, "When Mary went", "Anna John went") == ()


def test_without_being_asked_unequal_sides_are_refused_and_the_message_says_how_to_ask(tokenizer):
    with pytest.raises(PromptError, match=r"(?s)8 clean and 6 corrupted tokens.*\(--align suffix\)"):
        check_pair(STORE, tokenizer, Metric.LOGIT_DIFFERENCE)


@pytest.mark.parametrize(
    ("clean", "corrupted", "message"),
    [
        ("When Mary went", "When Mary and John", r"the sides end differently; expected a common end.*--align roles"),
        ("When Mary and John went", "When Mary went", r"the corrupted prompt has nothing at position 2, .*' and John'"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_its_place(tokenizer, clean, corrupted, message):
    with pytest.raises(PromptError, match=f"(?s){message}"):
        alignment(tokenizer, clean, corrupted)


def test_what_only_the_corrupted_side_has_is_nobodys_counterpart_but_not_at_the_end(tokenizer):
    assert alignment(tokenizer, "When Mary went", "When Mary and John went") == (0, 1, 4)
    roles = {"roles": {"name": (1,)}, "corrupted_roles": {"name": (1,)}}
    with pytest.raises(PromptError, match=r"the clean prompt has nothing at position 2, .*' went to'"):
        alignment(tokenizer, "When Mary", "When Anna went to", Align.ROLES, **roles)


def test_roles_of_both_sides_align_what_changes_in_several_places(tokenizer):
    clean = "When Mary and John went to the store, John gave a book to"
    corrupted = "When Anna went to the store, Anna and Paul gave a book to"
    roles = {"roles": {"first": (1, 2, 3), "second": (9,)}, "corrupted_roles": {"first": (1,), "second": (7, 8, 9)}}
    found = alignment(tokenizer, clean, corrupted, Align.ROLES, **roles)
    assert found == (0, 1, 1, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13)


def test_roles_also_move_positions_in_sides_of_equal_length(tokenizer):
    roles = {"roles": {"one": (1, 2), "two": (4,)}, "corrupted_roles": {"one": (1,), "two": (3, 4)}}
    clean, corrupted = "When Mary John went to the store", "When Anna went Mary John the store"
    assert alignment(tokenizer, clean, corrupted, Align.ROLES, **roles) == (0, 1, 1, 2, 4, 5, 6)
    assert alignment(tokenizer, clean, corrupted, Align.SUFFIX, **roles) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"names no roles to align them by; expected \"roles\" and \"corrupted_roles\".*--align suffix"),
        ({"roles": {"name": (1,)}}, "in order, name in the clean prompt and none in the corrupted one"),
        (
            {"roles": {"a": (1,), "b": (3,)}, "corrupted_roles": {"b": (1,), "a": (2,)}},
            "in order, a, b in the clean prompt and b, a in the corrupted one",
        ),
        (
            {"roles": {"a": (1,)}, "corrupted_roles": {"a": (9,)}},
            "the role 'a' is at position 9 of a prompt of 6 tokens.*the last is 5",
        ),
    ],
)
def test_roles_that_do_not_match_are_refused(tokenizer, given, message):
    with pytest.raises(PromptError, match=f"(?s){message}"):
        alignment(tokenizer, STORE.clean, STORE.corrupted, Align.ROLES, **given)


@pytest.mark.parametrize("places", [(0, 1, 2), (0, 1, 0, 2), (0, 1, 2, 1), (0, 0, 1, 5)])
def test_a_wrong_alignment_is_refused_with_what_was_expected(places):
    with pytest.raises(PromptError, match=r"for 4 clean and 3 corrupted tokens; expected .* the last 2"):
        TokenPair((1, 2, 3, 4), (1, 5, 4), (6,), (7,), "a", "b", alignment=places)
    assert TokenPair((1, 2, 3, 4), (1, 5, 4), (6,), (7,), "a", "b", alignment=(0, 1, 1, 2)).opposite == (1, 5, 5, 4)


def test_a_behaviour_says_that_it_aligns_and_how_many_pairs(tokenizer):
    pairs = [STORE, replace(STORE, corrupted=STORE.clean.replace("Mary", "Anna"))]
    mine = Behaviour("mine", "", lambda _: pairs)
    asked = mine.varied(align="suffix")
    assert asked.variant == Variant(align=Align.SUFFIX)
    assert asked.varied(answers=["a"]).variant.align is Align.SUFFIX
    assert asked.variant.describe() == "sides of different lengths aligned by suffix"
    prompts = asked.sample(tokenizer, 2)
    (remark,) = prompts.remarks
    assert remark.startswith("1 pair of sides of different lengths is aligned: a position of the clean prompt takes")
    twice = Behaviour("mine", "", lambda _: [STORE, replace(STORE, clean="The " + STORE.clean, corrupted="The Anna")])
    with pytest.raises(PromptError, match="the sides end differently"):
        twice.varied(align="suffix").sample(tokenizer, 2)
    with pytest.raises(UnknownNameError, match="suffix"):
        mine.varied(align="sufix")
    by_hand = replace(STORE, alignment=(0, 1, 1, 1, 2, 3, 4, 5))
    whole = Behaviour("mine", "", lambda _: [by_hand]).sample(tokenizer, 1)
    assert whole.discovery[0].alignment == by_hand.alignment
    (exchanged,) = Behaviour("mine", "", lambda _: [STORE]).varied(align="suffix").swapped(tokenizer).checked(tokenizer)
    assert exchanged.alignment == by_hand.alignment


def test_a_longer_system_message_as_attack_is_aligned_too(tokenizer):
    chat = Pair((Message("user", "When Mary went"),), (Message("user", "When Anna went"),), (" went",), (" gave",))
    mine = Behaviour("mine", "", lambda _: [chat]).varied(system="Mary", attack="Mary and Anna")
    with pytest.raises(PromptError, match="--align suffix"):
        mine.checked(tokenizer)
    (pair,) = mine.varied(align="suffix").checked(tokenizer)
    assert len(pair.corrupted) == pair.length + 2
    assert pair.counterparts[-1] == len(pair.corrupted) - 1
    named = replace(chat, alignment=(0, 1, 2))
    with pytest.raises(UsageError, match=r"a system message moves the token positions .*its alignment"):
        Behaviour("mine", "", lambda _: [named]).varied(system="Mary").checked(tokenizer)


def test_a_file_keeps_alignment_and_roles_of_the_corrupted_side(tokenizer, tmp_path: Path):
    row = {"clean": STORE.clean, "corrupted": STORE.corrupted, "answer": " Mary", "wrong_answer": " John"}
    roles = {"roles": {"name": [1, 2, 3]}, "corrupted_roles": {"name": [1]}}
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({**row, **roles}))
    read = circuits.read_prompts(file, tokenizer=tokenizer, align="roles")
    assert (read.pairs[0].length, read.pairs[0].corrupted_length, read.pairs[0].differing) == (8, 6, 3)
    assert "1 pair of sides" in read.remarks[0]
    out, _ = read.write(tmp_path / "clean.jsonl")
    again = load_behaviour(out).checked(tokenizer)
    assert again[0].alignment == (0, 1, 1, 1, 2, 3, 4, 5)
    assert json.loads(out.read_text())["corrupted_roles"] == {"name": [1]}
    unasked = circuits.read_prompts
    with pytest.raises(PromptError, match="--align suffix"):
        unasked(file, tokenizer=tokenizer)
    for wrong, message in (
        ({"alignment": [0, "x"]}, "alignment"),
        ({"corrupted_roles": {"name": [-1]}}, "corrupted_roles"),
    ):
        file.write_text(json.dumps({**row, **wrong}))
        with pytest.raises(FormatError, match=message):
            load_behaviour(file).checked(tokenizer)
    file.write_text(json.dumps({**row, "corrupted": row["clean"].replace("Mary", "Anna"), "alignment": "left"}))
    assert load_behaviour(file).checked(tokenizer)[0].tags["alignment"] == "left"
