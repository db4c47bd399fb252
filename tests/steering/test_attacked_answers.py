"""Answers under attack are those that the model itself generates for the attacked requests, judged and thrown away."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from circuits.ablation.answers import declines
from circuits.behaviours import Behaviour, Message, Pair
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import PromptError, UsageError
from circuits.files.journal import Journal
from circuits.model import Model, load_model
from circuits.steering.attacked_answers import AttackedAnswers, answers_under_attack
from circuits.tracing.tracer import Tracer
from tests.tiny import FAMILIES, tiny_tokenizer

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "xyz"]
ATTACK, BEGUN, TOKENS = "the", "to the", 4
N = 8


@cache
def model(family: str = "qwen2") -> Model:
    sentences = ("Sorry Sorry Sorry When the John Paul to the the is and",) * 3
    return load_model(FAMILIES[family](), tokenizer=tiny_tokenizer(sentences), name="tiny")


def behaviour(**options: object) -> Behaviour:
    sides = [[(Message("user", f"When {word} {name}"),) for name in ("John", "Paul")] for word in WORDS]
    pairs = [Pair(clean, corrupted, ("Sorry",), (" to",)) for clean, corrupted in sides]
    return Behaviour("mine", "a test", lambda _: pairs, **options)


def likely(family: str) -> Behaviour:
    """The behaviour with an answer that the model often begins with, so that not all rates are 0."""
    drawn = behaviour().prompts(model(family).tokenizer, discovery=0, heldout=N).heldout
    best = [first(generated(family, getattr(each, side), 1)) for each in drawn for side in ("clean", "corrupted")]
    token = max(set(best), key=best.count)
    pairs = [replace(pair, answers=(), answer_ids=(token,)) for pair in behaviour().pairs(None)]
    return replace(behaviour(), pairs=lambda _: pairs)


def first(tokens: list[int]) -> int:
    return tokens[0]


def generated(family: str, prompt: object, count: int) -> list[int]:
    """By the model's own greedy generation, one prompt at a time."""
    ids = torch.tensor([list(prompt)])
    made = model(family).tracer.anatomy.module.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return made[0, ids.shape[1] :].tolist()


def odd(text: str) -> bool:
    """A judge that says either, by the whole text."""
    return sum(map(ord, text)) % 2 == 1


def asked(messages: tuple[Message, ...], system: str | None, begun: str | None) -> list[int]:
    """Apply the chat template by hand."""
    rows = [{"role": "system", "content": system}] if system is not None else []
    rows += [{"role": each.role, "content": each.content} for each in messages]
    rows += [{"role": "assistant", "content": begun}] if begun is not None else []
    how = {"continue_final_message": True} if begun is not None else {"add_generation_prompt": True}
    return list(model().tokenizer.apply_chat_template(rows, return_dict=False, **how))


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize(
    ("attack", "begun", "own"),
    [(ATTACK, None, None), (None, BEGUN, None), (ATTACK, BEGUN, "and"), (None, BEGUN, "Paul is")],
)
def test_rates_are_those_of_plain_generation_before_and_under_attack(
    family: str, attack: str | None, begun: str | None, own: str | None
) -> None:
    given = likely(family) if own is None else likely(family).varied(prefill=own)
    found = answers_under_attack(
        model(family), given, attack=attack, attack_prefill=begun, pairs=N, tokens=TOKENS, judge=odd
    )
    drawn = given.prompts(model(family).tokenizer, discovery=0, heldout=N).heldout
    requests = {
        tuple(asked(getattr(pair, side), None, own)): getattr(pair, side)
        for pair in given.pairs(None)
        for side in ("clean", "corrupted")
    }
    ways = [(None, own), (attack, own if begun is None else begun)]
    rates = []
    for side, word in (("clean", "harmful"), ("corrupted", "harmless")):
        for place, (system, beginning) in enumerate(ways):
            prompts = [asked(requests[getattr(pair, side)], system, beginning) for pair in drawn]
            texts = [generated(family, prompt, TOKENS) for prompt in prompts]
            ends = [text[: text.index(0)] if 0 in text else text for text in texts]
            says = [odd((beginning or "") + model(family).tokenizer.decode(text)) for text in ends]
            begins = [first(text) in pair.answers for text, pair in zip(texts, drawn, strict=True)]
            expected = {
                "text declines": np.mean(says),
                "first token refuses": np.mean(begins),
                "first token and text agree": np.mean(np.array(says) == np.array(begins)),
            }
            for name, value in expected.items():
                quantity = found.quantity(f"{name} on {word} prompts")
                assert (quantity.before, quantity.after)[place].value == pytest.approx(value)
                rates.append(value)
    assert len(set(rates)) > 2


