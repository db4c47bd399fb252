"""Circuits that lead to a head's query, key or value, to a neuron or to a probe, against the whole model with hooks.

The slow reference runs the whole model. An edge into the target is taken there as an edge into the receiver that the
target belongs to: the query, key or value itself, or the MLP of the neuron.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn

from circuits.behaviours import TokenPair
from circuits.circuit import Circuit
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import FormatError, UnknownNameError, UnsupportedModelError, UsageError
from circuits.graph import Edge, Node, NodeKind, Receiver, Slot
from circuits.model import Model, load_model
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.records import BehaviourInfo, Method, Target
from circuits.scoring.scorers import score
from circuits.vocabulary import Direction, Metric, ScorerName
from tests.directions.zoo_models import anatomy, model
from tests.reference.hooks import hooked, last_logits, rewired, sender_values
from tests.subjects import random_masks, random_pairs, relative, sorted_settings
from tests.tiny import tiny_tokenizer
from tests.zoo import ZOO

LAYER = 1
PAIRS, REFERENCE = random_pairs(3, 7), random_pairs(4, 7, seed=21)
PROJECTION = Options(Metric.PROJECTION)
PLACES = {
    "llama": ("model.layers", "input_layernorm", "mlp.down_proj"),
    "gpt2": ("transformer.h", "ln_1", "mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "input_layernorm", "mlp.dense_4h_to_h"),
    "gemma2": ("model.layers", "input_layernorm", "mlp.down_proj"),
    "olmo2": ("model.layers", None, "mlp.down_proj"),
    "granite": ("model.layers", "input_layernorm", "mlp.down_proj"),
    "opt": ("model.decoder.layers", "self_attn_layer_norm", "fc2"),
    "bloom": ("transformer.h", "input_layernorm", "mlp.dense_4h_to_h"),
    "falcon": ("transformer.h", "input_layernorm", "mlp.dense_4h_to_h"),
}
"""Of each family the list of layers, and within one the norm before its attention and the MLP's last projection."""

FAMILIES = tuple(PLACES)


def ids(side: str, pairs: Sequence[TokenPair] = PAIRS) -> Tensor:
    return torch.tensor([getattr(pair, side) for pair in pairs])


@dataclass(frozen=True)
class Site:
    """A place of a family, as the package's text and as a receiver of the whole model."""

    family: str
    text: str

    @property
    def reader(self) -> Receiver:
        if ".n" in self.text:
            return Receiver(Node(NodeKind.MLP, LAYER))
        return Receiver.parse(self.text)

    @property
    def layer(self) -> nn.Module:
        module = model(self.family).tracer.anatomy.module
        return list(module.get_submodule(PLACES[self.family][0]))[LAYER]

    @property
    def numbers(self) -> tuple[int, ...]:
        return (int(self.text.rpartition(".n")[2]),) if ".n" in self.text else ()

    def read(self, stream: Tensor, rest: Callable[[], Tensor]) -> Tensor:
        """What is read at the last token: of a head from the stream it reads, of a neuron what a hook has caught."""
        if self.family == "opt" and self.numbers:  # its MLP is no module, and the reference may run it several times
            part = self.layer.get_submodule
            made = part("activation_fn")(part("fc1")(part("final_layer_norm")(stream)))
            return made[:, -1, list(self.numbers)]
        if self.numbers:
            return rest()[:, -1, list(self.numbers)]
        _, norm, _ = PLACES[self.family]
        projection, columns = anatomy(self.family).projection(self.reader)
        made = projection(stream if norm is None else self.layer.get_submodule(norm)(stream))
        if self.family == "olmo2" and self.reader.slot in (Slot.Q, Slot.K):  # the norm is over all heads at once
            made, width = self.layer.get_submodule(f"self_attn.{self.reader.slot}_norm")(made), 12
            columns = list(range(self.reader.node.index * width, (self.reader.node.index + 1) * width))
        return made[:, -1, columns]


@torch.no_grad()
def values(site: Site, prompts: Tensor, read: Callable[[Receiver, Tensor], Tensor], send: object = None) -> np.ndarray:
    """What the site holds at the last token, in a run of the whole model where receivers read something else."""
    module, found, caught = model(site.family).tracer.anatomy.module, anatomy(site.family), list[Tensor]()
    streams = list[Tensor]()

    def watched(receiver: Receiver, stream: Tensor) -> Tensor:
        given = read(receiver, stream)
        if receiver == site.reader:
            streams.append(given)
        return given

    with hooked() as handles:
        if site.numbers:
            down = site.layer.get_submodule(PLACES[site.family][2])
            handles.append(down.register_forward_pre_hook(lambda _, args: caught.append(args[0].clone())))
        with rewired(found, watched, send):
            last_logits(module, prompts)
    rows = len(prompts)
    return site.read(streams[0], lambda: caught[0].reshape(rows, -1, caught[0].shape[-1])).double().numpy()


