"""Gendered pronouns: he or she in a question tag. Corrupted: a name of the other gender."""

import random
from collections.abc import Sequence

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.split import DISCOVERY, HELDOUT
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


SENTENCE = "So {name} is a really {quality} {role}, isn't"
SEEN = (
    SENTENCE,
    "I think {name} was a very {quality} {role}, wasn't",
    "My {role} {name} became famous because",
    "When {name} came home from work,",
)
"""Sentences for discovery."""
UNSEEN = (
    "Everyone says {name} is the most {quality} {role} here, isn't",
    "The {quality} {role} {name} said that",
    "Yesterday {name} was tired, so",
)
"""Held-out sentences."""


class _Names:
    """Pairs of a man's and a woman's name in sentences; half of the clean prompts are about women."""

    def __init__(self, behaviour: str, tokenizer: Tokenizer) -> None:
        self.behaviour, self.generator = behaviour, random.Random(0)
        self.words = [single_tokens(tokenizer, words) for words in (MEN, WOMEN, QUALITIES, ROLES)]
        self.pairs: dict[str, Pair] = {}

    def add(self, sentence: str, tags: dict[str, str], *, women: bool) -> None:
        """Draw names and what fills the sentence, and add their pair."""
        *names, qualities, roles = self.words
        filling = {"quality": self.generator.choice(qualities), "role": self.generator.choice(roles)}
        prompts = [sentence.format(name=self.generator.choice(each), **filling) for each in names]
        answers = [(" he",), (" she",)]
        if women:
            prompts.reverse()
            answers.reverse()
        source = f"{self.behaviour}, pair {len(self.pairs) + 1}"
        self.pairs[prompts[0]] = Pair(prompts[0], prompts[1], answers[0], answers[1], tags=tags, source=source)


def pronoun_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs of distinct clean prompts, half of them about women."""
    names = _Names("pronoun", tokenizer)
    for number in range(N_PAIRS if all(names.words) else 0):
        names.add(SENTENCE, {}, women=bool(number % 2))
    return tuple(names.pairs.values())


def pronoun_sentence_pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
    """Make pairs in several sentences, of which those for discovery are never held out."""
    names = _Names("pronoun-sentences", tokenizer)
    for number in range(N_PAIRS if all(names.words) else 0):
        split, sentences = (DISCOVERY, SEEN) if number % 2 else (HELDOUT, UNSEEN)
        sentence = names.generator.choice(sentences)
        names.add(sentence, {"split": split, "sentence": sentence}, women=bool(number // 2 % 2))
    return tuple(names.pairs.values())


PRONOUN = Behaviour("pronoun", "the pronoun follows a name's usual gender: he or she", pronoun_pairs, one_length=True)
PRONOUN_SENTENCES = Behaviour(
    "pronoun-sentences",
    "the pronoun follows a name's usual gender in several sentences; other sentences are held out",
    pronoun_sentence_pairs,
)
