"""Exchanging a component of the stream, against plain hooks on the whole model."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.directions.component import AllBut, Along, Part, Place, part_effects, reader_effects, whole
from circuits.errors import UnknownNameError
from circuits.graph import Edge, Node, Receiver
from circuits.patching.experiment import PatchingExperiment
from circuits.vocabulary import Direction
from tests.directions.test_target import PAIRS, anatomy, direction, ids, model, plain_stream
from tests.reference.hooks import hooked, last_logits, rewired, sender_values
from tests.subjects import relative

SEVERAL = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "falcon")
NAME = "in a test"


def experiment(family: str) -> PatchingExperiment:
    found = model(family).experiment(PAIRS)
    assert isinstance(found, PatchingExperiment)
    return found


def difference_of_logits(logits: Tensor) -> np.ndarray:
    def value(row: Tensor, tokens: tuple[int, ...]) -> float:
        return float(row[list(tokens)].logsumexp(0))

    rows = zip(logits.double(), PAIRS, strict=True)
    return np.array([value(row, pair.answers) - value(row, pair.wrong_answers) for row, pair in rows])


def unit(family: str) -> np.ndarray:
    return direction(family, 1).vector


def slow_part(family: str, layer: int, current: str, other: str, part: Callable[[Tensor], Tensor]) -> np.ndarray:
    """What the metric rises by when the last token's stream in front of a layer takes a part of the other run's."""
    found, difference = anatomy(family), plain_stream(family, other, layer) - plain_stream(family, current, layer)

    def change(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        stream = args[0].clone()
        stream[:, -1] += part(difference[:, -1])
        return (stream, *args[1:])

    module = model(family).tracer.anatomy.module
    place = found.final_norm if layer == found.shape.n_layers else found.blocks[layer]
    with torch.no_grad(), hooked() as handles:
        before = difference_of_logits(last_logits(module, ids(current)))
        handles.append(place.register_forward_pre_hook(change))
        return difference_of_logits(last_logits(module, ids(current))) - before


@pytest.mark.parametrize("family", SEVERAL)
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_exchanging_a_part_of_the_stream_equals_a_plain_hook(family: str, layer: int) -> None:
    vector = torch.tensor(unit(family).tolist())
    along: Callable[[Tensor], Tensor] = lambda each: (each @ vector)[:, None] * vector  # noqa: E731
    parts: list[tuple[Part, Callable[[Tensor], Tensor]]] = [
        (Along(unit(family)), along),
        (whole, lambda each: each),
        (AllBut(unit(family)), lambda each: each - along(each)),
    ]
    found = experiment(family)
    for part, slow in parts:
        enough = part_effects(found, Place(layer), part, Direction.DENOISING, name=NAME)
        assert relative(enough, slow_part(family, layer, "corrupted", "clean", slow), at_least=0.01) < 1e-3
        needed = part_effects(found, Place(layer), part, Direction.NOISING, name=NAME)
        assert relative(needed, -slow_part(family, layer, "clean", "corrupted", slow), at_least=0.01) < 1e-3


def test_a_component_along_another_vector_has_the_first_ones_length() -> None:
    first, second = (each / np.linalg.norm(each) for each in np.random.default_rng(0).normal(size=(2, 5)))
    difference = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], dtype=torch.float64)
    moved = Along(first, second)(difference)[0].numpy()
    assert np.linalg.norm(moved) == pytest.approx(abs(float(difference[0].numpy() @ first)))
    np.testing.assert_allclose(np.cross(moved[:3], second[:3]), 0, atol=1e-12)


@pytest.mark.parametrize("family", SEVERAL)
def test_a_single_reader_of_the_component_equals_a_rewired_run(family: str) -> None:
    found, place = experiment(family), Place(1)
    edges = place.readers(found.graph)
    assert {found.graph.edge(int(edge)).receiver.node.layer for edge in edges} == {1, 2, -1}
    fast = reader_effects(found, place, Along(unit(family)), edges, Direction.NOISING, name=NAME)
    vector = torch.tensor(unit(family).tolist())
    streams = [plain_stream(family, side, 1)[:, -1] for side in ("clean", "corrupted")]
    change = torch.zeros_like(plain_stream(family, "clean", 1))
    change[:, -1] = ((streams[1] - streams[0]) @ vector)[:, None] * vector
    rows, slow = range(0, len(edges), 3), list[np.ndarray]()
    for row in rows:
        only = found.graph.edge(int(edges[row])).receiver

        def read(receiver: Receiver, stream: Tensor, only: Receiver = only) -> Tensor:
            return stream + change if receiver == only else stream

        with torch.no_grad(), rewired(anatomy(family), read):
            logits = last_logits(model(family).tracer.anatomy.module, ids("clean"))
        slow.append(found.clean - difference_of_logits(logits))
    assert relative(fast[list(rows)], np.array(slow), at_least=0.05) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_a_path_behind_a_reader_carries_what_that_node_sends_when_the_component_is_exchanged(family: str) -> None:
    found, place = experiment(family), Place(1)
    node = next(node for node in found.graph.senders if node.layer == 1 and str(node).startswith("m"))
    edge = Edge(node, Receiver(found.graph.shape.end))
    (fast,) = reader_effects(found, place, whole, place.indices(found.graph, [edge]), Direction.NOISING, name=NAME)
    module, read_by = model(family).tracer.anatomy.module, anatomy(family)
    before = sender_values(module, ids("clean"))[node]
    streams = [plain_stream(family, side, 1) for side in ("clean", "corrupted")]

    def change(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        stream = args[0].clone()
        stream[:, -1] = streams[1][:, -1]
        return (stream, *args[1:])

    with torch.no_grad(), hooked() as handles:
        handles.append(read_by.blocks[1].register_forward_pre_hook(change))
        after = sender_values(module, ids("clean"))[node]

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        return stream + after - before if receiver == edge.receiver else stream

    with torch.no_grad(), rewired(read_by, read):
        slow = difference_of_logits(last_logits(module, ids("clean")))
    assert relative(fast, found.clean - slow, at_least=0.01) < 1e-3


def test_behind_a_place_only_later_nodes_send() -> None:
    graph, place = model("llama").graph, Place(1)
    with pytest.raises(UnknownNameError, match=r"no sender behind the direction 'a0\.h0'"):
        place.indices(graph, [Edge.parse("a0.h0->logits")])
    (found,) = place.indices(graph, [Edge.parse("resid1->m2")])
    assert graph.edge(int(found)) == Edge(Node.parse("input"), Receiver(Node.parse("m2")))


def test_a_token_that_all_prompts_share_carries_nothing() -> None:
    found = experiment("llama")
    assert not part_effects(found, Place(1, -7), whole, Direction.NOISING, name=NAME).any()
