"""Recorded values that wait elsewhere: the same numbers, loaded when they are used and only then."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.memory.memory_plan import MemoryPlan, plan_memory
from circuits.memory.offload import Kept, kept_on_host, moved
from circuits.patching import recorded_experiment as experiments
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.vocabulary import Ablation
from tests.subjects import PAIRS, Subject, random_pairs, subject_of


@dataclass(frozen=True)
class Nested:
    first: Tensor
    many: tuple[Tensor, ...]
    named: dict[str, Tensor]
    below: "Nested | None"
    other: object


class Counted:
    """Stores values as their negative, and counts."""

    def __init__(self) -> None:
        self.stored, self.loaded = 0, 0

    def store(self, tensor: Tensor) -> Tensor:
        self.stored += 1
        return -tensor

    def load(self, tensor: Tensor) -> Tensor:
        self.loaded += 1
        return -tensor


def nested(value: float) -> Nested:
    one = torch.full((2,), value)
    return Nested(one, (one, one + 1), {"a": one + 2}, Nested(one + 3, (), {}, None, 1), np.arange(3))


def test_every_tensor_moves_once_and_what_is_shared_stays_shared() -> None:
    counted, value = Counted(), nested(1.0)
    there = moved(value, counted.store)
    assert counted.stored == 4
    assert [there.first[0], there.many[1][0], there.named["a"][0], there.below.first[0]] == [-1, -2, -3, -4]
    assert there.many[0] is there.first
    assert there.other is value.other
    assert value.first[0] == 1


def test_items_are_stored_one_by_one_and_loaded_each_time_they_are_used() -> None:
    counted = Counted()
    kept = Kept((nested(float(i)) for i in range(3)), counted.store, counted.load)
    assert (counted.stored, counted.loaded, len(kept)) == (12, 0, 3)
    assert [item.first[0].item() for item in kept] == [0, 1, 2]
    assert counted.loaded == 12
    assert kept[1].named["a"][0] == 3
    assert [item.first[0] for item in kept.stored] == [0, -1, -2]
    assert counted.loaded == 16
    fewer = kept.changed(lambda item: Nested(item.first[:1], (), {}, None, 0), kept=lambda item: bool(item.first[0]))
    assert counted.loaded == 16
    assert [item.first.tolist() for item in fewer] == [[1], [2]]


def test_without_a_place_to_wait_items_stay_as_they_are() -> None:
    value = nested(1.0)
    assert Kept([value])[0] is value


TWO = Resources(batch_size=2)


@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.ZERO])
def test_measurements_are_identical_when_runs_wait_elsewhere(
    ablation: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, pairs = subject_of("llama"), (*PAIRS, *random_pairs(3, 9))
    plain = PatchingExperiment(subject.tracer, subject.graph, pairs, Options(ablation=ablation), resources=TWO)
    counted = Counted()

    def offloading(*given: object, **more: object) -> MemoryPlan:
        plan = plan_memory(*given, **more)
        object.__setattr__(plan, "offload", True)
        return plan

    monkeypatch.setattr(experiments, "plan_memory", offloading)
    monkeypatch.setattr(experiments, "kept_on_host", lambda items, _: Kept(items, counted.store, counted.load))
    away = PatchingExperiment(subject.tracer, subject.graph, pairs, Options(ablation=ablation), resources=TWO)
    for here, there in zip(plain.batches, away.batches.stored, strict=True):
        torch.testing.assert_close(there.clean.z[1], -here.clean.z[1])
    before = counted.loaded
    for measured in (plain, away), (plain.part(1, 5), away.part(1, 5)):
        for found, expected in zip(everything(subject, measured[0]), everything(subject, measured[1]), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert counted.loaded > before


def everything(subject: Subject, made: PatchingExperiment) -> tuple[np.ndarray, ...]:
    masks = np.random.default_rng(0).random((3, subject.graph.n_edges)) < 0.7
    return (made.edge_effects(subject.some_edges(41)), made.circuits(masks), made.attributions([0.5]))


def test_the_hosts_memory_is_pinned_and_copies_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked, loads = torch.empty, list[object](), list[object]()
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **how: asked.append(how.pop("pin_memory")) or plain(*shape, **how)
    )
    monkeypatch.setattr(Tensor, "to", lambda self, *_, **how: loads.append(how["non_blocking"]) or self)
    kept = kept_on_host([nested(2.0)], torch.device("cpu"))
    assert kept[0].below is not None
    assert asked == [True] * 4
    assert loads == [True] * 4
