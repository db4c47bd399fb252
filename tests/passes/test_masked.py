"""Which senders a circuit needs computed, from where circuits differ, and that neither changes a number."""

import numpy as np
import pytest
import torch

from circuits.builder import build_graph
from circuits.graph import ComputationalGraph, Edge, ModelShape
from circuits.passes import masked
from circuits.passes.masked import first_difference, needed_senders, run_masked
from circuits.tracing.plan import Plan
from circuits.tracing.replacements import zero_run
from circuits.tracing.runs import record
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Metric
from tests.subjects import Subject, clean_ids, corrupted_ids, random_masks
from tests.toy import planted_edges

GRAPH = build_graph(ModelShape(n_layers=3, n_heads=2, n_kv_heads=1, d_model=8, d_head=4))
PLAIN = build_graph(ModelShape(n_layers=2, n_heads=2, n_kv_heads=2, d_model=8, d_head=4))


def mask_of(graph: ComputationalGraph, *edges: str) -> np.ndarray:
    mask = np.zeros(graph.n_edges, dtype=np.bool_)
    mask[[graph.index(Edge.parse(edge)) for edge in edges]] = True
    return mask


def needed(graph: ComputationalGraph, *edges: str, origins: tuple[int, ...] = (0,), recorded: bool = True) -> list[str]:
    found = needed_senders(graph, mask_of(graph, *edges), origins, recorded=recorded)
    return [str(graph.senders[i]) for i in found]


# --------------------------------------------------------------------------------------------- by hand: who is needed


def test_only_senders_on_a_path_from_an_origin_to_the_logits_are_needed() -> None:
    path = ("input->a0.h1<q>", "a0.h1->m1", "m1->logits")
    assert needed(GRAPH, *path) == ["input", "a0.h1", "m1"]
    assert needed(GRAPH, *path, "input->a2.h0<q>") == ["input", "a0.h1", "m1"]  # leads nowhere
    assert needed(GRAPH, *path, "m0->logits") == ["input", "a0.h1", "m1"]  # comes from nowhere
    assert needed(GRAPH, *path[:2]) == []
    assert needed(GRAPH, *path[1:]) == []
    assert needed(GRAPH) == []
    assert needed(GRAPH, "input->logits") == ["input"]


def test_a_key_of_a_group_reaches_each_of_its_heads() -> None:
    assert needed(GRAPH, "input->a0.kv0<k>", "a0.h0->logits", "a0.h1->logits") == ["input", "a0.h0", "a0.h1"]
    assert needed(GRAPH, "input->a0.kv0<v>", "a0.h1->logits") == ["input", "a0.h1"]
    assert needed(PLAIN, "input->a0.h0<k>", "a0.h0->logits", "a0.h1->logits") == ["input", "a0.h0"]


def test_an_origin_in_the_middle_makes_what_comes_before_it_unneeded() -> None:
    path = ("input->m0", "m0->m1", "m1->logits")
    m0 = GRAPH.sender_index[Edge.parse("m0->logits").sender]
    assert needed(GRAPH, *path, origins=(m0,)) == ["m0", "m1"]


def test_over_a_base_that_is_not_a_run_senders_without_live_inputs_are_needed_too() -> None:
    assert needed(GRAPH, "m0->logits", recorded=False) == ["m0"]
    assert needed(GRAPH, "m0->logits") == []
    assert needed(GRAPH, "a1.h0->m1", recorded=False) == []


# -------------------------------------------------------------------------------------- by hand: the first difference


@pytest.mark.parametrize(
    ("edge", "layer"),
    [
        ("input->a0.h0<q>", 0),
        ("a0.h1->m0", 0),
        ("m0->a1.kv0<v>", 1),
        ("input->m1", 1),
        ("input->a2.kv0<k>", 2),
        ("input->logits", 3),
    ],
)
def test_circuits_differ_from_the_layer_of_the_first_receiver_whose_edges_differ(edge: str, layer: int) -> None:
    common = mask_of(GRAPH, "input->a0.h1<q>", "m0->m1")
    other = common | mask_of(GRAPH, edge, "m2->logits")
    assert first_difference(GRAPH, np.stack([common, common, other])) == layer
    assert first_difference(GRAPH, np.stack([other, common])) == layer


def test_equal_circuits_share_nothing_worth_sharing() -> None:
    mask = mask_of(GRAPH, "input->logits")
    assert first_difference(GRAPH, np.stack([mask, mask])) == 0
    assert first_difference(GRAPH, mask[None]) == 0


