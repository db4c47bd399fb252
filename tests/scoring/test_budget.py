"""Budgets and measurements: what may be measured, and what was."""

import numpy as np
import pytest

from circuits.errors import UsageError
from circuits.patching.protocol import no_progress
from circuits.scoring import budget as budget_module
from circuits.scoring.budget import Budget, Meter
from circuits.scoring.measurements import Measurements
from tests.scoring.tables import TableExperiment, table


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(budget_module.time, "monotonic", clock.monotonic)
    return clock


def measurements(experiment: TableExperiment, budget: Budget | None = None) -> Measurements:
    meter = Meter(budget or Budget(), experiment.n_pairs)
    return Measurements(experiment, meter, planned=100, progress=no_progress)


@pytest.mark.parametrize(
    ("text", "edges", "seconds"),
    [("2000", 2000, None), ("90s", None, 90), ("10min", None, 600), ("1.5h", None, 5400)],
)
def test_a_budget_is_a_number_of_edges_or_a_time(text: str, edges: int | None, seconds: float | None) -> None:
    assert Budget.parse(text) == Budget(edges, seconds)


@pytest.mark.parametrize("text", ["", "0", "-3", "0s", "2.5", "10 minutes", "min", "10m", "1e", "nans", "infs"])
def test_other_budgets_are_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=rf"such as 2000, or a time such as 90s.*got '{text}'"):
        Budget.parse(text)


def test_a_budget_of_edges_is_spent_to_the_last_measurement_that_fits() -> None:
    experiment = table(0, n_pairs=8)
    measured = measurements(experiment, Budget(edges=10))
    measured.measure(np.arange(30, 60), 2)
    assert (experiment.measurements, measured.meter.spent) == (60, 60)
    measured.measure(np.array([50, 40, 30]), 8)  # six more pairs each: room for three, by the order given
    measured.measure(np.array([31, 32]), 8)
    assert experiment.measurements == 78
    assert measured.counts[[50, 40, 30, 31]].tolist() == [8, 8, 8, 2]
    np.testing.assert_array_equal(measured.effects[50], experiment.effects[50])
    assert measured.means(np.array([31])) == pytest.approx(experiment.effects[31, :2].mean())


def test_edges_first_in_the_list_are_measured_when_the_budget_does_not_last() -> None:
    measured = measurements(table(0, n_pairs=8), Budget(edges=1))
    measured.measure(np.array([9, 3, 7, 5, 1]), 2)
    assert np.flatnonzero(measured.counts).tolist() == [3, 5, 7, 9]


def test_a_budget_of_time_stops_at_the_rate_seen_so_far(clock: Clock) -> None:
    class Slow(TableExperiment):
        def part(self, begin: int, end: int) -> "Slow":
            return Slow(self.effects[:, begin:end], self.estimates, self.spent, self.graph)

        def edge_effects(self, edges: np.ndarray, **options: object) -> np.ndarray:
            clock.now += 0.01 * len(edges) * self.n_pairs
            return super().edge_effects(edges, **options)

    whole = table(0, n_pairs=8)
    experiment = Slow(whole.effects, whole.estimates)
    measured = measurements(experiment, Budget(seconds=10))
    measured.measure(np.random.default_rng(0).permutation(experiment.graph.n_edges), 2)
    assert 9.5 < clock.now <= 10
    assert np.count_nonzero(measured.counts) == experiment.measurements / 2
    assert measured.meter.steps(99) == (int(clock.now), 10)


def test_without_a_limit_progress_grows_to_what_is_planned_and_beyond() -> None:
    meter = Meter(Budget(), 8)
    meter.spent = 60
    assert meter.steps(100) == (60, 100)
    meter.spent = 160
    assert meter.steps(100) == (160, 160)
    assert Meter(Budget(edges=5), 8).steps(100) == (0, 40)
