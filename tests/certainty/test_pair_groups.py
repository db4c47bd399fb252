"""Groups of pairs by what each takes from every edge: mixtures come apart, one mechanism is not called two."""

import json
from dataclasses import replace

import numpy as np
import pytest

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.certainty.pair_groups import POINTS, _grouped, group_pairs
from circuits.errors import PromptError, UsageError
from circuits.statistics import Estimate
from circuits.vocabulary import Metric
from tests.ablation.conftest import tiny_model

LETTERS = list("BCDFGHKLMNPQRSVWXYZ")


def behaviour_of(name: str, answers: tuple[int, int], seed: int, n: int = 60) -> Behaviour:
    """Random letters, of which the last four change."""
    generator, pairs = np.random.default_rng(seed), list[Pair]()
    for _ in range(n):
        common, here, there = ("".join(generator.choice(LETTERS, n)) for n in (3, 4, 4))
        pairs.append(Pair(common + here, common + there, answer_ids=(answers[0],), wrong_ids=(answers[1],)))
    return Behaviour(name, "random letters", lambda _: pairs)


def test_vectors_of_two_kinds_come_apart_whatever_their_length() -> None:
    generator = np.random.default_rng(0)
    kinds = np.array([0, 1] * 20)
    centres = generator.normal(size=(2, 50))
    rows = (centres[kinds] + generator.normal(scale=0.3, size=(40, 50))) * generator.uniform(0.2, 5, size=(40, 1))
    labels, others, silhouettes = _grouped(rows[:30], rows[30:], None, seed=0)
    assert max(silhouettes, key=silhouettes.get) == 2
    assert sorted(silhouettes) == [2, 3, 4, 5, 6]
    first = labels[0]
    np.testing.assert_array_equal(labels == first, kinds[:30] == kinds[0])
    np.testing.assert_array_equal(others == first, kinds[30:] == kinds[0])
    fixed, _, only = _grouped(rows[:30], rows[30:], 3, seed=0)
    assert list(only) == [3]
    assert len(set(fixed.tolist())) == 3


def test_what_a_pair_takes_from_its_edges_sums_to_its_own_gap_the_more_points_the_closer() -> None:
    model, behaviour = tiny_model(), behaviour_of("one", (5, 6), 0)
    experiment = model.experiment(behaviour.prompts(model.tokenizer, discovery=8, heldout=0).discovery)
    edges = experiment.graph.n_edges

    def off(points: tuple[float, ...]) -> float:
        taken = np.mean([experiment.circuit_gradient(np.full(edges, each))[1].sum(1) for each in points], axis=0)
        return float(np.abs(taken - (experiment.clean - experiment.corrupted)).mean())

    many = tuple((np.arange(48) + 0.5) / 48)
    assert off(many) < 0.2 * off(POINTS)
    assert off(many) < 0.1 * np.abs(experiment.clean - experiment.corrupted).mean()


def test_a_behaviour_is_grouped_and_judged_on_held_out_pairs() -> None:
    model = tiny_model()
    found = group_pairs(model, behaviour_of("one", (5, 6), 0), pairs=16, heldout=12, size=40)
    assert sum(group.pairs for group in found.groups) == 16
    assert sum(group.heldout for group in found.groups) == 12
    assert found.rand is None
    assert found.gain.low <= found.gain.value <= found.gain.high
    document = json.loads(found.to_json())
    assert document["verdict"] == found.verdict
    assert document["several"] is found.several
    assert group_pairs(model, behaviour_of("one", (5, 6), 0), pairs=16, heldout=12, size=40) == found


def test_circuits_have_as_many_edges_as_one_for_all_needs_and_useless_ones_tell_nothing() -> None:
    model, behaviour = tiny_model(), behaviour_of("one", (5, 6), 0)
    found = group_pairs(model, behaviour, pairs=16, heldout=12)
    assert found.fidelity >= 0.5
    assert found.size == model.graph.n_edges or found.size % 200 == 0
    useless = group_pairs(model, behaviour, pairs=16, heldout=12, size=1)
    assert useless.fidelity < 0.5
    assert not useless.several
    assert useless.verdict.startswith("Nothing can be said: one circuit of 1 edges for all")
    surely = replace(found, gain=Estimate(0.2, 0.1, 0.3), fidelity=0.6)
    assert surely.several
    assert not replace(surely, fidelity=0.4).several


