"""Circuits that lead to a direction of the stream, against the whole model with plain hooks.

The slow reference runs the whole model: what reads the stream at the target's layer is the first query of that layer
(the final norm, behind the last), so an edge into the target is taken there as an edge into that receiver.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from circuits.behaviours.pairs import TokenPair
from circuits.circuit import Circuit
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import GuardError, UnknownNameError, UsageError
from circuits.files.journal import Journal
from circuits.graph import Edge, Node, NodeKind, Receiver, Slot
from circuits.model import Model, load_model
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.patching.paths import Path as EdgePath
from circuits.records import BehaviourInfo, Method, ModelInfo, Target
from circuits.vocabulary import Direction, Metric
from tests.reference.anatomy import Anatomy, anatomy_of
from tests.reference.hooks import LOGITS, hooked, last_logits, rewired, sender_values
from tests.subjects import random_masks, random_pairs, relative, sorted_settings
from tests.tiny import FAMILIES, tiny_tokenizer
from tests.zoo import ZOO

SEVERAL = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "gemma3", "granite", "falcon")
PAIRS = random_pairs(3, 7)
PROJECTION = Options(Metric.PROJECTION)


@cache
def model(family: str) -> Model:
    return load_model(ZOO[family](), tokenizer=tiny_tokenizer(), name=family)


def direction(family: str, layer: int, seed: int = 0) -> StreamDirection:
    width = model(family).info.d_model
    return StreamDirection(np.random.default_rng(seed).normal(size=width), layer)


@cache
def target(family: str, layer: int) -> Model:
    return leading_to(model(family), direction(family, layer))


def measured(family: str, layer: int, pairs: Sequence[TokenPair] = PAIRS, **settings: object) -> PatchingExperiment:
    options, resources = sorted_settings({"metric": Metric.PROJECTION, **settings})
    found = target(family, layer).experiment(pairs, options, resources=resources)
    assert isinstance(found, PatchingExperiment)
    return found


def ids(side: str, pairs: Sequence[TokenPair] = PAIRS) -> Tensor:
    return torch.tensor([getattr(pair, side) for pair in pairs])


def reader(family: str, layer: int) -> Receiver:
    """What reads the stream at a layer in the whole model."""
    whole = layer == model(family).info.n_layers
    return LOGITS if whole else Receiver(Node(NodeKind.HEAD, layer, 0), Slot.Q)


def there(family: str, layer: int, edge: Edge) -> Edge:
    """An edge of the target's graph as one of the whole model's."""
    return Edge(edge.sender, reader(family, layer)) if edge.receiver.node.kind is NodeKind.RESID else edge


def length(family: str, layer: int, stream: Tensor) -> np.ndarray:
    return stream[:, -1].double().numpy() @ direction(family, layer).vector


@cache
def anatomy(family: str) -> Anatomy:
    return anatomy_of(model(family).tracer.anatomy.module)


@torch.no_grad()
def plain_stream(family: str, side: str, layer: int) -> Tensor:
    """The stream entering a layer of the whole model, caught by a plain hook."""
    found, caught = anatomy(family), list[Tensor]()
    place = found.final_norm if layer == found.shape.n_layers else found.blocks[layer]
    with hooked() as handles:
        handles.append(place.register_forward_pre_hook(lambda _, args: caught.append(args[0].clone())))
        last_logits(model(family).tracer.anatomy.module, ids(side))
    return caught[0]


@torch.no_grad()
def slow_circuit(family: str, layer: int, live: Collection[Edge]) -> np.ndarray:
    module = model(family).tracer.anatomy.module
    found, base = anatomy(family), sender_values(module, ids("corrupted"))
    alive, current, caught = frozenset(live), dict[Node, Tensor](), list[Tensor]()
    target_reader = reader(family, layer)

    def read(receiver: Receiver, _: Tensor) -> Tensor:
        stream = found.stream(receiver, lambda u: current[u] if Edge(u, receiver) in alive else base[u])
        if receiver == target_reader:
            caught.append(stream)
        return stream

    with rewired(found, read, current.update):
        last_logits(module, ids("clean"))
    return length(family, layer, caught[0])


@torch.no_grad()
def slow_effect(family: str, layer: int, edge: Edge) -> np.ndarray:
    """Noising: the clean run less the clean run in which one receiver sees another sender's value."""
    module = model(family).tracer.anatomy.module
    found = anatomy(family)
    clean, corrupted = (sender_values(module, ids(side)) for side in ("clean", "corrupted"))
    change = found.stream_change(clean, edge.sender, corrupted[edge.sender])
    untouched = plain_stream(family, "clean", layer)
    if edge.receiver.node.kind is NodeKind.RESID:
        return length(family, layer, untouched) - length(family, layer, untouched + change)

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        return stream + change if receiver == edge.receiver else stream

    with rewired(found, read, layers=(edge.receiver.node.layer,)):
        patched = plain_stream(family, "clean", layer)
    return length(family, layer, untouched) - length(family, layer, patched)


