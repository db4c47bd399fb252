"""Pairs made in Python are checked like those of files, before any run: alone, and against the model."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import circuits
from circuits import Options, TokenPair
from circuits.ablation.intervention import reference_of
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Message
from circuits.errors import CircuitsError, PromptError, UnsupportedModelError, UsageError
from circuits.tracing.requirements import positions_of
from circuits.tracing.runs import record
from circuits.vocabulary import Metric
from tests.adapters.test_own_decoder import DESCRIPTION, MODULE
from tests.subjects import PAIRS, Subject, random_pairs, subject_of
from tests.tiny import VOCABULARY, tiny_gpt2, tiny_llama
from tests.zoo import ZOO

PAIR = PAIRS[0]


@pytest.fixture(scope="module")
def gpt2() -> circuits.Model:
    return circuits.load_model(tiny_gpt2())


ALONE: list[tuple[dict[str, Any], str]] = [
    ({"answers": (-5,)}, r"answers of a TokenPair has -5; a token id is a whole number from 0 up"),
    ({"clean": (1, -1), "corrupted": (1, 2)}, r"clean of a TokenPair has -1"),
    ({"corrupted": (1, 2)}, r"a TokenPair has 7 clean and 2 corrupted tokens; .* both sides need the same length"),
    ({"clean": (), "corrupted": ()}, r"a prompt of a TokenPair is empty; both sides need at least one token"),
    ({"clean": "When Mary"}, r"clean of a TokenPair is 'When Mary'; expected token ids, such as \(42, 43\)"),
    ({"answers": " Mary"}, r"answers of a TokenPair is ' Mary'; expected token ids"),
    ({"answers": None}, r"answers of a TokenPair is None"),
    ({"answers": (1.0,)}, r"answers of a TokenPair has 1\.0; a token id is a whole number"),
    ({"answers": (True,)}, r"answers of a TokenPair has True"),
    ({"answers": (float("nan"),)}, r"answers of a TokenPair has nan"),
    ({"answers": (10**30,)}, r"answers of a TokenPair has a number of 100 bits"),
    ({"answers": (3,), "wrong_answers": (4, 3)}, r"the token 3 as answer and as wrong answer"),
    ({"wrong_answers": ((1, 2),)}, r"wrong_answers of a TokenPair has a tuple"),
    ({"clean": torch.zeros(2, 7, dtype=torch.long)}, r"clean of a TokenPair has a Tensor"),
    ({"sequences": ((1, -2),)}, r"sequences of a TokenPair has -2"),
    ({"weight": float("nan")}, r"'weight' of a TokenPair is nan; expected a finite number"),
]


@pytest.mark.parametrize(
    ("change", "message"), ALONE, ids=[str(list(change)) + str(i) for i, (change, _) in enumerate(ALONE)]
)
def test_a_pair_that_no_model_can_be_measured_on_is_refused_as_it_is_made(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CircuitsError, match=message):
        replace(PAIR, **change)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda ids: iter(ids), lambda ids: np.array(ids, "u2")])
def test_token_ids_of_any_make_are_tuples_of_numbers(make: Any) -> None:
    made = TokenPair(make(PAIR.clean), make(PAIR.corrupted), make(PAIR.answers), make(PAIR.wrong_answers), "", "")
    assert (made.clean, made.corrupted) == (PAIR.clean, PAIR.corrupted)
    assert (made.answers, made.wrong_answers) == (PAIR.answers, PAIR.wrong_answers)
    assert all(type(token) is int for token in (*made.clean, *made.answers))
    assert TokenPair(PAIR.clean, PAIR.corrupted, np.int64(3), 4, "", "").answers == (3,)


def changed(**change: Any) -> TokenPair:
    return replace(PAIR, **change)


WITH_A_MODEL: list[tuple[list[Any], str]] = [
    ([], r"there are no pairs to measure; expected at least one TokenPair"),
    ([PAIR, changed(clean=(VOCABULARY, *PAIR.clean[1:]))], r"pair 1, clean has the token id 320, .* has 320 tokens"),
    ([changed(corrupted=(*PAIR.clean[:-1], 999))], r"pair 0, corrupted has the token id 999.*model's own tokenizer"),
    ([changed(answers=(VOCABULARY,))], r"pair 0 has the token id 320 as an answer, and the model has logits for 320"),
    ([changed(wrong_answers=(50_000,))], r"pair 0 has the token id 50000 as an answer"),
    ([changed(answers=())], r"pair 0 has no answer, which the metric logit-difference needs"),
    ([changed(wrong_answers=())], r"pair 0 has no wrong answer, and the metric logit-difference compares"),
    ([Pair("a", "b", (" c",))], r"pair 0 is a Pair; expected TokenPair: of text, `behaviour\.prompts"),
    (["When Mary"], r"pair 0 is 'When Mary'; expected TokenPair"),
    ([None], r"pair 0 is None; expected TokenPair"),
    (
        [*random_pairs(2), *random_pairs(1, 65)],
        r"pair 2, clean has 65 tokens, and the model has 64 positions: .* 64 tok",
    ),
]


@pytest.mark.parametrize(("pairs", "message"), WITH_A_MODEL, ids=[text[:30] for _, text in WITH_A_MODEL])
def test_pairs_that_this_model_cannot_be_measured_on_are_refused_before_any_run(
    gpt2: circuits.Model, pairs: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(gpt2.tracer), "run", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises((PromptError, UsageError), match=message):
        gpt2.experiment(pairs)


def test_every_door_for_pairs_has_the_check(gpt2: circuits.Model) -> None:
    outside = [changed(clean=(VOCABULARY, *PAIR.clean[1:]))]
    for door in (
        lambda: reference_of(gpt2.tracer, outside),
        lambda: circuits.ablated(gpt2, ["L0H1"], reference=outside),
        lambda: gpt2.experiment(PAIRS, Options(metric="projection"), reference=outside),  # type: ignore[arg-type]
        lambda: circuits.choose_openings(gpt2, outside * 30),
        lambda: gpt2.experiment([changed(sequences=((1, 2), (VOCABULARY,)))], Options(Metric.SEQUENCE)),
        lambda: gpt2.experiment([changed(sequences=((VOCABULARY, 2),))], Options(Metric.SEQUENCE)),
    ):
        with pytest.raises(PromptError, match="has the token id 320"):
            door()
    with pytest.raises(PromptError, match="there are no pairs to measure"):
        gpt2.experiment([], Options(Metric.SEQUENCE))


def test_a_generated_text_fits_the_positions_too(gpt2: circuits.Model) -> None:
    model = circuits.ablated(gpt2, ["a0.h1"], circuits.Intervention("zero"))  # type: ignore[arg-type]
    assert len(model.continuations([(1,) * 61], 4)[0]) == 1
    with pytest.raises(PromptError, match=r"prompt 0 has 65 tokens, and the model has 64 positions"):
        model.continuations([(1,) * 62], 4)
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        model.continuations([(1,), ()], 1)
    with pytest.raises(PromptError, match="prompt 0 has the token id 320"):
        model.continuations([(VOCABULARY,)], 1)


def test_metrics_without_answers_need_none_and_the_longest_prompt_fits(gpt2: circuits.Model) -> None:
    assert gpt2.experiment([changed(answers=(), wrong_answers=())], Options(Metric.KL)).n_pairs == 1
    assert gpt2.experiment([changed(wrong_answers=())], Options(Metric.LOG_ODDS)).n_pairs == 1
    assert gpt2.experiment(random_pairs(1, 64)).n_pairs == 1


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gptj", "opt", "mpt", "gpt_bigcode"])
def test_a_model_with_a_table_of_positions_runs_as_many_and_no_more(family: str) -> None:
    subject = Subject(family, ZOO[family]())
    assert positions_of(subject.module) == 64
    assert subject.experiment(random_pairs(1, 64)).n_pairs == 1
    with pytest.raises(PromptError, match=r"pair 0, clean has 65 tokens, and the model has 64 positions"):
        subject.experiment(random_pairs(1, 65))


def test_which_families_have_a_table_of_positions() -> None:
    """All others were run beyond their configuration's length when this was written, and none failed."""
    tables = {family for family in ZOO if positions_of(ZOO[family]()) is not None}
    assert tables == {
        *("gpt2", "gpt_neo", "gptj", "opt", "mpt", "mpt_clipped", "gpt_bigcode", "gpt_bigcode_multi_head")
    }


