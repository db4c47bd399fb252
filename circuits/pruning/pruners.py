"""The pruners: each turns scores into a circuit. To add one, write its file and a line of :data:`PRUNERS`."""

from collections.abc import Callable
from dataclasses import dataclass

from circuits.errors import UsageError
from circuits.patching.protocol import Experiment, StageProgress, of_stage
from circuits.pruning.acdc import acdc
from circuits.pruning.closest import BACK, EXTENDED, closest
from circuits.pruning.closest_nodes import nodes
from circuits.pruning.greedy import greedy
from circuits.pruning.ilp import ilp
from circuits.pruning.minimal import minimal
from circuits.pruning.selection import PrunerSettings, Selection
from circuits.pruning.threshold import threshold
from circuits.pruning.top import top
from circuits.scores import EdgeScores
from circuits.vocabulary import PrunerName

Prune = Callable[[Experiment, Experiment, EdgeScores, PrunerSettings], Selection]
"""Choose edges: of (pairs that circuits are fitted to, pairs by which they are chosen, scores, settings)."""


@dataclass(frozen=True)
class Pruner:
    """A way to choose edges; ``chooses``: by pairs of their own, ``targets``: with a target (and without a size)."""

    prune: Prune
    chooses: bool = False
    targets: bool = True


def prune(
    fit: Experiment,
    choose: Experiment,
    scores: EdgeScores,
    pruner: PrunerName | str,
    settings: PrunerSettings | None = None,
) -> Selection:
    """Choose a circuit from scores; ``choose`` may be ``fit`` for pruners that choose by no pairs of their own.

    See the modules of :mod:`circuits.pruning` that are called after them; nodes is ``closest_nodes``.
    """
    return PRUNERS[PrunerName.parse(pruner)].prune(fit, choose, scores, settings or PrunerSettings())


def _minimal(fit: Experiment, _: Experiment, scores: EdgeScores, settings: PrunerSettings) -> Selection:
    told = _Told(settings.progress, "proposing edges")
    return minimal(
        fit, scores, target=settings.target, limit=settings.limit, report=told.report, progress=told.progress
    )


def _closest(fit: Experiment, choose: Experiment, scores: EdgeScores, settings: PrunerSettings) -> Selection:
    told = _Told(settings.progress, "pruning")
    return closest(
        fit,
        choose,
        scores,
        target=settings.target,
        seconds=settings.seconds,
        fresh=settings.fresh,
        prices=settings.prices,
        report=told.report,
        progress=told.progress,
    )


def _nodes(fit: Experiment, choose: Experiment, _: EdgeScores, settings: PrunerSettings) -> Selection:
    return nodes(fit, choose, target=settings.target, fresh=settings.fresh, progress=settings.progress)


def _sized(choose: Callable[[Experiment, EdgeScores, int], Selection]) -> Prune:
    """Return the pruner that takes so many edges, or all that there are."""

    def prune(fit: Experiment, _: Experiment, scores: EdgeScores, settings: PrunerSettings) -> Selection:
        return choose(fit, scores, min(settings.size, len(scores.scored)))

    return prune


def _threshold(fit: Experiment, _: Experiment, scores: EdgeScores, settings: PrunerSettings) -> Selection:
    return threshold(fit, scores, _given(PrunerName.THRESHOLD, settings))


def _acdc(fit: Experiment, _: Experiment, __: EdgeScores, settings: PrunerSettings) -> Selection:
    return acdc(fit, _given(PrunerName.ACDC, settings), progress=of_stage(settings.progress, "pruning"))


def _given(name: PrunerName, settings: PrunerSettings) -> float:
    if settings.threshold is None:
        raise UsageError(f"the pruner {name} needs a threshold, in the metric's unit. Give one with --threshold.")
    return settings.threshold


class _Told:
    """A stage that is named after the circuit that the search has come to."""

    def __init__(self, progress: StageProgress, stage: str) -> None:
        self._progress, self._stage = progress, stage

    def report(self, step: str, found: Selection) -> None:
        error = "" if found.error is None else f"error {found.error:.2f}, "
        doing = "pruning back" if step in (EXTENDED, BACK) else "pruning"
        self._stage = f"{doing} {len(found.edges)} edges ({error}faithfulness {found.faithfulness:.2f})"

    def progress(self, done: int, total: int) -> None:
        self._progress(self._stage, done, total)


PRUNERS: dict[PrunerName, Pruner] = {
    PrunerName.MINIMAL: Pruner(_minimal),
    PrunerName.CLOSEST: Pruner(_closest, chooses=True),
    PrunerName.NODES: Pruner(_nodes, chooses=True),
    PrunerName.TOP: Pruner(_sized(top), targets=False),
    PrunerName.GREEDY: Pruner(_sized(greedy), targets=False),
    PrunerName.ILP: Pruner(_sized(ilp), targets=False),
    PrunerName.THRESHOLD: Pruner(_threshold, targets=False),
    PrunerName.ACDC: Pruner(_acdc, targets=False),
}
