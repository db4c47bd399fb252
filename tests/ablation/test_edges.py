"""Edges are ablated exactly where a corrupted value exists for them to carry: at the first token of pairs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from circuits.ablation.edges import measure_edge_ablation
from circuits.graph import Edge
from circuits.patching.measurement import Options, Resources
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Metric
from tests.ablation.conftest import circuit_of, pairs_of, planted_model, tiny_model

PAIRS = pairs_of()


def test_ablating_one_edge_costs_its_exact_effect() -> None:
    model = tiny_model()
    edge = model.graph.index(Edge.parse("a0.h1->a2.h3<q>"))
    found = measure_edge_ablation(model, np.array([edge]), PAIRS, draws=0).quantities[0]
    effect = model.experiment(PAIRS).edge_effects(np.array([edge])).mean()
    assert found.before.value - found.after.value == pytest.approx(effect, abs=1e-4)
    assert abs(effect) > 1e-3


def test_edges_are_ablated_in_no_more_rows_at_once_than_resources_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run, rows = tiny_model(), Tracer.run, list[int]()

    def counted(self: Tracer, ids: Tensor, *more: Any, **options: Any) -> None:
        rows.append(len(ids))
        run(self, ids, *more, **options)

    def after(resources: Resources | None) -> float:
        return measure_edge_ablation(model, [0], PAIRS, draws=0, resources=resources).quantities[0].after.value

    monkeypatch.setattr(Tracer, "run", counted)
    singly = after(Resources(batch_size=1))
    assert set(rows) == {1}
    assert singly == pytest.approx(after(None), abs=1e-5)
    assert max(rows) > 1


def test_ablating_all_edges_gives_the_corrupted_run() -> None:
    model = tiny_model()
    report = measure_edge_ablation(model, np.arange(model.graph.n_edges), PAIRS, draws=1, metric=Metric.LOG_ODDS)
    (found,) = report.quantities
    experiment = model.experiment(PAIRS, Options(Metric.LOG_ODDS))
    assert found.before.value == pytest.approx(experiment.clean.mean(), abs=1e-4)
    assert found.after.value == pytest.approx(experiment.corrupted.mean(), abs=1e-4)
    assert found.random == pytest.approx((found.after.value,), abs=1e-4)  # there are no other edges
    assert found.beyond_random is False
    assert "1 random circuits with other heads of the same layers make 100% of this" in report.describe()
    assert "most of it is not particular to this circuit" in report.describe()
    few = replace(report, quantities=(replace(found, random=(found.before.value,)),))
    assert "make 0% of this change (median)." in few.describe()


def test_a_constant_that_makes_the_answer_is_the_same_in_the_corrupted_run() -> None:
    """A negative control: the planted head writes the same for every prompt, so corrupting it takes nothing away."""
    model = planted_model()
    circuit = circuit_of(model, ["input->a1.kv1<v>", "a1.h2->logits"])
    report = measure_edge_ablation(model, circuit.edges, PAIRS, draws=2)
    share = next(quantity for quantity in report.quantities if quantity.unit == "share")
    assert (share.before.value, share.after.value) == (1.0, 1.0)
    assert report.to_dict()["edges"] == 2