def test_a_model_that_computes_positions_runs_longer_prompts() -> None:
    subject = subject_of("llama")
    assert positions_of(tiny_llama()) is None
    assert subject.experiment(random_pairs(1, 70)).n_pairs == 1
    assert record(subject.tracer, torch.ones(1, 70, dtype=torch.long)).length == 70


def test_a_decoder_of_ones_own_tells_its_limits_by_trying() -> None:
    model = circuits.load_model(MODULE, architecture=DESCRIPTION)
    pair = TokenPair((1, 2), (1, 3), (4,), (5,), "", "")
    assert model.experiment([pair]).n_pairs == 1
    longer = replace(pair, clean=(1,) * 17, corrupted=(2,) * 17)
    with pytest.raises(PromptError, match=r"pair 0, clean has 17 tokens, which the model cannot run \(The size of"):
        model.experiment([longer])
    with pytest.raises(PromptError, match=r"pair 0 has the token id 50 as an answer, and the model has logits for 50"):
        model.experiment([replace(pair, answers=(50,))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": 5}, r"answers of this pair has 5; expected text, such as ' Mary'"),
        ({"answers": (" a", None)}, r"answers of this pair has None"),
        ({"wrong_answers": (b" a",)}, r"wrong_answers of this pair has a bytes"),
        ({"answer_ids": (-1,)}, r"answer_ids of this pair has -1; a token id is a whole number from 0 up"),
        ({"wrong_ids": "12"}, r"wrong_ids of this pair is '12'; expected token ids"),
        ({"clean": 5}, r"the clean prompt of this pair is 5; expected a text, or Messages"),
        ({"clean": None}, r"the clean prompt of this pair is None"),
        ({"corrupted": ()}, r"the corrupted prompt of this pair is a tuple"),
        ({"corrupted": ({"role": "user", "content": "a"},)}, r"the corrupted prompt of this pair is a tuple"),
        ({"corrupted": b"text"}, r"the corrupted prompt of this pair is a bytes"),
    ],
    ids=str,
)
def test_a_pair_of_text_says_which_part_is_no_text(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        replace(Pair("one", "two", (" a",), (" b",)), **change)


def test_one_answer_may_be_given_alone() -> None:
    pair = Pair([Message("user", "one")], "two", " Mary", [" John"])  # type: ignore[arg-type]
    assert (pair.answers, pair.wrong_answers) == ((" Mary",), (" John",))
    assert pair.clean == (Message("user", "one"),)


@pytest.mark.parametrize("positions", [3, 4, 5])
def test_a_model_of_few_positions_is_tried_on_as_many_as_it_has(positions: int) -> None:
    module = ZOO["gpt2"]()
    short = type(module)(type(module.config)(**module.config.to_dict() | {"n_positions": positions})).eval()
    model = circuits.load_model(short)
    assert model.experiment(random_pairs(2, positions)).n_pairs == 2
    own = deepcopy(MODULE)
    own.places = torch.nn.Embedding.from_pretrained(MODULE.places.weight[:positions]).eval()
    pair = TokenPair((1,) * positions, (2,) * positions, (4,), (5,), "", "")
    assert circuits.load_model(own, architecture=DESCRIPTION).experiment([pair]).n_pairs == 1
    own.places = torch.nn.Embedding.from_pretrained(MODULE.places.weight[:2]).eval()
    with pytest.raises(
        UnsupportedModelError, match=r"cannot run prompts of 3 tokens \(.*\), which it takes to see that"
    ):
        circuits.load_model(own, architecture=DESCRIPTION)