@pytest.mark.parametrize("family", SEVERAL)
def test_values_circuits_and_edges_towards_a_site_equal_the_whole_model_with_plain_hooks(family):
    layer = 2
    found = measured(family, layer)
    for side, values in (("clean", found.clean), ("corrupted", found.corrupted)):
        expected = length(family, layer, plain_stream(family, side, layer))
        assert relative(values, expected, at_least=0.1) < 1e-4
    every = list(found.graph.edges())
    masks = random_masks(found.graph.n_edges, (0.3, 0.8))
    expected = [slow_circuit(family, layer, [there(family, layer, every[i]) for i in np.flatnonzero(m)]) for m in masks]
    assert relative(found.circuits(masks), np.array(expected), at_least=0.1) < 1e-3
    edges = np.unique([*range(0, found.graph.n_edges, 19), *range(found.graph.n_edges - 3, found.graph.n_edges)])
    slow = np.array([slow_effect(family, layer, every[i]) for i in edges])
    assert relative(found.edge_effects(edges), slow, at_least=0.01) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_behind_the_last_layer_the_target_is_what_the_final_norm_reads(family):
    layer = model(family).info.n_layers
    found = measured(family, layer)
    expected = length(family, layer, plain_stream(family, "clean", layer))
    assert relative(found.clean, expected, at_least=0.1) < 1e-4
    edges = np.arange(found.graph.n_edges - 5, found.graph.n_edges)
    slow = np.array([slow_effect(family, layer, edge) for edge in found.graph.edges(edges)])
    assert relative(found.edge_effects(edges), slow, at_least=0.01) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_a_final_norm_the_unembedding_difference_as_direction_gives_the_logit_difference(family):
    module = FAMILIES[family]()
    body = module.get_submodule(module.base_model_prefix)
    setattr(body, "ln_f" if family == "gpt2" else "norm", nn.Identity().eval())
    whole = load_model(module, tokenizer=tiny_tokenizer(), name="normless")
    unembedding = whole.tracer.anatomy.module.get_output_embeddings().weight.double().numpy()
    pairs = [TokenPair(pair.clean, pair.corrupted, (3,), (5,), "", "") for pair in PAIRS]
    difference = unembedding[3] - unembedding[5]
    cut = leading_to(whole, StreamDirection(difference, whole.info.n_layers))
    logits, along = whole.experiment(pairs), cut.experiment(pairs, PROJECTION)
    size = np.linalg.norm(difference)
    assert relative(along.clean * size, logits.clean, at_least=0.1) < 1e-4
    masks, edges = random_masks(whole.graph.n_edges, (0.4,)), np.arange(0, whole.graph.n_edges, 23)
    assert relative(along.circuits(masks) * size, logits.circuits(masks), at_least=0.1) < 1e-4
    assert relative(along.edge_effects(edges) * size, logits.edge_effects(edges), at_least=0.1) < 1e-3
    points = (0.0, 0.5, 1.0)
    assert relative(along.attributions(points)[0] * size, logits.attributions(points)[0], at_least=1e-3) < 1e-3
    slopes = (each.circuit_gradient(np.full(whole.graph.n_edges, 0.5))[1] for each in (along, logits))
    assert relative(next(slopes) * size, next(slopes), at_least=1e-3) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_attributions_towards_a_site_are_exact_to_first_order(family):
    near = load_model(ZOO[family](), tokenizer=tiny_tokenizer(), name="near")
    half = 160
    with torch.no_grad():
        table = near.tracer.anatomy.module.get_input_embeddings().weight
        table[half:] = table[:half] + 1e-2 * table[half:]
    prompts = [pair.clean for pair in random_pairs(3, 6, below=half)]
    pairs = [TokenPair(p, (*p[:2], *(t + half for t in p[2:])), (3,), (5,), "", "") for p in prompts]
    found = leading_to(near, direction(family, 2)).experiment(pairs, PROJECTION)
    edges = np.arange(0, found.graph.n_edges, 17)
    exact, estimated = found.edge_effects(edges).mean(1), found.attributions((1.0,))[0][edges]
    assert relative(estimated, exact, at_least=1e-5) < 0.05
    assert relative(-estimated, exact, at_least=1e-5) > 1


