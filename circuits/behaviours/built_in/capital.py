"""Capitals: the capital of a country. Corrupted: another country, whose capital is the wrong answer."""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
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


def capital_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Pair every country whose name and capital are single tokens with a few others."""
    generator = random.Random(0)
    known = single_token_pairs(tokenizer, CAPITALS)
    pairs: list[Pair] = []
    for country, city in known:
        others = [other for other in known if other[0] != country]
        for other, other_city in generator.sample(others, min(PARTNERS, len(others))):
            prompts = [f"The capital of {name} is the city of" for name in (country, other)]
            source = f"capital, pair {len(pairs) + 1}"
            pairs.append(Pair(prompts[0], prompts[1], (f" {city}",), (f" {other_city}",), source=source))
    return tuple(pairs)


CAPITAL = Behaviour("capital", "the capital of a country, not that of another one", capital_pairs, one_length=True)
