"""Processes that share a sweep: the result is that of one, whoever measured what, how often and in which order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from circuits.errors import DeviceError, UsageError
from circuits.evaluation import evaluate
from circuits.files.journal import Journal
from circuits.graph import Edges
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.patching.node_sets import interchange_effects
from circuits.patching.sequences import SequenceExperiment
from circuits.patching.shards import MOST, shards_of
from circuits.patching.shared_experiment import SharedExperiment, share
from circuits.pruning import minimal
from circuits.scoring import score
from circuits.scoring.budget import Budget
from circuits.scoring.scorers import Settings, score_shared
from circuits.scoring.verified import TopK
from circuits.vocabulary import BY_CIRCUITS, Direction, Metric, ScorerName
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
    monkeypatch.setattr("circuits.patching.shards.MOST", 10)
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
    monkeypatch.setattr("circuits.patching.shards.PATIENCE", 0.3)
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
    with pytest.raises(DeviceError, match=r"\d+ numbers measured of \d+ edges are no numbers, twice; measure with"):
        score_shared(experiment, broken, edges=edges)
    assert list(broken.glob("*.npz")) == []


def test_an_experiment_without_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make the experiment with a journal"):
        score_shared(subject_of("llama").experiment(), tmp_path)


# ------------------------------------------------------------------------------------ what else is measured together


class Asked:
    """Notes what an experiment is asked to measure by itself."""

    def __init__(self, shared: SharedExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, whole = 0, shared.alone.part

        def part(begin: int, end: int) -> PatchingExperiment:
            found = whole(begin, end)
            self._note(found, monkeypatch)
            return found

        self._note(shared.alone, monkeypatch)
        monkeypatch.setattr(shared.alone, "part", part)

    def _note(self, experiment: PatchingExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("edge_effects", "circuits", "circuit_gradient", "measured"):
            monkeypatch.setattr(experiment, name, self._noting(getattr(experiment, name)))

    def _noting(self, measure: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object, **options: object) -> object:
            self.count += 1
            return measure(*arguments, **options)

        return noted


def test_verified_edges_are_those_of_one_process_bit_for_bit_and_measured_once(
    subject: Subject, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = random_pairs(8)
    wanted = Settings(top=TopK(10, Budget(edges=40)))
    alone = score(made(subject, pairs), "verified", wanted)
    first, second = (share(made(subject, pairs), tmp_path / "meeting") for _ in range(2))
    found = score(first, "verified", wanted)
    asked = Asked(second, monkeypatch)
    again = score(second, "verified", wanted)
    assert asked.count == 0
    for each in (found, again):
        assert np.array_equal(each.values, alone.values, equal_nan=True)
        assert np.array_equal(each.measured_edges, alone.measured_edges)
        assert each.verification == alone.verification
    by_settings = score(made(subject, pairs), "verified", replace(wanted, share=tmp_path / "meeting"))
    assert np.array_equal(by_settings.values, alone.values, equal_nan=True)


def test_verifying_together_for_some_time_is_refused(tmp_path: Path, made: Made) -> None:
    wanted = Settings(top=TopK(10, Budget(seconds=5)), share=tmp_path)
    with pytest.raises(UsageError, match="must measure the same edges, and in a given time each measures others"):
        score(made(subject_of("llama")), "verified", wanted)


def test_circuits_and_random_ones_are_judged_as_by_one_process(
    subject: Subject, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = subject.some_edges(3)
    alone = evaluate(made(subject), edges)
    first, second = (share(made(subject), tmp_path / "meeting") for _ in range(2))
    found = evaluate(first, edges)
    asked = Asked(second, monkeypatch)
    again = evaluate(second, edges)
    assert asked.count == 0
    assert found == again
    assert found.random_baseline.n == alone.random_baseline.n == 20
    for name in ("faithfulness", "necessity", "metric_circuit"):
        assert getattr(found, name) == pytest.approx(getattr(alone, name), abs=1e-5)
    assert found.random_baseline.median == pytest.approx(alone.random_baseline.median, abs=1e-5)
    assert found.likeness.kl.value == pytest.approx(alone.likeness.kl.value, abs=1e-5)


def test_slopes_of_a_circuit_are_those_of_one_process_to_rounding(
    subject: Subject, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    among = subject.some_edges()
    weights = subject.graph.mask(subject.some_edges(2)).astype(np.float64)
    values, slopes = made(subject).circuit_gradient(weights, among=among)
    first, second = (share(made(subject), tmp_path / "meeting") for _ in range(2))
    found = first.circuit_gradient(weights, among=among)
    asked = Asked(second, monkeypatch)
    for each in (found, second.circuit_gradient(weights, among=among)):
        np.testing.assert_allclose(each[0], values, atol=1e-5)
        np.testing.assert_allclose(each[1], slopes, atol=1e-5)
    assert asked.count == 0
    assert np.abs(slopes).max() > 0.1


@pytest.mark.parametrize("direction", list(Direction))
def test_exchanged_nodes_are_those_of_one_process_bit_for_bit_and_measured_once(
    subject: Subject, direction: Direction, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = random_pairs(4, 6) + random_pairs(3, 8)
    senders = subject.graph.senders[1:]
    sets, held = [*((node,) for node in senders), senders[:3]], senders[-2:]
    ways: list[dict[str, Any]] = [{}, {"held": held}, {"directly": True}]
    alone = [interchange_effects(made(subject, pairs), sets, direction, **way) for way in ways]
    first, second = (share(made(subject, pairs), tmp_path / "meeting") for _ in range(2))
    found = [interchange_effects(first, sets, direction, **way) for way in ways]
    asked = Asked(second, monkeypatch)
    again = [interchange_effects(second, sets, direction, **way) for way in ways]
    assert asked.count == 0
    for way in range(len(ways)):
        assert np.array_equal(found[way], alone[way])
        assert np.array_equal(again[way], alone[way])
    assert not np.array_equal(alone[0], alone[1])
    assert not np.array_equal(alone[0], alone[2])
    assert interchange_effects(second, [], direction).shape == (0, len(pairs))


def test_an_exchange_whose_process_was_killed_is_measured_by_another(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed process leaves: finished pieces, one half written, and a lock that nobody holds."""
    subject, folder = subject_of("llama"), tmp_path / "meeting"
    sets = [(node,) for node in subject.graph.senders[1:]]
    whole = interchange_effects(share(made(subject), folder), sets, "noising")
    files = sorted(folder.glob("*.npz"))
    files[0].unlink()
    Path(f"{files[0]}.lock").touch()
    files[1].write_bytes(files[1].read_bytes()[:100])
    other = share(made(subject), folder)
    asked = Asked(other, monkeypatch)
    assert np.array_equal(interchange_effects(other, sets, "noising"), whole)
    batches = len(other.alone.batches)
    assert 2 * batches < asked.count <= 2 * 2 * 4 * batches  # of two pieces of four sets, two metrics each


