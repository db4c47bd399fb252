"""Capitals: the capital of a country. Corrupted: another country, whose capital is the wrong answer."""

import random
from collections.abc import Callable, Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.split import DISCOVERY, HELDOUT
from circuits.behaviours.tokens import Tokenizer, single_token_pairs

PARTNERS = 12
"""How many other countries a country is paired with."""
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Russia": "Moscow",
    "China": "Beijing", "Japan": "Tokyo", "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon",
    "Austria": "Vienna", "Poland": "Warsaw", "Hungary": "Budapest", "Ireland": "Dublin", "England": "London",
    "Scotland": "Edinburgh", "Wales": "Cardiff", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Belgium": "Brussels", "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad",
    "Syria": "Damascus", "Lebanon": "Beirut", "Israel": "Jerusalem", "Kenya": "Nairobi", "Cuba": "Havana",
    "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa", "Ukraine": "Kiev", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "Serbia": "Belgrade", "Croatia": "Zagreb", "Pakistan": "Islamabad", "Afghanistan": "Kabul",
    "Bangladesh": "Dhaka", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Korea": "Seoul", "Taiwan": "Taipei",
    "Philippines": "Manila", "Indonesia": "Jakarta", "Nepal": "Kathmandu", "Libya": "Tripoli", "Ghana": "Accra",
    "Senegal": "Dakar", "Qatar": "Doha", "Venezuela": "Caracas", "Jamaica": "Kingston", "Iceland": "Reykjavik",
    "Latvia": "Riga", "Netherlands": "Amsterdam", "Morocco": "Rabat", "Algeria": "Algiers", "Jordan": "Amman",
    "Australia": "Canberra", "Switzerland": "Bern", "Tunisia": "Tunis", "Ecuador": "Quito", "Nigeria": "Abuja",
    "India": "Delhi", "Cyprus": "Nicosia", "Argentina": "Buenos",
}  # fmt: skip


SENTENCE = "The capital of {} is the city of"
SEEN = (
    SENTENCE,
    "The government of {} has its seat in the city of",
    "The museum of {} stands in the capital city,",
    "People who live in {} know that their capital is",
)
"""Sentences for discovery."""
UNSEEN = (
    "The capital city of {} is called",
    "A train crossed {} and stopped in its capital, the city of",
    "The president of {} lives in the capital,",
)
"""Held-out sentences."""


def capital_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Pair every country whose name and capital are single tokens with a few others."""
    generator = random.Random(0)
    known = single_token_pairs(tokenizer, CAPITALS)
    return tuple(_pairs("capital", known, generator, lambda: (SENTENCE, {})))


def capital_sentence_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs in several sentences; countries and sentences for discovery are never held out."""
    generator, pairs = random.Random(0), list[Pair]()
    known = single_token_pairs(tokenizer, CAPITALS)
    for side, split, sentences in ((0, DISCOVERY, SEEN), (1, HELDOUT, UNSEEN)):

        def drawn(split: str = split, sentences: Sequence[str] = sentences) -> tuple[str, dict[str, str]]:
            sentence = generator.choice(sentences)
            return sentence, {"split": split, "sentence": sentence}

        pairs += _pairs("capital-sentences", known[side::2], generator, drawn, first=len(pairs))
    return tuple(pairs)


def _pairs(
    name: str,
    known: Sequence[tuple[str, str]],
    generator: random.Random,
    drawn: Callable[[], tuple[str, dict[str, str]]],
    first: int = 0,
) -> list[Pair]:
    """Pair every country with a few others of the same, in a sentence with tags that is drawn for each pair."""
    pairs: list[Pair] = []
    for country, city in known:
        others = [other for other in known if other[0] != country]
        for other, other_city in generator.sample(others, min(PARTNERS, len(others))):
            sentence, tags = drawn()
            clean, corrupted = (sentence.format(each) for each in (country, other))
            source = f"{name}, pair {first + len(pairs) + 1}"
            pairs.append(Pair(clean, corrupted, (f" {city}",), (f" {other_city}",), tags=tags, source=source))
    return pairs


CAPITAL = Behaviour("capital", "the capital of a country, not that of another one", capital_pairs, one_length=True)
CAPITAL_SENTENCES = Behaviour(
    "capital-sentences",
    "the capital of a country in several sentences; other sentences and countries are held out",
    capital_sentence_pairs,
)
