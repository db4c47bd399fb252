"""Tests of nodes: what is necessary, what is sufficient, and what chance does."""

import json
from dataclasses import replace

import numpy as np
import pytest

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.certainty.node_tests import NodeTest, NodeTests, interchange_nodes
from circuits.errors import UnknownNameError, UsageError
from circuits.graph import Node
from circuits.patching.measurement import Options
from circuits.patching.node_sets import interchange_effects
from circuits.statistics import Estimate, holm, share_of, sign_flips
from circuits.vocabulary import Ablation, Metric
from tests.ablation.conftest import circuit_of, tiny_model

LETTERS = list("BCDFGHKLMNPQRSVWXYZ")


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    """Random letters, of which the last four change; answers are what the model says to each side."""
    generator, pairs = np.random.default_rng(0), list[Pair]()
    for _ in range(30):
        common, here, there = ("".join(generator.choice(LETTERS, n)) for n in (3, 4, 4))
        pairs.append(Pair(common + here, common + there, answer_ids=(5,), wrong_ids=(6,)))
    return Behaviour("letters", "random letters", lambda _: pairs)


def test_every_head_and_mlp_is_tested_alone_by_default(behaviour: Behaviour) -> None:
    model = tiny_model()
    found = interchange_nodes(model, behaviour, pairs=12, options=Options(Metric.KL))
    shape = model.graph.shape
    assert len(found.tests) == shape.n_layers * (shape.n_heads + 1)
    assert found.random is None
    assert (found.n, found.clusters, found.metric) == (12, 12, "kl")
    for test in found.tests:
        assert len(test.nodes) == 1
        assert 0 < test.p_necessity <= 1
        assert test.necessity.low <= test.necessity.value <= test.necessity.high


def test_the_whole_model_is_necessary_and_sufficient_and_a_set_is_held_against_random_ones(
    behaviour: Behaviour,
) -> None:
    model = tiny_model()
    everything = [str(node) for node in model.graph.senders]
    (whole,) = interchange_nodes(
        model, behaviour, [everything], pairs=12, random_sets=0, options=Options(Metric.KL)
    ).tests
    assert whole.necessity.value == pytest.approx(1, abs=1e-3)
    assert whole.sufficiency.value == pytest.approx(1, abs=1e-3)
    assert whole.p_necessity < 0.01
    some = interchange_nodes(model, behaviour, [("a0.h0", "a1.h2", "m1")], pairs=12, random_sets=19)
    assert some.random is not None
    assert some.random.n == 19
    for chance in (some.random.p_necessity, some.random.p_sufficiency):
        assert 1 / 20 <= chance <= 1
    again = interchange_nodes(model, behaviour, [("a0.h0", "a1.h2", "m1")], pairs=12, random_sets=19)
    assert again == some


def test_a_circuits_nodes_are_one_set_and_names_of_papers_are_read(behaviour: Behaviour) -> None:
    model = tiny_model()
    circuit = circuit_of(model, ["input->a1.h2<q>", "a1.h2->m1", "m1->logits"])
    by_circuit = interchange_nodes(model, behaviour, circuit, pairs=8, random_sets=0)
    assert by_circuit.tests[0].nodes == ("a1.h2", "m1")
    one = interchange_nodes(model, behaviour, ["L1H2"], pairs=8)
    other = interchange_nodes(model, behaviour, [Node.parse("a1.h2")], pairs=8)
    assert one.tests == other.tests
    assert json.loads(one.to_json())["tests"][0]["nodes"] == ["a1.h2"]


def test_what_cannot_be_exchanged_is_refused(behaviour: Behaviour) -> None:
    model = tiny_model()
    with pytest.raises(UsageError, match="leave --ablation corrupted"):
        interchange_nodes(model, behaviour, options=Options(ablation=Ablation.ZERO))
    with pytest.raises(
        UsageError, match="sequence measures answers of several tokens, and the exchange of nodes needs one"
    ):
        interchange_nodes(model, replace(behaviour, metric=Metric.SEQUENCE), ["m0"])
    with pytest.raises(UnknownNameError, match=r"no node 'a9\.h0'"):
        interchange_nodes(model, behaviour, ["a9.h0"])
    with pytest.raises(UsageError, match="no nodes to exchange were named"):
        interchange_nodes(model, behaviour, [])


