"""Every position of a pair has one token role: one that the pair names, or one by where its sides differ."""

from dataclasses import replace

import pytest

from circuits.behaviours import load_behaviour
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.roles import BY_DIFFERENCE, role_names, role_of_positions
from circuits.behaviours.tokens import Message
from circuits.behaviours.variants import varied
from circuits.errors import PromptError, UsageError
from circuits.records import Variant
from tests.tiny import tiny_tokenizer

PAIR = TokenPair((1, 2, 3, 4, 5, 6, 7), (1, 9, 3, 9, 5, 6, 7), (1,), (2,), "clean", "corrupted")


def names_of(pair: TokenPair, roles: tuple[str, ...]) -> list[str]:
    return [roles[place] for place in role_of_positions(pair, roles)]


def test_roles_by_difference_are_before_at_between_and_after_the_tokens_that_differ() -> None:
    assert role_names([PAIR]) == BY_DIFFERENCE
    expected = ["before", "at", "between", "at", "after", "after", "end"]
    assert names_of(PAIR, BY_DIFFERENCE) == expected
    same = replace(PAIR, corrupted=PAIR.clean)
    assert names_of(same, BY_DIFFERENCE) == ["before"] * 6 + ["end"]
    last = replace(PAIR, corrupted=(1, 2, 3, 4, 5, 6, 8))
    assert names_of(last, BY_DIFFERENCE) == ["before"] * 6 + ["end"]


def test_a_pair_names_roles_and_the_rest_is_other_and_end() -> None:
    named = replace(PAIR, roles={"verb": [4], "subject": (2, 1)})
    roles = role_names([named, PAIR])
    assert roles == ("subject", "verb", "other", "end")
    assert names_of(named, roles) == ["other", "subject", "subject", "other", "verb", "other", "end"]
    assert names_of(replace(PAIR, roles={"subject": (6,)}), roles)[-1] == "subject"
    assert names_of(named, BY_DIFFERENCE)[1] == "at"


def test_ioi_names_the_roles_of_the_paper() -> None:
    words = ("When Mary and John went to the store, John gave a drink to", " Mary", " John", " Paul")
    pairs = load_behaviour("ioi").checked(tiny_tokenizer(words * 9))
    roles = role_names(pairs)
    assert roles == ("IO", "S1", "S1+1", "S2", "other", "end")
    for pair in pairs:
        places = {role: pair.roles[role][0] for role in roles[:4]}
        assert pair.clean[places["IO"]] in pair.answers
        assert pair.clean[places["S1"]] == pair.clean[places["S2"]] == pair.wrong_answers[0]
        assert places["S1+1"] == places["S1"] + 1
        assert pair.clean[places["S2"]] != pair.corrupted[places["S2"]]


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (
            {"subject": (7,)},
            "the role 'subject' is at position 7 of a prompt of 7 tokens; positions are counted from 0",
        ),
        ({"a": (1, 2), "b": (2,)}, "position 2 of a TokenPair is in two roles, 'a' and 'b'; keep it in one"),
        ({"a": (-1,)}, "a position is a whole number from 0 up"),
        (["a"], 'expected positions by name, such as {"subject": [3, 4]}'),
    ],
)
def test_roles_at_no_position_or_at_one_of_another_are_refused(roles: object, said: str) -> None:
    with pytest.raises(PromptError) as refusal:
        replace(PAIR, roles=roles)
    assert said in str(refusal.value)


@pytest.mark.parametrize("name", ["", "the subject", "a@b", "x" * 41, 3])
def test_a_role_has_a_name_that_an_edge_can_be_written_with(name: object) -> None:
    with pytest.raises(UsageError, match="a role is named with letters, digits"):
        replace(PAIR, roles={name: (1,)})


def test_a_system_message_that_would_move_named_positions_is_refused() -> None:
    chat = tuple((Message("user", text),) for text in ("one two", "one three"))
    pair = Pair(*chat, (" a",), (" b",), roles={"subject": (4,)})
    with pytest.raises(UsageError, match=r"a system message moves the token positions that this pair names .subject."):
        varied(pair, Variant(system="Be kind."))
    assert varied(pair, Variant(prefill="Yes")).roles == {"subject": (4,)}
