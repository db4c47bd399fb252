"""Values with arrays are equal by what they hold, can be in sets, and are copied and pickled as Python does it."""

import copy
import json
import pickle  # noqa: TID251
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuits
import circuits.errors
from circuits import EdgeScores, load_behaviour
from circuits.behaviours import BUILT_IN
from circuits.circuit import Circuit
from circuits.pruning.selection import Selection
from tests.adapters.test_own_decoder import DESCRIPTION, MODULE
from tests.example_circuits import random_circuit
from tests.subjects import PAIRS
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

COPIES = {"copied": copy.copy, "deeply": copy.deepcopy, "pickled": lambda value: pickle.loads(pickle.dumps(value))}  # noqa: S301
copies = pytest.mark.parametrize("how", COPIES)


def scores_of(values: Any) -> EdgeScores:
    graph = random_circuit(20).graph
    return EdgeScores(graph, np.resize(np.array(values, dtype=np.float64), graph.n_edges), "exact", measured=True)


def test_circuits_are_equal_when_all_that_they_hold_is() -> None:
    circuit = random_circuit(30)
    again = random_circuit(30)
    assert circuit == again
    assert circuit is not again
    assert hash(circuit) == hash(again)
    assert len({circuit, again, random_circuit(31)}) == 2
    assert {circuit: "here"}[again] == "here"
    for other in (
        random_circuit(31),
        random_circuit(30, seed=1),
        replace(circuit, scores=circuit.scores + 1),
        replace(circuit, measured=not circuit.measured),
        replace(circuit, removal=np.zeros(30)),
        replace(circuit, behaviour=replace(circuit.behaviour, metric="kl")),
    ):
        assert circuit != other
        assert not circuit == other  # noqa: SIM201
    assert circuit != "a circuit"
    assert circuit != None  # noqa: E711
    assert circuit in [random_circuit(31), again]


def test_a_circuit_read_again_is_equal(tmp_path: Path) -> None:
    circuit = random_circuit(12)
    circuit.save(tmp_path / "circuit.json")
    first, second = (Circuit.load(tmp_path / "circuit.json") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_missing_numbers_are_equal_and_zero_has_no_sign() -> None:
    circuit = random_circuit(3)
    missing = replace(circuit, scores=np.array([np.nan, 0.0, 1.0]))
    assert missing == replace(circuit, scores=np.array([np.nan, -0.0, 1.0]))
    assert hash(missing) == hash(replace(circuit, scores=np.array([np.nan, -0.0, 1.0])))
    assert missing != replace(circuit, scores=np.array([0.0, np.nan, 1.0]))


def test_scores_and_selections_are_equal_by_content() -> None:
    one, same, other = scores_of([1.0, np.nan]), scores_of([1.0, np.nan]), scores_of([1.0, 2.0])
    assert one == same != other
    assert hash(one) == hash(same)
    chosen = [Selection(np.array(edges), 0.9, 3, by_magnitude=False) for edges in ([1, 2], [1, 2], [1, 3])]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen)) == 2


def test_circuits_and_scores_are_made_of_any_sequence_of_numbers() -> None:
    circuit, scores = random_circuit(9), scores_of([1.0, np.nan])
    for make in (list, tuple, np.asarray, torch.tensor, lambda values: np.asarray(values).astype(np.float32)):
        made = replace(circuit, edges=make(circuit.edges).astype("i4") if make is np.asarray else list(circuit.edges))
        assert made == circuit
        assert replace(circuit, scores=make(circuit.scores)).scores == pytest.approx(circuit.scores, rel=1e-6)
        assert replace(scores, values=make(scores.values)).values == pytest.approx(scores.values, nan_ok=True)
    assert len(replace(circuit, edges=[], scores=[], removal=None)) == 0
    with pytest.raises(ValueError, match="read-only"):
        replace(circuit, edges=list(circuit.edges)).edges[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": ["a0.h0->m0"], "scores": [1.0]}, r"the edges of a circuit are \['a0.h0->m0'\]; expected int64"),
        ({"edges": [1.5], "scores": [1.0]}, r"the edges of a circuit are \[1.5\]; expected int64 numbers"),
        ({"edges": [[1], [2]]}, r"the edges of a circuit have the shape \(2, 1\); expected one dimension"),
        (
            {"edges": [10**7], "scores": [1.0]},
            r"a circuit has the edges 10000000 to 10000000; this model's are 0 to \d+",
        ),
        ({"edges": [-1], "scores": [1.0]}, r"a circuit has the edges -1 to -1; this model's are 0 to"),
        ({"edges": [3, 2, 1]}, "edges must be distinct and in graph order"),
        ({"edges": [2, 2, 3]}, "edges must be distinct and in graph order"),
        ({"scores": [1.0]}, r"a circuit of 3 edges has \(1,\) scores"),
        ({"scores": "high"}, r"the scores of a circuit are 'high'; expected float64 numbers"),
        ({"scores": [None, None, None]}, r"the scores of a circuit are \[None, None, None\]; expected float64"),
    ],
    ids=str,
)
def test_a_circuit_says_which_part_is_no_row_of_numbers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(circuits.errors.UsageError, match=message):
        replace(random_circuit(3), **change)


