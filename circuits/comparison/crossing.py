"""What circuits do on each other's prompts: transfer, and knocking out.

Everything here is computed from values per prompt pair that were measured before (see
:mod:`circuits.comparison.crossed_runs`), so that intervals of differences resample the same prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from circuits.comparison.chance import ScoreEstimate
from circuits.equality import by_content
from circuits.scores import Floats
from circuits.statistics import central, faithfulness, picks

PROMPTS = "prompts"
LEAST_PAIRS, LEAST_RANDOM = 8, 5
"""How many prompt pairs and random circuits a verdict takes; of fewer the numbers alone are told."""


@by_content
@dataclass(frozen=True, eq=False)
class Column:
    """What was measured on one behaviour's held-out prompts in its model, one value per prompt pair.

    ``alone``: only these edges carry clean values; ``without``: these edges carry corrupted values, all others clean
    ones; by the name of a circuit or part. ``random_*`` are random circuits with other heads of the same layers,
    ``(draw, pair)``. ``remark`` says why nothing can be concluded where the model does not show the behaviour.
    """

    name: str
    behaviour: str
    model: str
    metric: str
    digest: str
    clean: Floats
    corrupted: Floats
    alone: Mapping[str, Floats] = field(default_factory=dict[str, Floats])
    without: Mapping[str, Floats] = field(default_factory=dict[str, Floats])
    random_alone: Mapping[str, Floats] = field(default_factory=dict[str, Floats])
    random_without: Mapping[str, Floats] = field(default_factory=dict[str, Floats])
    remark: str = ""

    @property
    def n(self) -> int:
        """How many prompt pairs."""
        return len(self.clean)

    @cached_property
    def picks(self) -> NDArray[np.int64]:
        """The resampled pairs, the same for every column of as many pairs: differences within one are paired."""
        return picks(self.n)

    @cached_property
    def picks_beside(self) -> NDArray[np.int64]:
        """Other resampled pairs, for a second column of other prompts."""
        return picks(self.n, 1)

    def kept(self, values: Floats) -> float:
        """Return the share of the gap between corrupted and clean that is there: faithfulness."""
        return float(faithfulness(self, values))

    def kept_resampled(self, values: Floats, picks: NDArray[np.int64]) -> Floats:
        """Return :meth:`kept` for resampled pairs."""
        lower = self.corrupted[picks].mean(1)
        return (values[picks].mean(1) - lower) / (self.clean[picks].mean(1) - lower)


@dataclass(frozen=True)
class Share:
    """A share of a behaviour with its 95 % interval over prompts, and what random circuits of the same size reach."""

    value: ScoreEstimate
    n: int
    random: tuple[float, ...] = ()

    @property
    def beyond_random(self) -> bool | None:
        """Whether even the low end of the interval is above every random circuit.

        None where there are too few pairs or random circuits to tell.
        """
        enough = self.n >= LEAST_PAIRS and len(self.random) >= LEAST_RANDOM
        return self.value.low > max(self.random) if enough else None

    @property
    def random_median(self) -> float:
        """The median of the random circuits."""
        return float(np.median(self.random)) if self.random else float("nan")


@dataclass(frozen=True)
class TransferMatrix:
    """Faithfulness of circuits and parts (rows) on the behaviours of the circuits (columns)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Share]

    def cell(self, row: str, column: str) -> Share:
        """Return one circuit's or part's faithfulness on one behaviour."""
        return self.cells[row, column]


@dataclass(frozen=True)
class Contrast:
    """Two sets of edges knocked out, each on two behaviours.

    ``losses[knocked out, behaviour]`` are shares of a behaviour: 1 is all of the gap between clean and corrupted.
    ``gains``: what knocking out A's costs A more than B, and what knocking out B's costs B more than A, against what
    random knock-outs of the same size and wiring cost the one more than the other. ``interaction`` is their sum.
    """

    knocked: tuple[str, str]
    behaviours: tuple[str, str]
    losses: Mapping[tuple[str, str], Share]
    gains: tuple[Share, Share]
    interaction: ScoreEstimate

    @property
    def own(self) -> tuple[Share, Share]:
        """What each knock-out costs its own behaviour."""
        a, b = (self.losses[pair] for pair in zip(self.knocked, self.behaviours, strict=True))
        return (a, b)

    @property
    def selective(self) -> tuple[bool, bool]:
        """Whether each knock-out costs its own behaviour more than the other, by more than random knock-outs do."""
        a, b = (gain.value.low > 0 and gain.beyond_random is True for gain in self.gains)
        return (a, b)

    @property
    def undecided(self) -> bool:
        """Whether there are too few pairs or random knock-outs for a verdict."""
        return any(gain.beyond_random is None for gain in self.gains)

    @property
    def double(self) -> bool:
        """Whether this is a double dissociation."""
        return all(self.selective)


