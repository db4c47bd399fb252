"""Rows per pass: from memory, halved when that was too many, and an error when nothing fits."""

import weakref

import numpy as np
import psutil
import pytest
import torch

from circuits.errors import DeviceError
from circuits.memory import batching
from circuits.memory.batching import RowBudget, budget_of, in_batches, is_out_of_memory
from circuits.memory.memory_plan import Modest
from circuits.patching.measurement import Resources
from circuits.tracing.tracer import Tracer
from tests.subjects import Subject

CPU = torch.device("cpu")
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def budget(rows: int) -> RowBudget:
    return RowBudget(rows)


def test_at_most_half_of_the_free_memory_of_a_host_is_used_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda _: 10**9)
    monkeypatch.setattr(batching, "shared_memory", lambda: 10**9)
    assert budget_of([CPU], "auto").limit == 5 * 10**8
    assert budget_of([CPU], "30%").limit == 3 * 10**8
    assert budget_of([CPU], "4 GB").limit == 4 * 10**9
    assert budget_of([CPU], "auto").host == 0
    assert budget_of([CPU], "auto").modest == Modest(320, 10**9 // 3)
    assert budget_of([CPU], "4 GB").modest is None
    monkeypatch.setattr(batching, "shared_memory", lambda: 6 * 10**9)  # and a limit on this process alone
    assert budget_of([CPU], "auto").modest == Modest(320, 5 * 10**8)


def test_of_several_devices_the_one_with_the_least_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [torch.device("cpu", number) for number in (0, 1, 1, 2)]
    free = {0: 8 * 10**9, 1: 2 * 10**9, 2: 4 * 10**9}
    monkeypatch.setattr(batching, "free_memory", lambda device: free[device.index])
    assert budget_of(devices, "auto").limit == 10**9
    assert budget_of(devices, "10%").limit == 2 * 10**8
    assert budget_of(devices[:1], "auto").limit == 4 * 10**9
    monkeypatch.setattr(torch, "get_device_module", lambda _: Device)
    monkeypatch.setattr(batching, "free_memory", lambda device: 10**9)
    several = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert budget_of(several[:1], "auto").host > 0
    assert budget_of(several, "auto").host == 0  # from there a value would come back to one device


class Device:
    """What a device's module says of a device of 80 bytes, of which torch holds 30 and uses 10."""

    memory_reserved = staticmethod(lambda _: 30)
    memory_allocated = staticmethod(lambda _: 10)
    mem_get_info = staticmethod(lambda _: (50, 80))


def test_memory_that_torch_holds_unused_is_free_and_the_host_takes_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda _: Device)
    device = torch.device("cuda")
    assert batching.free_memory(device) == 70
    found = budget_of([device], "auto")
    assert found.limit == 56
    assert found.host == pytest.approx(0.5 * psutil.virtual_memory().available, rel=0.3)
    assert found.pass_tokens > budget_of([CPU], "auto").pass_tokens


def test_a_device_that_shares_the_hosts_memory_has_nowhere_to_move_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda _: object())
    assert budget_of([torch.device("mps")], "auto").host == 0


# ------------------------------------------------------------------------------------------------------------ batches


class Limited:
    """Runs at most ``limit`` items at once and says what it was asked for."""

    def __init__(self, limit: int, error: RuntimeError = OUT_OF_MEMORY[0]) -> None:
        self.limit, self.error, self.tried = limit, error, list[int]()

    def __call__(self, items: np.ndarray) -> list[int]:
        self.tried.append(len(items))
        assert len(self.tried) < 50, "goes round in circles"
        if len(items) > self.limit:
            raise self.error
        return items.tolist()


@pytest.mark.parametrize("rows_per_item", [1, 3, 4, 20])
def test_items_come_in_order_each_once_in_batches_within_the_budget(rows_per_item: int) -> None:
    run = Limited(100)
    batches = list(in_batches(np.arange(10), run, budget(12), rows_per_item=rows_per_item))
    assert [item for _, result in batches for item in result] == list(range(10))
    assert [members.tolist() for members, _ in batches] == [result for _, result in batches]
    assert max(run.tried) == max(1, min(10, 12 // rows_per_item))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:24])
def test_running_out_of_memory_halves_the_batch_and_loses_nothing(error: RuntimeError) -> None:
    run, rows = Limited(3, error), budget(40)
    batches = list(in_batches(np.arange(20), run, rows, rows_per_item=2))
    assert [item for _, result in batches for item in result] == list(range(20))
    assert run.tried[:4] == [20, 10, 5, 2]
    assert max(run.tried[3:]) == 2  # it stays at what fitted
    assert rows.rows == 5


def test_memory_of_the_pass_that_failed_is_free_before_the_next_one() -> None:
    seen = list[weakref.ref[torch.Tensor]]()

    class Failed(torch.OutOfMemoryError):
        """An error that is part of a reference cycle, as those raised inside a trace are."""

    def run(items: np.ndarray) -> int:
        if seen:
            assert seen[0]() is None
            return len(items)
        held = torch.ones(5)
        seen.append(weakref.ref(held))
        error = Failed("CUDA out of memory.")
        error.held, error.itself = held, error
        raise error

    assert [result for _, result in in_batches(np.arange(4), run, budget(4), rows_per_item=1)] == [2, 2]


def test_a_single_item_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    run = Limited(0)
    with pytest.raises(DeviceError, match=r"does not fit into memory. Use shorter prompts, fewer pairs \(--pairs\)"):
        list(in_batches(np.arange(8), run, budget(8), rows_per_item=1))
    assert run.tried == [8, 4, 2, 1]
    with pytest.raises(DeviceError):
        list(in_batches(np.arange(1), Limited(0), budget(1), rows_per_item=64))


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    run = Limited(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(in_batches(np.arange(8), run, budget(8), rows_per_item=1))
    assert run.tried == [8]
    assert not is_out_of_memory(RuntimeError("device-side assert triggered"))


def test_no_items_are_no_batches() -> None:
    assert list(in_batches(np.arange(0), Limited(0), budget(1), rows_per_item=1)) == []


# ------------------------------------------------------------------------------------------------- in an experiment


def test_results_survive_running_out_of_memory_inside_a_run(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracer raises as an accelerator would, for more than nine rows."""
    edges, masks = subject.some_edges(17), np.random.default_rng(0).random((7, subject.graph.n_edges)) < 0.8
    experiment = subject.experiment()
    expected = (experiment.edge_effects(edges), experiment.circuits(masks))
    plain, sizes = Tracer.run, list[int]()

    def limited(self: Tracer, ids: torch.Tensor, *args: object, **options: object) -> None:
        sizes.append(len(ids))
        if len(ids) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        plain(self, ids, *args, **options)

    monkeypatch.setattr(Tracer, "run", limited)
    np.testing.assert_allclose(experiment.edge_effects(edges), expected[0], atol=2e-5)
    np.testing.assert_allclose(experiment.circuits(masks), expected[1], atol=2e-5)
    assert max(sizes) > 9


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="the batch size must be at least 1, got 0"):
        Resources(batch_size=0)