def test_a_comparison_can_be_compared() -> None:
    pair = [random_circuit(30), random_circuit(30, seed=1)]
    one, same = (circuits.compare(*pair) for _ in range(2))
    assert one == same


@copies
def test_values_survive_copying(how: str) -> None:
    for value in (random_circuit(9), scores_of([1.0, np.nan]), DESCRIPTION, circuits.Options(), PAIRS[0]):
        assert COPIES[how](value) == value


@copies
def test_behaviours_survive_copying(how: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    record = {"clean": "one", "corrupted": "two", "answer": " a", "wrong_answer": " b"}
    file.write_text("".join(json.dumps(record | {"clean": f"one {i}"}) + "\n" for i in range(8)))
    for behaviour in (*BUILT_IN.values(), load_behaviour(file)):
        again = COPIES[how](behaviour)
        assert again.name == behaviour.name
        assert again.metric is behaviour.metric
        if behaviour.name in ("pairs", "refusal:fraud"):
            assert list(again.pairs(tiny_tokenizer())) == list(behaviour.pairs(tiny_tokenizer()))


@pytest.mark.parametrize("how", ["deeply", "pickled"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mine"])
def test_a_model_copied_measures_the_same_and_has_weights_of_its_own(how: str, kind: str) -> None:
    if kind == "mine":
        model = circuits.load_model(MODULE, architecture=DESCRIPTION)
        pairs: Any = [circuits.TokenPair((1, 2, 3), (1, 4, 3), (5,), (6,), "", "")]
    else:
        model = circuits.load_model({"llama": tiny_llama, "gpt2": tiny_gpt2}[kind](), tokenizer=tiny_tokenizer())
        pairs = PAIRS
    before = model.experiment(pairs)
    again = COPIES[how](model)
    assert (again.info, again.graph, again.guards) == (model.info, model.graph, model.guards)
    copied = again.experiment(pairs)
    assert np.array_equal(copied.clean, before.clean)
    np.testing.assert_allclose(copied.attributions([0.5]), before.attributions([0.5]), atol=1e-6)
    with torch.no_grad():
        for parameter in again.tracer.anatomy.module.parameters():
            parameter.mul_(1.1)
    assert not np.array_equal(again.experiment(pairs).clean, before.clean)
    assert np.array_equal(model.experiment(pairs).clean, before.clean)


def test_an_experiment_copied_goes_on_measuring() -> None:
    experiment = circuits.load_model(tiny_gpt2()).experiment(PAIRS)
    edges = ["L0H1->logits", "m1->m2"]
    for how in COPIES.values():
        np.testing.assert_allclose(how(experiment).edge_effects(edges), experiment.edge_effects(edges), atol=1e-6)


ERRORS = [kind for kind in vars(circuits.errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@copies
@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_reach_other_processes_whole(kind: type[Exception], how: str) -> None:
    error = (
        circuits.errors.UnknownNameError("node", "x1", ["m1"]) if kind.__name__ == "UnknownNameError" else kind("no")
    )
    again = COPIES[how](error)
    assert type(again) is kind
    assert str(again) == str(error)
