"""Which pairs are for discovery and which are held out, and which of them a seed draws.

The split depends on the prompts' text alone: neither on the seed nor on how many pairs are asked for. So whatever two
commands ask for, the held-out prompts of one are never the discovery prompts of the other.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence

import numpy as np

from circuits.behaviours.pairs import TokenPair, clusters_of
from circuits.errors import PromptError

DISCOVERY, HELDOUT = "discovery", "heldout"
DISCOVERY_SHARE = 1 / 3
MINIMUM = 4
"""The fewest pairs that discovery, or evaluation, is done with."""
HALVED = 8
"""Where a third would be fewer prompts than this, half are for discovery, up to so many: of 12 it is 6 and 6."""


def split_pairs(pairs: Sequence[TokenPair]) -> tuple[list[TokenPair], list[TokenPair]]:
    """Divide pairs into discovery and held-out ones that share no clean prompt.

    A tag ``split`` decides where there is one (then every pair needs it). Otherwise clean prompts are ordered by a hash
    of their text and the first third is for discovery, or of few prompts the first half.
    """
    if _tagged(pairs):
        return _split_by_tag(pairs)
    ordered = sorted({pair.clean_text for pair in pairs}, key=lambda text: hashlib.sha256(text.encode()).digest())
    n_discovery = max(round(len(ordered) * DISCOVERY_SHARE), min(HALVED, len(ordered) // 2))
    chosen = frozenset(ordered[:n_discovery])
    discovery = [pair for pair in pairs if pair.clean_text in chosen]
    return discovery, [pair for pair in pairs if pair.clean_text not in chosen]


def _split_by_tag(pairs: Sequence[TokenPair]) -> tuple[list[TokenPair], list[TokenPair]]:
    problem = next(iter(misplaced(pairs).values()), None)
    if problem is not None:
        raise PromptError(f"{problem} --skip-unusable leaves such pairs out.")
    discovery, heldout = ([pair for pair in pairs if pair.tags["split"] == side] for side in (DISCOVERY, HELDOUT))
    return discovery, heldout


def misplaced(pairs: Sequence[TokenPair]) -> dict[int, str]:
    """Return why pairs fit into no split, by their places; empty where no pair has a tag ``split``.

    Those are pairs without one of the two, and discovery pairs whose clean prompt is held out too (a leak).
    """
    if not _tagged(pairs):
        return {}
    heldout = {pair.clean_text for pair in pairs if pair.tags.get("split") == HELDOUT}
    reasons: dict[int, str] = {}
    for place, pair in enumerate(pairs):
        side = pair.tags.get("split", "(none)")
        if side not in (DISCOVERY, HELDOUT):
            reasons[place] = (
                f"the pair {pair.clean_text!r} has the split {side!r}; where some pairs are marked '{DISCOVERY}' or "
                f"'{HELDOUT}', all must be."
            )
        elif side == DISCOVERY and pair.clean_text in heldout:
            reasons[place] = (
                f"the clean prompt {pair.clean_text!r} is in both splits; a held-out prompt must not be used in "
                "discovery."
            )
    return reasons


def _tagged(pairs: Sequence[TokenPair]) -> bool:
    return any(pair.tags.get("split") in (DISCOVERY, HELDOUT) for pair in pairs)


def parted(pairs: Sequence[TokenPair], share: float) -> tuple[tuple[TokenPair, ...], tuple[TokenPair, ...]]:
    """Part pairs in two, about ``share`` of them in the first, so that no clean prompt is in both; order is kept.

    Raises :class:`PromptError` where fewer than four pairs would be left on a side.
    """
    counts = np.bincount(clusters := clusters_of(pairs))
    first, taken, seen = np.zeros(len(counts), dtype=np.bool_), 0, 0
    for cluster, count in enumerate(counts.tolist()):
        first[cluster] = taken + count / 2 <= share * (seen + count)
        taken, seen = taken + count * int(first[cluster]), seen + count
    sides: tuple[list[TokenPair], list[TokenPair]] = ([], [])
    for pair, cluster in zip(pairs, clusters.tolist(), strict=True):
        sides[0 if first[cluster] else 1].append(pair)
    if min(len(side) for side in sides) < MINIMUM:
        raise PromptError(
            f"{len(pairs)} discovery pairs with {len(counts)} clean prompts give {len(sides[0])} to fit circuits to, "
            f"{len(sides[1])} to choose them by; at least {MINIMUM} of each are needed. Add pairs with "
            "other clean prompts."
        )
    return tuple(sides[0]), tuple(sides[1])


def in_groups(pairs: Sequence[TokenPair], size: int) -> list[tuple[TokenPair, ...]]:
    """Return pairs in groups of ``size``, in order; the last one begins earlier where it would be smaller."""
    last = max(0, len(pairs) - size)
    return [tuple(pairs[min(begin, last) :][:size]) for begin in range(0, max(1, len(pairs)), size)]


def draw(pairs: Sequence[TokenPair], count: int, seed: int) -> tuple[TokenPair, ...]:
    """Draw up to ``count`` pairs with as many clean prompts as possible; a larger count only adds to a smaller one."""
    generator = random.Random(seed)
    groups: dict[str, list[TokenPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.clean_text, []).append(pair)
    shuffled = list(groups.values())
    generator.shuffle(shuffled)
    for group in shuffled:
        generator.shuffle(group)
    return tuple(pair for pair, _ in zip(_in_turn(shuffled), range(count), strict=False))


def undrawn(
    pairs: Sequence[TokenPair], drawn: Sequence[Sequence[TokenPair]], count: int, seed: int
) -> tuple[TokenPair, ...]:
    """Return up to ``count`` pairs that a seed would draw last, with a clean prompt that none of those drawn has.

    So they are the same however many are drawn, until too few are left.
    """
    used = {pair.clean_text for part in drawn for pair in part}
    left = [pair for pair in draw(pairs, len(pairs), seed) if pair.clean_text not in used]
    return tuple(left[-count:])


def _in_turn(groups: Sequence[Sequence[TokenPair]]) -> Iterator[TokenPair]:
    for turn in range(max((len(group) for group in groups), default=0)):
        for group in groups:
            if turn < len(group):
                yield group[turn]
