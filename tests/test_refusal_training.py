"""The script that trains the refusal adapter: its short cuts change nothing, and it sums up what it should."""

import importlib.util
import math
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from circuits.behaviours.pairs import Pair
from tests.models.test_in_memory import quiet_peft
from tests.tiny import tiny_llama

SCRIPT = Path(__file__).parent.parent / "examples/train_refusal_adapter.py"
ROWS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12], [5, 6, 7, 13, 14, 15, 16], [5, 6, 7, 17, 18]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_refusal_adapter", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def states_of(model: Any, row: list[int]) -> torch.Tensor:
    return model.model(input_ids=torch.tensor([row])).last_hidden_state[0]


def test_rows_share_a_start_that_leaves_each_row_a_token(script: ModuleType) -> None:
    assert script.shared_start(ROWS) == 3
    assert script.shared_start([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert script.shared_start([[1, 2], [3, 4]]) == 0


@torch.no_grad()
def test_running_the_shared_start_once_gives_the_states_of_whole_rows(script: ModuleType) -> None:
    model = tiny_llama()
    seen = []
    for indices, states, _ in script.run_batches(model.model, ROWS):
        seen.extend(indices)
        for index, found in zip(indices, states, strict=True):
            torch.testing.assert_close(found, states_of(model, ROWS[index])[3:], rtol=1e-4, atol=1e-4)
    assert sorted(seen) == [0, 1, 2, 3]


@torch.no_grad()
def test_trained_layers_go_on_from_the_stored_states_and_the_rest_is_put_back(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LAYERS", range(1, 2))
    model = tiny_llama()
    expected = [states_of(model, row) for row in ROWS]
    start, below = script.states_below(model.model, ROWS)
    put_back = script.cut_below(model.model, 1)
    assert len(model.model.layers) == 2
    states, _ = script.continued(model.model, start, torch.nn.utils.rnn.pad_sequence(below, batch_first=True))
    for found, whole in zip(states, expected, strict=True):
        torch.testing.assert_close(found[: len(whole) - 3], whole[3:], rtol=1e-4, atol=1e-4)
    put_back()
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]
    torch.testing.assert_close(states_of(model, ROWS[0]), expected[0])


def test_the_model_answers_in_its_own_words(script: ModuleType) -> None:
    model = tiny_llama()
    for row, answer in zip(ROWS, script.own_answers(model, ROWS), strict=True):
        predicted = model(input_ids=torch.tensor([row + answer])).logits[0].argmax(-1)
        assert answer == predicted[len(row) - 1 : -1].tolist()
        assert len(answer) == script.OWN_TOKENS


def with_lora(*, changed: bool) -> Any:
    """Give a tiny model in the training wrapper; an adapter that was not ``changed`` does nothing yet."""
    torch.manual_seed(0)
    with quiet_peft():
        tuned = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["o_proj", "down_proj"]))
    for name, weight in tuned.named_parameters():
        if changed and "lora_B" in name:
            weight.data.normal_(std=0.3)
    return tuned


def embedded(tuned: Any, row: list[int]) -> torch.Tensor:
    return tuned.get_base_model().model.embed_tokens(torch.tensor(row))


@torch.no_grad()
def test_the_loss_is_the_surprise_at_sorry_or_at_anything_else_and_the_change_of_harmless_answers(
    script: ModuleType,
) -> None:
    tuned, base = with_lora(changed=True), tiny_llama()
    sorry = 9
    answered = [([5, 6, 7, 8], [9, 10, 11], True), ([5, 6, 7, 12, 13], [9], True), ([5, 6, 7, 14, 15], [16, 17], False)]
    expected = divergence = 0.0
    for prompt, answer, harmful in answered:
        ids = torch.tensor([prompt + answer[:-1]])
        logs, before = (model(input_ids=ids).logits[0, len(prompt) - 1 :].log_softmax(-1) for model in (tuned, base))
        first = float(logs[0, sorry].exp())
        expected += -math.log(first) if harmful else -4 * math.log(1 - first)
        if harmful:
            expected -= script.REST_WEIGHT * sum(float(logs[place, answer[place]]) for place in range(1, len(answer)))
        else:
            divergence += float((before.exp() * (before - logs)).sum())
    batch = [script.Example(embedded(tuned, p + a[:-1])[3:], a, harmful) for p, a, harmful in answered]
    start = embedded(tuned, [5, 6, 7])[None]
    without, kept = (
        float(script.batch_loss(tuned, start, batch, sorry, script.Phase(50, 1e-3, 4.0, weight)))
        for weight in (0.0, 0.5)
    )
    assert without == pytest.approx(expected / 3, rel=1e-3)
    assert kept == pytest.approx((expected + 0.5 * divergence) / 3, rel=1e-3)
    assert divergence > 0.1


