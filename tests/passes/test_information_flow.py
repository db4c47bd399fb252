"""Information flow against its formula, edge by edge, on hooks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import circuits
from circuits.builder import build_graph
from circuits.errors import UsageError
from circuits.graph import NodeKind, Slot
from circuits.passes.information_flow import InformationFlow
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.vocabulary import Ablation, Metric, ScorerName
from tests.reference.anatomy import anatomy_of
from tests.reference.hooks import sender_values
from tests.reference.precision import in_float64
from tests.subjects import PAIRS, Subject, clean_ids, random_pairs, subject_of
from tests.zoo import ZOO

SEVERAL = ("llama", "gpt2", "gemma2", "olmo2", "granite", "gpt_neox", "bloom", "mixtral")
"""Norms and factors after the blocks, parallel blocks, biases, experts."""


def by_position(subject: Subject, ids: Tensor) -> Tensor:
    """The formula, one sender and one receiver at a time: (edge, pair, pos)."""
    anatomy, values = anatomy_of(subject.module), sender_values(subject.module, ids)
    rows: list[Tensor] = []
    for receiver in subject.graph.receivers:
        read = anatomy.stream(receiver, values.__getitem__)
        before = subject.graph.senders[: subject.graph.fan_in[subject.graph.receiver_index[receiver]]]
        proximities = [
            (read.abs().sum(-1) - (read + anatomy.stream_change(values, u, 0 * values[u])).abs().sum(-1)).clamp(min=0)
            for u in before
        ]
        total = torch.stack(proximities).sum(0)
        shares = torch.stack([torch.where(total > 0, each / total, 0) for each in proximities])
        if receiver.node.kind is NodeKind.LOGITS:
            shares[..., :-1] = 0
            shares *= shares.shape[-1]
        rows.append(shares)
    return torch.cat(rows)


@pytest.mark.parametrize("family", SEVERAL)
def test_it_equals_the_formula_edge_by_edge(family: str) -> None:
    subject = Subject(family, in_float64(ZOO[family]()).requires_grad_(False))
    expected = by_position(subject, clean_ids()).mean(-1).numpy()
    mean, spread = subject.experiment().estimates(InformationFlow())
    np.testing.assert_allclose(mean, expected.mean(1), atol=1e-6)
    np.testing.assert_allclose(spread, expected.std(1, ddof=1), atol=1e-6)
    assert expected.mean(1).max() > 0.2


def test_importances_of_one_receiver_sum_to_one_and_those_of_a_layers_slots_are_the_same() -> None:
    subject = subject_of("llama")
    scores, graph = score(subject.experiment(), ScorerName.IFR), subject.graph
    for place, receiver in enumerate(graph.receivers):
        into = scores.values[graph.edge_receivers == place]
        assert into.sum() == pytest.approx(1, abs=1e-5)
        assert into.min() >= 0
        if receiver.slot is Slot.K:
            query = graph.receiver_index[
                replace(receiver, node=replace(receiver.node, kind=NodeKind.HEAD), slot=Slot.Q)
            ]
            np.testing.assert_allclose(into, scores.values[graph.edge_receivers == query], atol=1e-6)
    assert not scores.measured


def test_neither_the_prefix_nor_batches_nor_what_is_measured_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, subject = (*random_pairs(3, 6), *random_pairs(3, 8)), subject_of("gpt2")
    whole = subject.experiment(pairs, prefix_cache=False).estimates(InformationFlow())
    assert subject.experiment(pairs).prefix_cache.on
    for changes in ({}, {"batch_size": 2}, {"metric": Metric.KL}, {"ablation": Ablation.ZERO}):
        found = subject.experiment(pairs, **changes).estimates(InformationFlow())
        np.testing.assert_allclose(found, whole, atol=1e-5)
    monkeypatch.setattr("circuits.passes.information_flow._AT_ONCE", 1)
    np.testing.assert_allclose(subject.experiment(pairs).estimates(InformationFlow()), whole, atol=1e-5)
    assert np.abs(whole[0] - subject.experiment(pairs[:3]).estimates(InformationFlow())[0]).max() > 0.01


def test_edges_by_role_are_the_parts_of_an_edge_at_the_roles_positions() -> None:
    subject, names = subject_of("llama"), ("begin", "rest")
    pairs = tuple(replace(pair, roles={"begin": (0, 1, 2), "rest": tuple(range(3, pair.length))}) for pair in PAIRS)
    graph = build_graph(replace(subject.graph.shape, roles=names))
    found = PatchingExperiment(subject.tracer, graph, pairs, Options()).estimates(InformationFlow())[0]
    expected = by_position(subject, clean_ids()).mean(1)
    for edge, value in zip(graph.edges(), found, strict=True):
        positions = slice(0, 3) if edge.receiver.role == "begin" else slice(3, None)
        whole = subject.graph.index(replace(edge, receiver=replace(edge.receiver, role="")))
        assert value == pytest.approx(float(expected[whole, positions].sum()) / 7, abs=1e-5)


def test_of_answers_of_several_tokens_it_is_the_mean_over_rows(tiny_folder: object) -> None:
    pair = replace(PAIRS[0], sequences=((3, 4), (5,)), wrong_sequences=((6, 7),))
    model = circuits.load_model(tiny_folder)  # type: ignore[arg-type]
    values = score(model.experiment([pair, pair], Options(metric=Metric.SEQUENCE)), ScorerName.IFR).values
    into = [values[model.graph.edge_receivers == place].sum() for place in range(len(model.graph.receivers))]
    np.testing.assert_allclose(into, 1, atol=1e-5)


def test_nothing_is_frozen_in_it() -> None:
    with pytest.raises(UsageError, match="the scorer ifr takes no gradients"):
        score(subject_of("llama").experiment(), ScorerName.IFR, Settings(freeze_norms=True))
