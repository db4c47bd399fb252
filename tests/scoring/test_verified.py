"""The verified top k: found as often as stated, at a fraction of the sweep, and uncertain where it cannot know."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuits.errors import UsageError
from circuits.graph import ModelShape
from circuits.interchange.score_files import read_scores, write_scores
from circuits.scores import EdgeScores
from circuits.scoring import agreement, score
from circuits.scoring.budget import Budget
from circuits.scoring.scorers import Settings
from circuits.scoring.verified import TopK, verify
from circuits.vocabulary import ScorerName
from tests.scoring.tables import GRAPH, TableExperiment, table
from tests.toy import LinearToy, ToyExperiment, planted_toy

K = 20
FRACTION = K / GRAPH.n_edges
"""What measuring only the top k on all pairs takes."""


def found(experiment: TableExperiment, budget: int | None = None, *, seed: int = 0, **options: object) -> EdgeScores:
    top = TopK(K, Budget(edges=budget), **options)
    return score(experiment, ScorerName.VERIFIED, Settings(seed=seed, top=top))


def lost(experiment: TableExperiment, scores: EdgeScores) -> int:
    """How many of the exact top k are not the scores' top k."""
    return len(experiment.exact_top(K) - set(scores.ranked(by_magnitude=True)[:K].tolist()))


def sparse(seed: int) -> TableExperiment:
    """A fifth of the edges matters on one pair in ten only."""
    rng, whole = np.random.default_rng(seed), table(seed)
    effects = whole.effects.copy()
    few = rng.random(GRAPH.n_edges) < 0.2
    effects[few] *= (rng.random(effects.shape) < 0.1)[few] / 0.1
    estimates = np.stack([effects.mean(axis=1), effects.std(axis=1, ddof=1)])
    return TableExperiment(effects, estimates * np.exp(rng.normal(0, 0.3, estimates.shape)))


# ------------------------------------------------------------------------------------------- as often as stated

MAKERS: dict[str, tuple[Callable[[int], TableExperiment], float]] = {
    "normal": (lambda seed: table(seed), 0.15),
    "skewed": (lambda seed: table(seed, skew=1.5), 0.15),
    "sparse": (sparse, 0.17),
    "many pairs": (lambda seed: table(seed, n_pairs=64), 0.1),
    "useless attribution": (lambda seed: table(seed, shuffled=True), 0.8),
}


@pytest.mark.parametrize("kind", list(MAKERS))
def test_without_a_budget_the_exact_top_k_is_found_as_often_as_stated_at_a_fraction_of_the_sweep(kind: str) -> None:
    make, share = MAKERS[kind]
    failures, trials = 0, 40
    for seed in range(trials):
        experiment = make(seed)
        scores = found(experiment, seed=seed)
        record = scores.verification
        assert record is not None
        assert record.certain
        assert record.share_of_sweep == pytest.approx(experiment.measurements / experiment.effects.size)
        assert FRACTION < record.share_of_sweep < share
        failures += lost(experiment, scores) > 0
    assert failures / trials <= 0.05


def test_attribution_alone_would_not_find_it() -> None:
    """The negative control of the test above."""
    for seed in range(5):
        experiment = table(seed)
        assert lost(experiment, score(experiment, ScorerName.EAP_IG)) >= 2


