"""Groups of pairs are recorded once where there is memory for them, and nobody has to guess when there is not."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.patching.recorded_groups import RecordedGroups
from tests.subjects import Subject, double_of, random_pairs

PAIRS = 3


def recorders(
    subject: Subject, made: list[int], resources: Resources | None = None
) -> list[Callable[[], PatchingExperiment]]:
    """Ways to record three groups, each of which is noted when it is."""

    def record(seed: int) -> PatchingExperiment:
        made.append(seed)
        pairs = random_pairs(PAIRS, 7, seed=seed)
        return PatchingExperiment(subject.tracer, subject.graph, pairs, Options(), resources=resources)

    return [partial(record, seed) for seed in range(3)]


def in_turn(groups: RecordedGroups) -> list[np.ndarray]:
    """What is measured on each of the groups, twice round."""
    return [get().clean for _ in range(2) for get in groups.each()]


def test_groups_are_recorded_once_in_the_ordinary_case() -> None:
    made: list[int] = []
    groups = RecordedGroups(recorders(double_of("llama"), made))
    found = in_turn(groups)
    assert made == [0, 1, 2]
    assert groups.kept == 3
    for first, again in zip(found[:3], found[3:], strict=True):
        assert np.array_equal(first, again)


def test_groups_that_do_not_fit_are_recorded_each_time_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    subject, once = double_of("llama"), list[int]()
    recorded = recorders(subject, once)[0]().plan.recorded
    made: list[int] = []
    groups = RecordedGroups(recorders(subject, made, Resources(memory=f"{5 * recorded}B")))
    found = in_turn(groups)
    assert groups.kept == 1
    assert made == [0, 1, 2, 1, 2]
    assert [record.getMessage() for record in caplog.records if "anew each time" in record.getMessage()]
    assert len(caplog.records) == 1
    for first, again in zip(found[:3], found[3:], strict=True):
        assert np.array_equal(first, again)
