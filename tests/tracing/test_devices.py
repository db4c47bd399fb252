"""Models over several devices: every operation gives what it gives on one, and nothing mixes tensors of two."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from circuits.ablation.intervention import Intervention, reference_of, visits_of
from circuits.adapters.anatomy import Anatomy
from circuits.errors import DeviceError
from circuits.guards.checks import check
from circuits.patching.experiment import PatchingExperiment
from circuits.tracing.plan import Plan
from circuits.tracing.requirements import require_one_device
from circuits.vocabulary import Ablation
from tests.simulated_devices import MixedDevicesError, devices_pretended, placed_weight, spread
from tests.subjects import PAIRS, Floats, Subject, relative
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


@pytest.mark.parametrize("action", ["steering", "mediation"])
def test_what_needs_one_device_says_so(action: str) -> None:
    anatomy = Anatomy(spread(FAMILIES["llama"]()))
    with pytest.raises(DeviceError, match=f"{action} needs a model on one device, and this one is on cpu:1, cpu:2"):
        require_one_device(anatomy, action)
    require_one_device(Anatomy(FAMILIES["llama"]()), action)
