"""How much a direction mediates: all where everything passes through it, nothing along one that no run differs in."""

import json
from pathlib import Path

import numpy as np
import pytest

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.circuit import Circuit
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import UsageError
from circuits.patching.measurement import Options
from circuits.records import BehaviourInfo, Method
from circuits.steering.mediation import mediate
from circuits.vocabulary import Ablation
from tests.directions.test_target import direction, model

FAMILY, LAYER = "llama", 2


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    """Letters whose last one changes, so that the last token's stream holds most of the difference."""
    generator, pairs = np.random.default_rng(0), list[Pair]()
    for _ in range(24):
        common = "".join(generator.choice(list("BCDFGHKLMNPQRSVWXYZ"), 6))
        pairs.append(Pair(f"{common}A", f"{common}E", answer_ids=(5, 9), wrong_ids=(6,)))
    return Behaviour("letters", "random letters", lambda _: pairs)


def test_behind_the_last_layer_the_stream_carries_everything_and_its_parts_add_up(behaviour: Behaviour) -> None:
    last = model(FAMILY).info.n_layers
    found = mediate(model(FAMILY), direction(FAMILY, last), behaviour, pairs=8, readers=3, draws=2)
    own, stream, rest = found.parts
    assert stream.necessity.value == pytest.approx(1, abs=1e-4)
    assert stream.sufficiency.value == pytest.approx(1, abs=1e-4)
    assert [each.name for each in found.parts] == ["direction", "stream", "without the direction"]
    assert own.sufficiency.value + rest.necessity.value == pytest.approx(1, abs=1e-4)  # both runs meet halfway
    assert own.necessity.value + rest.sufficiency.value == pytest.approx(1, abs=1e-4)
    assert [each.name for each in found.readers] == [f"resid{last}->logits"]
    assert found.readers[0].necessity.value == pytest.approx(own.necessity.value, abs=1e-5)
    assert found.paths == ()
    assert len(found.random) == 2


def test_readers_are_all_later_receivers_strongest_first_and_paths_lie_among_the_strongest(
    behaviour: Behaviour,
) -> None:
    whole = model(FAMILY)
    found = mediate(whole, direction(FAMILY, 1), behaviour, pairs=8, readers=3, draws=0)
    later = [receiver for receiver in whole.graph.receivers if receiver.node.layer >= 1 or receiver.node.kind.is_end]
    assert {each.name for each in found.readers} == {f"resid1->{receiver}" for receiver in later}
    sizes = [each.size for each in found.readers]
    assert sizes == sorted(sizes, reverse=True)
    senders = {each.name.split("->")[0] for each in found.paths}
    assert len(senders) <= 3
    assert {f"{sender}->logits" for sender in senders} <= {each.name for each in found.paths}
    assert found.random == ()
    for each in (*found.parts, *found.readers, *found.paths):
        assert 0 < each.p_necessity <= 1
        assert each.necessity.low is not None
    assert json.loads(found.to_json())["readers"][0]["name"] == found.readers[0].name
    assert f"carries {found.share.sufficiency.describe(2)}" in found.describe()


def test_a_direction_that_the_runs_do_not_differ_along_carries_nothing(behaviour: Behaviour) -> None:
    whole, last = model(FAMILY), model(FAMILY).info.n_layers
    pairs = behaviour.prompts(whole.tokenizer, discovery=0, heldout=8).heldout
    experiment = whole.experiment(pairs)
    batch = next(iter(experiment.batches))
    differences = (batch.clean.stream[last] - batch.corrupted.stream[last])[:, -1].double().numpy()
    unread = np.linalg.svd(differences)[2][-1]
    found = mediate(whole, StreamDirection(unread, last), behaviour, pairs=8, draws=0)
    assert abs(found.share.necessity.value) < 1e-4
    assert found.parts[2].sufficiency.value == pytest.approx(1, abs=1e-3)


def test_both_halves_are_drawn_with_the_direction_in_the_middle(behaviour: Behaviour, tmp_path: Path) -> None:
    whole, towards = model(FAMILY), direction(FAMILY, LAYER)
    found = mediate(whole, towards, behaviour, pairs=6, readers=2, draws=0)
    cut = leading_to(whole, towards)
    edges = cut.graph.indices(["input->m0", "m0->a1.h1<q>", "a1.h1->resid2", "m0->resid2"])
    writers = Circuit(
        cut.info,
        BehaviourInfo("letters", "projection", "length"),
        Method("exact", "top"),
        np.sort(edges),
        np.array([3.0, -1.0, 2.0, 0.5]),
    )
    found.draw(writers, tmp_path / "joined.dot")
    dot = (tmp_path / "joined.dot").read_text()
    for name in ("edge:m0->resid2", "edge:resid2->logits", *(f"edge:{each.name}" for each in found.paths)):
        assert f'id="{name}"' in dot
    rows = dot[dot.index("rank=same") :]
    assert rows.index('"m0"') < rows.index('"resid2"') < rows.index('"logits"')
    found.draw(writers, tmp_path / "joined.svg")
    assert "resid2" in (tmp_path / "joined.svg").read_text()
    with pytest.raises(UsageError, match="the circuit leads to logits, and what is read comes from resid2"):
        found.draw(
            Circuit(whole.info, writers.behaviour, writers.method, np.array([0]), np.array([1.0])), tmp_path / "x.svg"
        )


def test_what_cannot_be_exchanged_is_refused(behaviour: Behaviour) -> None:
    whole, towards = model(FAMILY), direction(FAMILY, 1)
    with pytest.raises(UsageError, match="leave --ablation corrupted"):
        mediate(whole, towards, behaviour, options=Options(ablation=Ablation.ZERO))
    with pytest.raises(UsageError, match="give the model as it was loaded"):
        mediate(leading_to(whole, towards), towards, behaviour)
    with pytest.raises(UsageError, match="readers from 0 up, got 2 and -1"):
        mediate(whole, towards, behaviour, readers=-1, draws=2)
    with pytest.raises(UsageError, match="has 7 numbers"):
        mediate(whole, StreamDirection(np.ones(7), 1), behaviour)


def test_of_writers_whose_strongest_edges_make_no_path_those_that_do_are_drawn(
    behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, towards = model(FAMILY), direction(FAMILY, LAYER)
    found = mediate(whole, towards, behaviour, pairs=6, readers=2, draws=0)
    cut = leading_to(whole, towards)
    edges = cut.graph.indices(["input->m0", "m0->m1", "m0->resid2", "m1->resid2"])
    info, how = BehaviourInfo("letters", "projection", "length"), Method("exact", "top")
    writers = Circuit(cut.info, info, how, np.sort(edges), np.array([0.1, 3.0, 0.5, 2.0]))
    assert str(writers.edge_list[0]) == "input->m0"
    monkeypatch.setattr("circuits.drawing.joined.AT_MOST", 2)
    found.draw(writers, tmp_path / "joined.dot")
    assert 'id="edge:input->m0"' in (tmp_path / "joined.dot").read_text()
