"""Attention added up by role and averaged over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours.pairs import TokenPair
from circuits.heads.evidence import AttentionShare
from circuits.heads.positions import Mask, changed_position, relative_roles, roles_at

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Sums:
    """For one pair and role: the shares of every head on both sides, and what even attention would give."""

    clean: Floats
    corrupted: Floats
    uniform: float


@dataclass
class Averages:
    """Collects the attention of heads, pair by pair."""

    last: dict[str, list[_Sums]] = field(default_factory=dict[str, list[_Sums]])
    changed: dict[str, list[_Sums]] = field(default_factory=dict[str, list[_Sums]])
    average: dict[str, list[_Sums]] = field(default_factory=dict[str, list[_Sums]])

    def add(self, pairs: Sequence[TokenPair], behaviour: str, clean: Floats, corrupted: Floats) -> None:
        """Add pairs with their attention on both sides, shape ``(pair, head, query, key)``."""
        for pair, here, there in zip(pairs, clean, corrupted, strict=True):
            for query, found in ((pair.length - 1, self.last), (changed_position(pair), self.changed)):
                for role, mask in roles_at(pair, behaviour, query).items():
                    shares = (weights[:, query, mask].sum(-1) for weights in (here, there))
                    found.setdefault(role, []).append(_Sums(*shares, uniform=float(mask.sum()) / (query + 1)))
            for role, mask in relative_roles(pair.clean).items():
                queries = np.flatnonzero(mask.any(1))
                queries = queries[queries > 0]
                if len(queries):
                    self.average.setdefault(role, []).append(_over_queries(here, there, mask, queries))

    def from_last(self, head: int) -> tuple[AttentionShare, ...]:
        """Return one head's attention from the last position."""
        return _shares(self.last, head)

    def from_changed(self, head: int) -> tuple[AttentionShare, ...]:
        """Return one head's attention from the last position at which the sides differ."""
        return _shares(self.changed, head)

    def on_average(self, head: int) -> tuple[AttentionShare, ...]:
        """Return one head's attention from all positions but the first."""
        return _shares(self.average, head)


def _over_queries(clean: Floats, corrupted: Floats, mask: Mask, queries: NDArray[np.int64]) -> _Sums:
    sides = ((weights * mask).sum(-1)[:, queries].mean(-1) for weights in (clean, corrupted))
    even = mask[queries].sum(-1) / (queries + 1)
    return _Sums(*sides, uniform=float(even.mean()))


def _shares(sums: dict[str, list[_Sums]], head: int) -> tuple[AttentionShare, ...]:
    return tuple(
        AttentionShare(
            role,
            float(np.mean([each.clean[head] for each in found])),
            float(np.mean([each.corrupted[head] for each in found])),
            float(np.mean([each.uniform for each in found])),
        )
        for role, found in sums.items()
    )
