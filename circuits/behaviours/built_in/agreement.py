"""Subject-verb agreement: are after a plural, is after a singular. Corrupted: the noun in the other number."""

from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
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


def agreement_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make a pair in both directions for every opening and every noun whose two numbers are single tokens."""
    plurals = {noun: f"{noun}s" for noun in REGULAR.split()} | IRREGULAR
    pairs: list[Pair] = []
    for opening in OPENINGS:
        for singular, plural in single_token_pairs(tokenizer, plurals):
            texts = {"plural": f"{opening} {plural}", "singular": f"{opening} {singular}"}
            for number, other in (("plural", "singular"), ("singular", "plural")):
                answers = (VERBS[number],), (VERBS[other],)
                source = f"agreement, pair {len(pairs) + 1}"
                pairs.append(Pair(texts[number], texts[other], *answers, tags={"number": number}, source=source))
    return tuple(pairs)


AGREEMENT = Behaviour("agreement", "the verb agrees with its noun: are or is", agreement_pairs, one_length=True)
