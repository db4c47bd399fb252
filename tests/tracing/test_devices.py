"""Models over several devices: every operation gives what it gives on one, and nothing mixes tensors of two."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from circuits.ablation.generation import ablated
from circuits.ablation.intervention import Intervention, reference_of, visits_of
from circuits.adapters.anatomy import Anatomy
from circuits.behaviours.roles import role_names
from circuits.builder import build_graph
from circuits.errors import DeviceError
from circuits.guards.checks import check
from circuits.heads import head_roles
from circuits.memory import batching
from circuits.model import load_model
from circuits.neurons.neuron_experiment import NeuronExperiment
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.patching.node_circuits import node_slopes, node_values
from circuits.patching.node_sets import interchange_effects
from circuits.patching.paths import path_effects
from circuits.patching.sequences import SequenceExperiment
from circuits.patching.sites import patch_sites
from circuits.scoring import score
from circuits.scoring.learned_masks import learned_masks
from circuits.steering.ablated_weights import write_ablated_weights
from circuits.steering.effects import measure_direction
from circuits.steering.mediation import mediate
from circuits.steering.search import find_direction
from circuits.tracing.plan import Plan
from circuits.tracing.requirements import require_one_device
from circuits.vocabulary import Ablation, Direction, Metric, ScorerName, Site
from tests.simulated_devices import MixedDevicesError, devices_pretended, placed_weight, spread
from tests.subjects import PAIRS, TOKENIZER, Floats, Subject, relative
from tests.tiny import FAMILIES
from tests.zoo import ZOO


@pytest.fixture(autouse=True)
def pretended() -> Iterator[None]:
    with devices_pretended():
        yield


def operations(made: PatchingExperiment, step: int = 7) -> dict[str, Callable[[], Floats]]:
    masks = np.random.default_rng(0).random((3, made.graph.n_edges)) < 0.6
    weights = np.where(masks[0], 1.0, 0.4)
    return {
        "eap": lambda: made.attributions([1.0])[0],
        "exact": lambda: made.edge_effects(np.arange(0, made.graph.n_edges, step)),
        "circuits": lambda: made.circuits(masks),
        "circuit gradient": lambda: made.circuit_gradient(weights)[1],
    }


def distances(name: str, here: PatchingExperiment, there: PatchingExperiment, step: int = 7) -> dict[str, float]:
    found, expected = operations(there, step), operations(here, step)
    return {f"{name}, {what}": relative(found[what](), expected[what](), at_least=1e-6) for what in found}


MADE_DIFFERENTLY = ("gpt_neox", "falcon_new", "bloom", "gemma2", "olmo2", "cohere2", "mixtral")
"""Parallel blocks, fused projections, biases by distance, norms behind blocks and over all heads, factors, experts."""


def compared(family: str, one: Subject, several: Subject) -> None:
    guards = check(several.tracer, several.graph)
    assert all(guard.passed for guard in guards), guards
    found = distances(family, one.experiment(PAIRS[:2]), several.experiment(PAIRS[:2]), step=41)
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_over_several_devices_is_measured_as_on_one(family: str) -> None:
    compared(family, Subject(family, FAMILIES[family]()), Subject(family, spread(FAMILIES[family]())))


@pytest.mark.parametrize("family", MADE_DIFFERENTLY)
def test_models_that_are_made_differently_are_too(family: str) -> None:
    compared(family, Subject(family, ZOO[family]()), Subject(family, spread(ZOO[family]())))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(ZOO) - set(MADE_DIFFERENTLY) - set(FAMILIES)))
def test_every_other_family_is_too(family: str) -> None:
    compared(family, Subject(family, ZOO[family]()), Subject(family, spread(ZOO[family]())))


@pytest.mark.parametrize(
    "settings",
    [{"ablation": Ablation.ZERO}, {"ablation": Ablation.MEAN}, {"checkpointing": True}, {"prefix_cache": False}],
    ids=str,
)
def test_other_ablations_and_ways_to_measure_are_as_on_one_device(settings: dict[str, object]) -> None:
    one, several = Subject("gemma2", ZOO["gemma2"]()), Subject("gemma2", spread(ZOO["gemma2"]()))
    found = distances("", one.experiment(PAIRS[:2], **settings), several.experiment(PAIRS[:2], **settings), step=41)
    assert max(found.values()) < 1e-6, found


def test_nodes_that_are_ablated_or_steered_are_as_on_one_device() -> None:
    one, several = Subject("llama", FAMILIES["llama"]()), Subject("llama", spread(FAMILIES["llama"]()))
    logits = list[torch.Tensor]()
    for subject in (one, several):
        anatomy = subject.tracer.anatomy
        seen = reference_of(subject.tracer, PAIRS)
        visits = visits_of(anatomy, subject.graph.senders[1:], Intervention(scale=0.3, steer=0.5), seen)
        ids = torch.tensor([pair.clean for pair in PAIRS], device=anatomy.device)
        subject.tracer.run(ids, Plan(visits=visits, logits=logits.append))
    torch.testing.assert_close(logits[1].cpu().as_subclass(torch.Tensor), logits[0].as_subclass(torch.Tensor))


def by_role(subject: Subject) -> list[Floats]:
    pairs = tuple(replace(pair, roles={"A": (2,), "B": (4,)}) for pair in PAIRS)
    graph = build_graph(replace(subject.graph.shape, roles=role_names(pairs)))
    made = PatchingExperiment(subject.tracer, graph, pairs, Options())
    return [run() for run in operations(made, step=41).values()]


def neurons(subject: Subject, *, in_circuit: bool) -> list[Floats]:
    made = subject.experiment()
    edges = np.flatnonzero(np.random.default_rng(0).random(made.graph.n_edges) < 0.6) if in_circuit else None
    found = NeuronExperiment(made, range(3), edges=edges)
    some = np.arange(0, found.n_neurons, 5)
    return [found.clean, found.corrupted, found.sets([some]), *found.slopes(some), found.effects(some[:6])]


def sites(subject: Subject) -> list[Floats]:
    tokens = [f"t{place}" for place in range(len(PAIRS[0].clean))]
    return [patch_sites(subject.experiment(), site, tokens).values for site in Site]


def nodes(subject: Subject) -> list[Floats]:
    made, some = subject.experiment(), np.arange(1, 12)
    sets = [(node,) for node in made.graph.senders[1::3]]
    exchanged = [interchange_effects(made, sets, direction) for direction in Direction]
    paths = path_effects(made, ["a0.h1->m1->logits", "m0->m1->m2->logits"])
    return [node_values(made, some), *node_slopes(made, some), *exchanged, paths]


def sequences(subject: Subject) -> list[Floats]:
    pairs = [replace(pair, sequences=((3, 4), (5,)), wrong_sequences=((6, 7),)) for pair in PAIRS]
    made = SequenceExperiment(pairs, lambda rows: subject.experiment(rows, metric=Metric.SEQUENCE))
    return [made.attributions([0.5])[0], made.edge_effects(np.arange(0, made.graph.n_edges, 41))]


def along_direction(subject: Subject) -> list[Floats]:
    direction = torch.randn(1, subject.graph.shape.d_model, generator=torch.Generator().manual_seed(0))
    options = Options(metric=Metric.PROJECTION)
    made = PatchingExperiment(subject.tracer.reading(direction), subject.graph, PAIRS, options)
    return [made.attributions([0.5])[0], made.edge_effects(np.arange(0, made.graph.n_edges, 41)), made.clean]


def scorers(subject: Subject) -> list[Floats]:
    left = (ScorerName.EXACT, ScorerName.RANDOM, ScorerName.LEARNED_MASKS)
    found = [score(subject.experiment(), name).values for name in ScorerName if name not in left]
    return [*found, learned_masks(subject.experiment(), found[0], updates=3)]


OTHERS: dict[str, Callable[[Subject], list[Floats]]] = {
    "roles": by_role,
    "neurons": partial(neurons, in_circuit=False),
    "neurons of a circuit": partial(neurons, in_circuit=True),
    "sites": sites,
    "nodes and paths": nodes,
    "answers of several tokens": sequences,
    "a direction": along_direction,
    "scorers": scorers,
}
"""What else goes over several devices; heads, finding and measuring directions, and mediation say that they do not."""


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_everything_else_that_takes_several_devices_is_as_on_one(family: str, what: str) -> None:
    make = (ZOO | FAMILIES)[family]
    expected, found = OTHERS[what](Subject(family, make())), OTHERS[what](Subject(family, spread(make())))
    for there, here in zip(found, expected, strict=True):
        assert np.abs(here).max() > 1e-3
        assert relative(there, here, at_least=1e-6) < 1e-5


def test_the_memory_of_the_fullest_device_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the second has the least: with it less goes through at once, and the results are the same."""
    several = Subject("llama", spread(FAMILIES["llama"]()))
    plenty = several.experiment(memory="50%")
    edges = np.arange(0, several.graph.n_edges, 17)
    expected = plenty.edge_effects(edges)
    monkeypatch.setattr(batching, "free_memory", lambda device: 10**6 if device.index == 2 else 10**10)
    little = several.experiment(memory="50%")
    assert little.plan.budget.limit == 5 * 10**5
    assert little.budget(little.batches[0]).rows < plenty.budget(plenty.batches[0]).rows
    assert relative(little.edge_effects(edges), expected, at_least=1e-6) < 1e-5


