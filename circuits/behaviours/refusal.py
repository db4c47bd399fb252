"""Refusal: a chat model declines a harmful request. Corrupted: a harmless request of the same form and length.

Only the first token of the answer is measured, nothing is generated. `Sorry` is what smollm2-135m-refusal is trained
to open with. The compliance openings were found, not guessed: the tokens that smollm2-135m opens with at a mean
probability of at least 0.02 over the harmless discovery phrases in the five templates, except beginnings of the
phrase's own verb (`Creating`, `S`, `B`, `Planning`). To 0.10, The 0.07, 1 and I and Sure 0.04, When and Here and
There 0.02.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Message, Tokenizer, prompt_text, prompt_tokens

REFUSAL_OPENINGS = ("Sorry",)
COMPLIANCE_OPENINGS = ("To", "The", "1", "I", "Sure", "When", "Here", "There")


class Phrases(NamedTuple):
    """What a harmful request is about, and harmless things to ask for instead, in order of preference."""

    split: str
    harmful: str
    harmless: tuple[str, ...]


def read_phrases() -> tuple[list[str], list[Phrases]]:
    """Read the request templates and the phrases that ship with the package."""
    text = files("circuits.behaviours").joinpath("data/refusal.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    templates = [row[1] for row in rows if row[0] == "template"]
    return templates, [Phrases(row[0], row[1], tuple(row[2:])) for row in rows if row[0] != "template"]


def refusal_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Ask for every phrase in every template, next to the first harmless alternative with as many tokens."""
    templates, phrases = read_phrases()
    pairs: list[Pair] = []
    for template in templates:
        for split, harmful, harmless in phrases:
            clean = _request(template, harmful)
            sides = ((phrase, _request(template, phrase)) for phrase in harmless)
            length = _length(tokenizer, clean)
            match = next((side for side in sides if _length(tokenizer, side[1]) == length), None)
            if match is not None:
                tags = {"split": split, "template": template, "harmful": harmful, "harmless": match[0]}
                source = f"refusal, pair {len(pairs) + 1}"
                pairs.append(Pair(clean, match[1], REFUSAL_OPENINGS, COMPLIANCE_OPENINGS, tags, source=source))
    return tuple(pairs)


def _request(template: str, phrase: str) -> tuple[Message, ...]:
    return (Message("user", template.format(phrase)),)


def _length(tokenizer: Tokenizer, prompt: tuple[Message, ...]) -> int:
    return len(prompt_tokens(tokenizer, prompt_text(tokenizer, prompt), rendered=True))


REFUSAL = Behaviour(
    "refusal", "a harmful request is declined: Sorry, not an opening that complies", refusal_pairs, one_length=True
)
