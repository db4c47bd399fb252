"""Processes that share a sweep: the result is that of one, whoever measured what, how often and in which order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from circuits.errors import DeviceError, UsageError
from circuits.files.journal import Journal
from circuits.graph import Edges
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.scoring import score
from circuits.scoring.scorers import score_shared
from circuits.scoring.shards import MOST, shards_of
from circuits.vocabulary import Direction
from tests.subjects import PAIRS, Floats, Subject, random_pairs, subject_of

Made = Callable[..., PatchingExperiment]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Makes experiments on a subject, each with a journal of its own as every process has."""
    journals: list[Journal] = []

    def make(subject: Subject, pairs: object = PAIRS, **options: object) -> PatchingExperiment:
        journals.append(Journal(tmp_path / f"journal-{len(journals)}"))
        shelf = journals[-1].shelf(model=subject.name)
        return PatchingExperiment(subject.tracer, subject.graph, pairs, Options(**options), shelf=shelf)

    yield make
    for journal in journals:
        journal.close()


def count_in(file: Path) -> int:
    """How many edges a shard has."""
    with np.load(file) as kept:
        return len(kept["edges"])


class Counting:
    """Counts the edges that an experiment measures."""

    def __init__(self, experiment: PatchingExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
        self.edges, whole = 0, experiment.edge_effects

        def effects(edges: Edges) -> Floats:
            self.edges += len(edges)
            return whole(edges)

        monkeypatch.setattr(experiment, "edge_effects", effects)


def test_shards_are_all_edges_once_and_batches_stay_whole() -> None:
    graph = subject_of("gpt2").graph
    for at_once in (1, 7, 5000, None):
        shards = shards_of(graph, np.arange(graph.n_edges), at_once=at_once)
        assert np.array_equal(np.sort(np.concatenate([shard.edges for shard in shards])), np.arange(graph.n_edges))
        costs = [shard.cost for shard in shards]
        assert costs == sorted(costs, reverse=True)
        for shard in shards:
            receivers = {graph.receivers[int(place)] for place in graph.edge_receivers[shard.edges]}
            assert len({(receiver.node.layer, receiver.slot) for receiver in receivers}) == 1


def test_large_groups_are_cut_at_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.scoring.shards.MOST", 10)
    graph = subject_of("gpt2").graph
    shards = shards_of(graph, np.arange(graph.n_edges), at_once=4)
    assert max(len(shard.edges) for shard in shards) == 12
    assert MOST == 512


def test_a_shared_sweep_is_that_of_one_process_bit_for_bit(subject: Subject, tmp_path: Path, made: Made) -> None:
    alone = score(made(subject), "exact")
    shared = score_shared(made(subject), tmp_path / "shards")
    again = score_shared(made(subject), tmp_path / "shards")
    for found in (shared, again):
        assert np.array_equal(found.values, alone.values, equal_nan=True)
        assert np.array_equal(found.sd, alone.sd, equal_nan=True)
        assert (found.scorer, found.measured, found.n) == (alone.scorer, alone.measured, alone.n)


def test_only_what_is_missing_or_damaged_is_measured_again(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, folder = subject_of("llama"), tmp_path / "shards"
    first = score_shared(made(subject), folder)
    files = sorted(folder.glob("*.npz"))
    sizes = {file: count_in(file) for file in files}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    with np.load(files[2]) as kept:
        edges, effects = kept["edges"], kept["effects"]
    np.savez(files[2], edges=edges, effects=np.full_like(effects, np.nan))
    experiment = made(subject)
    counted = Counting(experiment, monkeypatch)
    second = score_shared(experiment, folder)
    assert counted.edges == sum(sizes[file] for file in files[:3])
    assert np.array_equal(first.values, second.values, equal_nan=True)


def test_other_prompts_or_another_direction_in_one_folder_are_kept_apart(tmp_path: Path, made: Made) -> None:
    subject, folder = subject_of("llama"), tmp_path / "shards"
    ways = [(PAIRS, Direction.NOISING), (PAIRS, Direction.DENOISING), (random_pairs(seed=8), Direction.NOISING)]
    edges = subject.some_edges()
    for pairs, direction in ways:
        shared = score_shared(made(subject, pairs, direction=direction), folder, edges=edges)
        alone = subject.experiment(pairs, direction=direction).edge_effects(edges).mean(1)
        np.testing.assert_allclose(shared.values[np.unique(subject.graph.indices(edges))], alone, atol=1e-6)


def test_a_shard_that_another_process_is_at_is_waited_for_and_then_measured_here(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subject, folder = subject_of("llama"), tmp_path / "shards"
    whole = score_shared(made(subject), folder)
    file = min(folder.glob("*.npz"))
    file.unlink()
    experiment = made(subject)
    counted = Counting(experiment, monkeypatch)
    monkeypatch.setattr("circuits.scoring.shards.PATIENCE", 0.3)
    with FileLock(f"{file}.lock"), caplog.at_level("WARNING"):
        slow = score_shared(experiment, folder)
    assert np.array_equal(whole.values, slow.values, equal_nan=True)
    assert counted.edges == count_in(file)
    assert "another process has" in caplog.text


def test_effects_that_are_no_numbers_are_measured_twice_and_never_kept(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, folder = subject_of("llama"), tmp_path / "shards"
    edges = subject.some_edges()
    expected = score_shared(made(subject), tmp_path / "others", edges=edges)
    experiment = made(subject)
    whole, wrong = experiment.edge_effects, [1]

    def faulty(edges: Edges) -> Floats:
        wrong[0] -= 1
        return np.full((len(edges), len(PAIRS)), np.nan) if wrong[0] >= 0 else whole(edges)

    monkeypatch.setattr(experiment, "edge_effects", faulty)
    found = score_shared(experiment, folder, edges=edges)
    assert np.array_equal(found.values, expected.values, equal_nan=True)
    wrong[0], broken = 10_000, tmp_path / "broken"
    with pytest.raises(DeviceError, match=r"the effects of \d+ of \d+ edges are no numbers, twice; measure with"):
        score_shared(experiment, broken, edges=edges)
    assert list(broken.glob("*.npz")) == []


def test_an_experiment_without_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make the experiment with a journal"):
        score_shared(subject_of("llama").experiment(), tmp_path)