def test_recorded_values_are_where_their_layer_is() -> None:
    several = Subject("llama", spread(FAMILIES["llama"]()))
    batch = several.experiment().batches[0]
    assert [value.device.index for value in batch.clean.stream] == [1, 2, 3, 4]
    for values in (batch.clean.z, batch.clean.mlp, batch.clean.middle, batch.clean.attention):
        assert [value.device.index for value in values] == [1, 2, 3]
    assert batch.clean.prefix is not None
    assert [value.device.index for value in batch.clean.prefix.keys] == [1, 2, 3]
    assert batch.clean.logits.device.index == batch.clean.ids.device.index == 1


def test_what_is_not_moved_to_where_it_is_used_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended devices do refuse to be mixed: without the moves of the anatomy nothing but attribution runs."""
    several = Subject("llama", spread(FAMILIES["llama"]()))
    made = several.experiment()
    monkeypatch.setattr(Anatomy, "at", lambda _self, _layer, value: value)
    runs = operations(made)
    del runs["eap"]
    for run in runs.values():
        with pytest.raises(MixedDevicesError, match=r"was given tensors on cpu:. and cpu:."):
            run()


def test_a_layer_on_two_devices_is_refused() -> None:
    module = spread(FAMILIES["llama"]())
    norm = module.get_submodule("model.layers.1.input_layernorm")
    norm._parameters["weight"] = placed_weight(norm.weight, torch.device("cpu:4"))
    with pytest.raises(DeviceError, match=r"layer 1 lies on several devices .* expected whole layers on one each"):
        Subject("llama", module).tracer.run(torch.zeros(1, 2, dtype=torch.long, device="cpu:1"), Plan())


REFUSING: dict[str, Callable[[Any], object]] = {
    "what heads attend to": lambda model: head_roles(model, None, ()),
    "a direction": lambda model: find_direction(model, None),
    "steering": lambda model: measure_direction(model, None, ()),
    "mediation": lambda model: mediate(model, None, None),
    "taking a direction out of weights": lambda model: write_ablated_weights(model, None, "nowhere"),
}


@pytest.mark.parametrize("what", REFUSING)
def test_what_needs_one_device_says_so_before_anything_runs(what: str) -> None:
    model = SimpleNamespace(tracer=Subject("llama", spread(FAMILIES["llama"]())).tracer)
    with pytest.raises(DeviceError, match=f"^{what} needs a model on one device, and this one is on cpu:1, cpu:2"):
        REFUSING[what](model)
    require_one_device(Anatomy(FAMILIES["llama"]()), what)


def test_a_model_that_is_acted_on_answers_as_on_one_device() -> None:
    prompts = [pair.clean for pair in PAIRS]
    answers: list[object] = []
    for module in (FAMILIES["llama"](), spread(FAMILIES["llama"]())):
        model = load_model(module, tokenizer=TOKENIZER)
        acted = ablated(model, ["a1.h2", "m2"], Intervention(scale=0.3), reference=PAIRS)
        tokens, logits = acted.continuations(prompts, 3)
        losses = acted.losses(prompts)
        answers.append((tokens, np.array(logits.tolist()), np.array([each.tolist() for each in losses])))
    (expected, first, less), (found, there, lost) = answers
    assert found == expected
    np.testing.assert_allclose(there, first, atol=1e-5)
    np.testing.assert_allclose(lost, less, atol=1e-5)