@pytest.mark.parametrize(("place", "token"), [(1, -1), (2, -2), (3, -1)])
def test_the_length_along_a_direction_is_that_of_the_models_own_stream(place: int, token: int) -> None:
    vector = np.random.default_rng(0).normal(size=model().info.d_model)
    direction = StreamDirection(vector, place, token)
    found = answers_under_attack(model(), behaviour(), attack=ATTACK, pairs=N, tokens=1, judge=odd, direction=direction)
    drawn = behaviour().prompts(model().tokenizer, discovery=0, heldout=N).heldout
    module = model().tracer.anatomy.module
    seen = list[torch.Tensor]()
    where = module.model.norm if place == model().info.n_layers else module.model.layers[place]
    hook = where.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    requests = {tuple(asked(pair.clean, None, None)): pair.clean for pair in behaviour().pairs(None)}
    with hook, torch.no_grad():
        for system in (None, ATTACK):
            for pair in drawn:
                module(torch.tensor([asked(requests[pair.clean], system, None)]))
    lengths = np.array([float(each[0, token].double() @ torch.tensor(direction.vector)) for each in seen])
    measured = found.quantity("length along the direction on harmful prompts")
    assert measured.before.value == pytest.approx(lengths[:N].mean(), rel=1e-4)
    assert measured.after.value == pytest.approx(lengths[N:].mean(), rel=1e-4)
    assert measured.change.value == pytest.approx(lengths[N:].mean() - lengths[:N].mean(), rel=1e-3)
    assert found.layer == place


def test_nothing_that_was_generated_is_kept_and_a_stopped_run_generates_nothing_again(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"attack": ATTACK, "attack_prefill": BEGUN, "pairs": N, "tokens": 3}
    with Journal(tmp_path / "journal") as journal:
        found = answers_under_attack(model(), behaviour(), **options, journal=journal)
        rows = journal._run("select kind, value from kept").fetchall()
    answered = [json.loads(value) for kind, value in rows if kind.startswith("answers")]
    assert len(answered) == 4
    for each in answered:
        assert set(each) == {"first token refuses", "text declines"}
        assert all(set(values) <= {0.0, 1.0} and len(values) == N for values in each.values())
    assert "answers" not in found.to_document()
    monkeypatch.setattr(Tracer, "_traced", lambda *_, **__: pytest.fail("the model was run"))
    with Journal(tmp_path / "journal", resume=True) as journal:
        again = answers_under_attack(model(), behaviour(), **options, journal=journal)
    assert again.quantities == found.quantities


def test_a_judge_sees_the_beginning_with_what_follows_and_its_verdicts_are_asked_for_anew(tmp_path) -> None:
    seen = list[str]()

    def judge(text: str) -> bool:
        seen.append(text)
        return declines(text)

    with Journal(tmp_path / "journal") as journal:
        for _ in range(2):
            found = answers_under_attack(
                model(), behaviour(), attack_prefill="Sorry:", pairs=N, tokens=2, judge=judge, journal=journal
            )
    assert len(seen) == 2 * 4 * N
    assert all(text.startswith("Sorry:") for text in seen[2 * N : 4 * N])
    assert found.quantity("text declines on harmless prompts").after.value == 1.0
    assert found.judge == "judge"
    assert "Of 8 harmful requests the text declines" in found.describe()


def test_requests_may_have_other_numbers_of_tokens_under_attack_and_stay_the_same_requests() -> None:
    """Path patching needs as many tokens on both sides; asking does not. The split is by text, which changes."""
    long = answers_under_attack(model(), behaviour(), attack=f"{ATTACK} is and", pairs=N, tokens=1, judge=odd)
    plain = behaviour().prompts(model().tokenizer, discovery=0, heldout=N)
    assert long.prompts == plain
    assert isinstance(long, AttackedAnswers)


def test_what_cannot_be_asked_is_refused_with_what_to_do() -> None:
    asked_of = [model(), behaviour()]
    direction = StreamDirection(np.ones(model().info.d_model), 1)
    with pytest.raises(UsageError, match="there is no attack; give a system message"):
        answers_under_attack(*asked_of)
    with pytest.raises(UsageError, match="is attacked already"):
        answers_under_attack(model(), behaviour().varied(attack="x"), attack="the")
    with pytest.raises(UsageError, match="the answer cannot begin with ' '"):
        answers_under_attack(*asked_of, attack_prefill=" ")
    with pytest.raises(UsageError, match="expected 1 to 20 tokens, got 21"):
        answers_under_attack(*asked_of, attack="the", tokens=21)
    with pytest.raises(UsageError, match="the model ends at resid:1:last, so it has no answers"):
        answers_under_attack(leading_to(model(), direction), behaviour(), attack="the")
    with pytest.raises(UsageError, match="has 7 numbers"):
        answers_under_attack(*asked_of, attack="the", direction=StreamDirection(np.ones(7), 1))
    others = behaviour().varied(answers=[" is"], wrong_answers=["Sorry"])
    with pytest.raises(UsageError, match="not the first tokens of refusals, and the patterns judge refusals"):
        answers_under_attack(model(), others, attack="the", pairs=N)
    text = Behaviour("plain", "a test", lambda _: [Pair(f"When {w} the", f"When {w} is", ("Sorry",)) for w in WORDS])
    with pytest.raises(UsageError, match="a system message belongs to chats"):
        answers_under_attack(model(), replace(text, metric="log-odds"), attack="the", pairs=N)
    with pytest.raises(PromptError, match=r"prompt 0 has \d+ tokens"):
        answers_under_attack(model("gpt2"), behaviour(), attack="and the " * 60, pairs=N, tokens=2)
