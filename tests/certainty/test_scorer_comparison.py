"""Scorers side by side: each number is the one that is measured alone."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

import circuits
from circuits.behaviours.behaviour import Behaviour, Pair
from circuits.certainty.scorer_comparison import COMPARED, ENSEMBLE, _Scored, compare_scorers, ensemble
from circuits.errors import UsageError
from circuits.evaluation.curve import curve
from circuits.model import Model, verified
from circuits.models.weights import LoadedWeights
from circuits.report.curve_chart import curves_svg
from circuits.scores import EdgeScores
from circuits.scoring import score
from circuits.scoring.sampled_agreement import compare_scores, stratified_sample
from circuits.scoring.scorers import Settings
from circuits.vocabulary import Metric, ScorerName, Universe
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.toy import ToyExperiment
from tests.zoo import ZOO

FEW = {"pairs": 6, "heldout": 4, "sample": 24, "top": 20, "steps": 2}


def model_of(module: torch.nn.Module) -> Model:
    weights = LoadedWeights(
        module, tiny_tokenizer(), "tiny", "local", "0" * 64, "1" * 64, torch.device("cpu"), torch.float32
    )
    return verified(weights)


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(tiny_gpt2())


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    """Pairs of four letters, of which the last two change."""
    words = ["".join(four) for four in permutations("BCDFG", 4)][:60]
    pairs = [Pair(word, word[:2] + "KL", answer_ids=(40,), wrong_ids=(50,), source=word) for word in words]
    return Behaviour("letters", "", lambda _: pairs)


def test_every_number_is_the_one_that_is_measured_alone(model: Model, behaviour: Behaviour) -> None:
    names = (ScorerName.EAP, ScorerName.GIM, ScorerName.RANDOM)
    found = compare_scorers(model, behaviour, scorers=names, **FEW)
    prompts = behaviour.prompts(model.tokenizer, discovery=6, heldout=4)
    here, there = (model.experiment(pairs) for pairs in (prompts.discovery, prompts.heldout))
    alone = {name: score(here, name) for name in names[:2]}
    edges = stratified_sample(ensemble([ensemble(list(alone.values()))]), 24, 0)
    exact = here.edge_effects(edges).mean(1)
    assert [row.scorer for row in found.rows] == ["eap", "gim", "random", ENSEMBLE]
    for row, name in zip(found.rows, names[:2], strict=False):
        expected = compare_scores(alone[name].values[edges], exact)
        assert row.agreement.n == 24
        assert row.agreement.pearson == pytest.approx(expected.pearson, abs=0.02)
        assert row.agreement.spearman == pytest.approx(expected.spearman, abs=0.1)
        points, areas = curve(there, alone[name], by_magnitude=True, universes=(Universe.QUERY_HEAD,))
        assert row.cmd == pytest.approx(areas[0].cmd, abs=0.02)
        assert [point.edges for point in row.curve] == [point.edges for point in points]
        assert row.at(1.0).fidelity == pytest.approx(1, abs=1e-3)
        assert row.forwards is not None
        assert row.forwards > 1
        assert 0 < row.jaccard < 1
    assert found.rows[2].forwards is None
    assert (found.discovery, found.heldout, found.left_out) == (6, 4, {})


def test_scorers_that_the_metric_or_the_model_does_not_allow_are_left_out_with_the_reason(
    model: Model, behaviour: Behaviour
) -> None:
    by_kl = compare_scorers(model, replace(behaviour, metric=Metric.KL), **FEW)
    assert sorted(by_kl.left_out) == ["atp-star", "eap", "gim", "relp"]
    assert "zero gradient at the clean run" in by_kl.left_out["gim"]
    names = ["eap-ig", "conductance", "clean-corrupted", "ifr", "random", ENSEMBLE]
    assert [row.scorer for row in by_kl.rows] == names
    experts = model_of(ZOO["mixtral"](vocab_size=320))
    found = compare_scorers(experts, behaviour, scorers=["relp", "eap"], **FEW)
    assert "has the parts gate, experts" in found.left_out["relp"]
    assert [row.scorer for row in found.rows] == ["eap"]
    with pytest.raises(UsageError, match=r"none of the scorers could be measured: .*MixtralSparseMoeBlock"):
        compare_scorers(experts, behaviour, scorers=["relp"], **FEW)
    with pytest.raises(UsageError, match="at least 4 pairs, got 3"):
        compare_scorers(model, behaviour, **(FEW | {"pairs": 3}))


def test_all_estimates_are_compared_and_the_picture_has_a_line_for_each(model: Model, behaviour: Behaviour) -> None:
    found = compare_scorers(model, behaviour, **FEW)
    assert [row.scorer for row in found.rows] == [*COMPARED, ENSEMBLE]
    picture = found.to_svg()
    assert picture.count("<polyline") == len(found.rows)
    assert all(f">{row.scorer}</text>" in picture for row in found.rows)
    assert found.to_document()["rows"][0]["scorer"] == "eap"
    assert circuits.compare_scorers is compare_scorers
    assert curves_svg({}) == ""


def scores_of(values: list[float]) -> EdgeScores:
    return EdgeScores(ToyExperiment().graph, np.array(values), "made up", measured=False)


def test_an_ensemble_has_the_order_of_mean_ranks_with_the_sign_of_most_and_the_sizes_of_its_members() -> None:
    first, second, third = [1, 2, 3, 4, 5, 6, 7, 8], [-8, 7, -6, 5, 4, 3, 2, 1], [1, 2, -3, 4, 5, 6, 7, 8]
    found = ensemble([scores_of([float(v) for v in each]) for each in (first, second, third)])
    np.testing.assert_allclose(found.values, np.array([1, 2, -3, 4, 5, 6, 7, 8]) / 8)
    steep = ensemble([scores_of([2.0**v for v in first]), scores_of([2.0**v for v in third])])
    np.testing.assert_allclose(np.abs(steep.values[[6, 7]]), [0.5, 1])


def test_halves_agree_as_far_as_their_best_edges_do() -> None:
    """Quarters A A A B: every halving sets (A + A) against (A + B), whose best two share one edge of three."""
    same, other = [9.0, 8, 0, 0, 0, 0, 0, 0], [9.0, 0, 80, 0, 0, 0, 0, 0]
    parts = tuple(map(scores_of, (same, same, same, other)))
    assert _Scored(parts[0], parts, (1, 1, 1, 1), None).jaccard(2) == pytest.approx(1 / 3)
    assert _Scored(parts[0], parts, (1, 1, 1, 1), None).jaccard(8) == 1
    assert _Scored(parts[0], (parts[0],) * 4, (1, 1, 1, 1), None).jaccard(2) == 1


def test_quarters_of_the_pairs_weigh_as_many_as_they_have(model: Model, behaviour: Behaviour) -> None:
    """With 6 pairs quarters are of 2, 1, 2 and 1: the mean over them is that over all pairs."""
    prompts = behaviour.prompts(model.tokenizer, discovery=6, heldout=4)
    experiment = model.experiment(prompts.discovery)
    parts = [experiment.part(*bounds) for bounds in ((0, 2), (2, 3), (3, 4), (4, 6))]
    values = [score(part, "eap-ig", Settings(steps=2)).values for part in parts]
    mean = np.average(values, axis=0, weights=[2, 1, 1, 2])
    np.testing.assert_allclose(mean, score(experiment, "eap-ig", Settings(steps=2)).values, atol=1e-4)


def test_scorers_by_whole_circuits_score_all_pairs_together_and_each_half(model: Model, behaviour: Behaviour) -> None:
    name, few = ScorerName.RECURSIVE_ELIMINATION, FEW | {"top": 20}
    (row,) = compare_scorers(model, behaviour, scorers=[name], **few).rows
    prompts = behaviour.prompts(model.tokenizer, discovery=6, heldout=4)
    here, there = (model.experiment(pairs) for pairs in (prompts.discovery, prompts.heldout))
    _, areas = curve(there, score(here, name), by_magnitude=True, universes=(Universe.QUERY_HEAD,))
    assert row.cmd == pytest.approx(areas[0].cmd)
    best = [set(score(here.part(*ends), name).ranked(by_magnitude=True)[:20].tolist()) for ends in ((0, 3), (3, 6))]
    assert row.jaccard == pytest.approx(len(best[0] & best[1]) / len(best[0] | best[1]))
    assert row.jaccard < 1
