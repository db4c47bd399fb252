"""The same edges in two models: changes worked out by hand, intervals, words in both directions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from circuits.comparison import EdgeChanges, ModelEffects
from circuits.drawing.difference import difference_dot
from tests.example_circuits import GROUPED, circuit_of

EDGES = ("input->m0", "input->m1", "m0->m1", "m0->logits", "m1->logits")
CIRCUIT = circuit_of(dict.fromkeys(EDGES, 1.0), name="refusal")
N = 24


def effects(means: list[float], *, spread: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(means), N)) * spread
    return np.array(means)[:, None] + noise - noise.mean(1, keepdims=True)


def measured(
    means: list[float], *, clean: float = 4.0, name: str = "tuned", spread: float = 0.2, remark: str = "", seed: int = 0
) -> ModelEffects:
    corrupted = np.full(N, -4.0)
    model = replace(GROUPED, id=name, digest=name)
    alone = corrupted + 0.8 * (clean + 4.0)
    return ModelEffects(model, np.full(N, clean), corrupted, effects(means, spread=spread, seed=seed), alone, remark)


TUNED = measured([3.0, 1.0, 0.5, -1.0, 2.0])
BASE = measured([0.1, 1.0, 0.0, 0.5, 0.0], clean=-3.9, name="base", remark="base does not show refusal.", seed=1)
CHANGES = EdgeChanges("refusal", CIRCUIT, TUNED, BASE)


def test_changes_of_edges_and_senders_are_those_worked_out_by_hand() -> None:
    assert CHANGES.bounds[0] == pytest.approx([2.9, 0.0, 0.5, -1.5, 2.0])
    assert CHANGES.changed.tolist() == [True, False, True, True, True]
    assert CHANGES.flipped.tolist() == [False, False, False, True, False]
    assert [str(CIRCUIT.edge_list[place]) for place in CHANGES.strongest_edges] == [
        "input->m0",
        "m1->logits",
        "m0->logits",
        "m0->m1",
    ]
    nodes = {node.node: (node.here, node.there, node.change.value) for node in CHANGES.nodes}
    assert nodes["input"] == pytest.approx((4.0, 1.1, 2.9))
    assert nodes["m0"] == pytest.approx((-0.5, 0.5, -1.0))
    assert list(nodes) == ["input", "m1", "m0"]
    assert CHANGES.strength.value == pytest.approx(1.6 / 7.5)
    assert CHANGES.strength.low < 1.6 / 7.5 < CHANGES.strength.high


def test_the_words_say_what_changed_and_that_the_other_model_does_not_show_the_behaviour() -> None:
    words = "\n".join(CHANGES.sentences())
    assert "is 4.00 clean and -4.00 corrupted nats in tuned, -3.90 clean and -4.00 corrupted in base" in words
    assert "base does not show the behaviour, so there is no circuit of it there" in words
    assert "Alone, these edges move it by 6.40 of 8.00 nats in tuned and by 0.08 of 0.10 in base" in words
    assert "4 of 5 edges changed (95 % intervals): 3 do more for the behaviour in tuned, 1 less, 1 change sign" in words
    assert "from base to tuned: input->m0 (0.10 to 3.00), m1->logits (0.00 to 2.00)" in words
    assert "of the size of those in tuned (the whole gap: 0.01)" in words
    assert "hardly more than by chance" not in words


def test_the_same_effects_are_not_said_to_have_changed() -> None:
    other = replace(measured([3.0, 1.0, 0.5, -1.0, 2.0], seed=5), model=replace(GROUPED, id="base"))
    same = EdgeChanges("refusal", CIRCUIT, TUNED, other)
    assert not same.changed.any()
    words = "\n".join(same.sentences())
    assert "0 of 5 edges changed (95 % intervals): hardly more than by chance" in words
    assert "does not show the behaviour" not in words
    assert "Most changed" not in words
    assert same.strength.value == pytest.approx(1)


def test_effects_are_paired_by_prompt() -> None:
    """Effects that differ much between prompts but by the same 0.1 in both models: the change is certain."""
    varied = replace(TUNED, effects=effects([1.0] * 5, spread=5.0, seed=2))
    shifted = replace(varied, effects=varied.effects - 0.1, model=replace(GROUPED, id="base"))
    change = EdgeChanges("refusal", CIRCUIT, varied, shifted)
    assert not varied.acting.any()
    assert change.changed.all()
    assert change.bounds[:, 0] == pytest.approx([0.1, 0.1, 0.1])


def test_the_difference_diagram_has_the_edges_that_act_in_either_model_on_one_scale() -> None:
    diff = CHANGES.difference()
    assert diff.names == ("tuned", "base")
    assert len(diff.a) == 5
    assert [str(edge) for edge in diff.b.edge_list] == ["input->m0", "input->m1", "m0->logits"]
    assert [str(diff.a.graph.edge(int(i))) for i in diff.sign_flips] == ["m0->logits"]
    dot = difference_dot(diff)
    assert "on one scale, in nats" in dot
    assert "relative to each" not in dot
    assert '"m0->logits: score A -1, B 0.5"' in dot.replace("&#45;", "-")


def test_the_document_is_plain_json_with_the_most_changed_edges_first() -> None:
    document = json.loads(json.dumps(CHANGES.to_dict(), allow_nan=False))
    assert [row["edge"] for row in document["edges"]] == [
        "input->m0",
        "m1->logits",
        "m0->logits",
        "m0->m1",
        "input->m1",
    ]
    assert document["edges"][2]["sign_flip"] is True
    assert document["models"][1]["remark"] == "base does not show refusal."
    assert document["models"][0]["edges_acting"] == 5
    assert document["pairs"] == N
