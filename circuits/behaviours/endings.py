"""Pairs that end at one of their tokens: what comes after it is not run.

Attention looks back only, so what a model holds at a token does not depend on what follows. Where a circuit leads to a
number that is read at another token than the last, the prompts are therefore cut off behind that token, which is exact
and saves the rest.
"""

from collections.abc import Sequence
from dataclasses import replace

from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.roles import BY_DIFFERENCE, END, role_of_positions
from circuits.errors import PromptError
from circuits.records import LAST


def ending_at(pairs: Sequence[TokenPair], position: str) -> list[TokenPair]:
    """Return pairs without the tokens after a position, and without answers of several tokens, which follow the last.

    ``position`` is ``last``, counted from the end (``-5``) or a token role, of which the last token counts. Sides of
    different lengths end at counterparts. Raises :class:`PromptError` for a pair that does not have the position.
    """
    return list(pairs) if position == LAST else [_ending(pair, _place(pair, position)) for pair in pairs]


def _place(pair: TokenPair, position: str) -> int:
    """Return a position of the clean prompt, counted from its beginning."""
    if position.startswith("-"):
        if -int(position) > pair.length:
            raise PromptError(
                f"the prompt {pair.clean_text[:60]!r} has {pair.length} tokens, so it has none at {position}; choose "
                f"one from -{pair.length} to -1 (the last)."
            )
        return pair.length + int(position)
    if places := pair.roles.get(position):
        return places[-1]
    if position == END:
        return pair.length - 1
    named = [role for role, places in pair.roles.items() if places]
    if not pair.roles and position in BY_DIFFERENCE:
        names = [BY_DIFFERENCE[int(role)] for role in role_of_positions(pair, BY_DIFFERENCE)]
        if position in names:
            return len(names) - 1 - names[::-1].index(position)
        named = names
    raise PromptError(
        f"the prompt {pair.clean_text[:60]!r} has no token with the role '{position}'; its roles are "
        f"{', '.join(dict.fromkeys((*(named or BY_DIFFERENCE), END)))}. Give one of these, or a token counted from the "
        "end, such as -5."
    )


def _ending(pair: TokenPair, place: int) -> TokenPair:
    return replace(
        pair,
        clean=pair.clean[: place + 1],
        corrupted=pair.corrupted[: pair.counterparts[place] + 1],
        roles={role: tuple(each for each in places if each <= place) for role, places in pair.roles.items()},
        alignment=pair.alignment[: place + 1],
        sequences=(),
        wrong_sequences=(),
    )
