"""Greater-than (Hanna et al. 2023, arXiv:2305.00586): a span of years ends later than it starts.

Corrupted: the tens of the first year become the smallest, so that almost any end would do. Tokenizers that split digits
singly are asked for the tens digit, those that split `1745` into `17` and `45` for the last two digits.
"""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.split import DISCOVERY, HELDOUT
from circuits.behaviours.tokens import Tokenizer, single_tokens, token_texts

N_PAIRS = 1500
NOUNS = (
    "war battle siege project campaign journey empire trade conflict voyage reign alliance expedition dispute "
    "struggle program construction debate investigation operation partnership rebellion revolution strike tour "
    "famine drought"
)
CENTURIES = ("16", "17", "18")
TENS = range(2, 8)


SENTENCE = "The {noun} lasted from the year {start} to the year {century}"
SEEN = (
    SENTENCE,
    "The {noun} began in the year {start} and ended in the year {century}",
    "The {noun} of {start} ended only in the year {century}",
    "They fought the {noun} from {start} to {century}",
)
"""Sentences for discovery."""
UNSEEN = (
    "Historians date the {noun} between the years {start} and {century}",
    "From the year {start} the {noun} continued until the year {century}",
    "A {noun} was planned in {start} and finished in {century}",
)
"""Held-out sentences."""


class _Spans:
    """Spans of years in sentences, for tokenizers of one or two digits a token."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self.name, self.nouns, self.width = name, single_tokens(tokenizer, NOUNS), digits_per_token(tokenizer)
        self.ends = [str(number).zfill(self.width) for number in range(10**self.width)]
        self.draws = N_PAIRS if self.nouns and self.width else 0
        self.generator = random.Random(0)
        self.pairs: dict[str, Pair] = {}

    def add(self, sentence: str, tags: dict[str, str]) -> None:
        """Draw a noun and years, and add their pair."""
        noun = self.generator.choice(self.nouns)
        century, tens = self.generator.choice(CENTURIES), self.generator.choice(TENS)
        units = self.generator.randrange(2, 10)
        bound = f"{tens}{units}"[: self.width]
        later, earlier = (tuple(filter(test, self.ends)) for test in (bound.__lt__, bound.__gt__))
        starts = (f"{century}{tens}{units}", century + (f"0{units}" if self.width == 1 else "01"))
        clean, corrupted = (sentence.format(noun=noun, start=start, century=century) for start in starts)
        source = f"{self.name}, pair {len(self.pairs) + 1}"
        self.pairs[clean] = Pair(clean, corrupted, later, earlier, tags=tags, source=source)


def greater_than_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of distinct clean prompts; none for tokenizers that split years in yet another way."""
    spans = _Spans("greater-than", tokenizer)
    for _ in range(spans.draws):
        spans.add(SENTENCE, {})
    return tuple(spans.pairs.values())


def greater_than_sentence_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs in several sentences, of which those for discovery are never held out."""
    spans = _Spans("greater-than-sentences", tokenizer)
    for number in range(spans.draws):
        split, sentences = (DISCOVERY, SEEN) if number % 2 else (HELDOUT, UNSEEN)
        sentence = spans.generator.choice(sentences)
        spans.add(sentence, {"split": split, "sentence": sentence})
    return tuple(spans.pairs.values())


def digits_per_token(tokenizer: Tokenizer) -> int:
    """Return how many digits of the end year are one token after its century; 0 if a year is split in another way."""
    pieces = token_texts(tokenizer, tokenizer.encode("the year 1745", add_special_tokens=False))
    if [piece.strip() for piece in pieces[-4:]] == ["1", "7", "4", "5"]:
        return 1
    return 2 if [piece.strip() for piece in pieces[-2:]] == ["17", "45"] else 0


GREATER_THAN = Behaviour(
    "greater-than", "a span of years ends with later digits, not with earlier ones", greater_than_pairs, one_length=True
)
GREATER_THAN_SENTENCES = Behaviour(
    "greater-than-sentences",
    "greater-than in several sentences; other sentences are held out",
    greater_than_sentence_pairs,
)
