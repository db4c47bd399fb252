"""Parting discovery pairs into those that circuits are fitted to and those they are chosen by."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.split import parted, split_pairs
from circuits.errors import PromptError


def pairs(texts: list[str]) -> list[TokenPair]:
    return [TokenPair((1,), (2,), (3,), (4,), text, f"other {i}") for i, text in enumerate(texts)]


@settings(deadline=None)  # on a busy machine
@given(groups=st.lists(st.integers(1, 5), min_size=20, max_size=60), share=st.floats(0.3, 0.7))
def test_no_clean_prompt_is_on_both_sides_and_shares_are_about_those_asked_for(groups: list[int], share: float) -> None:
    given_pairs = pairs([f"text {i}" for i, count in enumerate(groups) for _ in range(count)])
    first, second = parted(given_pairs, share)
    assert not {pair.clean_text for pair in first} & {pair.clean_text for pair in second}
    assert sorted([*first, *second], key=given_pairs.index) == given_pairs
    assert list(first) == sorted(first, key=given_pairs.index)
    assert abs(len(first) / len(given_pairs) - share) < 0.2


def test_half_of_distinct_prompts_is_every_other_one() -> None:
    first, second = parted(pairs(list("abcdefgh")), 0.5)
    assert ["".join(pair.clean_text for pair in side) for side in (first, second)] == ["aceg", "bdfh"]


def test_too_few_prompts_to_part_are_refused_with_what_is_missing() -> None:
    with pytest.raises(PromptError, match=r"10 discovery pairs with 2 clean prompts give 8 to fit .*Add pairs"):
        parted(pairs(["a"] * 8 + ["b"] * 2), 0.5)


@pytest.mark.parametrize(("prompts", "discovery"), [(8, 4), (11, 5), (12, 6), (16, 8), (24, 8), (30, 10), (96, 32)])
def test_few_prompts_are_halved_and_of_many_a_third_is_for_discovery(prompts: int, discovery: int) -> None:
    given_pairs = pairs([f"text {i}" for i in range(prompts)])
    first, second = split_pairs(given_pairs)
    assert (len(first), len(second)) == (discovery, prompts - discovery)
    assert split_pairs(given_pairs[::-1])[0] == first[::-1]
