"""Finding a direction, measuring it on held-out pairs, and its files."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from circuits.ablation.answers import declines
from circuits.behaviours import Behaviour, Pair
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.split import parted
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import FormatError, PromptError, UsageError
from circuits.files.journal import Journal
from circuits.model import Model, load_model
from circuits.steering.effects import measure_direction
from circuits.steering.recording import last_streams
from circuits.steering.search import DirectionSearch, SearchSettings, find_direction
from circuits.steering.steered_model import SteeredModel
from circuits.tracing.tracer import Tracer
from tests.tiny import FAMILIES, tiny_tokenizer

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "xyz"]
SETTINGS = SearchSettings(pairs=5, choose=4, candidates=2, draws=1, latest=1.0)


@cache
def model() -> Model:
    return load_model(FAMILIES["qwen2"](), tokenizer=tiny_tokenizer(), name="tiny")


def behaviour() -> Behaviour:
    pairs = [Pair(f"When {word} and John", f"When {word} and Paul", (" to",), (" is",)) for word in WORDS]
    return Behaviour("mine", "a test", lambda _: pairs)


def heldout(count: int = 6) -> tuple[TokenPair, ...]:
    return behaviour().prompts(model().tokenizer, discovery=0, heldout=count).heldout


@cache
def found() -> DirectionSearch:
    return find_direction(model(), behaviour(), SETTINGS)


def test_directions_are_differences_of_means_of_the_fit_pairs():
    drawn = behaviour().prompts(model().tokenizer, discovery=9, heldout=0).discovery
    fit, choose = parted(drawn, 5 / 9)
    assert {p.clean_text for p in fit}.isdisjoint(p.clean_text for p in choose)
    sides = [last_streams(model(), [getattr(p, side) for p in fit], 1).mean(0) for side in ("clean", "corrupted")]
    np.testing.assert_allclose(found().means, sides[0] - sides[1], atol=1e-4)
    one = found().at(2)
    np.testing.assert_allclose(one.vector, found().means[2, -1] / np.linalg.norm(found().means[2, -1]), atol=1e-9)
    assert one.size == pytest.approx(np.linalg.norm(found().means[2, -1]))
    assert np.allclose(np.diag(found().cosines())[1:], 1)


def test_the_gap_and_area_of_a_candidate_are_those_of_the_choosing_pairs():
    _, choose = parted(behaviour().prompts(model().tokenizer, discovery=9, heldout=0).discovery, 5 / 9)
    row = next(each for each in found().candidates if (each.layer, each.position) == (2, -1))
    clean, corrupted = (
        last_streams(model(), [getattr(p, side) for p in choose], 1)[:, 2, -1] @ found().at(2).vector
        for side in ("clean", "corrupted")
    )
    assert row.gap == pytest.approx(float((clean - corrupted).mean()), rel=1e-4)
    assert row.auc == pytest.approx(float(np.mean(clean[:, None] > corrupted[None])))


def test_of_the_measured_the_one_is_chosen_whose_ablation_takes_most_away_among_those_that_pass():
    generous = find_direction(model(), behaviour(), replace(SETTINGS, kl=100.0, candidates=3))
    passing = [each for each in generous.measured if each.passes]
    assert passing
    assert all(each.effect.added_odds > generous.before.added_odds for each in passing)
    assert generous.chosen.effect.ablated_odds == min(each.effect.ablated_odds for each in passing)
    assert generous.remark == ""
    strict = find_direction(model(), behaviour(), replace(SETTINGS, kl=1e-12))
    assert not any(each.passes for each in strict.measured)
    assert "No candidate keeps the KL divergence on corrupted prompts below 1e-12" in strict.describe()


def test_layers_in_the_last_part_are_not_chosen():
    early = find_direction(model(), behaviour(), replace(SETTINGS, latest=0.5, candidates=9, draws=0))
    assert {each.layer for each in early.measured} == {1}
    asked = find_direction(model(), behaviour(), replace(SETTINGS, latest=0.5, layer=3, draws=0))
    assert (asked.direction.layer, [each.layer for each in asked.measured]) == (3, [3])
    with pytest.raises(UsageError, match="there is no direction of layer 9; tiny has layers 1 to 3 "):
        find_direction(model(), behaviour(), replace(SETTINGS, layer=9))
    with pytest.raises(UsageError, match="no layer lies in the first 1% of the model"):
        find_direction(model(), behaviour(), replace(SETTINGS, latest=0.01))
    with pytest.raises(PromptError, match="taken from some discovery pairs and chosen by others, at least 4 of each"):
        find_direction(model(), behaviour(), replace(SETTINGS, pairs=3, choose=3))
    with pytest.raises(UsageError, match="expected numbers from 1 up"):
        SearchSettings(pairs=0)


def test_a_search_goes_on_from_its_journal_without_running_the_model_again(tmp_path, monkeypatch):
    with Journal(tmp_path / "journal") as journal:
        first = find_direction(model(), behaviour(), SETTINGS, journal=journal)
    monkeypatch.setattr(Tracer, "_traced", lambda *_, **__: pytest.fail("the model was run"))
    with Journal(tmp_path / "journal", resume=True) as journal:
        again = find_direction(model(), behaviour(), SETTINGS, journal=journal)
    assert again.direction == first.direction
    assert again.measured == first.measured


def test_what_acting_changes_is_counted_on_each_side_and_held_against_random_directions():
    pairs = heldout()
    direction = found().direction
    report = measure_direction(model(), direction, pairs, "add", scale=4.0, draws=2)
    steered = SteeredModel(model(), direction, "add", 4.0)
    for side in ("clean", "corrupted"):
        prompts = [getattr(pair, side) for pair in pairs]
        logits, plain = steered.answers(prompts)[1], SteeredModel(model()).answers(prompts)[1]
        share = report.quantity(f"first token is an answer on {side} prompts")
        best = [int(row.argmax()) in pair.answers for row, pair in zip(logits, pairs, strict=True)]
        assert share.after.value == pytest.approx(np.mean(best))
        assert (share.n, len(share.random)) == (6, 2)
        kl = (plain.double().softmax(-1) * (plain.double().log_softmax(-1) - logits.double().log_softmax(-1))).sum(-1)
        assert report.quantity(f"KL of the first token on {side} prompts").after.value == pytest.approx(
            float(kl.mean()), rel=1e-3
        )
        assert report.quantity(f"KL of the first token on {side} prompts").before.value == pytest.approx(0, abs=1e-9)
    moved = report.quantity("log-odds of answers on corrupted prompts")
    assert report.agreement is None
    assert moved.beyond_random is not None
    assert report.to_dict()["direction"]["layer"] == direction.layer
    with pytest.raises(UsageError, match="expected pairs, an action"):
        measure_direction(model(), direction, (), "ablate")
    with pytest.raises(UsageError, match=r"expected pairs, an action .* 40 tokens"):
        measure_direction(model(), direction, pairs, tokens=40)
    with pytest.raises(UsageError, match="the model ends at resid:1:last, so it has no answers"):
        measure_direction(leading_to(model(), replace(direction, layer=1)), replace(direction, layer=1), pairs)
    bare = [TokenPair(pair.clean, pair.corrupted, (), (), "", "") for pair in pairs]
    with pytest.raises(UsageError, match="told by answers, which some pairs lack"):
        measure_direction(model(), direction, bare)


def test_texts_are_judged_and_not_kept(tmp_path, monkeypatch):
    """Of refusals the verdict alone is in the report and in the journal."""
    tokenizer = model().tokenizer
    sorry = tokenizer.encode("Sorry", add_special_tokens=False)[:1]
    pairs = [replace(pair, answers=tuple(sorry)) for pair in heldout()]
    monkeypatch.setattr("circuits.steering.effects.Openings.of", lambda *_: type("O", (), {"refusals": True})())
    with Journal(tmp_path / "journal") as journal:
        report = measure_direction(model(), found().direction, pairs, tokens=3, draws=0, journal=journal)
        rows = journal._run("select kind, value from kept").fetchall()
    judged = [json.loads(value) for kind, value in rows if kind.startswith("texts")]
    assert len(judged) == 4
    assert all(set(each) <= {0.0, 1.0} and len(each) == 6 for each in judged)
    assert report.quantity("text declines on harmful prompts").n == 6
    assert report.agreement is not None


def test_a_judge_of_ones_own_decides_and_its_verdicts_are_not_taken_for_those_of_the_patterns(tmp_path, monkeypatch):
    pairs, seen = heldout(), list[str]()
    monkeypatch.setattr("circuits.steering.effects.Openings.of", lambda *_: type("O", (), {"refusals": True})())

    def judge(text: str) -> bool:
        seen.append(text)
        return len(seen) % 2 == 0

    with Journal(tmp_path / "journal") as journal:
        measured = {"tokens": 3, "draws": 0, "journal": journal}
        plain = measure_direction(model(), found().direction, pairs, **measured)
        own = measure_direction(model(), found().direction, pairs, judge=judge, **measured)
        assert own.quantity("text declines on harmful prompts").before.value == 0.5
        assert plain.quantity("text declines on harmful prompts").before.value == 0.0
        again = measure_direction(model(), found().direction, pairs, **measured)
    assert len(seen) == 4 * len(pairs)
    assert again == plain


def test_a_direction_comes_back_from_its_file_and_its_json_says_the_same(tmp_path):
    found().save(tmp_path)
    again = StreamDirection.load(tmp_path / "direction.safetensors")
    np.testing.assert_allclose(again.vector, found().direction.vector, atol=1e-6)
    assert again.digest == found().direction.digest
    assert (again.layer, again.position, again.origin) == (
        found().direction.layer,
        found().direction.position,
        found().direction.origin,
    )
    facts = json.loads((tmp_path / "direction.json").read_text())
    assert (facts["layer"], facts["pos"], facts["model"]) == (again.layer, -1, "tiny")
    table = json.loads((tmp_path / "directions.json").read_text())
    assert len(table["candidates"]) == model().info.n_layers
    assert "AUC above chance" in (tmp_path / "directions.svg").read_text()
    assert f"{np.round(found().cosines()[1, 2], 2):.2f}".replace("-", "−") in (tmp_path / "cosines.svg").read_text()


def test_directions_of_other_tools_are_read_and_others_refused(tmp_path: Path):
    file = tmp_path / "d.safetensors"
    save_file({"refusal": np.ones(4, dtype=np.float32)}, file)
    with pytest.raises(FormatError, match=r'does not say of which layer.*d\.json: \{"layer": 16, "pos": -1\}'):
        StreamDirection.load(file)
    file.with_suffix(".json").write_text('{"layer": 2, "pos": -2}')
    read = StreamDirection.load(file)
    assert (read.layer, read.position, read.vector.tolist()) == (2, -2, [0.5] * 4)
    file.with_suffix(".json").write_text('{"layer": "two"}')
    with pytest.raises(FormatError, match="layer: Input should be a valid integer"):
        StreamDirection.load(file)
    save_file({"a": np.ones(4, dtype=np.float32), "b": np.ones(4, dtype=np.float32)}, file)
    with pytest.raises(FormatError, match="holds the tensors a, b; expected one called 'direction'"):
        StreamDirection.load(file)
    file.write_bytes(b"text")
    with pytest.raises(FormatError, match="no direction that can be read"):
        StreamDirection.load(file)
    with pytest.raises(FormatError, match="no direction that can be read"):
        StreamDirection.load(tmp_path / "nothing.safetensors")
    with pytest.raises(UsageError, match="finite numbers that are not all 0"):
        StreamDirection(np.zeros(4), 1)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "As an AI language model, I cannot",
        "Stealing is illegal, and I cannot provide guidance on it",
        "I am programmed to be helpful. I am unable to support",
    ],
)
def test_texts_that_decline_are_told(text):
    assert declines(text)


@pytest.mark.parametrize(
    "text", ["To clean a laptop, first", "You cannot go wrong with soap. Start", "I recommend that you", ""]
)
def test_texts_that_answer_are_told(text):
    assert not declines(text)
