"""Groups of pairs that are measured in turn, each recorded once where there is memory for all, else whenever asked."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from circuits.memory.memory_plan import MemoryPlan, human
from circuits.patching.sequences import AnyExperiment

_LOGGER = logging.getLogger(__name__)
_SHARE = 0.25
"""Of the memory that may be used, what recorded groups may take beside the one that is measured."""


class RecordedGroups:
    """Experiments on groups of pairs; of an ``ioi`` search, recording a group each time was a third of all the work.

    Args:
        record: Record a group each; the number of forward passes is twice that of its pairs.
    """

    def __init__(self, record: Sequence[Callable[[], AnyExperiment]]) -> None:
        self._record, self._kept = tuple(record), dict[int, AnyExperiment]()
        self._told = False

    def __len__(self) -> int:
        return len(self._record)

    @property
    def kept(self) -> int:
        """How many groups need not be recorded again."""
        return len(self._kept)

    def each(self) -> list[Callable[[], AnyExperiment]]:
        """Return how to get each of the groups."""
        return [partial(self._get, place) for place in range(len(self))]

    def _get(self, place: int) -> AnyExperiment:
        found = self._kept.get(place)
        if found is None:
            found = self._record[place]()
            needed = sum(each.plan.recorded for each in (*self._kept.values(), found))
            if needed <= _SHARE * _usable(found.plan):
                self._kept[place] = found
            elif not self._told:
                self._told = True
                _LOGGER.warning(
                    "groups of pairs are recorded anew each time, which takes longer: %s would take %s, and a quarter "
                    "of %s may be used (--memory)",
                    self.kept + 1,
                    human(needed),
                    human(_usable(found.plan)),
                )
        return found


def _usable(plan: MemoryPlan) -> int:
    """Return the bytes that may be used, of which a plan may be content with fewer."""
    budget = plan.budget
    return budget.limit if budget.modest is None else max(budget.limit, budget.modest.share)