def plainly(_: Receiver, stream: Tensor) -> Tensor:
    return stream


@cache
def vector(site: Site) -> NDArray[np.float64]:
    if site.numbers:
        return np.ones(1)
    means = [values(site, ids(side, REFERENCE), plainly).mean(0) for side in ("clean", "corrupted")]
    return (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])


def slow_circuit(site: Site, live: Collection[Edge]) -> np.ndarray:
    found, base = anatomy(site.family), sender_values(model(site.family).tracer.anatomy.module, ids("corrupted"))
    alive, current = frozenset(live), dict[Node, Tensor]()

    def read(receiver: Receiver, _: Tensor) -> Tensor:
        return found.stream(receiver, lambda u: current[u] if Edge(u, receiver) in alive else base[u])

    return values(site, ids("clean"), read, current.update) @ vector(site)


def slow_effect(site: Site, edge: Edge) -> np.ndarray:
    module, found = model(site.family).tracer.anatomy.module, anatomy(site.family)
    clean, corrupted = (sender_values(module, ids(side)) for side in ("clean", "corrupted"))
    change = found.stream_change(clean, edge.sender, corrupted[edge.sender])

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        return stream + change if receiver == edge.receiver else stream

    return (values(site, ids("clean"), plainly) - values(site, ids("clean"), read)) @ vector(site)


@cache
def cut(site: Site) -> Model:
    return leading_to(model(site.family), site.text)


def measured(site: Site, **settings: object) -> PatchingExperiment:
    options, resources = sorted_settings({"metric": Metric.PROJECTION, **settings})
    found = cut(site).experiment(PAIRS, options, resources=resources, reference=REFERENCE)
    assert isinstance(found, PatchingExperiment)
    return found


def there(site: Site, edge: Edge) -> Edge:
    """An edge of the target's graph as one of the whole model's."""
    return Edge(edge.sender, site.reader) if edge.receiver.node.kind.is_end else edge


def group(family: str, head: int) -> str:
    return str(model(family).graph.shape.group_of(Node(NodeKind.HEAD, LAYER, head)))


@cache
def active(family: str) -> int:
    """The neuron that is nowhere as little active as others are somewhere: some families' neurons are often 0."""
    whole, caught = Site(family, f"m{LAYER}.n0"), list[Tensor]()
    with hooked() as handles, torch.no_grad():
        down = whole.layer.get_submodule(PLACES[family][2])
        handles.append(down.register_forward_pre_hook(lambda _, args: caught.append(args[0].clone())))
        for side in ("clean", "corrupted"):
            last_logits(model(family).tracer.anatomy.module, ids(side))
    rows = [each.reshape(len(PAIRS), -1, each.shape[-1])[:, -1] for each in caught]
    return int(torch.cat(rows).abs().amin(0).argmax())


def sites(family: str) -> list[Site]:
    texts = [f"a{LAYER}.h3<q>", f"{group(family, 3)}<k>", f"{group(family, 0)}<v>", f"m{LAYER}.n{active(family)}"]
    return [Site(family, text) for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_heads_and_neurons_read_equals_the_whole_model_with_plain_hooks(family: str) -> None:
    for site in sites(family):
        found = measured(site)
        for side, given in (("clean", found.clean), ("corrupted", found.corrupted)):
            assert relative(given, values(site, ids(side), plainly) @ vector(site), at_least=0.05) < 1e-3
        every = list(found.graph.edges())
        masks = random_masks(found.graph.n_edges, (0.3, 0.8))
        slow = [slow_circuit(site, [there(site, every[i]) for i in np.flatnonzero(mask)]) for mask in masks]
        assert relative(found.circuits(masks), np.array(slow), at_least=0.05) < 2e-3
        edges = np.unique([*range(0, found.graph.n_edges, 17), *range(found.graph.n_edges - 4, found.graph.n_edges)])
        exact = np.array([slow_effect(site, there(site, every[i])) for i in edges])
        assert np.abs(exact).max() > 1e-3
        assert relative(found.edge_effects(edges), exact, at_least=0.01) < 3e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "opt"])
