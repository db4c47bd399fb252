"""Transfer and double dissociation: shares worked out by hand, intervals, verdicts in both directions."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from circuits.comparison import Column, Dissociation, compare
from circuits.comparison.crossing import dissociation, shared_by, transfer_matrix, without
from circuits.comparison.words import dissociation_sentences, in_short, transfer_sentences
from tests.example_circuits import circuit_of

N = 40
WHOLE, ONLY = ("a", "b"), (without("a", "b"), without("b", "a"))


def column(
    name: str,
    losses: Mapping[str, float],
    *,
    alone: Mapping[str, float] | None = None,
    random: float | None = 0.05,
    noise: float = 0.1,
    digest: str = "",
    n: int = N,
    draws: int = 5,
) -> Column:
    """Make up a behaviour with clean 4 and corrupted -2 that loses these shares, and keeps those alone."""
    generator = np.random.default_rng(len(name) + ord(name[0]))
    clean, corrupted = 4 + generator.normal(size=n), -2 + generator.normal(size=n)

    def values(share: float) -> np.ndarray:
        return corrupted + share * (clean - corrupted) + generator.normal(size=n) * noise

    kept = {key: values(1 - loss) for key, loss in losses.items()}
    controls = {} if random is None else {key: np.stack([values(1 - random)] * draws) for key in losses}
    beside = {} if random is None else {key: np.stack([values(random)] * draws) for key in alone or {}}
    return Column(
        name,
        name,
        "model",
        "logit-difference",
        digest or name,
        clean,
        corrupted,
        alone={key: values(share) for key, share in (alone or {}).items()},
        without=kept,
        random_alone=beside,
        random_without=controls,
    )


def dissociated(a: Mapping[str, float], b: Mapping[str, float], **options: float | None) -> Dissociation:
    found = dissociation(column("a", a, **options), column("b", b, **options))  # type: ignore[arg-type]
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------------------ transfer


def test_faithfulness_is_the_share_of_the_gap_with_its_interval_and_random_circuits() -> None:
    exact = column("a", {}, alone={"a": 0.9, "b": 0.25}, noise=0.0)
    share = transfer_matrix((exact,), ("a", "b")).cell("b", "a")
    assert share.value.value == pytest.approx(0.25)
    assert (share.value.low, share.value.high) == pytest.approx((0.25, 0.25))
    assert share.random == pytest.approx((0.05,) * 5)
    assert share.beyond_random
    noisy = transfer_matrix((column("a", {}, alone={"b": 0.25}, noise=3.0),), ("b",)).cell("b", "a")
    assert noisy.value.low < 0.25 < noisy.value.high


@pytest.mark.parametrize(
    ("share", "random", "claim", "not_claimed"),
    [
        (0.9, 0.05, "so it does most of the other's work", "no more than chance"),
        (0.2, 0.05, "so it does a small part of the other's work, more than chance", "does most"),
        (0.02, 0.01, "more than chance, yet hardly any of the other's work", "small part"),
        (0.04, 0.05, "so no more than chance: it does not do the other's work", "does most"),
        (0.9, 0.95, "so no more than chance", "does most"),
        (0.9, None, "this cannot be told from chance", "so it does"),
    ],
)
def test_what_is_said_of_transfer_follows_the_numbers(
    share: float, random: float | None, claim: str, not_claimed: str
) -> None:
    matrix = transfer_matrix((column("a", {}, alone={"b": share}, random=random),), ("a", "b"))
    (sentence,) = transfer_sentences(matrix, ("a", "b"))
    assert sentence.startswith("b's circuit alone on a's prompts: faithfulness 0.")
    assert claim in sentence
    assert not_claimed not in sentence


def test_transfer_is_judged_against_the_behaviours_own_circuit() -> None:
    """A share of 0.3 is most of what an own circuit of 0.4 does, and a small part of what one of 1 does."""
    for own, claim in ((0.4, "(its own circuit 0.40); 5 random"), (1.0, "small part")):
        matrix = transfer_matrix((column("a", {}, alone={"a": own, "b": 0.3}, noise=0.01),), ("a", "b"))
        (sentence,) = transfer_sentences(matrix, ("a", "b"))
        assert claim in sentence
        assert ("most of the other's work" in sentence) is (own < 1)


def test_transfer_that_the_prompts_do_not_decide_is_said_to_be_open() -> None:
    matrix = transfer_matrix((column("a", {}, alone={"b": 0.5}, noise=2.0),), ("a", "b"))
    assert "whether most of it, these prompts do not tell" in transfer_sentences(matrix, ("a", "b"))[0]


# ------------------------------------------------------------------------------------------------------------ in short


@pytest.mark.parametrize(
    ("transferred", "lost", "claims"),
    [
        (0.9, 0.1, ("a's does most of what b's own circuit does", "they are doubly dissociated")),
        (0.2, 0.1, ("b's does a small part of what a's own circuit does",)),
        (0.06, 0.1, ("b's does a small part of what a's own circuit does",)),
        (0.0, 0.9, ("a's does none of b's work", "knocked out whole, they are not dissociated")),
    ],
)
def test_in_short_says_the_verdicts_that_the_sentences_give(
    transferred: float, lost: float, claims: tuple[str, ...]
) -> None:
    circuits = (circuit_of({"input->m0": 1.0}, name="a"), circuit_of({"input->m1": 1.0}, name="b"))
    columns = [
        column(own, {own: 0.9, other: lost}, alone={own: 1.0, other: transferred})
        for own, other in (("a", "b"), ("b", "a"))
    ]
    first, *rest = compare(*circuits).with_columns(columns).sentences()
    assert first.startswith("In short: a and b share 0 edges, no more than chance; ")
    for claim in claims:
        assert claim in first
    assert ("this is a double dissociation" in " ".join(rest)) is ("they are doubly dissociated" in first)


def words_of(columns: list[Column]) -> tuple[str, str]:
    """What is said in short of two circuits, and the rest."""
    circuits = (circuit_of({"input->m0": 1.0}, name="a"), circuit_of({"input->m1": 1.0}, name="b"))
    first, *rest = compare(*circuits).with_columns(columns).sentences()
    return first, " ".join(rest)


def test_a_dissociation_in_one_direction_is_called_so_in_short_and_in_full() -> None:
    lost = ({"a": 0.9, "b": 0.8}, {"a": 0.1, "b": 0.8})
    first, rest = words_of([column(name, shares) for name, shares in zip("ab", lost, strict=True)])
    assert "they are dissociated in one direction only" in first
    assert "this is a dissociation in one direction, and no double dissociation" in rest


def test_in_short_tells_the_whole_circuits_and_what_only_one_has_apart_where_these_differ() -> None:
    """As "not dissociated" above, and "a dissociation in one direction" of something else below, they contradicted."""
    neither = dissociated({"a": 0.9, "b": 0.9}, {"a": 0.9, "b": 0.9})
    one = dissociated({"a": 0.9, "b": 0.8}, {"a": 0.1, "b": 0.8})
    diff = compare(*(circuit_of({f"input->m{i}": 1.0}, name=name) for i, name in enumerate("ab"))).pairs[0]
    first = in_short(diff, None, replace(neither, only=one.whole))
    assert "knocked out whole, they are not dissociated; " in first
    assert "by what only one of them has, they are dissociated in one direction only" in first
    assert "by what only" not in in_short(diff, None, replace(neither, only=neither.whole))


@pytest.mark.parametrize(("n", "draws"), [(4, 1), (4, 10), (40, 1), (40, 4)])
def test_no_verdict_is_based_on_a_few_pairs_or_random_circuits(n: int, draws: int) -> None:
    columns = [
        column(own, {own: 0.9, other: 0.1}, alone={own: 1.0, other: 0.9}, n=n, draws=draws)
        for own, other in (("a", "b"), ("b", "a"))
    ]
    first, rest = words_of(columns)
    assert "they are too little measured to say whether they are dissociated" in first
    assert "whether a's does b's work is open" in first
    assert "Of the circuits no verdict is given: it takes at least 8 pairs of each behaviour and 5 random" in rest
    assert f"and there are {n} and {draws}. Raise --pairs and --random." in rest
    assert "this cannot be told from chance" in rest
    assert "double dissociation" not in rest


# -------------------------------------------------------------------------------------------------------- dissociation


def test_losses_gains_and_interaction_are_those_worked_out_by_hand() -> None:
    found = dissociated({"a": 0.9, "b": 0.2}, {"a": 0.1, "b": 0.7}, noise=0.0)
    assert found.whole.losses["a", "a"].value.value == pytest.approx(0.9)
    assert found.whole.losses["a", "b"].value.value == pytest.approx(0.1)
    assert [gain.value.value for gain in found.whole.gains] == pytest.approx([0.9 - 0.1, 0.7 - 0.2])
    assert found.whole.interaction.value == pytest.approx(0.8 + 0.5)
    assert [gain.random for gain in found.whole.gains] == [pytest.approx((0.0,) * 5, abs=1e-9)] * 2
    assert (found.only, found.shared) == (None, None)


@pytest.mark.parametrize(
    ("a", "b", "random", "double", "claim"),
    [
        ({"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}, 0.05, True, "this is a double dissociation"),
        ({"a": 0.9, "b": 0.8}, {"a": 0.1, "b": 0.8}, 0.05, False, "in one direction, and no double dissociation"),
        ({"a": 0.9, "b": 0.9}, {"a": 0.9, "b": 0.9}, 0.05, False, "there is no double dissociation"),
        ({"a": 0.1, "b": 0.9}, {"a": 0.9, "b": 0.1}, 0.05, False, "there is no double dissociation"),
        ({"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}, None, False, "and 5 random knock-outs, and there are 40 and 0"),
    ],
)
def test_the_verdict_follows_the_numbers(
    a: dict[str, float], b: dict[str, float], random: float | None, double: bool, claim: str
) -> None:
    found = dissociated(a, b, random=random)
    assert found.double is double
    words = " ".join(dissociation_sentences(found))
    assert claim in words
    assert ("this is a double dissociation" in words) is double
    assert "They share no edges." in words


def test_a_knock_out_that_random_ones_equal_is_not_selective() -> None:
    """Behaviour a is fragile: random knock-outs, too, cost it far more than b."""
    first = column("a", {"a": 0.9, "b": 0.1}, random=0.95)
    second = column("b", {"a": 0.1, "b": 0.9}, random=0.05)
    found = dissociation(first, second)
    assert found is not None
    assert found.whole.gains[0].value.low > 0.5
    assert found.whole.selective == (False, True)
    words = " ".join(dissociation_sentences(found))
    assert "above 0, but not above random" in words
    assert "some random knock-out costs a as much more than the other" in words
    assert "no double dissociation" in words


def test_shared_edges_that_both_need_hide_a_double_dissociation_of_the_rest() -> None:
    shared = shared_by("a", "b")
    a = {"a": 1.0, "b": 1.0, shared: 1.0, ONLY[0]: 0.8, ONLY[1]: 0.1}
    b = {"a": 1.0, "b": 1.0, shared: 1.0, ONLY[0]: 0.1, ONLY[1]: 0.8}
    found = dissociated(a, b)
    assert not found.whole.double
    assert found.only is not None
    assert found.only.double
    assert found.double
    words = " ".join(dissociation_sentences(found))
    assert "The edges that both have, knocked out, cost a 1.00" in words
    assert "Of the whole circuits there is no double dissociation" in words
    assert "Of what only one of them has this is a double dissociation" in words


def test_a_circuit_within_another_is_said_to_be_one() -> None:
    shared = shared_by("a", "b")
    found = dissociated(
        {"a": 1.0, "b": 0.5, shared: 0.5, ONLY[0]: 0.6}, {"a": 1.0, "b": 0.9, shared: 0.9, ONLY[0]: 0.1}
    )
    assert found.only is None
    assert "One circuit is a part of the other" in " ".join(dissociation_sentences(found))


def test_swapping_the_circuits_swaps_the_sides() -> None:
    first, second = column("a", {"a": 0.9, "b": 0.3}), column("b", {"a": 0.1, "b": 0.7})
    there, back = dissociation(first, second), dissociation(second, first)
    assert there is not None
    assert back is not None
    assert there.whole.gains == back.whole.gains[::-1]
    assert there.whole.interaction.value == pytest.approx(back.whole.interaction.value)
    assert (there.whole.interaction.low, there.whole.interaction.high) == pytest.approx(
        (back.whole.interaction.low, back.whole.interaction.high)
    )


def test_columns_of_the_same_prompts_are_resampled_together() -> None:
    """The same values in both: the difference is 0 on every resample only if the same pairs are drawn."""
    first = column("a", {"a": 0.6, "b": 0.6}, noise=2.0, digest="same")
    second = replace(first, name="b")
    paired = dissociation(first, second)
    assert paired is not None
    assert (paired.whole.gains[0].value.low, paired.whole.gains[0].value.high) == pytest.approx((0, 0))
    apart = dissociation(first, replace(second, digest="other"))
    assert apart is not None
    assert apart.whole.gains[0].value.high > 0.05


def test_nothing_is_concluded_from_a_behaviour_that_is_not_shown() -> None:
    shown = column("a", {"a": 0.9, "b": 0.1}, alone={"a": 0.9, "b": 0.1})
    remark = "model does not show b. The gap is not above 0."
    missing = replace(column("b", {"a": 0.1, "b": 0.9}, alone={"a": 0.1, "b": 0.9}), remark=remark)
    assert dissociation(shown, missing) is None
    circuits = (circuit_of({"input->m0": 1.0}, name="a"), circuit_of({"input->m1": 1.0}, name="b"))
    comparison = compare(*circuits).with_columns([shown, missing])
    assert comparison.dissociations == ()
    assert comparison.transfer is not None
    assert set(comparison.transfer.cells) == {("a", "a"), ("b", "a")}
    words = comparison.describe()
    assert f"Nothing is concluded from b's prompts: {remark}" in words
    assert "on b's prompts: faithfulness" not in words
    assert "was not measured" not in words


def test_intervals_of_gains_hold_the_true_value_nineteen_times_of_twenty() -> None:
    held = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        columns = []
        for name, loss in (("a", 0.8), ("b", 0.3)):
            clean, corrupted = 4 + generator.normal(size=N), -2 + generator.normal(size=N)
            values = corrupted + (1 - loss) * (clean - corrupted) + generator.normal(size=N)
            columns.append(Column(name, name, "", "", name, clean, corrupted, without={"a": values, "b": values}))
        found = dissociation(*columns)
        assert found is not None
        gain = found.whole.gains[0].value
        held += gain.low <= 0.5 <= gain.high
    assert 51 <= held <= 60
