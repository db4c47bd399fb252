"""Gates and amplifiers: parts of effects against exact edges, and names on effects that are made by hand."""

import json

import numpy as np
import pytest

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.certainty import gates as module
from circuits.certainty.gates import AMPLIFIER, GATE, GateTests, find_gates
from circuits.errors import UsageError
from circuits.graph import Edge, Node, Receiver
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.patching.node_sets import NodeSet
from circuits.vocabulary import Ablation, Direction, Metric
from tests.ablation.conftest import tiny_model

LETTERS = list("BCDFGHKLMNPQRSVWXYZ")
NODES = ("a0.h1", "m0", "a1.h2", "m1", "m2")


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    """Random letters, of which the last four change; answers are what the model says to each side."""
    generator, pairs = np.random.default_rng(0), list[Pair]()
    for _ in range(40):
        common, here, there = ("".join(generator.choice(LETTERS, n)) for n in (3, 4, 4))
        pairs.append(Pair(common + here, common + there, answer_ids=(5,), wrong_ids=(6,)))
    return Behaviour("letters", "random letters", lambda _: pairs)


def found_on(behaviour: Behaviour, pairs: int = 20) -> GateTests:
    return find_gates(tiny_model(), behaviour, NODES, pairs=pairs, options=Options(Metric.KL))


def test_what_is_direct_and_what_is_not_add_up_and_direct_is_the_nodes_own_edge(behaviour: Behaviour) -> None:
    model, found = tiny_model(), found_on(behaviour)
    assert [test.node for test in found.tests] == list(NODES)
    drawn = behaviour.prompts(model.tokenizer, discovery=0, heldout=20).heldout
    for place, way in enumerate((Direction.NOISING, Direction.DENOISING)):
        experiment = model.experiment(drawn, Options(Metric.KL, direction=way))
        gap = float(np.mean(experiment.metric.sign * (experiment.clean - experiment.corrupted)))
        end = Receiver(model.graph.shape.end)
        edges = experiment.edge_effects([Edge(Node.parse(node), end) for node in NODES]).mean(1) / gap
        for test, edge in zip(found.tests, edges, strict=True):
            shares = test.whole[place]
            assert shares.direct.value == pytest.approx(edge, abs=1e-4)
            assert shares.direct.value + shares.rest.value == pytest.approx(shares.total.value, abs=1e-6)
    assert max(abs(test.whole[0].direct.value) for test in found.tests) > 1e-3
    last = found.tests[-1].whole[0]  # the last MLP has no other way
    assert last.rest.value == pytest.approx(0, abs=1e-4)
    assert len(found.tests[0].halves) == 2
    document = json.loads(found.to_json())
    assert document["amplifiers"] == list(found.amplifiers)
    assert document["summary"] == found.describe()


def test_with_few_pairs_no_name_is_given(behaviour: Behaviour) -> None:
    found = found_on(behaviour, pairs=12)
    assert all(not test.halves and not test.name for test in found.tests)
    assert found.describe().endswith("gates: none.")


SHARES = {  # what each does in all, and directly, and what is left with the amplifiers held
    "a0.h1": (0.6, 0.02, 0.1),
    "m0": (0.5, 0.25, 0.45),
    "a1.h2": (0.4, 0.02, 0.38),
    "m1": (0.5, 0.45, 0.45),
    "m2": (0.0, 0.0, 0.0),
}


def test_names_are_given_by_what_passes_where(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate, one that does half itself, one that acts past the amplifier, an amplifier, and one that does nothing."""
    held_sets = list[NodeSet]()

    def made(
        experiment: PatchingExperiment, sets: list[NodeSet], _: object, *, held: NodeSet = (), **given: object
    ) -> np.ndarray:
        held_sets.append(held)
        generator = np.random.default_rng(len(sets))
        gap = experiment.metric.sign * float((experiment.clean - experiment.corrupted).mean())
        column = 2 if held else 1 if given.get("directly") else 0
        means = np.array([SHARES[str(nodes[0])][column] for nodes in sets])
        return gap * (means[:, None] + 0.05 * generator.normal(size=(len(sets), experiment.n_pairs)))

    monkeypatch.setattr(module, "interchange_effects", made)
    found = found_on(behaviour, pairs=32)
    names = {test.node: test.name for test in found.tests}
    assert names == {"a0.h1": GATE, "m0": "", "a1.h2": "", "m1": AMPLIFIER, "m2": ""}
    assert set(held_sets) == {(), (Node.parse("m1"),)}
    gate = found.tests[0]
    assert gate.whole[0].through.value == pytest.approx(0.5, abs=0.05)
    assert found.gates == ("a0.h1",)
    assert "amplifiers (they write most of what they do themselves): m1; gates: a0.h1." in found.describe()


def test_what_cannot_be_tested_is_refused(behaviour: Behaviour) -> None:
    with pytest.raises(UsageError, match="a gate acts through other nodes; name at least two"):
        find_gates(tiny_model(), behaviour, ["m0", "m0"])
    with pytest.raises(UsageError, match="leave --ablation corrupted"):
        find_gates(tiny_model(), behaviour, NODES, options=Options(ablation=Ablation.ZERO))