def test_gradients_at_heads_and_neurons_are_slopes(family: str) -> None:
    """Attributions at the corrupted end equal finite differences of the measured number."""
    near = load_model(ZOO[family](), tokenizer=tiny_tokenizer(), name="near")
    half = 160
    with torch.no_grad():
        table = near.tracer.anatomy.module.get_input_embeddings().weight
        table[half:] = table[:half] + 1e-2 * table[half:]
    prompts = [pair.clean for pair in random_pairs(3, 6, below=half)]
    pairs = [TokenPair(p, (*p[:2], *(t + half for t in p[2:])), (3,), (5,), "", "") for p in prompts]
    for site in sites(family):
        found = leading_to(near, site.text).experiment(pairs, PROJECTION, reference=REFERENCE)
        edges = np.arange(0, found.graph.n_edges, 13)
        exact, estimated = found.edge_effects(edges).mean(1), found.attributions((1.0,))[0][edges]
        assert relative(estimated, exact, at_least=1e-5) < 0.08
        assert relative(-estimated, exact, at_least=1e-5) > 1
        mask = np.full(found.graph.n_edges, 0.5)
        assert np.isfinite(found.circuit_gradient(mask)[1]).all()


def test_the_graph_ends_in_the_stream_that_is_read() -> None:
    sequential, parallel = cut(Site("llama", f"m{LAYER}.n5")), cut(Site("gpt_neox", f"m{LAYER}.n5"))
    assert str(sequential.graph.shape.end) == f"mid{LAYER}"
    assert [str(node) for node in sequential.graph.senders[-2:]] == [f"a{LAYER}.h2", f"a{LAYER}.h3"]
    assert Node(NodeKind.MLP, LAYER) not in sequential.graph.nodes
    assert sequential.graph.n_edges == sequential.graph.shape.n_edges == sum(sequential.graph.fan_in)
    assert str(parallel.graph.shape.end) == f"resid{LAYER}"
    assert {node.layer for node in cut(Site("llama", f"a{LAYER}.h3<q>")).graph.senders} == {-1, 0}
    assert Node.parse("mid1") == Node(NodeKind.MIDDLE, 1)


def test_a_neuron_of_the_first_layer_reads_the_first_attention() -> None:
    found = leading_to(model("llama"), "m0.n2").experiment(PAIRS, PROJECTION)
    assert {str(node) for node in found.graph.senders} == {"input", "a0.h0", "a0.h1", "a0.h2", "a0.h3"}
    assert np.abs(found.edge_effects(["a0.h1->mid0"])).max() > 0


def test_every_way_of_measuring_takes_them() -> None:
    site = Site("llama", f"m{LAYER}.n5")
    edges = np.arange(0, cut(site).graph.n_edges, 11)
    plain, cached = measured(site, prefix_cache=False), measured(site)
    assert cached.prefix_cache.on
    assert relative(plain.edge_effects(edges), cached.edge_effects(edges), at_least=0.01) < 1e-3
    other = measured(site, direction=Direction.DENOISING).edge_effects(edges)
    assert not np.allclose(other, plain.edge_effects(edges))
    roles = cut(site).by_role(["a"])
    assert roles.graph.shape.end == cut(site).graph.shape.end
    for scorer in (ScorerName.EAP, ScorerName.EAP_IG, ScorerName.CONDUCTANCE):
        assert np.abs(score(cached, scorer).values).max() > 0


def test_derivatives_by_other_rules_are_taken_at_heads_and_directions_and_refused_at_neurons() -> None:
    for text in (f"a{LAYER}.h3<q>", f"{group('llama', 0)}<v>"):
        found = measured(Site("llama", text))
        assert np.abs(score(found, ScorerName.RELP).values - score(found, ScorerName.EAP).values).max() > 0
    direction = StreamDirection(np.random.default_rng(0).normal(size=32), 2)
    along = leading_to(model("llama"), direction).experiment(PAIRS, PROJECTION)
    assert np.abs(score(along, ScorerName.RELP).values).max() > 0
    with pytest.raises(UnsupportedModelError, match="the circuit leads to a neuron inside of one"):
        score(measured(Site("llama", f"m{LAYER}.n5")), ScorerName.RELP)


def test_circuits_remember_the_site_that_they_lead_to() -> None:
    info = cut(Site("llama", "m1.n5")).info
    facts = BehaviourInfo("mine", "projection", "length"), Method("exact", "top")
    circuit = Circuit(info, *facts, np.array([0]), np.ones(1))
    again = Circuit.from_document(circuit.to_document())
    assert again == circuit
    assert str(again.model.target) == "m1.n5:last"
    assert again.graph.shape.end == Node(NodeKind.MIDDLE, 1)


