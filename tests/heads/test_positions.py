"""Positions get the roles that a reader of the prompt would give them."""

import numpy as np

from circuits.behaviours.pairs import TokenPair
from circuits.heads.positions import at_counterparts, changed_position, relative_roles, roles_at

# When Mary and John went , John gave to
IOI = (1, 20, 2, 30, 3, 4, 30, 5, 6)
PAIR = TokenPair(IOI, (*IOI[:6], 31, *IOI[7:]), (20,), (30,), "", "")


def places(pair: TokenPair, behaviour: str, query: int) -> dict[str, list[int]]:
    return {role: np.flatnonzero(mask).tolist() for role, mask in roles_at(pair, behaviour, query).items()}


def test_ioi_has_the_roles_of_its_paper() -> None:
    assert places(PAIR, "ioi", 8) == {
        "IO": [1],
        "S1": [3],
        "S1+1": [4],
        "S2": [6],
        "end": [8],
        "first token": [0],
        "previous token": [7],
        "other": [2, 5],
    }


def test_a_query_sees_nothing_after_itself() -> None:
    assert changed_position(PAIR) == 6
    found = places(PAIR, "ioi", 6)
    assert found == {
        "IO": [1],
        "S1": [3],
        "S1+1": [4],
        "S2": [6],
        "first token": [0],
        "previous token": [5],
        "other": [2],
    }


def test_other_behaviours_have_answers_what_changed_and_repeated_tokens() -> None:
    pair = TokenPair((9, 4, 5, 6, 7, 4), (9, 4, 5, 6, 7, 6), (5,), (7,), "", "")
    assert places(pair, "induction", 5) == {
        "answer": [2],
        "wrong answer": [4],
        "changed token": [5],
        "itself": [5],
        "first token": [0],
        "previous token": [4],
        "same token before": [1],
        "after the same token": [2],
        "other": [3],
    }


def test_ioi_prompts_of_another_form_get_the_general_roles() -> None:
    pair = TokenPair((9, 30, 5), (9, 31, 5), (20,), (30,), "", "")
    assert places(pair, "ioi", 2) == {
        "wrong answer": [1],
        "changed token": [1],
        "itself": [2],
        "first token": [0],
        "previous token": [1],
    }


def test_relative_roles_never_look_ahead() -> None:
    for role, mask in relative_roles(IOI).items():
        if role != "first token":
            assert not np.triu(mask, 1).any(), role
    assert np.argwhere(relative_roles(IOI)["same token before"]).tolist() == [[6, 3]]
    assert np.argwhere(relative_roles(IOI)["after the same token"]).tolist() == [[6, 4]]


def test_attention_in_a_shorter_or_longer_prompt_is_seen_from_its_counterparts() -> None:
    shorter = TokenPair((1, 2, 3, 4), (1, 9, 4), (5,), (6,), "a", "b", alignment=(0, 1, 1, 2))
    weights = np.array([[1.0, 0, 0], [0.4, 0.6, 0], [0.2, 0.5, 0.3]])[None, None]
    found = at_counterparts(weights, [shorter])[0, 0]
    expected = [[1, 0, 0, 0], [0.4, 0.6, 0, 0], [0.4, 0.3, 0.3, 0], [0.2, 0.25, 0.25, 0.3]]
    np.testing.assert_allclose(found, expected)
    longer = TokenPair((1, 9, 4), (1, 2, 3, 4), (5,), (6,), "a", "b", alignment=(0, 2, 3))
    whole = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.5, 0.3, 0], [0.1, 0.2, 0.3, 0.4]])[None, None]
    np.testing.assert_allclose(at_counterparts(whole, [longer])[0, 0], [[1, 0, 0], [0.2, 0.3, 0], [0.1, 0.3, 0.4]])
    assert changed_position(shorter) == 2
    plain = TokenPair((1, 2), (1, 3), (5,), (6,), "a", "b")
    assert at_counterparts(weights, [plain]) is weights