def test_behaviours_that_are_mixed_are_compared_with_their_groups() -> None:
    mixed = [behaviour_of("one", (5, 6), 0), replace(behaviour_of("two", (90, 91), 1), metric=Metric.KL)]
    found = group_pairs(tiny_model(), mixed, count=2, pairs=16, heldout=8, size=40)
    assert found.behaviours == ("one", "two")
    assert -1 <= found.rand <= 1
    for name in found.behaviours:
        assert sum(group.behaviours[name] for group in found.groups) == 16


def test_groups_can_be_given_by_a_tag_and_are_compared_with_the_others() -> None:
    pairs = list(behaviour_of("one", (5, 6), 0).pairs(None))
    tagged = [
        replace(pair, tags={"kind": "ab"[place % 2], "third": "xyz"[place % 3]}) for place, pair in enumerate(pairs)
    ]
    behaviour = replace(behaviour_of("one", (5, 6), 0), pairs=lambda _: tagged)
    model = tiny_model()
    found = group_pairs(model, behaviour, by="kind", pairs=16, heldout=12, size=40)
    drawn = behaviour.prompts(model.tokenizer, discovery=16, heldout=12, seed=0)
    for place, name in enumerate("ab"):
        group = found.groups[place]
        assert group.name == name
        assert group.pairs == sum(pair.tags["kind"] == name for pair in drawn.discovery)
        assert group.heldout == sum(pair.tags["kind"] == name for pair in drawn.heldout)
    assert (found.by, list(found.silhouettes), list(found.tags)) == ("kind", [2], ["third"])
    by_itself = group_pairs(model, behaviour, count=2, pairs=16, heldout=12, size=40)
    assert list(by_itself.tags) == ["kind", "third"]
    assert {group.name for group in by_itself.groups} == {""}


def test_held_out_pairs_of_another_value_run_in_the_circuit_for_all() -> None:
    pairs = list(behaviour_of("one", (5, 6), 0).pairs(None))
    sides = ["discovery", "heldout"]
    tagged = [
        replace(pair, tags={"split": sides[place % 2], "kind": ("ab", "cc")[place % 2][place // 2 % 2]})
        for place, pair in enumerate(pairs)
    ]
    behaviour = replace(behaviour_of("one", (5, 6), 0), pairs=lambda _: tagged)
    found = group_pairs(tiny_model(), behaviour, by="kind", pairs=16, heldout=12, size=40)
    assert [group.heldout for group in found.groups] == [0, 0]
    assert found.gain.value == 0


def test_openings_of_another_model_are_not_taken_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour = replace(behaviour_of("one", (5, 6), 0), answers_for=("another",))
    own = behaviour_of("found", (7, 8), 0)
    monkeypatch.setattr("circuits.certainty.pair_groups.with_openings", lambda model, asked: (own, asked.name))
    found = group_pairs(tiny_model(), behaviour, pairs=8, heldout=4, size=10)
    assert found.behaviours == ("found",)


def test_what_cannot_be_grouped_is_refused() -> None:
    model, behaviour = tiny_model(), behaviour_of("one", (5, 6), 0)
    with pytest.raises(UsageError, match="at least 2, got 1"):
        group_pairs(model, behaviour, count=1)
    with pytest.raises(UsageError, match="must have 1 to"):
        group_pairs(model, behaviour, size=10**6)
    with pytest.raises(PromptError, match="6 pairs cannot be grouped; at least 8"):
        group_pairs(model, behaviour, pairs=6, heldout=4, size=10)
    with pytest.raises(UsageError, match="the tag kind says how many groups there are"):
        group_pairs(model, behaviour, count=2, by="kind")
    with pytest.raises(PromptError, match=r"the tag kind does not part the pairs.* No tag does"):
        group_pairs(model, behaviour, by="kind", pairs=8, heldout=4, size=10)
