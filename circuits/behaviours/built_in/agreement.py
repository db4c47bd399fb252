"""Subject-verb agreement: are after a plural, is after a singular. Corrupted: the noun in the other number."""

from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.split import DISCOVERY, HELDOUT
from circuits.behaviours.tokens import Tokenizer, single_token_pairs

OPENINGS = (
    "I think that the",
    "Everyone said that the",
    "She said that the",
    "He wrote that the",
    "They know that the",
    "People believe that the",
    "You see that the",
    "We hope that the",
)
REGULAR = (
    "dog cat boy girl car book house tree king doctor teacher student picture table friend window door bird "
    "horse river lawyer player driver farmer soldier singer worker parent brother sister cousin neighbor "
    "garden building road bridge machine computer letter paper song movie story game idea plan problem "
    "question answer ship train plane engine school hospital village island mountain flower apple egg cow pig"
)
IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "city": "cities",
    "country": "countries",
    "baby": "babies",
}
VERBS = {"plural": " are", "singular": " is"}


SEEN = (*OPENINGS[:4], "In the picture you can see that the")
"""Openings for discovery."""
UNSEEN = ("Nobody knew whether the", "It was clear to all of us that the", "He did not care if the")
"""Held-out openings."""


def agreement_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make a pair in both directions for every opening and every noun whose two numbers are single tokens."""
    return tuple(_pairs("agreement", OPENINGS, _nouns(tokenizer), {}))


def agreement_sentence_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs with several openings; nouns and openings for discovery are never held out."""
    nouns, name = _nouns(tokenizer), "agreement-sentences"
    pairs = _pairs(name, SEEN, nouns[::2], {"split": DISCOVERY})
    return (*pairs, *_pairs(name, UNSEEN, nouns[1::2], {"split": HELDOUT}, first=len(pairs)))


def _nouns(tokenizer: Tokenizer) -> Sequence[tuple[str, str]]:
    plurals = {noun: f"{noun}s" for noun in REGULAR.split()} | IRREGULAR
    return single_token_pairs(tokenizer, plurals)


def _pairs(
    name: str, openings: Sequence[str], nouns: Sequence[tuple[str, str]], tags: dict[str, str], first: int = 0
) -> list[Pair]:
    """Make a pair in both directions for every opening and every noun, with these tags and its number and opening."""
    pairs: list[Pair] = []
    for opening in openings:
        for singular, plural in nouns:
            texts = {"plural": f"{opening} {plural}", "singular": f"{opening} {singular}"}
            for number, other in (("plural", "singular"), ("singular", "plural")):
                answers = (VERBS[number],), (VERBS[other],)
                source = f"{name}, pair {first + len(pairs) + 1}"
                more = {**tags, "number": number} | ({"sentence": opening} if tags else {})
                pairs.append(Pair(texts[number], texts[other], *answers, tags=more, source=source))
    return pairs


AGREEMENT = Behaviour("agreement", "the verb agrees with its noun: are or is", agreement_pairs, one_length=True)
AGREEMENT_SENTENCES = Behaviour(
    "agreement-sentences",
    "agreement after several openings; other openings and nouns are held out",
    agreement_sentence_pairs,
)
