"""How far the whole of a work is, from what its stages report: one share that only grows, and the time left.

Stages report (stage, steps done, steps in all). What a whole consists of is a plan: its stages, in order, with the time
that each takes beside the others. A stage that cannot tell its steps, or counts them anew in every round, is taken to
come closer to its end by the same share in every equal time, so that it never ends before it does.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from circuits.errors import UnknownNameError, UsageError

SHOWN_FROM = 0.1
"""From this share on the time left is told."""
MOST = 0.99
"""No work stands at more before it ends."""
_HEAD_END = re.compile(r"[:(,]|\s\d")


def stage_name(stage: str) -> str:
    """Return what a stage is called without the numbers and particulars that change while it goes on.

    >>> stage_name("pruning 53 edges (faithfulness 0.97)")
    'pruning'
    """
    return _HEAD_END.split(stage, maxsplit=1)[0].strip()


@dataclass(frozen=True)
class PlannedStage:
    """A stage whose name begins so, and how long it takes beside the others (``weight``).

    ``counts``: its steps are counted once, from none to all. ``loads``: it is reading and importing, whose time says
    nothing about that of the others.
    """

    name: str
    weight: float
    counts: bool = True
    loads: bool = False


Plan = tuple[PlannedStage, ...]
_LOADING = PlannedStage("loading", 8, counts=False, loads=True)
_RECORDING = PlannedStage("recording", 8, counts=False)
_DRAWING = PlannedStage("drawing", 3, counts=False)
_JUDGED = (
    PlannedStage("comparing scores", 11),
    PlannedStage("resampling", 6, counts=False),
    PlannedStage("evaluating", 24),
)
_HEADS = PlannedStage("measuring what the heads do", 5)
_PRUNING = {
    "minimal": (PlannedStage("proposing edges", 40, counts=False), PlannedStage("pruning", 100, counts=False)),
    "closest": (PlannedStage("pruning", 88), PlannedStage("pruning back", 67, counts=False)),
    "nodes": (PlannedStage("pruning", 60, counts=False),),
    "top": (),
    "greedy": (),
    "ilp": (PlannedStage("pruning", 20, counts=False),),
    "threshold": (),
    "acdc": (PlannedStage("pruning", 3000),),
}
"""Seconds of one search for the circuit of ``ioi`` in the built-in model on a busy machine: their ratios matter."""


_SCORING = {"learned-masks": 33, "recursive-elimination": 5}
"""How many times as long as eap-ig scorers by whole circuits take on these pairs."""


def discovery_plan(
    pruner: str,
    rivals: int = 0,
    *,
    scorer: str = "eap-ig",
    agreement: bool = True,
    heads: bool = True,
    saved: bool = True,
    rough: bool = False,
    twice: bool = False,
) -> Plan:
    """Return the plan of a discovery: with this pruner and scorer, a check of the scores, and evidence on heads.

    A ``rough`` one is without pruning edge by edge, and not checked. ``saved``: with what the command line does before
    and after, loading the model and drawing. ``rivals`` are searched beside it; ``twice``: searched once more at the
    end, on exchanged pairs.
    """
    compared = _JUDGED[2:] if rough else _JUDGED if agreement else _JUDGED[1:]
    pruning = _PRUNING[pruner][: 1 if rough and pruner == "minimal" else None]
    recording = PlannedStage("recording", 16, counts=False)
    searched = (recording, PlannedStage("scoring", 8 * _SCORING.get(scorer, 1)), *pruning, *compared)
    challenged = (recording, *pruning * rivals, PlannedStage("evaluating rivals", 5 * rivals)) if rivals else ()
    found = (*searched, *challenged, *([_HEADS] if heads else []), *(searched if twice else ()))
    return (_LOADING, *found, _DRAWING) if saved else found


PLANS: dict[str, Plan] = {
    "score": (_LOADING, _RECORDING, PlannedStage("scoring", 20)),
    "patch": (_LOADING, _RECORDING, PlannedStage("patching", 60), _DRAWING),
    "path": (_LOADING, _RECORDING, PlannedStage("measuring paths", 4, counts=False)),
    "evaluate": (_LOADING, _RECORDING, PlannedStage("evaluating", 28)),
    "heads": (_LOADING, PlannedStage("measuring heads", 20)),
    "ablate": (_LOADING, _RECORDING, PlannedStage("generating", 60), PlannedStage("ablating edges", 20)),
    "attack": (_LOADING, PlannedStage("answering requests", 60)),
    "direction": (_LOADING, _RECORDING, PlannedStage("ablating and adding", 60)),
    "groups": (_LOADING, _RECORDING, PlannedStage("slopes", 60)),
    "mediate": (_LOADING, _RECORDING, PlannedStage("exchanging parts", 5), PlannedStage("measuring readers", 60)),
    "scorers": (
        *(_LOADING, _RECORDING, PlannedStage("scoring", 60), PlannedStage("measuring edges", 30)),
        PlannedStage("measuring circuits", 60),
    ),
    "neurons": (
        *(_LOADING, _RECORDING, PlannedStage("scoring neurons", 8, counts=False), PlannedStage("dropping neurons", 60)),
        *(PlannedStage("measuring sets of neurons", 40), PlannedStage("measuring single neurons", 10)),
    ),
    "interchange": (_LOADING, _RECORDING, PlannedStage("exchanging nodes", 60)),
}
"""The plans of other commands; a command without one, whose stages depend on what it is given, shows stages alone."""


def plan_of(work: str) -> Plan:
    """Return the plan of a piece of work by its name; ``discover`` is :func:`circuits.discover` itself.

    Raises :class:`UnknownNameError`.
    """
    plans = {"discover": discovery_plan("closest", heads=False, saved=False)} | PLANS
    if work not in plans:
        raise UnknownNameError("plan", work, plans)
    return plans[work]


class WholeProgress:
    """Follows the stages of a plan; a progress callback.

    >>> whole = WholeProgress(discovery_plan("minimal"))
    >>> whole("proposing edges", 0, 0)
    >>> whole.describe()
    'stage 4 of 10: proposing edges'
    """

    def __init__(self, plan: Plan = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        if any(stage.weight <= 0 for stage in plan):
            raise UsageError("every stage of a plan needs a weight above 0.")
        self._plan, self._clock = plan, clock
        self._stage, self._place, self._counted = "", 0, 0.0
        self._since, self._spent, self._done = clock(), 0.0, 0.0
        self._share = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note where the work is."""
        self._stage, name = stage, stage_name(stage)
        ahead = range(self._place, len(self._plan))
        fitting = [i for i in ahead if name.startswith(self._plan[i].name)]
        place = max(fitting, key=lambda i: len(self._plan[i].name), default=None)
        if place is not None and place > self._place:
            self._leave(place)
        if place is not None and self._plan[place].counts and total:
            self._counted = max(self._counted, done / total)

    @property
    def stages(self) -> int:
        """How many stages the plan has."""
        return len(self._plan)

    @property
    def share(self) -> float:
        """The share of the work that is done, by time; it never gets smaller and stays below 1."""
        if not self._plan:
            return 0.0
        whole = sum(stage.weight for stage in self._plan)
        before = sum(stage.weight for stage in self._plan[: self._place])
        now = before + self._plan[self._place].weight * self._of_stage()
        self._share = max(self._share, min(now / whole, MOST))
        return self._share

    @property
    def seconds_left(self) -> float | None:
        """How many seconds are left by the pace so far; None before that can be told."""
        pace = self._pace()
        if pace is None or self.share < SHOWN_FROM:
            return None
        return (1 - self.share) * sum(stage.weight for stage in self._plan) * pace

    def describe(self) -> str:
        """Return which stage it is, of how many."""
        return f"stage {self._place + 1} of {self.stages}: {self._stage}" if self._plan else self._stage

    def left(self) -> str:
        """Return how long it will still take, in words; empty where that cannot be told."""
        seconds = self.seconds_left
        return "" if seconds is None else f"about {in_words(seconds)} left"

    def _leave(self, place: int) -> None:
        """Go on to a later stage."""
        _ = self.share  # what was reached is kept
        now, left = self._clock(), self._plan[self._place]
        if not left.loads:
            self._spent, self._done = self._spent + now - self._since, self._done + left.weight
        self._place, self._since, self._counted = place, now, 0.0

    def _pace(self) -> float | None:
        """Return seconds per weight, of the stages that were left and, where it counts, the present one."""
        spent, done, stage = self._spent, self._done, self._plan[self._place] if self._plan else None
        if stage is not None and stage.counts and self._counted:
            spent, done = spent + self._clock() - self._since, done + self._counted * stage.weight
        return spent / done if done else None

    def _of_stage(self) -> float:
        """Return the share of the present stage."""
        stage = self._plan[self._place]
        if self._counted:
            return self._counted
        if stage.counts:
            return 0.0
        expected = stage.weight * (self._pace() or 1.0)
        return 1 - math.exp(-(self._clock() - self._since) / expected)


def in_words(seconds: float) -> str:
    """Return a time as one would say it: to ten seconds below a minute and a half, then to minutes."""
    if seconds < 90:
        return f"{max(10, math.ceil(seconds / 10) * 10)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
