"""Gradients of several backward passes at once give what each alone gives, for one expansion of the senders."""

from dataclasses import replace

import pytest
import torch

from circuits.numbering import edges_into, edges_into_layer, end_receiver, last_receiver
from circuits.passes import attribution
from circuits.passes.atp_star import AtpStar
from circuits.passes.attribution import attribute, attribute_each
from circuits.passes.gradients import gradients_with_drops
from circuits.tracing.runs import difference
from tests.subjects import Subject, subject_of
from tests.zoo import ZOO


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_several_gradients_at_once_are_each_one_alone(family: str, tile: int | None) -> None:
    subject = Subject(family, ZOO[family]().requires_grad_(False))
    experiment = subject.experiment()
    given = experiment.given(experiment.batches[0])
    change, seen = difference(given.clean, given.base), 0
    for found in gradients_with_drops(subject.tracer, given.clean, given.loss):
        several = [found.plain, *found.dropped]
        into = edges_into_layer(subject.graph, found.layer)
        together = attribute_each(subject.tracer, subject.graph, change, several, into=into, tile=tile)
        assert together.shape == (len(several), len(given.clean.ids), into.stop - into.start)
        for ours, gradients in zip(together, several, strict=True):
            alone = attribute(subject.tracer, subject.graph, change, gradients)
            outside = alone.clone()
            outside[:, into] = 0
            torch.testing.assert_close(ours, alone[:, into])
            assert alone[:, into].any()
            assert not outside.any()
        seen += into.stop - into.start
    assert seen == subject.graph.n_edges


def test_a_layers_edges_are_those_into_its_receivers() -> None:
    graph = subject_of("llama").graph
    parts = [edges_into_layer(graph, layer) for layer in range(graph.shape.n_layers + 1)]
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1] == edges_into(graph, end_receiver(graph))
    for layer, part in enumerate(parts[:-1]):
        assert {edge.receiver.node.layer for edge in list(graph.edges())[part]} == {layer}


def test_graddrop_expands_the_senders_of_a_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("llama")
    experiment, expanded = subject.experiment(), list[int]()
    given, usual = experiment.given(experiment.batches[0]), attribution.sender_values

    def counted(anatomy: object, run: object, senders: range) -> torch.Tensor:
        expanded.append(len(senders))
        return usual(anatomy, run, senders)  # type: ignore[arg-type]

    monkeypatch.setattr(attribution, "sender_values", counted)
    AtpStar()(replace(given, tile=None))
    graph, shape = subject.graph, subject.graph.shape
    fan_ins = [graph.fan_in[last_receiver(shape, layer)] for layer in range(shape.n_layers)]
    assert expanded == [len(graph.senders), *reversed(fan_ins)]
