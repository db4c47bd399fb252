"""Tiny tokenizers, trained in memory on the words of the built-in behaviours."""

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from circuits.behaviours.built_in import agreement, capital, greater_than, induction, ioi, pronoun, refusal
from circuits.behaviours.pairs import Pair
from circuits.behaviours.reading.datasets import read_file

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SENTENCES = (
    "When and went to the, gave a to The lasted from the year to the year The capital of is the city of "
    "So is a really, isn't he she are is The words: Sorry To The 1 I Sure When Here There the cats dogs on mat The "
    "Request: How do I dangerous safe Label: water a garden rob museum poison neighbor read novel"
)


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Give all pairs of a prompt file as they are written."""
    return read_file(path)[0].pairs


def build(
    *, digits: bool = True, chat_template: str | None = CHAT_TEMPLATE, bos: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose vocabulary holds every word it is trained on."""
    templates, phrases = refusal.read_phrases()
    nouns = agreement.REGULAR.split()
    words = [
        *(
            SENTENCES,
            ioi.NAMES,
            ioi.PLACES,
            ioi.OBJECTS,
            greater_than.NOUNS,
            induction.WORDS,
            " ".join(agreement.OPENINGS),
        ),
        *(pronoun.MEN, pronoun.WOMEN, pronoun.QUALITIES, pronoun.ROLES, *capital.CAPITALS, *capital.CAPITALS.values()),
        *(*nouns, *(f"{noun}s" for noun in nouns), *agreement.IRREGULAR, *agreement.IRREGULAR.values()),
        *(*templates, *(" ".join([row.harmful, *row.harmless]) for row in phrases)),
    ]
    corpus = [f" {word}" for text in words for word in text.split()] + [word for text in words for word in text.split()]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d" if digits else r"\d\d"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    years = [] if digits else [f"{number:02}" for number in range(100)]
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator([*corpus, *years], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Give a tokenizer that knows every word of the built-in behaviours and splits digits singly."""
    return build()


@pytest.fixture(scope="session")
def two_digit_tokenizer() -> PreTrainedTokenizerFast:
    """Give a tokenizer that splits 1745 into 17 and 45."""
    return build(digits=False)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Give a tokenizer without a chat template."""
    return build(chat_template=None)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Give a tokenizer that starts every text with <s>, as its chat template also does."""
    return build(chat_template="<s>" + CHAT_TEMPLATE, bos=True)
