"""Circuits that lead to what one head writes to the stream, against the whole model with plain hooks.

The slow reference runs the whole model: every receiver reads what it would in the circuit, and the head's value is
what it sends in that run, or in the corrupted one where its own edge is not live.
"""

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.behaviours.pairs import TokenPair
from circuits.circuit import Circuit
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import UnknownNameError, UnsupportedModelError, UsageError
from circuits.evaluation.random_circuits import heads_swapped
from circuits.graph import Edge, Node, NodeKind, Receiver
from circuits.model import Model, load_model
from circuits.numbering import idle_edges
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.records import BehaviourInfo, Method
from circuits.scoring.scorers import score
from circuits.tracing.plan import Plan
from circuits.vocabulary import Direction, Metric, ScorerName
from tests.directions.zoo_models import anatomy, model
from tests.reference.hooks import last_logits, rewired, sender_values
from tests.subjects import random_masks, random_pairs, relative, sorted_settings
from tests.tiny import tiny_tokenizer
from tests.zoo import ZOO

HEAD = Node(NodeKind.HEAD, 1, 3)
PAIRS, REFERENCE = random_pairs(3, 7), random_pairs(4, 7, seed=21)
PROJECTION = Options(Metric.PROJECTION)
SEVERAL = ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "granite", "falcon", "bloom", "opt")
"""Grouped queries (llama, gemma2), biases, parallel blocks (gpt_neox, falcon), norms after attention, a factor."""


def direction(family: str) -> StreamDirection:
    return StreamDirection(np.random.default_rng(0).normal(size=model(family).info.d_model), 2)


def ids(side: str, pairs: object = PAIRS) -> Tensor:
    return torch.tensor([getattr(pair, side) for pair in pairs])


def sent(family: str, side: str, pairs: object = PAIRS) -> dict[Node, Tensor]:
    with torch.no_grad():
        return sender_values(model(family).tracer.anatomy.module, ids(side, pairs))


def length(family: str, value: Tensor, vector: np.ndarray | None = None) -> np.ndarray:
    return value[:, -1].double().numpy() @ (direction(family).vector if vector is None else vector)


@cache
def target(family: str, place: str = "a1.h3") -> Model:
    return leading_to(model(family), place, along=direction(family))


def measured(family: str, **settings: object) -> PatchingExperiment:
    options, resources = sorted_settings({"metric": Metric.PROJECTION, **settings})
    found = target(family).experiment(PAIRS, options, resources=resources)
    assert isinstance(found, PatchingExperiment)
    return found


@torch.no_grad()
def slow_circuit(family: str, live: Collection[Edge]) -> np.ndarray:
    module, found = model(family).tracer.anatomy.module, anatomy(family)
    base, current, alive = sent(family, "corrupted"), dict[Node, Tensor](), frozenset(live)

    def read(receiver: Receiver, _: Tensor) -> Tensor:
        return found.stream(receiver, lambda u: current[u] if Edge(u, receiver) in alive else base[u])

    with rewired(found, read, current.update):
        last_logits(module, ids("clean"))
    own = Edge(HEAD, Receiver(Node(NodeKind.MIDDLE, HEAD.layer))) in alive
    return length(family, (current if own else base)[HEAD])


@torch.no_grad()
def slow_effect(family: str, edge: Edge) -> np.ndarray:
    module, found = model(family).tracer.anatomy.module, anatomy(family)
    clean, corrupted = sent(family, "clean"), sent(family, "corrupted")
    if edge.receiver.node.kind is NodeKind.MIDDLE:
        other = corrupted if edge.sender == HEAD else clean
        return length(family, clean[HEAD]) - length(family, other[HEAD])
    change, current = found.stream_change(clean, edge.sender, corrupted[edge.sender]), dict[Node, Tensor]()

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        return stream + change if receiver == edge.receiver else stream

    with rewired(found, read, current.update):
        last_logits(module, ids("clean"))
    return length(family, clean[HEAD]) - length(family, current[HEAD])


