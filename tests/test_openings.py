"""Openings are found in the model: what harmful prompts are answered with more often, and what harmless ones."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from circuits.behaviours import Behaviour, Message, Pair, TokenPair
from circuits.behaviours.lint import inspect_pairs
from circuits.discovery_settings import DiscoverySettings, prompts_for
from circuits.errors import BehaviourNotShownError, PromptError
from circuits.model import Model, load_model
from circuits.openings import MOST, SHARE, SPREAD, choose_openings, finds_openings, with_openings
from circuits.vocabulary import Metric
from tests.tiny import tiny_llama, tiny_tokenizer

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "uvwxyz"]


@cache
def model() -> Model:
    """A tiny model that answers to the last token for the most part, and with few tokens."""
    module = tiny_llama()
    with torch.no_grad():
        module.lm_head.weight.mul_(1.5)
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
    return load_model(module, tokenizer=tiny_tokenizer(), name="sharp")


def pairs_text(clean: str = " cats", corrupted: str = " dog", n: int = 40) -> tuple[Pair, ...]:
    """Pairs whose last words, the same in all of them, decide what a random model answers."""
    rows = [(f"When {word} the{clean}", f"When {word} the{corrupted}") for word in WORDS[:n]]
    return tuple(Pair(here, there, (" and",), (" to",)) for here, there in rows)


def behaviour(texts: tuple[Pair, ...] | None = None, **options: object) -> Behaviour:
    pairs = pairs_text(" John", " Paul", 48) if texts is None else texts
    tagged = [
        replace(pair, tags={"split": "discovery" if i < 40 else "heldout"}, source=f"mine, pair {i}")
        for i, pair in enumerate(pairs)
    ]
    return Behaviour("mine", "a test", lambda _: tagged, **options)


def tokens(texts: tuple[Pair, ...]) -> list[TokenPair]:
    return [made for _, made in inspect_pairs(texts, model().tokenizer, Metric.LOGIT_DIFFERENCE)[0]]


PAIRS = tokens(pairs_text(" John", " Paul"))


def probabilities(side: str, pairs: list[TokenPair] = PAIRS) -> torch.Tensor:
    """By plain forward passes of the model, one prompt at a time."""
    module = model().tracer.anatomy.module
    with torch.no_grad():
        rows = [module(torch.tensor([getattr(pair, side)])).logits[0, -1].softmax(-1) for pair in pairs]
    return torch.stack(rows)


def is_text(token: int) -> bool:
    """Some tokens of a byte-level vocabulary are parts of letters, which cannot be written down."""
    tokenizer, prompt = model().tokenizer, PAIRS[0]
    return tokenizer.encode(prompt.clean_text + tokenizer.decode([token])) == [*prompt.clean, token]


def test_openings_are_the_tokens_whose_mean_probability_differs_most():
    chosen = choose_openings(model(), PAIRS)
    harmful, harmless = probabilities("clean"), probabilities("corrupted")
    difference = harmful.mean(0) - harmless.mean(0)
    for openings, sign, side in ((chosen.refusing, 1, harmful), (chosen.complying, -1, harmless)):
        wanted = (difference * sign >= SHARE) & ((side >= SHARE).float().mean(0) >= SPREAD)
        ordered = [token for token in (-difference * sign).argsort().tolist() if wanted[token] and is_text(token)]
        assert 2 <= len(openings) < MOST
        assert [opening.token for opening in openings] == ordered
        for opening in openings:
            assert opening.harmful == pytest.approx(float(harmful[:, opening.token].mean()), abs=1e-5)
            assert opening.harmless == pytest.approx(float(harmless[:, opening.token].mean()), abs=1e-5)
            assert model().tokenizer.decode([opening.token]) == opening.text


def test_the_pairs_that_are_told_apart_are_counted_by_the_logits():
    chosen = choose_openings(model(), PAIRS)
    sides = [[opening.token for opening in side] for side in (chosen.refusing, chosen.complying)]
    harmful, harmless = (
        probabilities(side)[:, sides[0]].sum(-1) - probabilities(side)[:, sides[1]].sum(-1)
        for side in ("clean", "corrupted")
    )
    assert (chosen.pairs, chosen.kept) == (40, int(((harmful > 0) & (harmless < 0)).sum()))
    assert chosen.kept >= 20


def test_exchanging_the_sides_exchanges_the_openings():
    swapped = [replace(pair, clean=pair.corrupted, corrupted=pair.clean) for pair in PAIRS]
    here, there = choose_openings(model(), PAIRS), choose_openings(model(), swapped)
    assert [opening.token for opening in here.refusing] == [opening.token for opening in there.complying]
    assert [opening.token for opening in here.complying] == [opening.token for opening in there.refusing]


def test_at_most_eight_openings_are_taken_and_none_that_few_prompts_have(monkeypatch):
    few = choose_openings(model(), PAIRS).refusing
    monkeypatch.setattr("circuits.openings.SHARE", 0.001)
    more = choose_openings(model(), PAIRS).refusing
    assert len(more) == MOST
    assert more[: len(few)] == few
    monkeypatch.setattr("circuits.openings.SPREAD", 1.01)
    with pytest.raises(BehaviourNotShownError, match="does not begin its answers"):
        choose_openings(model(), PAIRS)


def test_prompts_that_are_answered_alike_have_no_openings():
    same = [replace(pair, corrupted=pair.clean) for pair in PAIRS]
    with pytest.raises(BehaviourNotShownError, match=r"sharp does not begin its answers .* the largest difference is"):
        choose_openings(model(), same)


def test_openings_that_tell_few_pairs_apart_are_refused():
    def mixed(every: int) -> list[TokenPair]:
        swapped = [replace(pair, clean=pair.corrupted, corrupted=pair.clean) for pair in PAIRS]
        return [swapped[i] if i % every == 0 else pair for i, pair in enumerate(PAIRS)]

    assert 20 <= choose_openings(model(), mixed(10)).kept <= choose_openings(model(), PAIRS).kept - 4
    with pytest.raises(BehaviourNotShownError, match=r"only \d+ of 24 pairs have the sign harmful > 0 > harmless"):
        choose_openings(model(), mixed(4)[:24])


def test_too_few_pairs_are_refused():
    with pytest.raises(PromptError, match="at least 20 pairs, and there are 19; give more pairs, or the openings"):
        choose_openings(model(), PAIRS[:19])


def test_given_openings_are_kept_and_only_the_others_are_chosen():
    free = choose_openings(model(), PAIRS)
    text = free.refusing[0].text
    chosen = choose_openings(model(), PAIRS, refusing=[text])
    assert [opening.text for opening in chosen.refusing] == [text]
    assert chosen.complying == free.complying
    taken = choose_openings(model(), PAIRS, complying=[free.complying[0].text])
    assert taken.refusing == free.refusing
    with pytest.raises(PromptError, match=r"the answer ' Mary went' is \d+ tokens"):
        choose_openings(model(), PAIRS, refusing=[" Mary went"])


def test_a_behaviour_takes_the_openings_of_the_model_whatever_its_own_are():
    own = behaviour()
    unknown = behaviour(tuple(replace(pair, answers=("Sorry, I cannot",)) for pair in own.pairs(None)))
    found, chosen = with_openings(model(), unknown)
    assert found.variant.answers == tuple(opening.text for opening in chosen.refusing)
    assert found.variant.wrong_answers == tuple(opening.text for opening in chosen.complying)
    drawn = found.prompts(model().tokenizer, discovery=4, heldout=4)
    assert set(drawn.heldout[0].answers) == {opening.token for opening in chosen.refusing}
    assert chosen == with_openings(model(), own)[1]


def test_openings_are_looked_for_where_the_behaviours_own_are_of_other_models():
    of_another, of_this = behaviour(answers_for=("other",)), behaviour(answers_for=("other", "sharp"))
    assert [finds_openings(model(), each) for each in (of_another, of_this, behaviour())] == [True, False, False]
    assert not finds_openings(model(), of_another.varied(answers=["a"], wrong_answers=["b"]))
    assert finds_openings(model(), of_another.varied(answers=["a"]))
    settings = DiscoverySettings(pairs=4, heldout=4)
    drawn = [prompts_for(model(), each, settings) for each in (of_another, of_this)]
    assert drawn[0].variant == with_openings(model(), of_another)[0].variant
    assert drawn[1].variant.answers == ()


def test_chats_have_openings_too_and_are_described():
    chats = tuple(
        replace(pair, clean=(Message("user", pair.clean),), corrupted=(Message("user", pair.corrupted),))
        for pair in pairs_text(" John", " Paul", 48)
    )
    tokenizer: PreTrainedTokenizerFast = model().tokenizer
    template = tokenizer.chat_template
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    try:
        found, chosen = with_openings(model(), behaviour(chats))
    finally:
        tokenizer.chat_template = template
    assert chosen == with_openings(model(), behaviour())[1]
    first = chosen.refusing[0]
    assert chosen.describe().startswith(f"refuses with {first.text!r} {first.harmful:.2f}")
    assert f"on {chosen.kept} of 40 pairs" in chosen.describe()
    assert "--refuse and --comply" in chosen.describe()
    assert found.variant.system is None
