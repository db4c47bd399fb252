"""Models whose circuits are known: exact scores and the pruner find exactly the true edges, and no others."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

import circuits
from circuits import Options
from circuits.pruning import minimal
from circuits.scoring import score
from tests.truth.compiled import PROGRAMS, Program, program, true_edges

EDGES = {
    "reverse": 2,
    "fraction of previous": 3,
    "pair balance": 6,
    "sort": 7,
    "histogram": 4,
    "dyck": 12,
    "induction": 5,
}
"""How many true edges there are."""
AUROC = {  # of eap and of eap-ig: where a neuron or an attention is saturated, the slopes of true edges are 0
    "reverse": (1.0, 1.0),
    "fraction of previous": (1.0, 1.0),
    "pair balance": (1.0, 1.0),
    "sort": (1.0, 1.0),
    "histogram": (0.625, 0.625),
    "dyck": (0.917, 0.917),
    "induction": (1.0, 1.0),
}


@pytest.fixture(scope="module", params=PROGRAMS)
def made(request: pytest.FixtureRequest) -> Program:
    return program(request.param)


@pytest.fixture(scope="module")
def model(made: Program) -> circuits.Model:
    return circuits.load_model(made.module, architecture=made.architecture)


@pytest.fixture(scope="module")
def true(made: Program, model: circuits.Model) -> np.ndarray:
    edges = true_edges(made, made.pairs(16))
    return np.array([str(edge) in edges for edge in model.graph.edges()])


LEARNED = dict.fromkeys(PROGRAMS, 1.0) | {"histogram": 0.75}
"""AUROC of learned masks: of histogram, the pairs are followed without one of the true edges."""


SATURATED = ("sort", "histogram", "dyck")
"""Of these programs, true edges have slopes of 0 (to rounding) in the whole model, and go among the first."""


def auroc(values: np.ndarray, true: np.ndarray) -> float:
    ranks, inside = rankdata(np.abs(np.nan_to_num(values))), true.sum()
    return float((ranks[true].sum() - inside * (inside + 1) / 2) / (inside * (len(true) - inside)))


def test_the_copy_computes_what_tracr_computes(made: Program) -> None:
    x = made.module.embed(made.prompts) if len(made.prompts) else torch.zeros(0)
    for block in made.module.blocks if len(made.prompts) else ():
        x = block(x)
    torch.testing.assert_close(x, made.outputs, atol=1e-5, rtol=0)


def test_the_true_edges_alone_are_the_whole_model(made: Program, model: circuits.Model, true: np.ndarray) -> None:
    assert true.sum() == EDGES[made.name] < len(true)
    experiment = model.experiment(made.pairs(16))
    assert np.abs(experiment.clean - experiment.corrupted).min() > 1e-3
    np.testing.assert_allclose(experiment.circuits([true])[0], experiment.clean, atol=1e-9)
    np.testing.assert_allclose(experiment.circuits([~true])[0], experiment.corrupted, atol=1e-9)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_exact_scores_are_zero_off_the_true_edges(
    made: Program, model: circuits.Model, true: np.ndarray, direction: str
) -> None:
    options = Options(direction=direction)  # type: ignore[arg-type]
    values = model.experiment(made.pairs(16), options).edge_effects(np.arange(len(true)))
    assert np.abs(values[~true]).max() < 1e-9
    if direction == "noising":
        assert (np.abs(values[true]).max(1) > 1e-6).all()


@pytest.mark.parametrize("scorer", ["exact", "eap-ig", "eap"])
def test_the_pruner_returns_exactly_the_true_edges(
    made: Program, model: circuits.Model, true: np.ndarray, scorer: str
) -> None:
    experiment = model.experiment(made.pairs(16))
    scores = score(experiment, scorer)
    chosen = minimal(experiment, scores, target=0.999)
    assert [str(edge) for edge in model.graph.edges(chosen.edges)] == [
        str(edge) for edge in model.graph.edges(np.flatnonzero(true))
    ]
    assert chosen.faithfulness == pytest.approx(1)
    expected = {"exact": 1.0, "eap": AUROC[made.name][0], "eap-ig": AUROC[made.name][1]}[scorer]
    assert auroc(scores.values, true) == pytest.approx(expected, abs=1e-3)


def test_learned_masks_keep_the_true_edges_open_also_where_gradients_miss_them(
    made: Program, model: circuits.Model, true: np.ndarray
) -> None:
    values = score(model.experiment(made.pairs(16)), "learned-masks").values
    assert ((values != 0) & (np.abs(values) < 1)).all()
    assert auroc(values, true) == pytest.approx(LEARNED[made.name], abs=1e-3)
    assert LEARNED[made.name] >= AUROC[made.name][1]


def test_recursive_elimination_drops_the_true_edges_last_but_those_without_slope(
    made: Program, model: circuits.Model, true: np.ndarray
) -> None:
    values = score(model.experiment(made.pairs(16)), "recursive-elimination").values
    assert (auroc(values, true) == pytest.approx(1)) is (made.name not in SATURATED)