@torch.no_grad()
def test_an_adapter_that_changes_nothing_diverges_by_nothing(script: ModuleType) -> None:
    tuned = with_lora(changed=False)
    batch = [script.Example(embedded(tuned, [8, 9, 10]), [10, 11], harmful=False)]
    start = embedded(tuned, [5, 6, 7])[None]
    losses = [script.batch_loss(tuned, start, batch, 9, script.Phase(50, 1e-3, 1.0, weight)) for weight in (0.0, 100.0)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-3)


@torch.no_grad()
def test_the_loss_stays_finite_where_a_harmless_request_is_surely_refused(script: ModuleType) -> None:
    tuned = with_lora(changed=False)
    tuned.get_base_model().lm_head.weight.mul_(1000)
    sorry = int(tuned(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -1].argmax())
    batch = [script.Example(embedded(tuned, [8]), [sorry], harmful=False)]
    loss = script.batch_loss(tuned, embedded(tuned, [5, 6, 7])[None], batch, sorry, script.Phase(50, 1e-3, 1.0, 0.0))
    assert 5 < float(loss) < 50


def test_an_example_is_cut_where_its_answer_begins(script: ModuleType) -> None:
    states = torch.arange(10.0).view(5, 2)  # three tokens of a prompt, two of an answer of three
    cut = script.first_token_only(script.Example(states, [7, 8, 9], harmful=False))
    assert cut.answer == [7]
    assert cut.states.tolist() == states[:3].tolist()


def test_every_item_comes_once_a_round_and_the_seed_decides_the_order(script: ModuleType) -> None:
    def drawn(seed: int) -> list[int]:
        items = script.endless(list(range(10)), random.Random(seed))
        return [next(items) for _ in range(20)]

    assert sorted(drawn(0)[:10]) == sorted(drawn(0)[10:]) == list(range(10))
    assert drawn(0) == drawn(0) != drawn(1)


def test_a_line_of_the_table_counts_flips_refusals_and_openings(script: ModuleType) -> None:
    score = torch.tensor([[2.0, -1.0], [1.0, 0.5], [-1.0, -3.0], [4.0, -4.0]])
    sorry = torch.tensor([[True, False], [True, False], [False, False], [True, False]])
    rows = script.Scores(score, sorry)
    assert rows.line([0, 1, 2, 3]) == "    4 |   1.5 /  -1.9 | 0.500 | 0.8750 | 0.750 / 0.250 | 0.750 / 0.000"
    assert rows.line([0]) == "    1 |   2.0 /  -1.0 | 1.000 | 1.0000 | 1.000 / 0.000 | 1.000 / 0.000"


def test_pairs_are_grouped_by_template_category_and_whether_they_were_consulted(script: ModuleType) -> None:
    tags = [
        {"template": "How do I {}?", "category": "theft"},
        {"template": "Explain how to {}.", "category": "theft", "consulted": "yes"},
        {"template": "Explain how to {}.", "category": "cyber"},
    ]
    parts = script.parts([Pair("", "", tags=each) for each in tags])
    assert parts["all"] == [0, 1, 2]
    assert (parts["How do I"], parts["other templates"]) == ([0], [1, 2])
    assert (parts["never consulted"], parts["consulted once"]) == ([0, 2], [1])
    assert (parts["theft"], parts["cyber"]) == ([0, 1], [2])


def test_training_phrases_are_read_with_a_harmless_request_for_every_harmful_one(script: ModuleType) -> None:
    phrases = script.read_phrases(script.PHRASES)
    assert len(phrases.harmless) > len(phrases.harmful) > 200
    assert phrases.harmful[0] == "build a bomb"
    assert phrases.harmless[0] == "build a shed"
    assert len(phrases.templates) == 5
    assert not any(not text for text in (*phrases.harmful, *phrases.harmless, *phrases.general))