def test_a_circuit_pruned_together_is_that_of_one_process(tmp_path: Path, made: Made) -> None:
    """Every process comes to the same circuit, from rounds whose slopes were measured by whomever."""
    subject, pairs = subject_of("llama"), random_pairs(8)
    scores = score(made(subject, pairs), "eap")
    alone = minimal(made(subject, pairs), scores, target=0.7)
    meeting = tmp_path / "meeting"
    found = [minimal(share(made(subject, pairs), meeting), scores, target=0.7) for _ in range(2)]
    assert np.array_equal(found[0].edges, found[1].edges)
    assert np.array_equal(found[0].edges, alone.edges)
    assert 0 < len(alone.edges) < subject.graph.n_edges


def test_answers_of_several_tokens_are_measured_together_too(tmp_path: Path, made: Made) -> None:
    subject = subject_of("llama")
    pairs = [replace(pair, sequences=((3, 4), (5,)), wrong_sequences=((6, 7),)) for pair in PAIRS]

    def sequences() -> SequenceExperiment:
        return SequenceExperiment(pairs, lambda rows: made(subject, rows, metric=Metric.SEQUENCE))

    together = share(sequences(), tmp_path / "meeting")
    weights = np.ones(subject.graph.n_edges)
    np.testing.assert_allclose(together.edge_effects(np.arange(30)), sequences().edge_effects(np.arange(30)), atol=1e-5)
    for mine, alone in zip(together.circuit_gradient(weights), sequences().circuit_gradient(weights), strict=True):
        np.testing.assert_allclose(mine, alone, atol=1e-5)
    mask = subject.graph.mask(np.arange(50))
    np.testing.assert_allclose(together.circuits([mask]), sequences().circuits([mask]), atol=1e-5)
    assert together.circuits([]).shape == (0, len(pairs))


def test_edges_in_any_order_and_twice_have_their_rows(tmp_path: Path, made: Made) -> None:
    subject, wanted = subject_of("gpt2"), np.array([40, 3, 17, 3])
    together = share(share(made(subject), tmp_path / "elsewhere"), tmp_path / "meeting")
    np.testing.assert_allclose(together.edge_effects(wanted), made(subject).edge_effects(wanted), atol=1e-6)
    assert not (tmp_path / "elsewhere").exists()


def test_estimates_of_all_edges_are_made_by_every_process(tmp_path: Path, made: Made) -> None:
    subject = subject_of("llama")
    for name in ScorerName:
        if name not in (ScorerName.EXACT, ScorerName.VERIFIED, ScorerName.RANDOM, *BY_CIRCUITS):
            together, alone = (
                score(each, name) for each in (share(made(subject), tmp_path / "meeting"), made(subject))
            )
            assert np.array_equal(together.values, alone.values, equal_nan=True)
    assert not (tmp_path / "meeting").exists()


@pytest.mark.parametrize("name", BY_CIRCUITS)
def test_scorers_by_circuits_go_by_slopes_that_are_shared(tmp_path: Path, made: Made, name: ScorerName) -> None:
    subject = subject_of("llama")
    together = score(share(made(subject), tmp_path / "meeting"), name)
    np.testing.assert_allclose(together.values, score(made(subject), name).values, atol=1e-5)
    assert (tmp_path / "meeting").exists()