def test_denoising_and_the_prefix_cache_change_nothing_but_the_sign_and_the_time():
    edges = np.arange(0, target("llama", 2).graph.n_edges, 11)
    plain, cached = measured("llama", 2, prefix_cache=False), measured("llama", 2)
    assert plain.prefix_cache.on is False
    assert cached.prefix_cache.on
    assert relative(plain.edge_effects(edges), cached.edge_effects(edges), at_least=0.01) < 1e-3
    into = np.arange(target("llama", 2).graph.n_edges - 3, target("llama", 2).graph.n_edges)
    both = [measured("llama", 2, direction=each).edge_effects(into) for each in Direction]
    assert relative(both[0], both[1], at_least=0.01) < 1e-3  # edges into the target are linear


def test_the_graph_ends_in_the_target_and_names_it():
    graph = target("llama", 2).graph
    assert str(graph.receivers[-1]) == "resid2"
    assert Node.parse("resid2") == graph.shape.end
    assert {node.layer for node in graph.senders} == {-1, 0, 1}
    with pytest.raises(UnknownNameError, match=r"Closest: 'resid2'.*up to resid2\."):
        graph.node("logits")
    with pytest.raises(UsageError, match=r"must end at resid2: write 'a0.h0->m1->resid2'"):
        EdgePath.parse("a0.h0->m1", graph)
    assert model("llama").graph.shape.end == Node(NodeKind.LOGITS)


def test_a_circuit_towards_a_target_comes_back_from_its_file_with_it():
    info = target("llama", 2).info
    edges = np.array([0, target("llama", 2).graph.n_edges - 1])
    circuit = Circuit(
        info, BehaviourInfo("mine", "projection", "length"), Method("exact", "top"), edges, np.array([1.0, 2.0])
    )
    again = Circuit.from_document(circuit.to_document())
    assert again == circuit
    assert (again.model.target, again.model.n_layers) == (Target(2, direction("llama", 2).digest), 3)
    assert str(again.edge_list[-1]).endswith("->resid2")
    assert "target" not in Circuit(model("llama").info, *_rest(circuit)).to_document()["model"]


def _rest(circuit: Circuit) -> tuple[BehaviourInfo, Method, np.ndarray, np.ndarray]:
    return circuit.behaviour, circuit.method, circuit.edges, circuit.scores


def test_other_metrics_and_directions_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="what leads to resid:2:last is measured by the length along its direction"):
        target("llama", 2).experiment(PAIRS)
    with pytest.raises(UsageError, match=r"leads? to resid:2:last already"):
        leading_to(target("llama", 2), direction("llama", 1))
    with pytest.raises(UsageError, match="of layer 9, but llama has d_model 32 and 3 layers"):
        leading_to(model("llama"), StreamDirection(np.ones(32), 9))
    with pytest.raises(UsageError, match="nothing but the embedding writes"):
        leading_to(model("llama"), StreamDirection(np.ones(32), 0))
    with pytest.raises(UsageError, match="no place that a circuit can lead to; expected resid:LAYER:TOKEN"):
        Target.parse("m3")
    assert Target.parse("resid:16:last") == Target.parse("resid:16") == Target(16)


def test_a_cut_that_changes_what_the_layers_compute_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A cut model whose first layers compute something else than they do in the whole one."""
    from circuits.directions import target as module

    cut = module._cut

    def early(anatomy: object, info: ModelInfo, reading: object) -> object:
        assert info.target is not None
        return cut(anatomy, replace(info, target=replace(info.target, layer=info.target.layer - 1)), reading)

    monkeypatch.setattr(module, "_cut", early)
    with pytest.raises(GuardError, match="first 2 layers alone make something else at resid:2:last"):
        leading_to(model("llama"), direction("llama", 2))


def test_the_model_itself_is_left_as_it_was():
    module = model("llama").tracer.anatomy.module
    before = last_logits(module, ids("clean"))
    measured("llama", 1).edge_effects([0])
    assert torch.equal(last_logits(module, ids("clean")), before)
    assert len(module.model.layers) == 3


def test_a_journal_keeps_targets_apart(tmp_path):
    with Journal(tmp_path / "journal") as journal:
        values = [
            leading_to(model("llama"), direction("llama", 2, seed)).experiment(PAIRS, PROJECTION, journal=journal)
            for seed in (0, 1)
        ]
        first, second = (each.edge_effects([0, 1, 2]) for each in values)
    assert not np.allclose(first, second)
