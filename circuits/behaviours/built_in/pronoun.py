"""Gendered pronouns: he or she in a question tag. Corrupted: a name of the other gender."""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Tokenizer, single_tokens

N_PAIRS = 1200
MEN = (
    "John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Mark Paul Steven Andrew "
    "Kevin Brian George Edward Jason Ryan Jacob Eric Stephen Frank Peter Adam Henry Simon Jack Samuel Benjamin "
    "Patrick"
)
WOMEN = (
    "Mary Linda Barbara Elizabeth Jennifer Maria Susan Margaret Lisa Nancy Karen Helen Sandra Donna Carol Ruth "
    "Sharon Michelle Laura Sarah Jessica Anna Emily Emma Alice Julia Rachel Kate Amy Jane Diana Lucy Sophie "
    "Catherine"
)
QUALITIES = "good great kind nice smart strong brave happy funny famous clever honest quiet proud calm"
ROLES = "person friend teacher student doctor singer writer leader player worker lawyer neighbor dancer driver cook"


def pronoun_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of distinct clean prompts, half of them about women."""
    generator = random.Random(0)
    men, women, qualities, roles = (single_tokens(tokenizer, words) for words in (MEN, WOMEN, QUALITIES, ROLES))
    if not (men and women and qualities and roles):
        return ()
    pairs: dict[str, Pair] = {}
    for number in range(N_PAIRS):
        end = f"is a really {generator.choice(qualities)} {generator.choice(roles)}, isn't"
        prompts = [f"So {generator.choice(names)} {end}" for names in (men, women)]
        answers = [(" he",), (" she",)]
        if number % 2:
            prompts.reverse()
            answers.reverse()
        source = f"pronoun, pair {len(pairs) + 1}"
        pairs[prompts[0]] = Pair(prompts[0], prompts[1], answers[0], answers[1], source=source)
    return tuple(pairs.values())


PRONOUN = Behaviour("pronoun", "the pronoun follows a name's usual gender: he or she", pronoun_pairs, one_length=True)
