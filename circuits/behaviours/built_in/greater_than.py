"""Greater-than (Hanna et al. 2023, arXiv:2305.00586): a span of years ends later than it starts.

Corrupted: the tens of the first year become the smallest, so that almost any end would do. Tokenizers that split digits
singly are asked for the tens digit, those that split `1745` into `17` and `45` for the last two digits.
"""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Tokenizer, single_tokens, token_texts

N_PAIRS = 1500
NOUNS = (
    "war battle siege project campaign journey empire trade conflict voyage reign alliance expedition dispute "
    "struggle program construction debate investigation operation partnership rebellion revolution strike tour "
    "famine drought"
)
CENTURIES = ("16", "17", "18")
TENS = range(2, 8)


def greater_than_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of distinct clean prompts; none for tokenizers that split years in yet another way."""
    generator = random.Random(0)
    nouns = single_tokens(tokenizer, NOUNS)
    width = digits_per_token(tokenizer)
    if not nouns or not width:
        return ()
    pairs: dict[str, Pair] = {}
    for _ in range(N_PAIRS):
        start = f"The {generator.choice(nouns)} lasted from the year"
        century, tens, units = generator.choice(CENTURIES), generator.choice(TENS), generator.randrange(2, 10)
        end = f"to the year {century}"
        ends = [str(number).zfill(width) for number in range(10**width)]
        bound = f"{tens}{units}"[:width]
        later, earlier = (tuple(filter(test, ends)) for test in (bound.__lt__, bound.__gt__))
        clean, smallest = f"{start} {century}{tens}{units} {end}", f"0{units}" if width == 1 else "01"
        source = f"greater-than, pair {len(pairs) + 1}"
        pairs[clean] = Pair(clean, f"{start} {century}{smallest} {end}", later, earlier, source=source)
    return tuple(pairs.values())


def digits_per_token(tokenizer: Tokenizer) -> int:
    """Return how many digits of the end year are one token after its century; 0 if a year is split in another way."""
    pieces = token_texts(tokenizer, tokenizer.encode("the year 1745", add_special_tokens=False))
    if [piece.strip() for piece in pieces[-4:]] == ["1", "7", "4", "5"]:
        return 1
    return 2 if [piece.strip() for piece in pieces[-2:]] == ["17", "45"] else 0


GREATER_THAN = Behaviour(
    "greater-than", "a span of years ends with later digits, not with earlier ones", greater_than_pairs, one_length=True
)
