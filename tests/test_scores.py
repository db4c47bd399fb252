"""Scores as values: which edges are scored, their ranking, and the rows of scores.csv."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.builder import build_graph
from circuits.errors import UsageError
from circuits.graph import Edge, ModelShape
from circuits.scores import EdgeScores
from tests.toy import PENCIL_SHAPE, ToyExperiment

GRAPH = build_graph(PENCIL_SHAPE)
NAN = math.nan
VALUES = [0.0, NAN, -5.0, 2.0, 2.0, NAN, 5.0, -2.0]


def scores(values: list[float] = VALUES, **options: object) -> EdgeScores:
    return EdgeScores(GRAPH, np.array(values), "exact", True, **options)


def test_edges_without_a_number_are_not_scored() -> None:
    assert scores().scored.tolist() == [0, 2, 3, 4, 6, 7]


def test_a_score_of_zero_is_a_score() -> None:
    assert scores([0.0] * 8).scored.tolist() == list(range(8))


def test_the_interval_of_a_score_is_that_of_the_mean_over_pairs() -> None:
    values = np.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    measured = EdgeScores(
        GRAPH, np.r_[values.mean(1), [NAN] * 6], "exact", True, sd=np.r_[values.std(1, ddof=1), [NAN] * 6], n=4
    )
    found = measured.intervals(np.array([0, 1, 2]))
    assert found is not None
    reach = 1.96 * np.std([1.0, 2.0, 3.0, 6.0], ddof=1) / 2
    np.testing.assert_allclose(found[0], [3 - reach, 3 + reach])
    assert found[1].tolist() == [0.0, 0.0]
    assert np.isnan(found[2]).all()
    assert scores().intervals(np.array([0])) is None
    some = replace(measured, measured_edges=np.array([False, True] + [False] * 6))
    assert np.isnan(some.intervals(np.array([0, 1]))).any(1).tolist() == [True, False]  # type: ignore[arg-type]


def test_ranking_is_from_the_highest_score_down_with_ties_in_graph_order() -> None:
    assert scores().ranked().tolist() == [6, 3, 4, 0, 7, 2]


def test_ranking_by_magnitude_ignores_the_sign_and_keeps_ties_in_graph_order() -> None:
    assert scores().ranked(by_magnitude=True).tolist() == [2, 6, 3, 4, 7, 0]


@given(values=st.lists(st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1.0, NAN])), min_size=8, max_size=8))
def test_a_ranking_holds_every_scored_edge_once_and_never_rises(values: list[float]) -> None:
    for by_magnitude in (False, True):
        found = scores(values)
        ranked = found.ranked(by_magnitude=by_magnitude)
        key = np.abs(found.values[ranked]) if by_magnitude else found.values[ranked]
        assert sorted(ranked.tolist()) == found.scored.tolist()
        assert np.all(np.diff(key) <= 0)
        assert all(a < b for a, b, tie in zip(ranked, ranked[1:], np.diff(key) == 0, strict=False) if tie)


def test_the_ranking_of_the_pencil_toy_is_the_one_done_by_hand() -> None:
    effects = ToyExperiment().edge_effects(np.arange(8)).mean(1)
    best = [str(edge) for edge in GRAPH.edges(scores(effects.tolist()).ranked()[:3])]
    assert best == ["m0->logits", "input->a0.h0<v>", "a0.h0->m0"]


def test_one_row_per_scored_edge_in_graph_order() -> None:
    rows = list(scores().rows())
    assert [row["edge"] for row in rows] == [str(edge) for edge in GRAPH.edges([0, 2, 3, 4, 6, 7])]
    assert rows[1] == {
        "edge": "input->a0.h0<v>",
        "sender": "input",
        "receiver": "a0.h0",
        "slot": "v",
        "score": -5.0,
        "measured": True,
    }
    assert rows[-1]["slot"] == ""


def test_only_the_rows_asked_for_in_graph_order_whatever_order_they_were_asked_in() -> None:
    assert [row["edge"] for row in scores().rows(np.array([6, 2]))] == ["input->a0.h0<v>", "a0.h0->logits"]


def test_a_row_asked_for_but_not_scored_says_so() -> None:
    (row,) = scores().rows(np.array([1]))
    assert math.isnan(float(row["score"]))


def test_spread_and_number_of_pairs_are_in_the_rows_only_where_known() -> None:
    with_spread = list(scores(sd=np.arange(8.0), n=4).rows(np.array([2])))
    assert (with_spread[0]["sd"], with_spread[0]["n"]) == (2.0, 4)
    assert "sd" not in next(iter(scores().rows()))


def test_rows_under_grouped_queries_name_the_group() -> None:
    graph = build_graph(ModelShape(11, 12, 2, 8, 2))
    index = graph.index(Edge.parse("a9.h11->a10.kv1<k>"))
    found = EdgeScores(graph, np.zeros(graph.n_edges), "eap", False)
    (row,) = found.rows(np.array([index]))
    assert (row["sender"], row["receiver"], row["slot"], row["measured"]) == ("a9.h11", "a10.kv1", "k", False)


@pytest.mark.parametrize("field", ["values", "sd"])
def test_one_number_per_edge_is_required(field: str) -> None:
    arrays = {"values": np.zeros(8), "sd": np.zeros(8)} | {field: np.zeros(7)}
    with pytest.raises(UsageError, match=r"one score for each of 8 edges, got shape \(7,\)"):
        EdgeScores(GRAPH, scorer="eap", measured=False, **arrays)


def test_scores_cannot_be_changed() -> None:
    found = scores(sd=np.zeros(8))
    for array in (found.values, found.sd):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_making_scores_leaves_the_callers_array_as_it_was() -> None:
    values = np.zeros(8)
    found = EdgeScores(GRAPH, values, "eap", False)
    values[0] = 1.0
    assert found.values[0] == 0.0
