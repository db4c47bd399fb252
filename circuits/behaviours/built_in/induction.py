"""Induction (Olsson et al. 2022, arXiv:2209.11895): a repeated sequence of random words goes on as it did before.

Fourteen words, then the first ten of them again: the eleventh comes next. Corrupted: the last word is one of the later
words, so that the one after that is right. The opening keeps position 0, which attention rests on, out of the sequence.
"""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Tokenizer, single_tokens

N_PAIRS = 1200
LENGTH, REPEATED = 14, 10
WORDS = (
    "absorb accent adapt admire adverse agenda alter ancient angle appetite arrow assist attic author average avoid "
    "banner barely basic beard begin belong bench bitter blanket blend bold border borrow bottom bounce brave "
    "breeze brick brief bright broad bronze brush bucket bundle cabin calm camera canal carbon careful carve casual "
    "cease census chapter charm cheap chest choose circle civil clever climb clock coarse comic common compass "
    "complex copper corner cotton couple crawl create crisp cross crowd curious curtain custom cycle daily decide "
    "deep delay deliver dense deputy detail differ dinner divide dozen drift drum dull eager early edge elbow elect "
    "empty endure enjoy equal escape essay exact expand explain fabric factor faint fancy fashion feather fence "
    "fiber fiction fierce final flame flat float fluid focus fold formal fossil fresh fringe frost funnel gather "
    "gentle giant glance globe grain gravel guess habit handle harsh hasty hollow humble ideal imply inherit insist "
    "invent island item jewel join juice junior keen label latter lazy legend level linger liquid local loose loyal "
    "lunar magic manual marble margin massive mature measure merge middle mild minor modest motor narrow native "
    "neat nerve noble notice novel oblige obvious occur odd offer optic orbit outer oven owner palace panel parade "
    "partly patch pause pencil permit plain pledge poem polish porch pottery prefer pretty prior profit prompt "
    "proud pulse purple puzzle quick quote random rapid rarely ratio react rebel recipe refer region relax remote "
    "rescue reveal rigid ripe ritual rough royal rural salad sample scarce script secret select series severe "
    "shallow shelf shift silent simple slender slope smooth soft solid spare spiral spread square stable steep "
    "stick stiff strict stroke sudden supply swift switch symbol tackle tender theory thick tight timber tiny tone "
    "topic tower trail tribe trim tune twist typical unify upper urban urge usual valid vapor vary velvet verb "
    "victory vivid voice wander weave weird whole wide wisdom wool worth wrap yield zone"
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
        start = " ".join(["The words:", *chosen, *chosen[: REPEATED - 1]])
        clean, corrupted = f"{start} {chosen[REPEATED - 1]}", f"{start} {chosen[other]}"
        answer, wrong_answer = f" {chosen[REPEATED]}", f" {chosen[other + 1]}"
        pairs.append(Pair(clean, corrupted, (answer,), (wrong_answer,), source=f"induction, pair {number + 1}"))
    return tuple(pairs)


INDUCTION = Behaviour("induction", "a repeated sequence of words goes on as before", induction_pairs, one_length=True)