# -------------------------------------------------------------------------------------------------------- statistics


def test_signs_are_flipped_by_cluster_and_small_numbers_of_pairs_exactly() -> None:
    """Of four pairs all signs are tried: 2 of the 16 patterns are as far from 0 as all positive effects."""
    assert sign_flips(np.array([[1.0, 2, 3, 4]])).tolist() == [pytest.approx(2 / 16)]
    together = sign_flips(np.array([[1.0, 2, 3, 4]]), clusters=np.array([0, 0, 1, 1]))
    assert together.tolist() == [pytest.approx(2 / 4)]
    assert np.isnan(sign_flips(np.ones((2, 3)), clusters=np.zeros(3, dtype=np.int64))).all()


def test_p_values_of_nothing_are_uniform() -> None:
    """Of 400 rows without an effect, about one in twenty has p < 0.05."""
    rows = np.random.default_rng(1).normal(size=(400, 24))
    share = (sign_flips(rows) < 0.05).mean()
    assert 0.025 < share < 0.08


def test_holms_correction_is_that_of_the_paper() -> None:
    """The smallest of m is multiplied by m, the next by m - 1, and none comes before one that was smaller."""
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.5])), [0.09, 0.04, 0.09, 0.5])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])


def test_a_share_is_a_ratio_of_means_with_an_interval_that_covers_it() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        whole = generator.normal(3, 1, size=32)
        estimate = share_of(0.4 * whole + generator.normal(0, 0.5, size=32), whole)
        held += estimate.low <= 0.4 <= estimate.high
    assert 180 <= held <= 199


def test_nodes_are_replicated_where_both_halves_say_the_same(behaviour: Behaviour) -> None:
    model = tiny_model()
    found = interchange_nodes(model, behaviour, pairs=16, options=Options(Metric.KL))
    pairs = behaviour.prompts(model.tokenizer, discovery=0, heldout=16).heldout
    for start, half in enumerate(found.halves):
        experiment = model.experiment(pairs[start::2], Options(Metric.KL))
        effects = interchange_effects(experiment, [(Node.parse(each.nodes[0]),) for each in half], "noising")
        shares = effects.mean(1) / (experiment.metric.sign * (experiment.clean - experiment.corrupted)).mean()
        np.testing.assert_allclose([each.necessity.value for each in half], shares, atol=1e-4)
    strong = [
        first.nodes
        for first, second in zip(*found.halves, strict=True)
        if all(
            min(each.necessity.value, each.sufficiency.value) > 0 and max(each.p_necessity, each.p_sufficiency) < 0.05
            for each in (first, second)
        )
    ]
    assert set(strong) <= set(found.replicated)
    assert found.to_document()["replicated"] == found.replicated
    few = interchange_nodes(model, behaviour, ["m1"], pairs=15, options=Options(Metric.KL))
    assert few.halves == ()
    assert few.replicated == ()


def test_an_effect_of_two_signs_or_of_one_half_alone_is_not_replicated() -> None:
    def test(value: float, p: float) -> NodeTest:
        return NodeTest(("m1",), Estimate(value), Estimate(value), p, p)

    def replicated(*halves: NodeTest) -> int:
        return len(NodeTests("m", "b", "kl", 16, 16, 1.0, (), halves=tuple((each,) for each in halves)).replicated)

    assert replicated(test(0.2, 0.01), test(0.1, 0.02)) == 1
    assert replicated(test(-0.2, 0.01), test(-0.1, 0.02)) == 1
    assert replicated(test(0.2, 0.01), test(-0.1, 0.02)) == 0
    assert replicated(test(0.2, 0.01), test(0.1, 0.2)) == 0
