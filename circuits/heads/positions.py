"""What a token position is to a prompt: the roles by which attention is added up.

All roles are named by the clean prompt; a position keeps its role on the corrupted side. Roles may overlap (the answer
may stand after an earlier copy of the last token), so their shares need not sum to 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours.built_in.ioi import IOI, S1, ioi_roles
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.roles import END, OTHER
from circuits.behaviours.tokens import Tokens

Mask = NDArray[np.bool_]

FIRST, ITSELF, PREVIOUS = "first token", "itself", "previous token"
SAME, AFTER_SAME = "same token before", "after the same token"
ANSWER, WRONG, CHANGED = "answer", "wrong answer", "changed token"


def changed_position(pair: TokenPair) -> int:
    """Return the last position at which the sides of a pair differ; of equal sides the last position."""
    differing = np.flatnonzero(np.array(pair.clean) != np.array(pair.opposite))
    return int(differing[-1]) if len(differing) else len(pair.clean) - 1


def roles_at(pair: TokenPair, behaviour: str, query: int) -> dict[str, Mask]:
    """Return the positions of each role that a query position can see; roles without a position are left out.

    Of ``ioi`` they are Wang et al.'s: IO (the indirect object), S1 and S2 (the repeated name), S1+1, end. Otherwise the
    answer, the wrong answer and what differs between the sides.
    """
    tokens = np.array(pair.clean)
    named = {role: np.isin(np.arange(len(tokens)), places) for role, places in _ioi(pair, behaviour).items()}
    if not named:
        answer, wrong = np.isin(tokens, pair.answers), np.isin(tokens, pair.wrong_answers)
        named = {ANSWER: answer, WRONG: wrong, CHANGED: tokens != np.array(pair.opposite)}
    relative = {role: mask[query] for role, mask in relative_roles(pair.clean).items()}
    if S1 in named:
        if query == len(tokens) - 1:
            relative = {END: relative.pop(ITSELF), **relative}
        known = {mask.tobytes() for mask in named.values()}
        relative = {role: mask for role, mask in relative.items() if mask.tobytes() not in known}
    return _present({**named, **relative}, query)


def _ioi(pair: TokenPair, behaviour: str) -> dict[str, Tokens]:
    return ioi_roles(pair) if behaviour == IOI.name else {}


def at_counterparts(weights: NDArray[np.float64], pairs: Sequence[TokenPair]) -> NDArray[np.float64]:
    """Return attention in corrupted prompts by the positions of the clean ones.

    Of sides of different lengths: a query attends as its counterpart does, what that gives a position in equal parts to
    those that have it as their counterpart; attention on positions that are nobody's counterpart is left out.
    """
    if not any(pair.alignment for pair in pairs):
        return weights
    moved = np.zeros((*weights.shape[:2], pairs[0].length, pairs[0].length))
    for row, pair in enumerate(pairs):
        places = np.array(pair.counterparts)
        for query, there in enumerate(places):
            seen = places[: query + 1]
            shared = np.bincount(seen, minlength=weights.shape[-1])[seen]
            moved[row, :, query, : query + 1] = weights[row][:, there, seen] / shared
    return moved


def relative_roles(tokens: Sequence[int]) -> dict[str, Mask]:
    """Return, for every query position (row), which positions (columns) are what to it."""
    ids, places = np.array(tokens), np.arange(len(tokens))
    query, key = places[:, None], places[None, :]
    same = (ids[:, None] == ids[None, :]) & (key < query)
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    first = np.broadcast_to(key == 0, same.shape)
    return {ITSELF: key == query, FIRST: first, PREVIOUS: key == query - 1, SAME: same, AFTER_SAME: after}


def _present(roles: dict[str, Mask], query: int) -> dict[str, Mask]:
    """Leave out what the query does not see and empty roles, and add the positions that have none."""
    seen = np.arange(len(next(iter(roles.values())))) <= query
    rest = ~np.any(list(roles.values()), axis=0)
    return {role: mask & seen for role, mask in {**roles, OTHER: rest}.items() if (mask & seen).any()}
