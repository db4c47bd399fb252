"""Token roles: what each position of a prompt pair is to it, exactly one thing.

Pairs may name roles themselves (a prompt file's ``"roles": {"subject": [3, 4]}``; ``ioi`` names Wang et al.'s IO, S1,
S1+1 and S2); the last token is then the *end* unless it is named, and every other position is *other*. Pairs that name
none get roles by difference: *before*, *at*, *between* and *after* the tokens in which the two sides differ, and *end*,
whatever the last token is. Roles are counted on the clean side; the corrupted side has the same length.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours.pairs import TokenPair
from circuits.errors import UsageError

BEFORE, AT, BETWEEN, AFTER, END, OTHER = "before", "at", "between", "after", "end", "other"
BY_DIFFERENCE = (BEFORE, AT, BETWEEN, AFTER, END)
"""The roles of pairs that name none, in the order of positions."""


def role_names(pairs: Sequence[TokenPair]) -> tuple[str, ...]:
    """Return the roles of prompt pairs, in the order of positions: those that they name, *other* and *end*.

    :data:`BY_DIFFERENCE` where no pair names any.
    """
    places: dict[str, list[int]] = {}
    for pair in pairs:
        for role, positions in pair.roles.items():
            places.setdefault(role, []).extend(positions)
    if not places:
        return BY_DIFFERENCE
    named = sorted(places, key=lambda role: (np.mean(places[role]) if places[role] else np.inf, role))
    return (*(role for role in named if role not in (OTHER, END)), OTHER, END)


def role_of_positions(pair: TokenPair, roles: Sequence[str]) -> NDArray[np.int64]:
    """Return the role of every position of a pair as its place in ``roles``, shape ``(pos,)``.

    With :data:`BY_DIFFERENCE` it is found by difference, also of a pair that names roles. Raises :class:`UsageError`
    for a pair with a role that is not among them, and for one that names none where others do.
    """
    names = _by_difference(pair) if tuple(roles) == BY_DIFFERENCE else _named(pair)
    if not pair.roles and tuple(roles) != BY_DIFFERENCE:
        raise UsageError(
            f"the pair {pair.clean_text[:60]!r} names no roles, and {', '.join(roles)} are measured; name them (in a "
            'prompt file "roles": {"subject": [3, 4]}), or measure with those by difference.'
        )
    unknown = next((name for name in names if name not in roles), None)
    if unknown is not None:
        raise UsageError(
            f"the pair {pair.clean_text[:60]!r} has the role '{unknown}', and the roles measured are "
            f"{', '.join(roles)}. Measure with the roles of these pairs (role_names), or with those by difference: "
            f"{', '.join(BY_DIFFERENCE)}."
        )
    return np.array([list(roles).index(name) for name in names], dtype=np.int64)


def _named(pair: TokenPair) -> list[str]:
    names = [OTHER] * (pair.length - 1) + [END]
    for role, positions in pair.roles.items():
        for position in positions:
            names[position] = role
    return names


def _by_difference(pair: TokenPair) -> list[str]:
    differs = np.array(pair.clean) != np.array(pair.opposite)
    changed = np.flatnonzero(differs) if differs.any() else np.array([pair.length])
    names = [
        AT if differs[place] else BEFORE if place < changed[0] else AFTER if place > changed[-1] else BETWEEN
        for place in range(pair.length - 1)
    ]
    return [*names, END]
