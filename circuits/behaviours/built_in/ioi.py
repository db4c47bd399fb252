"""Indirect object identification (Wang et al. 2022, arXiv:2211.00593): who is given the object?

Corrupted: the repeated name becomes a third one, so that the prompt no longer says who receives.
"""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.split import DISCOVERY, HELDOUT
from circuits.behaviours.tokens import Tokenizer, Tokens, single_tokens

IO, S1, AFTER_S1, S2 = "IO", "S1", "S1+1", "S2"
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


def _words(tokenizer: Tokenizer) -> tuple[list[str], list[str], list[str]]:
    """Return the names, places and objects that are single tokens; none at all where they make no pair."""
    names, places, things = (single_tokens(tokenizer, words) for words in (NAMES, PLACES, OBJECTS))
    return (names, places, things) if len(names) >= 3 and places and things else ([], [], [])


def ioi_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of distinct clean prompts from the names, places and objects that are single tokens."""
    generator = random.Random(0)
    names, places, things = _words(tokenizer)
    if not names:
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


SEEN = (
    "When {} and {} went to the {place},",
    "After {} and {} had a long talk at the {place},",
    "While {} and {} were working at the {place},",
    "The day that {} and {} visited the {place},",
)
"""How sentences for discovery begin."""
UNSEEN = (
    "Once {} and {} got to the {place},",
    "As {} and {} were walking around the {place},",
    "When friends called {} and {} arrived at the {place},",
)
"""How held-out sentences begin."""
SEEN_ENDS = ("gave a {thing} to", "handed the {thing} to")
UNSEEN_ENDS = ("offered a {thing} to", "passed the {thing} to")
ABBA, BABA = "receiver first", "giver first"
N_SENTENCES = 1600


def ioi_sentence_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of both orders from several sentences, of which those for discovery are never held out."""
    generator = random.Random(0)
    names, places, things = _words(tokenizer)
    if not names:
        return ()
    pairs: dict[str, Pair] = {}
    for number in range(N_SENTENCES):
        split = DISCOVERY if number % 2 else HELDOUT
        starts, ends = (SEEN, SEEN_ENDS) if split == DISCOVERY else (UNSEEN, UNSEEN_ENDS)
        start, end = generator.choice(starts), generator.choice(ends)
        receiver, giver, third = generator.sample(names, 3)
        order = generator.choice((ABBA, BABA))
        two = (receiver, giver) if order == ABBA else (giver, receiver)
        begun = start.format(*two, place=generator.choice(places))
        said = end.format(thing=generator.choice(things))
        clean, source = f"{begun} {giver} {said}", f"ioi-sentences, pair {len(pairs) + 1}"
        tags = {"split": split, "order": order, "sentence": f"{start} … {end}"}
        pairs[clean] = Pair(
            clean, f"{begun} {third} {said}", (f" {receiver}",), (f" {giver}",), tags=tags, source=source
        )
    return tuple(pairs.values())


def ioi_roles(pair: TokenPair) -> dict[str, Tokens]:
    """Return the positions of Wang et al.'s roles: IO (the indirect object), S1 and S2 (the repeated name), S1+1.

    None where the answer is not there once, or the wrong answer not twice.
    """
    answer, wrong = (
        tuple(place for place, token in enumerate(pair.clean) if token in tokens)
        for tokens in (pair.answers, pair.wrong_answers)
    )
    if len(answer) != 1 or len(wrong) != 2:
        return {}
    first, second = wrong
    roles = {IO: answer, S1: (first,), AFTER_S1: (first + 1,), S2: (second,)}
    return roles if len({*answer, *wrong, first + 1}) == 4 else {}


IOI = Behaviour(
    "ioi",
    "who receives: the name that was not repeated, not the repeated one",
    ioi_pairs,
    one_length=True,
    roles=ioi_roles,
)
IOI_SENTENCES = Behaviour(
    "ioi-sentences",
    "ioi in several sentences, either name first; other sentences are held out",
    ioi_sentence_pairs,
    roles=ioi_roles,
)