def test_a_race_that_trusts_its_bounds_too_much_would_lose_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another: with bounds at the mean itself, edges of the top k are thrown out."""
    monkeypatch.setattr("circuits.scoring.race.multiples", lambda *args: [0.0] * len(args[2]))
    assert sum(lost(experiment, found(experiment)) for experiment in map(table, range(5))) >= 5


@pytest.mark.parametrize("kind", list(MAKERS))
def test_with_a_budget_no_more_is_missing_than_stated_and_the_budget_is_kept(kind: str) -> None:
    for seed in range(12):
        experiment = MAKERS[kind][0](seed)
        scores = found(experiment, 60, seed=seed)
        record = scores.verification
        assert record is not None
        assert experiment.measurements <= 60 * experiment.n_pairs
        assert lost(experiment, scores) <= record.missing_at_most
        assert not record.certain


def test_with_useless_attribution_and_a_budget_it_says_that_much_is_likely_missing() -> None:
    for seed in range(5):
        good, bad = (found(table(seed, shuffled=shuffled), 120).verification for shuffled in (False, True))
        assert good is not None
        assert bad is not None
        assert good.missed_likely < 3 < bad.missed_likely
        assert "about 0 never measured" in good.describe() or good.certain


def test_a_budget_that_suffices_gives_the_certain_result() -> None:
    scores = found(table(1), 400)
    assert scores.verification is not None
    assert scores.verification.certain
    assert scores.verification.describe().startswith("the exact top 20 with probability 95%; 1,522 edges measured, ")


def test_a_budget_too_small_for_the_top_k_leaves_it_uncertain() -> None:
    scores = found(table(1), K)
    record = scores.verification
    assert record is not None
    assert record.top < record.wanted == K
    assert not record.certain
    assert record.describe().startswith(f"uncertain: the budget ended when only {record.top} edges")


# ------------------------------------------------------------------------------------------------------ on toys


def exact_top(toy: LinearToy, k: int) -> set[int]:
    effects = toy.edge_effects(np.arange(toy.graph.n_edges)).mean(axis=1)
    return set(np.argsort(-np.abs(effects), kind="stable")[:k].tolist())


@pytest.mark.parametrize("saturation", [None, 6.0])
def test_the_largest_effects_of_a_planted_graph_are_found(saturation: float | None) -> None:
    shape = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
    for seed in range(5):
        toy = planted_toy(shape, 20, seed=seed, n_pairs=16, noise=0.03, saturation=saturation)
        scores = score(toy, ScorerName.VERIFIED, Settings(top=TopK(10)))
        assert scores.verification is not None
        assert scores.verification.share_of_sweep < 0.5
        assert set(scores.ranked(by_magnitude=True)[:10].tolist()) == exact_top(toy, 10)


def test_edges_that_change_nothing_stop_at_two_pairs() -> None:
    """20 planted edges and a top of 15: the others have neither effects nor attributions."""
    toy = planted_toy(ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2), 20, seed=0, n_pairs=16)
    scores = score(toy, ScorerName.VERIFIED, Settings(top=TopK(15)))
    silent = toy.graph.n_edges - 20
    assert scores.verification is not None
    assert scores.verification.share_of_sweep * toy.graph.n_edges * 16 <= 2 * silent + 16 * 20


def test_with_one_pair_and_with_fewer_edges_than_asked_for_everything_is_exact() -> None:
    one, few = (score(ToyExperiment(inputs), ScorerName.VERIFIED) for inputs in ((1.0,), (1.0, 2.0, 3.0)))
    np.testing.assert_array_equal(one.values, score(ToyExperiment(), ScorerName.EXACT).values)
    assert few.verification is not None
    assert (few.verification.top, few.verification.wanted, few.verification.share_of_sweep) == (8, 8, 1.0)
    assert few.measured


# --------------------------------------------------------------------------------------------------- the scores


def test_the_top_k_and_all_others_marked_as_measured_carry_what_exact_gives_them() -> None:
    experiment = table(3)
    scores, exact = found(experiment, 60), score(experiment, ScorerName.EXACT)
    assert scores.sd is not None
    assert exact.sd is not None
    measured = scores.which_measured
    assert K <= np.count_nonzero(measured) < 60
    np.testing.assert_allclose(scores.values[measured], exact.values[measured], rtol=1e-12)
    np.testing.assert_allclose(scores.sd[measured], exact.sd[measured], rtol=1e-12)
    assert measured[scores.ranked(by_magnitude=True)[:K]].all()
    assert scores.verification is not None
    assert scores.verification.edges_measured > scores.verification.edges_exact == np.count_nonzero(measured)


def test_other_edges_keep_their_attribution_but_never_come_before_the_top_k() -> None:
    for shuffled in (False, True):
        experiment = table(3, shuffled=shuffled)
        experiment.estimates[0] *= 3  # attribution that overstates
        scores = found(experiment, 60)
        assert scores.verification is not None
        rest, limit = ~scores.which_measured, scores.verification.threshold
        assert not scores.measured
        small = rest & (np.abs(experiment.estimates[0]) < limit)
        np.testing.assert_array_equal(scores.values[small], experiment.estimates[0][small])
        assert (np.abs(scores.values[rest]) < limit).all()
        assert (np.sign(scores.values[rest]) == np.sign(experiment.estimates[0][rest])).all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_say_of_every_edge_whether_it_was_measured(tmp_path: Path, suffix: str) -> None:
    scores = found(table(3), 60)
    write_scores(scores, tmp_path / f"verified{suffix}")
    again = read_scores(tmp_path / f"verified{suffix}", GRAPH)
    np.testing.assert_array_equal(again.which_measured, scores.which_measured)
    np.testing.assert_allclose(again.values, scores.values, rtol=1e-8)
    assert (again.measured, again.n) == (False, 32)
    assert again.verification == (scores.verification if suffix == ".parquet" else None)
    rows = {row["measured"]: row for row in scores.rows()}
    assert set(rows) == {True, False}


def test_scores_of_which_some_are_measured_can_be_compared_with_exact_ones() -> None:
    experiment = table(3)
    assert agreement(experiment, found(experiment, 60), sample=64).spearman > 0.9


def test_only_the_edges_asked_for_are_measured_and_scored() -> None:
    experiment, edges = table(2), np.arange(100, 400, 3)
    scores = score(experiment, ScorerName.VERIFIED, Settings(edges=edges, top=TopK(10)))
    assert scores.scored.tolist() == edges.tolist()
    best = edges[np.argsort(-np.abs(experiment.exact[edges]))[:10]]
    assert set(scores.ranked(by_magnitude=True)[:10].tolist()) == set(best.tolist())
    assert scores.verification is not None
    assert scores.verification.edges == 100
    assert not scores.which_measured[0]


# --------------------------------------------------------------------------------------------------------- again


@pytest.mark.parametrize("budget", [None, 60])
def test_two_runs_give_the_same_and_another_seed_draws_other_samples(budget: int | None) -> None:
    first, second, other = (found(table(4), budget, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.values, second.values)
    assert first.verification == second.verification
    if budget:
        assert not np.array_equal(first.which_measured, other.which_measured)


@pytest.mark.parametrize("budget", [None, 60])
def test_after_the_attribution_progress_only_grows_and_ends_at_its_end(budget: int | None) -> None:
    calls: list[tuple[int, int]] = []
    experiment, top = table(6), TopK(K, Budget(edges=budget))
    score(experiment, ScorerName.VERIFIED, Settings(top=top, progress=lambda *call: calls.append(call)))
    assert calls.pop(0) == (5, 5)
    done = [call[0] for call in calls]
    assert len(calls) > 4
    assert done == sorted(done)
    assert all(step <= total for step, total in calls)
    assert calls[-1] == (experiment.measurements, experiment.measurements)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "at least 1, got 0"),
        ({"error": 0.0}, "between 0 and 1, got 0.0"),
        ({"error": 1.0}, "between 0 and 1, got 1.0"),
        ({"k": 30, "budget": Budget(edges=29)}, "to find the top 30 edges.*budget is 29 edges.*larger --budget"),
    ],
)
def test_a_search_that_cannot_succeed_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TopK(**options)


def test_without_a_spread_of_the_attribution_its_size_is_the_prior() -> None:
    experiment = table(7)
    attribution = EdgeScores(GRAPH, experiment.estimates[0], "eap-ig", measured=False)
    scores = verify(experiment, attribution, TopK(K))
    assert lost(experiment, scores) == 0
    assert scores.verification is not None
    assert replace(scores.verification, share_of_sweep=0.0).certain
