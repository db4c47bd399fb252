"""Heads that were written by hand are recognised by their numbers; heads of random weights get no label."""

import csv
import io
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import circuits
from circuits.behaviours.pairs import TokenPair
from circuits.circuit import Circuit
from circuits.errors import GuardError, PromptError, UsageError
from circuits.graph import Edge, Node
from circuits.heads import HeadEvidence, HeadRoles, head_roles
from circuits.heads.labels import Thresholds
from circuits.model import Model
from circuits.records import BehaviourInfo, Method
from tests.heads.planted import HEADS, LAYERS, NAMES, VOCABULARY, planted_gpt2
from tests.zoo import ZOO

EDGES = [f"a{layer}.h{head}->logits" for layer in range(LAYERS) for head in range(HEADS)]
EDGES += ["a0.h0->a1.h0<k>", "input->a0.h0<q>", "input->a1.h1<v>"]
SCORES = {"a0.h0->a1.h0<k>": -0.75, "input->a0.h0<q>": 0.5, "input->a1.h1<v>": 0.25}


def name_pairs(n: int = 8) -> tuple[TokenPair, ...]:
    """A first token, three others, a name, five others; the answer is the name, another one on the corrupted side."""
    generator, pairs = torch.Generator().manual_seed(0), list[TokenPair]()
    for _ in range(n):
        others = (torch.randperm(VOCABULARY - NAMES - 1, generator=generator)[:8] + 1).tolist()
        right, wrong = (torch.randperm(NAMES, generator=generator)[:2] + VOCABULARY - NAMES).tolist()
        clean, corrupted = ((0, *others[:3], name, *others[3:]) for name in (right, wrong))
        pairs.append(TokenPair(clean, corrupted, (right,), (wrong,), str(clean), str(corrupted)))
    return tuple(pairs)


def circuit_of(model: Model, edges: list[str], behaviour: str = "names") -> Circuit:
    indices = {model.graph.index(Edge.parse(edge)): SCORES.get(edge, 0.1) for edge in edges}
    ordered = np.array(sorted(indices), dtype=np.int64)
    scores = np.array([indices[index] for index in ordered.tolist()])
    about = BehaviourInfo(behaviour, "logit-difference", "nats")
    return Circuit(model.info, about, Method("exact", "top"), ordered, scores)


@pytest.fixture(scope="module")
def model() -> Model:
    return circuits.load_model(planted_gpt2(), name="planted")


@pytest.fixture(scope="module")
def roles(model: Model) -> HeadRoles:
    return circuits.head_roles(model, circuit_of(model, EDGES), name_pairs())


def head(roles: HeadRoles, name: str) -> HeadEvidence:
    return next(each for each in roles.heads if str(each.node) == name)


def labels(roles: HeadRoles, name: str) -> list[str]:
    return [label.name for label in head(roles, name).labels]


def share(evidence: HeadEvidence, role: str) -> tuple[float, float]:
    found = next(each for each in evidence.from_last if each.role == role)
    return found.clean, found.corrupted


def test_a_previous_token_head_is_one(roles: HeadRoles) -> None:
    found = head(roles, "a0.h0")
    assert found.sequences.previous_token > 0.99
    assert max(found.sequences.duplicate_token, found.sequences.induction) < 0.01
    assert share(found, "previous token") == pytest.approx((1, 1), abs=0.01)
    assert next(each for each in found.on_average if each.role == "previous token").clean > 0.99
    assert labels(roles, "a0.h0") == ["previous token"]


def test_a_duplicate_token_head_is_one(roles: HeadRoles) -> None:
    scores = head(roles, "a0.h1").sequences
    assert scores.duplicate_token > 0.99
    assert max(scores.previous_token, scores.induction) < 0.01
    assert labels(roles, "a0.h1") == ["duplicate token"]


def test_an_induction_head_of_two_layers_is_one(roles: HeadRoles) -> None:
    scores = head(roles, "a1.h0").sequences
    assert scores.induction > 0.99
    assert max(scores.previous_token, scores.duplicate_token) < 0.1
    assert labels(roles, "a1.h0") == ["induction", "copying"]


def test_without_the_previous_token_head_the_induction_head_is_none() -> None:
    broken = planted_gpt2()
    broken.transformer.h[0].attn.c_proj.weight[:64].zero_()
    model = circuits.load_model(broken, name="broken")
    roles = head_roles(model, circuit_of(model, EDGES), name_pairs())
    assert head(roles, "a1.h0").sequences.induction < 0.1
    assert labels(roles, "a1.h0") == ["copying"]


