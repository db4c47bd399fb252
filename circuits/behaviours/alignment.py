"""Which position of a corrupted prompt is the counterpart of which position of a clean prompt of another length.

A run keeps the positions of the clean prompt; an edge that is corrupted at one of them carries what its sender wrote
at the counterpart in the corrupted prompt's own run. What both sides begin and end with has its counterpart token by
token. Between them something stands in place of something else: there positions are counted from the end, where a
model gathers what a name of several tokens means, and those of a longer clean side that are left over share the first
counterpart; what only the corrupted side has is nobody's. So no position keeps its clean value, none gets one that was
computed behind a mask, and the last position, which the metric reads, has the last one: with every edge corrupted the
metric is that of the corrupted run.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokenizer, Tokens, token_texts
from circuits.errors import PromptError
from circuits.vocabulary import Align

Roles = Mapping[str, Tokens]
Sides = tuple[Tokens, Tokens]
Span = tuple[int, int]


def aligned(tokenizer: Tokenizer, sides: Sides, by: Align, roles: tuple[Roles, Roles]) -> Tokens:
    """Return the counterpart of every position of the clean side; empty where each position is its own.

    ``sides`` and ``roles`` are those of the clean and of the corrupted prompt. Raises :class:`PromptError` where the
    sides have no end in common, their roles come in different orders, or the corrupted one has nothing in place of
    something.
    """
    whole: tuple[Span, Span] = (0, len(sides[0])), (0, len(sides[1]))
    if by is Align.ROLES and any(roles):
        found = _by_roles(tokenizer, sides, roles)
    elif len(sides[0]) == len(sides[1]):
        return ()
    elif by is Align.ROLES:
        raise PromptError(
            f"{len(sides[0])} clean and {len(sides[1])} corrupted tokens, and the pair names no roles to align them "
            'by; expected "roles" and "corrupted_roles". Name them, or align by the common end: --align suffix.'
        )
    elif sides[0][-1] != sides[1][-1]:
        raise PromptError(
            f"{len(sides[0])} clean and {len(sides[1])} corrupted tokens, and the sides end differently; expected a "
            "common end, of one token at least, to align them by. Let both prompts go on alike, choose words of the "
            "same number of tokens, or name roles: --align roles."
        )
    else:
        found = _unlike(tokenizer, sides, whole)
    return () if len(sides[0]) == len(sides[1]) and found == tuple(range(len(found))) else found


def alignment_remarks(pairs: Sequence[TokenPair]) -> tuple[str, ...]:
    """Return a sentence that says how many pairs are aligned; nothing where none is."""
    count = sum(bool(pair.alignment) for pair in pairs)
    if not count:
        return ()
    what = "1 pair of sides of different lengths is" if count == 1 else f"{count:,} pairs of different lengths are"
    return (
        f"{what} aligned: a position of the clean prompt takes corrupted values from its counterpart in the corrupted "
        "prompt (circuits guide prompts).",
    )


def _by_roles(tokenizer: Tokenizer, sides: Sides, roles: tuple[Roles, Roles]) -> Tokens:
    clean, corrupted = (_runs(named, len(side)) for named, side in zip(roles, sides, strict=True))
    orders = [", ".join(name for name, _ in runs) or "none" for runs in (clean, corrupted)]
    if orders[0] != orders[1]:
        raise PromptError(
            f"the roles are, in order, {orders[0]} in the clean prompt and {orders[1]} in the corrupted one; expected "
            'the same ones in the same order. Correct "roles" and "corrupted_roles".'
        )
    found: list[int] = []
    here = there = 0
    for (_, mine), (_, its) in zip(clean, corrupted, strict=True):
        found += _unlike(tokenizer, sides, ((here, mine[0]), (there, its[0])))
        found += _from_the_end(mine, its)
        here, there = mine[1], its[1]
    found += _unlike(tokenizer, sides, ((here, len(sides[0])), (there, len(sides[1]))))
    return tuple(found)


def _runs(roles: Roles, length: int) -> list[tuple[str, Span]]:
    """Return stretches of positions of one role, in order."""
    named = {place: name for name, places in roles.items() for place in places}
    outside = next((place for place in named if place >= length), None)
    if outside is not None:
        raise PromptError(
            f"the role '{named[outside]}' is at position {outside} of a prompt of {length} tokens; positions are "
            f"counted from 0, so the last is {length - 1}."
        )
    runs: list[tuple[str, Span]] = []
    for name, places in groupby(range(length), key=lambda place: named.get(place, "")):
        stretch = list(places)
        if name:
            runs.append((name, (stretch[0], stretch[-1] + 1)))
    return runs


def _unlike(tokenizer: Tokenizer, sides: Sides, spans: tuple[Span, Span]) -> Tokens:
    """Align two stretches: what they begin and end with alike token by token, what is between from its end."""
    (first, last), (start, stop) = spans
    if last - first == stop - start:
        return tuple(range(start, stop))
    shorter = min(last - first, stop - start)
    clean, corrupted = sides[0][first:last], sides[1][start:stop]
    end = _alike(clean[::-1], corrupted[::-1], shorter)
    begin = _alike(clean, corrupted, shorter - end)
    mine, its = (first + begin, last - end), (start + begin, stop - end)
    if its[0] == its[1] or (mine[0] == mine[1] and its[1] == len(sides[1])):
        side, place, other = ("corrupted", its, mine) if its[0] == its[1] else ("clean", mine, its)
        text = "".join(token_texts(tokenizer, sides[side == "clean"][slice(*other)]))
        raise PromptError(
            f"the {side} prompt has nothing at position {place[0]}, where the other side has {text!r}; expected a "
            "token at least, to be its counterpart. Put a word there."
        )
    return (*range(start, its[0]), *_from_the_end(mine, its), *range(its[1], stop))


def _alike(one: Tokens, other: Tokens, most: int) -> int:
    return next((place for place in range(most) if one[place] != other[place]), most)


def _from_the_end(mine: Span, its: Span) -> list[int]:
    return [max(its[0], its[1] - (mine[1] - place)) for place in range(*mine)]