# ------------------------------------------------------------------------------------------------ what really is run


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Plan]]:
    """Rows and plan of every run."""
    seen: list[tuple[int, Plan]] = []
    plain = Tracer.run

    def spy(self: Tracer, ids: torch.Tensor, plan: Plan, **options: object) -> None:
        seen.append((len(ids), plan))
        plain(self, ids, plan, **options)

    monkeypatch.setattr(Tracer, "run", spy)
    return seen


def logits_of(subject: Subject, masks: list[np.ndarray], *, zero: bool = False) -> torch.Tensor:
    clean, base = (record(subject.tracer, ids()) for ids in (clean_ids, corrupted_ids))
    base = zero_run(subject.tracer, clean) if zero else base
    changes = {0: clean.stream[0] - base.stream[0]}
    return run_masked(subject.tracer, subject.graph, base, changes, np.stack(masks))


def late_differences(subject: Subject) -> list[np.ndarray]:
    """Dense circuits that agree up to the last layer but one."""
    common = random_masks(subject.graph.n_edges, (0.9,))[0]
    first = subject.graph.offsets[len(subject.graph.receivers) // 3 * 2 + 1]
    masks = [common.copy() for _ in range(3)]
    for i, mask in enumerate(masks):
        mask[first + 5 * i : first + 5 * i + 3] ^= True
    return masks


@pytest.mark.parametrize("zero", [False, True])
def test_sharing_the_layers_before_the_first_difference_changes_no_number(
    double: Subject, zero: bool, plans: list[tuple[int, Plan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = late_differences(double)
    assert first_difference(double.graph, np.stack(masks)) in (1, 2)
    plans.clear()
    shared = logits_of(double, masks, zero=zero)
    pairs = len(clean_ids())
    traced = [rows for rows, plan in plans if plan.visits and not plan.logits]
    assert traced == [pairs, 3 * pairs]  # once for all, then for each
    monkeypatch.setattr(masked, "first_difference", lambda *_: 0)
    torch.testing.assert_close(shared, logits_of(double, masks, zero=zero), atol=1e-9, rtol=0)
    assert float((shared[0] - shared[1]).abs().max()) > 1e-3


def test_each_circuit_of_a_batch_is_measured_as_if_alone(double: Subject) -> None:
    masks = [*late_differences(double), *random_masks(double.graph.n_edges, (0.0, 0.1, 0.6, 1.0))]
    together = logits_of(double, masks)
    alone = torch.cat([logits_of(double, [mask]) for mask in masks])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)


def test_layers_that_a_sparse_circuit_leaves_out_do_not_run(subject: Subject, plans: list[tuple[int, Plan]]) -> None:
    mask = mask_of(subject.graph, "input->m1", "m1->logits")
    logits_of(subject, [mask])
    (plan,) = [plan for _, plan in plans if plan.stop]
    assert (plan.start, set(plan.idle), set(plan.attention), plan.stop[0]) == (1, {0, 2}, {1}, 1)


def test_a_circuit_without_a_path_runs_no_layer(subject: Subject, plans: list[tuple[int, Plan]]) -> None:
    mask = mask_of(subject.graph, "input->m1", "a1.h0->logits")
    found = logits_of(subject, [mask])
    assert not [plan for _, plan in plans if plan.stop]
    torch.testing.assert_close(found[0], subject.logits(corrupted_ids()), atol=2e-5, rtol=1e-5)


def test_sparse_connected_circuits_need_few_senders() -> None:
    mask = np.zeros(GRAPH.n_edges, dtype=np.bool_)
    mask[planted_edges(GRAPH, 9, seed=1)] = True
    ends = {str(GRAPH.senders[i]) for i in GRAPH.edge_senders[np.flatnonzero(mask)]}
    found = {str(GRAPH.senders[i]) for i in needed_senders(GRAPH, mask, (0,))}
    assert ends <= found
    assert len(found) < len(GRAPH.senders)


def test_another_metric_from_the_same_recorded_runs_is_what_its_own_experiment_measures(double: Subject) -> None:
    experiment, masks = double.experiment(), random_masks(double.graph.n_edges, (0.1, 0.6))
    assert experiment.batches.stored[0].columns is not None  # the logit difference reads some tokens only
    for metric in (Metric.KL, Metric.LOG_ODDS):
        other, own = experiment.with_metric(metric), double.experiment(metric=metric)
        np.testing.assert_allclose(other.circuits(masks), own.circuits(masks), atol=1e-9)
        np.testing.assert_allclose(other.corrupted, own.corrupted, atol=1e-9)
        np.testing.assert_allclose(other.clean, own.clean, atol=1e-9)
    assert experiment.metric is Metric.LOGIT_DIFFERENCE
