"""Induction (Olsson et al. 2022, arXiv:2209.11895): a repeated sequence of random words goes on as it did before.

Fourteen words, then the first ten of them again: the eleventh comes next. Corrupted: the last word is another one of
the fourteen, so that the one after it is right.
"""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Tokenizer, single_tokens

N_PAIRS = 600
LENGTH, REPEATED = 14, 10
WORDS = (
    "apple river stone cloud paper green table horse music window garden bridge silver yellow winter summer market "
    "doctor engine forest island ladder mirror needle orange pencil rabbit school ticket valley wagon basket candle "
    "desert eagle finger guitar hammer jacket kitchen lemon monkey number ocean pepper queen rocket saddle temple "
    "uncle violin whisper anchor button castle dragon empire flower glass honey iron jungle knife lion metal night "
    "olive piano quiet rain sugar tiger umbrella village water yard bread chair dance earth farm gold hotel king "
    "lamp milk nurse oil plant road ship tree"
)


def induction_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of random words that are single tokens."""
    generator = random.Random(0)
    words = single_tokens(tokenizer, WORDS)
    if len(words) < LENGTH:
        return ()
    pairs: list[Pair] = []
    for number in range(N_PAIRS):
        chosen = generator.sample(words, LENGTH)
        other = generator.randrange(REPEATED + 1, LENGTH - 1)
        start = " ".join(chosen + chosen[: REPEATED - 1])
        clean, corrupted = f" {start} {chosen[REPEATED - 1]}", f" {start} {chosen[other]}"
        answer, wrong_answer = f" {chosen[REPEATED]}", f" {chosen[other + 1]}"
        pairs.append(Pair(clean, corrupted, (answer,), (wrong_answer,), source=f"induction, pair {number + 1}"))
    return tuple(pairs)


INDUCTION = Behaviour("induction", "a repeated sequence of words goes on as before", induction_pairs, one_length=True)
