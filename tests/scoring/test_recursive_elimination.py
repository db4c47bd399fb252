"""Recursive elimination: every round written out beside it, planted circuits, and edges that replace each other."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from circuits.errors import UsageError
from circuits.files.journal import Journal
from circuits.graph import ModelShape
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import Experiment
from circuits.pruning.connected import connected
from circuits.pruning.steps import dropped
from circuits.scoring import score
from circuits.scoring.recursive_elimination import recursive_elimination
from circuits.scoring.scorers import Settings
from circuits.statistics import error
from circuits.vocabulary import Metric, ScorerName
from tests.directions.test_target import model
from tests.pruning.test_closest import Twins
from tests.subjects import random_pairs, subject_of
from tests.toy import PENCIL_EFFECTS, ToyExperiment, pencil_toy, planted_edges, planted_toy

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
NAME = ScorerName.RECURSIVE_ELIMINATION


def one_after_the_other(experiment: Experiment) -> tuple[list[int], list[float]]:
    """Drop edges by the text of the method: in loops, with the loss of every further edge summed up anew."""
    graph, left, gone, changes = experiment.graph, list(range(experiment.graph.n_edges)), [], []
    norm = np.sqrt(((experiment.clean - experiment.corrupted) ** 2).sum())
    gap = (experiment.clean - experiment.corrupted).mean()

    def loss(moved: np.ndarray) -> float:
        return float((moved**2).sum() / norm**2 + (moved.mean() / gap) ** 2)

    while left:
        weights = np.zeros(graph.n_edges)
        weights[left] = 1
        values, slopes = experiment.circuit_gradient(weights)
        miss, this_round = values - experiment.clean, list[int]()
        for _ in range(dropped(len(left))):
            losses = {e: loss(miss - slopes[:, e]) + loss(slopes[:, e]) for e in left if e not in this_round}
            best = min(losses, key=lambda e: losses[e])
            this_round.append(best)
            miss = miss - slopes[:, best]
        rest = np.array([e for e in left if e not in this_round], dtype=np.int64)
        this_round += sorted(set(rest.tolist()) - set(connected(graph, rest).tolist()))
        gone += this_round
        changes += [float(slopes[:, e].mean()) for e in this_round]
        left = [e for e in left if e not in this_round]
    return gone, changes


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edges_go_in_the_order_of_the_method_written_out(family: str) -> None:
    experiment = subject_of(family).experiment(random_pairs(3))
    values = score(experiment, NAME).values
    order, changes = one_after_the_other(experiment)
    np.testing.assert_array_equal(np.argsort(np.abs(values)), order)
    np.testing.assert_allclose(np.abs(values[order]), np.arange(1, len(order) + 1) / len(order))
    np.testing.assert_array_equal(np.sign(values[order]), np.where(np.array(changes) < 0, -1, 1))
    assert 0 < (values < 0).mean() < 0.9


def test_planted_edges_are_the_last_to_go_each_with_a_place_of_its_own() -> None:
    for seed in (0, 3):
        toy, planted = planted_toy(SHAPE, 12, seed=seed), planted_edges(planted_toy(SHAPE, 1).graph, 12, seed=seed)
        values = score(toy, NAME).values
        assert np.sort(values)[-12:].tolist() == np.sort(values[planted]).tolist()
        assert len(np.unique(np.abs(values))) == toy.graph.n_edges
        assert np.abs(values).max() == 1


def test_the_edges_that_are_kept_longest_are_worth_more_than_random_ones() -> None:
    experiment = subject_of("llama").experiment(random_pairs(8))
    stay = np.abs(score(experiment, NAME).values)
    orders = [stay, *np.random.default_rng(0).permuted(np.tile(stay, (5, 1)), axis=1)]
    masks = [order >= np.quantile(order, 0.7) for order in orders]
    ours, *random = (float(error(experiment, values)) for values in experiment.circuits(masks))
    assert ours < 0.8 * min(random)


def test_of_two_ways_that_do_the_same_one_is_kept_and_the_other_goes_early() -> None:
    """Single slopes of both are near 0 as long as both are there, and less than that of a way of 0.2."""
    toy = Twins(np.array([[1.0, 1.0, 0.2, 0.0]] * 2), steep=1.0)
    first, second, third, idle = np.abs(score(toy, NAME).values[toy.ways]).min(axis=1)
    by_slopes = np.abs(score(toy, "eap").values[toy.ways]).min(axis=1)
    assert by_slopes[:2].max() < by_slopes[2]
    assert min(first, second) < third < max(first, second)
    assert idle < third


def test_signs_say_whether_an_edge_helps_inside_what_is_left() -> None:
    toy = pencil_toy()
    hurting = toy.graph.index(next(e for e in toy.graph.edges() if str(e) == "input->logits"))
    weights = toy.weights.copy()
    weights[hurting] = -1.0
    values = score(type(toy)(toy.shape, weights), NAME).values
    assert values[hurting] < 0
    assert (np.delete(values, hurting) > 0).all()
    higher, lower = ToyExperiment((1.0, 2.0)), ToyExperiment((1.0, 2.0))
    lower.metric = Metric.KL
    helping = recursive_elimination(higher) * [PENCIL_EFFECTS[str(edge)] > 0 for edge in higher.graph.edges()]
    assert (helping >= 0).all()
    np.testing.assert_array_equal(np.minimum(recursive_elimination(lower), 0), -helping)


def test_progress_ends_at_its_total_and_never_goes_back() -> None:
    told: list[tuple[int, int]] = []
    score(planted_toy(SHAPE, 12), NAME, Settings(progress=lambda *step: told.append(step)))
    assert told[-1][0] == told[-1][1] == len(told)
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert all(first >= second for (_, first), (_, second) in pairwise(told))


def test_large_circuits_see_one_half_of_the_pairs_in_turn_where_they_are_enough() -> None:
    big, seen = planted_toy(ModelShape(24, 4, 2, d_model=8, d_head=2), 12, n_pairs=33), list[tuple[int, int]]()

    class Watched(type(big)):  # type: ignore[misc]
        def part(self, begin: int, end: int) -> Experiment:
            seen.append((begin, end))
            return super().part(begin, end)

    watched = Watched(big.shape, big.weights, big.clean_inputs, big.corrupted_inputs)
    assert watched.graph.n_edges > 1000
    score(watched, NAME)
    assert seen[:2] == [(0, 16), (16, 32)]
    seen.clear()
    fewer = watched.part(0, 31)
    seen.clear()
    score(fewer, NAME)
    assert not seen


def test_what_was_done_before_a_stop_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, stop = list[int](), 5
    inside = PatchingExperiment.circuit_gradient

    def counted(self: PatchingExperiment, weights: np.ndarray, **options: object) -> tuple[np.ndarray, np.ndarray]:
        runs.append(int(weights.sum()))
        return inside(self, weights, **options)  # type: ignore[arg-type]

    def stopped(done: int, _: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    def begun(journal: Journal) -> Experiment:
        return model("llama").experiment(random_pairs(3), journal=journal)

    monkeypatch.setattr(PatchingExperiment, "circuit_gradient", counted)
    whole = score(model("llama").experiment(random_pairs(3)), NAME).values
    rounds = len(runs)
    runs.clear()
    with Journal(tmp_path / "journal", resume=True) as journal, pytest.raises(KeyboardInterrupt):
        score(begun(journal), NAME, Settings(progress=stopped))
    runs.clear()
    with Journal(tmp_path / "journal", resume=True) as journal:
        np.testing.assert_array_equal(score(begun(journal), NAME).values, whole)
    assert len(runs) == rounds - stop


def test_only_the_edges_that_are_asked_for_have_a_score_that_of_all_edges() -> None:
    experiment, some = planted_toy(SHAPE, 12), np.array([3, 17, 40])
    few, every = score(experiment, NAME, Settings(edges=some)), score(experiment, NAME)
    assert few.scored.tolist() == some.tolist()
    np.testing.assert_array_equal(few.values[some], every.values[some])


def test_what_has_no_meaning_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"zero gradient at the clean run, so recursive-elimination would not tell"):
        score(subject_of("llama").experiment(metric=Metric.KL), NAME)
    with pytest.raises(UsageError, match="the scorer recursive-elimination takes no gradients of the whole model"):
        score(subject_of("llama").experiment(), NAME, Settings(freeze_norms=True))
    with pytest.raises(UsageError, match=r"do not differ on average by this metric.*Use prompts that differ"):
        score(ToyExperiment((1.0, -1.0)), NAME)