def test_a_copying_head_that_attends_nowhere_is_no_mover(roles: HeadRoles) -> None:
    found = head(roles, "a0.h3")
    assert found.copying.random == found.copying.answers == 1
    assert found.copying.suppressing_random == 0
    assert found.direct.low > 0
    assert share(found, "answer")[0] == pytest.approx(0.1, abs=0.01)
    assert labels(roles, "a0.h3") == ["copying"]


def test_a_name_mover_attends_to_the_answer_copies_it_and_has_an_effect(roles: HeadRoles) -> None:
    found = head(roles, "a1.h1")
    assert share(found, "answer") == pytest.approx((1, 1), abs=0.01)
    assert found.writes.answer_in_top == found.writes.attended_in_top == 1
    assert found.writes.answer > 10 * abs(found.writes.wrong_answer)
    assert found.direct.low > 5
    assert labels(roles, "a1.h1") == ["copying", "answer mover"]


def test_a_negative_mover_is_told_from_a_mover(roles: HeadRoles) -> None:
    found = head(roles, "a1.h2")
    assert found.copying.suppressing_answers == 1
    assert found.direct.high < -5
    assert found.writes.answer < -1
    assert labels(roles, "a1.h2") == ["suppressing", "negative answer mover"]


@pytest.mark.parametrize("name", ["a0.h2", "a1.h3"])
def test_a_head_of_random_weights_has_no_label(roles: HeadRoles, name: str) -> None:
    found = head(roles, name)
    assert labels(roles, name) == []
    assert max(asdict(found.sequences).values()) < 0.15
    assert max(found.copying.random, found.copying.answers) <= 0.2


def test_a_head_that_writes_nothing_raises_no_token(roles: HeadRoles) -> None:
    found = head(roles, "a0.h1")
    assert found.writes.tokens == ()
    assert found.copying.random == found.copying.suppressing_random == found.writes.answer_in_top == 0


def test_thresholds_decide_about_labels_and_not_about_evidence(model: Model, roles: HeadRoles) -> None:
    strict = head_roles(model, circuit_of(model, EDGES), name_pairs(), thresholds=Thresholds(1.01, 1.01))
    assert [each.labels for each in strict.heads] == [()] * len(EDGES[:8])
    bare = [replace(each, labels=()) for each in roles.heads]
    assert [replace(each, labels=()) for each in strict.heads] == bare


def test_the_direct_effect_is_the_exact_effect_of_the_edge_to_the_logits(model: Model, roles: HeadRoles) -> None:
    experiment = model.experiment(name_pairs())
    values = experiment.edge_effects(np.array([model.graph.index(Edge.parse("a1.h1->logits"))]))[0]
    found = head(roles, "a1.h1").direct
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std(ddof=1) / math.sqrt(8)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert found.share == pytest.approx(values.mean() / (experiment.clean - experiment.corrupted).mean())


def test_the_strongest_edges_are_those_of_the_circuit(roles: HeadRoles) -> None:
    found = head(roles, "a0.h0")
    assert found.incoming == (("input->a0.h0<q>", 0.5),)
    assert found.outgoing == (("a0.h0->a1.h0<k>", -0.75), ("a0.h0->logits", 0.1))
    assert head(roles, "a1.h1").incoming == (("input->a1.h1<v>", 0.25),)
    assert head(roles, "a0.h2").incoming == ()


def test_keys_and_values_of_a_group_are_edges_of_its_heads() -> None:
    model = circuits.load_model(ZOO["llama"](), name="grouped")
    edges = ["a0.h3->a1.kv1<v>", "a0.h3->a1.kv0<k>", "a1.h2->logits", "a1.h1->logits"]
    pairs = tuple(replace(pair, answers=(7,), wrong_answers=(9,)) for pair in name_pairs(4))
    roles = head_roles(model, circuit_of(model, edges), pairs)
    assert [edge for edge, _ in head(roles, "a1.h2").incoming] == ["a0.h3->a1.kv1<v>"]
    assert [edge for edge, _ in head(roles, "a1.h1").incoming] == ["a0.h3->a1.kv0<k>"]


@pytest.mark.parametrize("family", ["gemma2", "bloom", "gpt_neox", "granite"])
def test_heads_of_every_kind_of_block_are_measured(family: str) -> None:
    model = circuits.load_model(ZOO[family](), name=family)
    pairs = tuple(replace(pair, answers=(7, 8), wrong_answers=(9,)) for pair in name_pairs(4))
    roles = head_roles(model, circuit_of(model, ["a0.h0->logits", "a2.h3->logits"]), pairs)
    numbers = [
        value for each in roles.heads for value in (each.direct.mean, each.writes.answer, each.writes.tokens[0][1])
    ]
    assert np.isfinite(numbers).all()
    assert roles.heads[1].labels == ()


