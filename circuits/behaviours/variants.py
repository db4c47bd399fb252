"""Pairs with a system message, the beginning of an answer, or other answers than they were written with."""

from dataclasses import replace

from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import ASSISTANT, SYSTEM, Message, Prompt
from circuits.errors import UsageError
from circuits.records import Variant


def varied(pair: Pair, variant: Variant) -> Pair:
    """Return a pair as a variant has it.

    With an attack, the corrupted side is the clean one with another system message, or beginning of its answer. Raises
    :class:`UsageError` where a system message, an attack or the beginning of an answer is given for prompts that are
    plain text, or the beginning for prompts that have one; and for a system message where a pair names token positions.
    """
    if (pair.roles or pair.alignment) and (variant.system is not None or variant.attack is not None):
        raise UsageError(
            f"a system message moves the token positions that {pair.source} names "
            f"({', '.join(pair.roles) or 'its alignment'}); write it into the prompts and count them anew, or leave "
            "one of the two out."
        )
    corrupted, other = pair.corrupted, variant
    if variant.attacked:
        system, prefill = variant.attack, variant.attack_prefill
        other = replace(
            variant,
            system=variant.system if system is None else system,
            prefill=variant.prefill if prefill is None else prefill,
        )
        corrupted, pair = pair.clean, replace(pair, corrupted_roles=pair.roles, alignment=())
    changed = replace(pair, clean=_asked(pair.clean, variant, pair), corrupted=_asked(corrupted, other, pair))
    if variant.answers:
        changed = replace(changed, answers=variant.answers, answer_ids=())
    if variant.wrong_answers:
        changed = replace(changed, wrong_answers=variant.wrong_answers, wrong_ids=())
    return changed


def _asked(prompt: Prompt, variant: Variant, pair: Pair) -> Prompt:
    if variant.system is None and variant.prefill is None:
        return prompt
    if isinstance(prompt, str):
        what = "a system message" if variant.system is not None else "the beginning of an answer (prefill)"
        raise UsageError(
            f"{what} belongs to chats, and {pair.source} is plain text; leave it out, or write the prompts as lists of "
            'chat messages ([{"role": "user", "content": "..."}]).'
        )
    if variant.system is not None:
        rest = prompt[1:] if prompt[0].role == SYSTEM else prompt
        prompt = (Message(SYSTEM, variant.system), *rest)
    if variant.prefill is not None:
        if prompt[-1].role == ASSISTANT:
            raise UsageError(
                f"the answer is to begin with {variant.prefill!r}, but {pair.source} has a beginning of its own, "
                f"{prompt[-1].content!r}; leave one of them out."
            )
        prompt = (*prompt, Message(ASSISTANT, variant.prefill))
    return prompt
