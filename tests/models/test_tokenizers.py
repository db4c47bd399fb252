"""Tokenizers of any make: for sums, of another library, or with no more than `encode` and `decode`."""

import copy
import pickle  # noqa: TID251
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import circuits
from circuits.behaviours.lint import check_pair
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import unknown_place
from circuits.errors import CircuitsError, GuardError, ModelUnavailableError, PromptError, UnknownNameError, UsageError
from circuits.models.tokenizers import PlainTokenizer, usable_tokenizer
from circuits.vocabulary import Metric
from tests.tiny import tiny_llama, tiny_tokenizer

SUMS = {"[UNK]": 0, "+": 1, "=": 2, **{str(n): 3 + n for n in range(50)}}


def for_sums(*, unknown: str | None = "[UNK]", words: dict[str, int] = SUMS) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)


class Plain:
    """Has the two methods and nothing else."""

    def encode(self, text: str) -> list[int]:
        return [SUMS[word] for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(list(SUMS)[token] for token in ids)


PAIRS = [
    Pair(f"{a} + {b} =", f"{a} + {b + 1} =", (f" {a + b}",), (f" {a + b + 1}",)) for a in range(4) for b in range(1, 4)
]


def behaviour(pairs: list[Pair] = PAIRS) -> circuits.Behaviour:
    return circuits.Behaviour("sums", "adds", lambda _: pairs)


@pytest.mark.parametrize(
    "tokenizer",
    [for_sums(), for_sums().backend_tokenizer, Plain(), for_sums(unknown=None)],
    ids=lambda t: type(t).__name__,
)
def test_a_tokenizer_made_for_sums_is_taken_and_measured_by(tokenizer: Any) -> None:
    model = circuits.load_model(tiny_llama(), tokenizer=tokenizer)
    assert [guard.name for guard in model.guards if guard.name == "tokenizer" and guard.passed] == ["tokenizer"]
    prompts = behaviour().prompts(model.tokenizer, discovery=4, heldout=4)
    first = prompts.discovery[0]
    assert model.tokenizer.decode(list(first.clean)) == first.clean_text
    assert model.experiment(prompts.discovery).n_pairs == 4


def test_a_word_that_the_tokenizer_does_not_know_is_refused_in_prompts_and_answers() -> None:
    tokenizer = for_sums()
    good = PAIRS[0]
    for change, place in (({"clean": "1 plus 2 ="}, 1), ({"corrupted": "0 + one ="}, 2), ({"answers": (" two",)}, 0)):
        pair = copy.replace(good, **change) if hasattr(copy, "replace") else Pair(**{**good.__dict__, **change})
        with pytest.raises(PromptError, match=rf"no token for a part of .*: its token {place} is the one for unknown"):
            check_pair(pair, tokenizer, Metric.LOGIT_DIFFERENCE)
    assert unknown_place(tokenizer, "1 [UNK] 2", [4, 0, 5]) is None  # written on purpose
    assert unknown_place(tiny_tokenizer(), "any", [0, 1]) is None


def test_an_object_that_cannot_encode_says_the_text_and_its_reason() -> None:
    with pytest.raises(PromptError, match=r"the tokenizer cannot encode 'one \+ 2 =' \(KeyError: 'one'\)"):
        behaviour([Pair("one + 2 =", "1 + 2 =", (" 3",), (" 4",))]).prompts(usable_tokenizer(Plain()))


class WithoutDecode:
    encode = Plain.encode


class OfFloats(Plain):
    def encode(self, text: str) -> Any:
        return [1.5]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (WithoutDecode(), r"the tokenizer is a WithoutDecode; .* encode\(text\), .* and decode\(ids\), .* no decode"),
        (object(), r"it has no encode decode"),
        ("gpt2", r"the tokenizer is 'gpt2'; expected one of transformers \(AutoTokenizer"),
        (b"gpt2", r"the tokenizer is a bytes"),
        (Path("folder"), r"it has no encode decode"),
        (3, r"the tokenizer is 3; expected"),
        ({}, r"the tokenizer is a dict"),
        (lambda text: [1], r"it has no encode decode"),
        (OfFloats(), r"has 1\.5; a token id is a whole number|fails the guard 'tokenizer'"),
        (True, r"the tokenizer is True"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_tokenize_is_refused_with_the_methods_that_are_needed(tokenizer: Any, message: str) -> None:
    with pytest.raises(CircuitsError, match=message):
        circuits.load_model(tiny_llama(), tokenizer=tokenizer)


def test_a_tokenizer_whose_words_are_beyond_the_embedding_fails_the_guard() -> None:
    words = {"[UNK]": 0} | {f"w{n}": 1000 + n for n in range(30)}
    with pytest.raises(GuardError, match="fails the guard 'tokenizer'"):
        circuits.load_model(tiny_llama(), tokenizer=for_sums(words=words))


def test_a_plain_tokenizer_has_what_its_object_has_and_can_be_copied() -> None:
    class Counted(Plain):
        vocab_size = 53
        eos_token_id = 7

    plain = PlainTokenizer(Counted())
    assert (len(plain), plain.eos_token_id, plain.chat_template, plain.bos_token) == (53, 7, None, None)
    assert len(PlainTokenizer(Plain())) > 10**6
    assert not hasattr(plain, "all_special_ids")
    again = pickle.loads(pickle.dumps(PlainTokenizer(Plain())))  # noqa: S301
    assert again.encode("1 + 2") == copy.deepcopy(plain).encode("1 + 2") == [4, 1, 5]


@pytest.mark.parametrize("side", ["clean", "corrupted", "answers", "wrong_answers"])
def test_half_an_emoji_in_a_pair_of_text_is_refused(side: str) -> None:
    parts: dict[str, Any] = {"clean": "one", "corrupted": "two", "answers": ("a",), "wrong_answers": ("b",)}
    parts[side] = ("\udc00",) if "answers" in side else "x\ud83d"
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        check_pair(Pair(**parts), tiny_tokenizer(), Metric.LOGIT_DIFFERENCE)


def test_a_whole_emoji_is_text_like_any_other() -> None:
    pair = check_pair(Pair("one \U0001f600 a", "one \U0001f601 a", ("b",), ("c",)), tiny_tokenizer(), Metric.LOG_ODDS)
    assert tiny_tokenizer().decode(list(pair.clean)) == "one \U0001f600 a"


@pytest.mark.parametrize(
    "model", [None, 3, 1.5, True, b"smollm2", ["smollm2-135m"], {}, object(), (), tiny_tokenizer()]
)
def test_what_is_no_model_is_refused_with_what_may_be_given(model: Any) -> None:
    with pytest.raises(UsageError, match=r"the model is .*; expected str: the name of a built-in model"):
        circuits.load_model(model)


def test_a_folder_may_be_a_path(tiny_folder: Path) -> None:
    assert circuits.load_model(tiny_folder).graph == circuits.load_model(str(tiny_folder)).graph
    with pytest.raises(ModelUnavailableError, match=re.escape("there is no folder")):
        circuits.load_model(tiny_folder / "absent")


@pytest.mark.parametrize("option", ["device", "dtype", "attention"])
@pytest.mark.parametrize("value", [None, 3, True, b"cpu", ("cpu",)])
def test_where_and_how_a_model_runs_is_told_in_text(option: str, value: Any, tiny_folder: Path) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=rf"the {option} is .*; expected str|there is no {option}"):
        circuits.load_model(tiny_folder, **{option: value})