def test_pairs_of_different_lengths_are_averaged_together(model: Model, roles: HeadRoles) -> None:
    pairs = name_pairs()
    longer = tuple(
        replace(pair, clean=(0, 5, *pair.clean[1:]), corrupted=(0, 5, *pair.corrupted[1:])) for pair in pairs[:4]
    )
    mixed = head_roles(model, circuit_of(model, EDGES), (*longer[:2], *pairs, *longer[2:]))
    assert mixed.n_pairs == 12
    apart = head_roles(model, circuit_of(model, EDGES), longer)
    for name in ("a0.h3", "a1.h3"):
        expected = (8 * share(head(roles, name), "answer")[0] + 4 * share(head(apart, name), "answer")[0]) / 12
        assert share(head(mixed, name), "answer")[0] == pytest.approx(expected, rel=1e-4)


def test_the_same_call_gives_the_same_numbers_and_another_seed_others(model: Model, roles: HeadRoles) -> None:
    again = circuits.head_roles(model, circuit_of(model, EDGES), name_pairs())
    assert again.to_json() == roles.to_json()
    other = circuits.head_roles(model, circuit_of(model, EDGES), name_pairs(), seed=1)
    assert head(other, "a1.h3").sequences != head(roles, "a1.h3").sequences


def test_json_holds_all_evidence_thresholds_and_method(roles: HeadRoles) -> None:
    document = json.loads(roles.to_json())
    assert (document["format"], document["version"], document["n_pairs"]) == ("circuits/heads", 1, 8)
    assert document["thresholds"] == {"attention": 0.3, "copying": 0.5}
    assert "unit vector" in document["method"]["attention"]
    row = next(row for row in document["heads"] if row["head"] == "a1.h1")
    assert [label["name"] for label in row["labels"]] == ["copying", "answer mover"]
    assert row["direct"]["mean"] == pytest.approx(head(roles, "a1.h1").direct.mean, rel=1e-5)
    assert row["text"] == head(roles, "a1.h1").text()


def test_csv_has_one_row_per_head(roles: HeadRoles) -> None:
    rows = list(csv.DictReader(io.StringIO(roles.to_csv())))
    assert [row["head"] for row in rows] == [str(each.node) for each in roles.heads]
    row = next(row for row in rows if row["head"] == "a1.h1")
    assert float(row["last: answer, clean"]) == pytest.approx(share(head(roles, "a1.h1"), "answer")[0], rel=1e-5)
    assert float(row["induction"]) == pytest.approx(head(roles, "a1.h1").sequences.induction, rel=1e-5)
    assert row["labels"] == "copying; answer mover"


def test_a_line_for_tooltips_says_the_label_and_the_numbers(roles: HeadRoles) -> None:
    text = roles.texts()[Node.parse("a1.h0")]
    assert text.startswith("induction, copying; attends from the last position to ")
    assert "induction 1.00" in text
    assert "\n" not in text
    assert roles.texts()[Node.parse("a0.h2")].startswith("no label; ")


def test_steps_are_told(model: Model) -> None:
    told: list[tuple[int, int]] = []
    edges = ["a1.h1->logits", "a0.h0->logits"]
    head_roles(model, circuit_of(model, edges), name_pairs(4), progress=lambda *step: told.append(step))
    assert told == [(step, 6) for step in range(1, 7)]


def test_a_circuit_without_heads_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="no attention heads, only m0, logits"):
        head_roles(model, circuit_of(model, ["m0->logits"]), name_pairs())


def test_a_circuit_of_another_shape_is_refused(model: Model) -> None:
    other = circuits.load_model(ZOO["gpt2"](), name="other")
    with pytest.raises(UsageError, match=r"layers 0-1 and heads 0-3, but other has layers 0-2"):
        head_roles(other, circuit_of(model, EDGES), name_pairs())


def test_no_prompts_are_refused(model: Model) -> None:
    with pytest.raises(PromptError, match="no prompt pairs"):
        head_roles(model, circuit_of(model, EDGES), ())


def test_a_family_whose_heads_give_no_weights_is_refused() -> None:
    model = circuits.load_model(ZOO["olmo_clipped"](clip_qkv=0.25), name="clipped")
    with pytest.raises(GuardError, match="their roles are not measured"):
        head_roles(model, circuit_of(model, ["a0.h0->logits"]), name_pairs(4))