def test_places_that_are_not_there_are_refused_with_the_closest() -> None:
    whole = model("llama")
    with pytest.raises(UnknownNameError, match=r"no neuron 'm1\.n99'\. Closest: 'm1\.n39'.*neurons 0-39"):
        leading_to(whole, "m1.n99")
    with pytest.raises(UnknownNameError, match=r"'m9\.n1'\. Closest: 'm2\.n1'\. This model has layers 0-2"):
        leading_to(whole, "m9.n1")
    with pytest.raises(UnknownNameError, match=r"'a9\.h1<q>'\. Closest: 'a2\.h1<q>'"):
        leading_to(whole, "a9.h1<q>")
    with pytest.raises(UnknownNameError, match=r"write 'a1\.kv1<k>' for the group of a1\.h3"):
        leading_to(whole, "a1.h3<k>")
    with pytest.raises(UnknownNameError, match=r"a1\.h7"):
        leading_to(whole, "a1.h7<q>")
    with pytest.raises(UsageError, match=r"'m1' is no place that a circuit can lead to"):
        leading_to(whole, "m1")
    with pytest.raises(UsageError, match="nothing but the embedding writes"):
        leading_to(whole, "a0.h1<q>")
    with pytest.raises(UsageError, match="nothing but the embedding writes"):
        leading_to(model("gpt_neox"), "m0.n1")
    with pytest.raises(UsageError, match=r"resid:1:last is a vector; give the direction"):
        leading_to(whole, "resid:1:last")
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        leading_to(load_model(ZOO["mixtral"](), tokenizer=tiny_tokenizer(), name="mixtral"), "m1.n0")
    with pytest.raises(UsageError, match="there are none"):
        cut(Site("llama", "a1.h3<q>")).experiment(PAIRS, PROJECTION)
    assert Target.parse("m14.n123:last") == Target(14, site="m14.n123")


@dataclass(frozen=True)
class Probe:
    """A linear probe as scikit-learn has it."""

    coef: NDArray[np.float64]
    intercept: float

    def margin(self, stream: Tensor) -> np.ndarray:
        """The distance from its boundary."""
        return (stream.double().numpy() @ self.coef[0] + self.intercept) / np.linalg.norm(self.coef)


PROBE = Probe(np.random.default_rng(5).normal(size=(1, 32)), 0.7)


def saved(folder: Path, form: str) -> Path:
    file = folder / f"probe.{form}"
    if form == "npz":
        np.savez(file, coef_=PROBE.coef, intercept_=np.array([PROBE.intercept]), layer=2)
    else:
        tensors = {"coef_": PROBE.coef, "intercept_": np.array([PROBE.intercept])}
        save_file(tensors, file, {"layer": "2"})
    return file


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_a_saved_probe_is_measured_as_the_distance_from_its_boundary(form: str, tmp_path: Path) -> None:
    probe, whole = StreamDirection.load(saved(tmp_path, form)), model("llama")
    cut_off = leading_to(whole, probe)
    found = cut_off.experiment(PAIRS, PROJECTION)
    caught = list[Tensor]()
    block = list(whole.tracer.anatomy.module.get_submodule("model.layers"))[2]
    with hooked() as handles, torch.no_grad():
        handles.append(block.register_forward_pre_hook(lambda _, args: caught.append(args[0][:, -1].clone())))
        last_logits(whole.tracer.anatomy.module, ids("clean"))
    assert relative(found.clean, PROBE.margin(caught[0]), at_least=0.05) < 1e-4
    plain = leading_to(whole, replace(probe, bias=0.0)).experiment(PAIRS, PROJECTION)
    edges = np.arange(0, found.graph.n_edges, 13)
    assert relative(found.edge_effects(edges), plain.edge_effects(edges), at_least=0.01) < 1e-3
    assert relative(found.attributions((1.0,))[0], plain.attributions((1.0,))[0], at_least=1e-3) < 1e-3
    assert cut_off.info.target != leading_to(whole, replace(probe, bias=0.0)).info.target
    probe.save(tmp_path / "again")
    again = StreamDirection.load(tmp_path / "again.safetensors")
    assert again.digest == probe.digest
    assert again.bias == pytest.approx(probe.bias)


def test_files_that_hold_no_probe_of_one_class_are_refused(tmp_path: Path) -> None:
    several, nowhere, torn = tmp_path / "several.npz", tmp_path / "nowhere.npz", tmp_path / "torn.npz"
    np.savez(several, coef_=np.ones((3, 32)), intercept_=np.ones(3), layer=2)
    np.savez(nowhere, coef_=np.ones((1, 32)), intercept_=np.ones(1))
    torn.write_bytes(b"PK no archive")
    with pytest.raises(FormatError, match="one intercept, got 3; save that of one class"):
        StreamDirection.load(several)
    np.savez(several, coef_=np.ones((3, 32)), layer=2)
    with pytest.raises(FormatError, match=r"'coef_' has the shape .3, 32.; expected one vector"):
        StreamDirection.load(several)
    with pytest.raises(FormatError, match="does not say of which layer"):
        StreamDirection.load(nowhere)
    nowhere.with_suffix(".json").write_text('{"layer": 2}')
    assert StreamDirection.load(nowhere).layer == 2
    with pytest.raises(FormatError, match="is no direction that can be read"):
        StreamDirection.load(torn)
