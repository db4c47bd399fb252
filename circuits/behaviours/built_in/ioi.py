"""Indirect object identification (Wang et al. 2022, arXiv:2211.00593): who is given the object?

Corrupted: the repeated name becomes a third one, so that the prompt no longer says who receives.
"""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Tokenizer, single_tokens

N_PAIRS = 1200
NAMES = (
    "Mary John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Paul "
    "Steven Andrew Kevin Brian George Edward Ronald Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen "
    "Larry Justin Scott Brandon Benjamin Samuel Frank Gregory Raymond Patrick Jack Dennis Peter Adam Henry Nathan "
    "Simon Martin Alex Max Linda Barbara Elizabeth Jennifer Maria Susan Margaret Lisa Nancy Karen Betty Helen "
    "Sandra Donna Carol Ruth Sharon Michelle Laura Sarah Kimberly Jessica Anna Emily Emma Alice Julia Rachel Kate "
    "Amy Jane Rose Diana Lucy Grace Sophie"
)
PLACES = "store park school office beach station library garden market museum restaurant hospital river church hotel"
OBJECTS = "drink book ring letter key gift ball computer basket phone bottle flower card bag map ticket watch coin"


def ioi_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of distinct clean prompts from the names, places and objects that are single tokens."""
    generator = random.Random(0)
    names, places, things = (single_tokens(tokenizer, words) for words in (NAMES, PLACES, OBJECTS))
    if len(names) < 3 or not places or not things:
        return ()
    pairs: dict[str, Pair] = {}
    for _ in range(N_PAIRS):
        receiver, giver, third = generator.sample(names, 3)
        start = f"When {receiver} and {giver} went to the {generator.choice(places)},"
        end = f"gave a {generator.choice(things)} to"
        clean = f"{start} {giver} {end}"
        source = f"ioi, pair {len(pairs) + 1}"
        pairs[clean] = Pair(clean, f"{start} {third} {end}", (f" {receiver}",), (f" {giver}",), source=source)
    return tuple(pairs.values())


IOI = Behaviour("ioi", "who receives: the name that was not repeated, not the repeated one", ioi_pairs, one_length=True)