@dataclass(frozen=True)
class Dissociation:
    """What knocking out two circuits costs both behaviours.

    ``whole``: all edges of each; ``only``: the edges that the other does not have; ``shared``: what the edges that both
    have cost each behaviour. The latter two are None where there are no such edges.
    """

    a: str
    b: str
    whole: Contrast
    only: Contrast | None
    shared: tuple[Share, Share] | None

    @property
    def double(self) -> bool:
        """Whether knocking out the whole circuits, or what only each of them has, is a double dissociation."""
        return self.whole.double or (self.only is not None and self.only.double)


def shared_by(a: str, b: str) -> str:
    """Name the edges that two circuits share, as something to knock out."""
    return f"shared by {a} and {b}"


def without(a: str, b: str) -> str:
    """Name the edges of one circuit that another does not have, as something to knock out."""
    return f"{a} without {b}"


def transfer_matrix(columns: tuple[Column, ...], rows: tuple[str, ...]) -> TransferMatrix:
    """Return the faithfulness of every row on every behaviour that its model shows."""
    cells = {
        (row, column.name): _share(column, column.alone[row], column.random_alone.get(row))
        for column in columns
        if not column.remark
        for row in rows
        if row in column.alone
    }
    return TransferMatrix(rows, tuple(column.name for column in columns), cells)


def dissociation(a: Column, b: Column) -> Dissociation | None:
    """Return what knocking out either circuit costs both behaviours; None where that was not measured or not shown."""
    if a.remark or b.remark or any(name not in a.without or name not in b.without for name in (a.name, b.name)):
        return None
    only, shared = (without(a.name, b.name), without(b.name, a.name)), shared_by(a.name, b.name)
    return Dissociation(
        a.name,
        b.name,
        _contrast((a.name, b.name), a, b),
        _contrast(only, a, b) if all(each in a.without for each in only) else None,
        (_lost(a, shared), _lost(b, shared)) if shared in a.without else None,
    )


def _contrast(knocked: tuple[str, str], a: Column, b: Column) -> Contrast:
    gains = [_gain(knocked[0], a, b), _gain(knocked[1], b, a)]
    shares = [
        Share(_estimate(*gain), min(a.n, b.n), _random_gains(name, own, other))
        for gain, name, own, other in zip(gains, knocked, (a, b), (b, a), strict=True)
    ]
    return Contrast(
        knocked,
        (a.name, b.name),
        {(each, column.name): _lost(column, each) for each in knocked for column in (a, b)},
        (shares[0], shares[1]),
        _estimate(gains[0][0] + gains[1][0], gains[0][1] + gains[1][1]),
    )


def _random_gains(knocked: str, own: Column, other: Column) -> tuple[float, ...]:
    """Return what each random knock-out costs one behaviour more than the other; both ran the same ones."""
    if knocked not in own.random_without or knocked not in other.random_without:
        return ()
    pairs = zip(own.random_without[knocked], other.random_without[knocked], strict=True)
    return tuple(other.kept(second) - own.kept(first) for first, second in pairs)


def _lost(column: Column, knocked: str) -> Share:
    return _share(column, column.without[knocked], column.random_without.get(knocked), lost=True)


def _share(column: Column, values: Floats, random: Floats | None, *, lost: bool = False) -> Share:
    sign, start = (-1, 1.0) if lost else (1, 0.0)
    value = start + sign * column.kept(values)
    resampled = start + sign * column.kept_resampled(values, column.picks)
    others = () if random is None else tuple(start + sign * column.kept(each) for each in random)
    return Share(_estimate(value, resampled), column.n, others)


def _gain(knocked: str, own: Column, other: Column) -> tuple[float, Floats]:
    """Return what knocking out costs the own behaviour more than the other's, and the same of resampled prompts.

    Columns of the same prompts (one behaviour in two models) resample them together.
    """
    first, second = own.without[knocked], other.without[knocked]
    ordered = sorted((own.name, other.name))
    paired = own.digest == other.digest
    picks = [each.picks if paired or each.name == ordered[0] else each.picks_beside for each in (own, other)]
    value = other.kept(second) - own.kept(first)
    return value, other.kept_resampled(second, picks[1]) - own.kept_resampled(first, picks[0])


def _estimate(value: float, resampled: Floats) -> ScoreEstimate:
    low, high = central(resampled)
    return ScoreEstimate(value, float(low), float(high), PROMPTS)
