"""How much may be measured: a number of edges, or a time; and what was measured so far."""

import time
from dataclasses import dataclass
from typing import Self

from circuits.errors import UsageError
from circuits.settings import settle

_UNITS = {"s": 1, "min": 60, "h": 3600}
_FIRST_EDGES, _EDGES_AT_ONCE = 64, 512


@dataclass(frozen=True)
class Budget:
    """At most ``edges`` edges' worth of measurements (on all pairs each), or ``seconds`` of measuring; None: no limit.

    A number of edges gives the same result in every run; a time does not.
    """

    edges: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        settle(self, least={"edges": 1, "seconds": 0})

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2000`` (edges) or ``90s``, ``10min``, ``1.5h``; raises :class:`UsageError`."""
        number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = text[len(number) :]
        try:
            if unit in _UNITS and float(number) * _UNITS[unit] > 0:
                return cls(seconds=float(number) * _UNITS[unit])
            if not unit and int(number) > 0:
                return cls(edges=int(number))
        except ValueError:
            pass
        raise UsageError(
            f"a budget is a number of edges such as 2000, or a time such as 90s, 10min or 1.5h; got '{text}'."
        )


class Meter:
    """Counts measurements of one edge on one pair, and says how many more there may be."""

    def __init__(self, budget: Budget, n_pairs: int) -> None:
        self._budget, self._n_pairs = budget, n_pairs
        self._begun = time.monotonic()
        self.spent = 0

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return (self._budget.edges, self._budget.seconds) != (None, None)

    @property
    def limit(self) -> int | None:
        """How many measurements there may be in all; None: that is not known."""
        return None if self._budget.edges is None else self._budget.edges * self._n_pairs

    def room(self, waiting: int, pairs: int) -> int:
        """Return how many of the waiting edges may be measured now on ``pairs`` pairs each."""
        if self.limit is not None:
            waiting = min(waiting, (self.limit - self.spent) // pairs)
        if self._budget.seconds is not None:
            elapsed = time.monotonic() - self._begun
            left = self._budget.seconds - elapsed
            likely = int(left * self.spent / elapsed / pairs) if self.spent else _FIRST_EDGES
            waiting = min(waiting, _EDGES_AT_ONCE, likely if left > 0 else 0)
        return waiting

    def steps(self, planned: int) -> tuple[int, int]:
        """Return (done, in all) for a progress bar; ``planned`` is the least that would be measured without a limit."""
        if self._budget.seconds is not None:
            total = max(1, round(self._budget.seconds))
            return min(total, int(time.monotonic() - self._begun)), total
        return self.spent, max(planned if self.limit is None else min(planned, self.limit), self.spent)