@pytest.mark.parametrize("family", SEVERAL)
def test_values_circuits_and_edges_towards_a_heads_output_equal_the_whole_model_with_hooks(family: str) -> None:
    found = measured(family)
    for side, values in (("clean", found.clean), ("corrupted", found.corrupted)):
        assert relative(values, length(family, sent(family, side)[HEAD]), at_least=0.05) < 1e-3
    every = list(found.graph.edges())
    masks = np.array(random_masks(found.graph.n_edges, (0.3, 0.8, 0.95)))
    masks[1:, found.graph.index(Edge(HEAD, Receiver(found.graph.shape.end)))] = True
    slow = [slow_circuit(family, {every[i] for i in np.flatnonzero(mask)}) for mask in masks]
    assert relative(found.circuits(masks), np.array(slow), at_least=0.05) < 2e-3
    into = [i for i, edge in enumerate(every) if edge.receiver.node in (HEAD, found.graph.shape.group_of(HEAD))]
    edges = np.unique([*range(0, found.graph.n_edges, 13), *into, *range(found.graph.n_edges - 9, found.graph.n_edges)])
    exact = np.array([slow_effect(family, every[i]) for i in edges])
    assert np.abs(exact).max() > 1e-3
    assert relative(found.edge_effects(edges), exact, at_least=0.01) < 3e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_gradients_towards_a_heads_output_are_slopes_and_idle_edges_have_none(family: str) -> None:
    near = load_model(ZOO[family](), tokenizer=tiny_tokenizer(), name="near")
    half = 160
    with torch.no_grad():
        table = near.tracer.anatomy.module.get_input_embeddings().weight
        table[half:] = table[:half] + 1e-2 * table[half:]
    prompts = [pair.clean for pair in random_pairs(3, 6, below=half)]
    pairs = [TokenPair(p, (*p[:2], *(t + half for t in p[2:])), (3,), (5,), "", "") for p in prompts]
    found = leading_to(near, "a1.h3", along=direction(family)).experiment(pairs, PROJECTION)
    idle = idle_edges(found.graph)
    every = np.arange(found.graph.n_edges)
    exact, estimated = found.edge_effects(every).mean(1), found.attributions((1.0,))[0]
    assert relative(estimated, exact, at_least=1e-5) < 0.08
    assert relative(-estimated, exact, at_least=1e-5) > 1
    slopes = found.circuit_gradient(np.full(found.graph.n_edges, 0.5))[1]
    for values in (exact, estimated, slopes):
        assert not np.any(values[..., idle])
        assert np.any(values[..., ~idle])
    apart = measured(family)
    base, step, slopes = np.full(len(every), 0.5), 1e-2, apart.circuit_gradient(np.full(len(every), 0.5))[1]
    for edge in np.flatnonzero(~idle)[:: max(1, int((~idle).sum()) // 6)]:
        up, down = base.copy(), base.copy()
        up[edge], down[edge] = 0.5 + step, 0.5 - step
        slope = (apart.circuit_gradient(up)[0] - apart.circuit_gradient(down)[0]) / (2 * step)
        np.testing.assert_allclose(slopes[:, edge], slope, rtol=0.02, atol=2e-3 * np.abs(slopes).max())


def test_idle_edges_are_those_beside_the_head_and_no_path_misses_it() -> None:
    graph = target("llama").graph
    idle = idle_edges(graph)
    assert idle_edges(model("llama").graph) is None
    assert [str(edge) for edge in graph.edges(np.flatnonzero(~idle)) if edge.receiver.node.kind.is_end] == [
        "a1.h3->mid1"
    ]
    last = {str(edge.receiver) for edge in graph.edges(np.flatnonzero(~idle)) if edge.receiver.node.layer == 1}
    assert last == {"a1.h3<q>", "a1.kv1<k>", "a1.kv1<v>", "mid1"}
    found = measured("llama")
    assert np.allclose(found.circuits([~idle])[0], found.clean, rtol=1e-4)
    assert np.allclose(found.circuits([idle])[0], found.corrupted, rtol=1e-4)
    swapped = heads_swapped(graph, np.flatnonzero(~idle), 3)
    assert swapped[graph.index(Edge.parse("a1.h3->mid1"))]


def test_parallel_and_sequential_graphs_have_as_many_edges_as_their_shapes_say() -> None:
    for family in ("llama", "gpt_neox"):
        graph = target(family).graph
        assert graph.n_edges == graph.shape.n_edges == sum(graph.fan_in)
        assert str(graph.shape.end) == "mid1"


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_without_a_direction_it_is_read_along_the_difference_of_its_own_means(family: str) -> None:
    cut = leading_to(model(family), "a1.h3")
    found = cut.experiment(PAIRS, PROJECTION, reference=REFERENCE)
    means = [sent(family, side, REFERENCE)[HEAD][:, -1].double().numpy().mean(0) for side in ("clean", "corrupted")]
    vector = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
    for side, values in (("clean", found.clean), ("corrupted", found.corrupted)):
        assert relative(values, length(family, sent(family, side)[HEAD], vector), at_least=0.05) < 1e-3
    with pytest.raises(UsageError, match="there are none"):
        cut.experiment(PAIRS, PROJECTION)


@pytest.mark.parametrize("scorer", [ScorerName.EAP_IG, ScorerName.CONDUCTANCE, ScorerName.RELP, ScorerName.EXACT])
def test_scorers_give_idle_edges_nothing(scorer: ScorerName) -> None:
    values = score(measured("llama"), scorer).values
    idle = idle_edges(target("llama").graph)
    assert np.abs(values[~idle]).max() > 0
    assert not np.any(values[idle])


def test_flow_to_one_head_alone_is_not_told() -> None:
    with pytest.raises(UnsupportedModelError, match="what one head writes"):
        score(measured("llama"), ScorerName.IFR)


def test_the_prefix_cache_the_other_direction_and_other_tokens_work_as_elsewhere() -> None:
    edges = np.arange(0, target("llama").graph.n_edges, 7)
    plain, cached = measured("llama", prefix_cache=False), measured("llama")
    assert cached.prefix_cache.on
    assert relative(plain.edge_effects(edges), cached.edge_effects(edges), at_least=0.01) < 1e-3
    other = measured("llama", direction=Direction.DENOISING)
    assert not np.allclose(other.edge_effects(edges), plain.edge_effects(edges))
    earlier = target("llama", "a1.h3:-3").experiment(PAIRS, PROJECTION)
    shorter = [replace(pair, clean=pair.clean[:5], corrupted=pair.corrupted[:5]) for pair in PAIRS]
    np.testing.assert_allclose(earlier.clean, target("llama").experiment(shorter, PROJECTION).clean, rtol=1e-4)


def test_a_head_of_the_first_layer_reads_the_embedding() -> None:
    found = target("llama", "a0.h2").experiment(PAIRS, PROJECTION)
    expected = length("llama", sent("llama", "clean")[Node(NodeKind.HEAD, 0, 2)])
    assert relative(found.clean, expected, at_least=0.05) < 1e-3
    assert np.abs(found.edge_effects(["input->a0.h2<q>", "input->a0.kv1<v>"])).max() > 0


def test_circuits_remember_the_head_and_the_direction() -> None:
    info = target("llama").info
    facts = BehaviourInfo("mine", "projection", "length"), Method("exact", "top")
    circuit = Circuit(info, *facts, np.array([0]), np.ones(1))
    again = Circuit.from_document(circuit.to_document())
    assert again == circuit
    assert str(again.model.target) == "a1.h3:last"
    assert again.model.target.digest
    assert again.graph.shape.only == 3


def test_heads_that_are_not_there_are_refused_with_the_closest() -> None:
    whole = model("llama")
    with pytest.raises(UnknownNameError, match=r"a1\.h7"):
        leading_to(whole, "a1.h7")
    with pytest.raises(UnknownNameError, match=r"'a9\.h1'\. Closest: 'a2\.h1'"):
        leading_to(whole, "a9.h1")
    with pytest.raises(UsageError, match=r"which input of its heads.*'a1\.kv1<q>'"):
        leading_to(whole, "a1.kv1")
    with pytest.raises(UsageError, match="has 7 numbers"):
        leading_to(whole, "a1.h3", along=StreamDirection(np.ones(7), 1))


def test_a_copy_of_the_model_reads_the_same_head() -> None:
    again = deepcopy(target("llama").tracer)
    prompts, logits = ids("clean"), list[Tensor]()
    again.run(prompts, Plan(logits=logits.append))
    np.testing.assert_allclose(logits[0][:, 0].double(), measured("llama").clean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        again.plain_logits(prompts)[:, 0].double(), measured("llama").clean, rtol=1e-4, atol=1e-6
    )
