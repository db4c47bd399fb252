"""Tracing thousands of times must not fill the memory: traces have leaked in the past."""

import gc
import weakref
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from circuits.passes import mask_gradients
from circuits.passes.masked import MaskedPass
from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import Recorder
from circuits.vocabulary import Direction
from tests.subjects import Subject, clean_ids, subject_of

BOUND = 8 * 2**20
"""One layer of one run of these models is some 100 kB, so a leak of one value per trace shows."""


def resident() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def test_three_hundred_traces_leave_the_resident_memory_within_eight_megabytes() -> None:
    subject = subject_of("llama")
    ids = clean_ids().repeat(16, 2)

    def once() -> None:
        recorder = Recorder()
        subject.tracer.run(ids, Plan(logits=recorder.keep_logits, final=recorder.keep_final))

    for _ in range(40):
        once()
    before = resident()
    for _ in range(300):
        once()
    assert resident() - before < BOUND


def test_experiments_that_are_gone_leave_nothing_behind() -> None:
    subject = subject_of("gpt2")

    def once(subject: Subject) -> None:
        experiment = subject.experiment(direction=Direction.DENOISING)
        experiment.attributions([0.5])
        experiment.edge_effects(subject.some_edges(40))
        experiment.circuits([np.ones(subject.graph.n_edges, dtype=np.bool_)])

    for _ in range(4):
        once(subject)
    before = resident()
    for _ in range(12):
        once(subject)
    assert resident() - before < BOUND


def test_traces_that_raise_leave_nothing_behind_either() -> None:
    subject = subject_of("llama")
    ids = clean_ids().repeat(16, 2)

    def refuse(value: torch.Tensor) -> None:
        raise ValueError(f"{tuple(value.shape)}")

    def once() -> None:
        with pytest.raises(ValueError, match="64, 14, 32"):
            subject.tracer.run(ids, Plan(visits={(2, LayerSite.MLP_OUT): refuse}))

    for _ in range(40):
        once()
    before = resident()
    for _ in range(200):
        once()
    assert resident() - before < BOUND


def test_gradients_of_circuits_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once left its pass behind for good: 1.8 GB a gradient of a 135M model, 13 GB a discovery."""
    subject, tapes = subject_of("llama"), list["weakref.ref[mask_gradients._Tape]"]()

    class Watched(mask_gradients._Tape):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            tapes.append(weakref.ref(self))

    monkeypatch.setattr(mask_gradients, "_Tape", Watched)
    experiment = subject.experiment()
    experiment.circuit_gradient(np.ones(subject.graph.n_edges))
    gc.collect()
    assert tapes
    assert not any(tape() for tape in tapes)


def test_gradients_that_raise_leave_nothing_behind_either(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, passes = subject_of("llama"), list["weakref.ref[MaskedPass]"]()

    class Watched(MaskedPass):
        def final(self) -> torch.Tensor:
            passes.append(weakref.ref(self))
            raise ValueError("no")

    monkeypatch.setattr(mask_gradients, "MaskedPass", Watched)
    experiment = subject.experiment()
    with pytest.raises(ValueError, match="no"):
        experiment.circuit_gradient(np.ones(subject.graph.n_edges))
    gc.collect()
    assert passes
    assert not any(each() for each in passes)
