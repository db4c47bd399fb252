"""The model of memory against measured peaks, and what plans make of a budget."""

import gc
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from circuits.errors import DeviceError, UsageError
from circuits.graph import ModelShape
from circuits.memory import batching
from circuits.memory.memory_plan import MemoryBudget, MemoryPlan, human, parse_budget, plan_memory
from circuits.memory.needs import ModelSizes, Needs, PromptSize, Terms
from circuits.passes.gradients import gradients_at, gradients_by_layer
from circuits.passes.mask_gradients import mask_gradient
from circuits.patching import experiment as experiments
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.vocabulary import Metric
from tests.subjects import Subject, metric_of, random_pairs, subject_of
from tests.tiny import tiny_llama

LARGE = ModelSizes(ModelShape(32, 32, 8, 4096, 128), 14336, 128256, 2)
GB = 10**9


def total(terms: Terms) -> int:
    return sum(terms.values())


def peak(run: Callable[[], object]) -> int:
    """Bytes that torch had allocated at most, beyond those before; independent of what else the machine does."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


# ----------------------------------------------------------------------------------------- formula against measurement


ROWS = Resources(batch_size=24)


def experiment(subject: Subject) -> PatchingExperiment:
    return PatchingExperiment(subject.tracer, subject.graph, random_pairs(4, 24), Options(), resources=ROWS)


def needs_of(made: PatchingExperiment) -> Needs:
    batch = made.batches[0]
    length = batch.clean.ids.shape[1]
    sizes = replace(ModelSizes.of(made.tracer.anatomy), slack=0)
    return Needs(sizes, PromptSize(length, batch.clean.length - length))


def test_the_formula_is_within_a_factor_of_two_of_measured_peaks() -> None:
    """24 rows of the tiny Llama: 4 pairs, 6 edges or circuits."""
    subject = subject_of("llama")
    needs, kept = needs_of(experiment(subject)), list[PatchingExperiment]()
    recording = peak(lambda: kept.append(experiment(subject)))
    made, graph = kept[0], subject.graph
    into_one_layer = np.arange(graph.offsets[9], graph.offsets[9] + 6)
    masks = np.random.default_rng(0).random((6, graph.n_edges)) < 0.5
    predicted = {
        "record": 4 * (total(needs.recorded()) + total(needs.recording())),
        "attribution": 4 * total(needs.attribution(needs.sizes.n_senders)),
        "exact": 4 * total(needs.differences()) + 24 * total(needs.exact()),
        "circuits": 24 * total(needs.circuits(needs.sizes.n_senders)),
        "gradient": 4 * total(needs.gradient(needs.sizes.n_senders)) + needs.weights(),
    }
    measured = {
        "record": recording,
        "attribution": peak(lambda: made.attributions([1.0])),
        "exact": peak(lambda: made.edge_effects(into_one_layer)),
        "circuits": peak(lambda: made.circuits(masks)),
        "gradient": peak(lambda: made.circuit_gradient(np.ones(graph.n_edges))),
    }
    ratios = {name: predicted[name] / measured[name] for name in measured}
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios


def test_gradients_layer_by_layer_need_less_memory_than_those_of_a_whole_run() -> None:
    deep = Subject("llama", tiny_llama(num_hidden_layers=12))
    made = PatchingExperiment(deep.tracer, deep.graph, random_pairs(16, 24), Options(), resources=ROWS)
    batch = made.batches[0]
    loss = metric_of(Metric.LOGIT_DIFFERENCE, pairs=random_pairs(16, 24))
    whole, by_layer = (
        peak(partial(run, deep.tracer, batch.clean, batch.clean.stream[0], loss))
        for run in (gradients_at, gradients_by_layer)
    )
    assert by_layer < 0.5 * whole


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_formula_of_attribution_is_within_a_factor_of_two_of_measured_peaks_in_deep_models(
    checkpointing: bool,
) -> None:
    deep = Subject("llama", tiny_llama(num_hidden_layers=12))
    resources = Resources(batch_size=24, checkpointing=checkpointing)
    made = PatchingExperiment(deep.tracer, deep.graph, random_pairs(16, 24), Options(), resources=resources)
    needs = needs_of(made)
    predicted = 16 * total(needs.attribution(needs.sizes.n_senders, checkpointing))
    assert 0.5 < predicted / peak(lambda: made.attributions([1.0])) < 2


@pytest.mark.parametrize("shape", [{"num_hidden_layers": 12}, {"hidden_size": 128}, {"intermediate_size": 400}])
def test_the_formula_of_a_circuits_gradient_is_within_a_third_of_measured_peaks(shape: dict[str, int]) -> None:
    subject = Subject("llama", tiny_llama(**shape))
    made = PatchingExperiment(subject.tracer, subject.graph, random_pairs(16, 24), Options(), resources=ROWS)
    needs, whole = needs_of(made), np.ones(subject.graph.n_edges)
    predicted = 16 * total(needs.gradient(needs.sizes.n_senders)) + needs.weights()
    assert 0.67 < predicted / peak(lambda: made.circuit_gradient(whole)) < 1.5


def test_circuits_of_fewer_senders_are_planned_with_less() -> None:
    needs = Needs(LARGE, PromptSize(16))
    few, all_ = needs.gradient(50), needs.gradient(LARGE.n_senders)
    assert 10 * few["kept"] < all_["kept"]
    assert 10 * few["changes and their gradients"] < all_["changes and their gradients"]


def test_gradients_go_through_the_model_in_as_many_parts_as_the_memory_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan had no term for them: whatever the budget, they took the memory of all pairs."""
    subject, pairs, parts = subject_of("llama"), random_pairs(12, 12), list[int]()

    def counted(*given: Any, **more: Any) -> Any:
        parts.append(len(given[2].ids))
        return mask_gradient(*given, **more)

    monkeypatch.setattr(experiments, "mask_gradient", counted)
    for memory in ("50%", "3MB"):
        subject.experiment(pairs, memory=memory).circuit_gradient(np.ones(subject.graph.n_edges))
    assert parts[0] == 12
    assert 1 < len(parts[1:]) <= 12
    assert sum(parts[1:]) == 12


def test_recorded_runs_have_the_size_that_the_formula_says() -> None:
    made = experiment(subject_of("llama"))
    batch = made.batches[0]
    tensors = [tensor for run in (batch.clean, batch.corrupted) for tensor in (*run.stream, *run.middle, *run.z)]
    tensors += [tensor for run in (batch.clean, batch.corrupted) for tensor in (*run.attention, *run.mlp, run.logits)]
    tensors += [each for run in (batch.clean, batch.corrupted) for paths in run.projections for each in paths.values()]
    needs = needs_of(made)
    assert 4 * needs.recorded()["runs"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert batch.clean.prefix is not None
    caches = (*batch.clean.prefix.keys, *batch.clean.prefix.values)
    assert 4 * needs.recorded()["prefix"] == sum(tensor.numel() * tensor.element_size() for tensor in caches)


@pytest.mark.parametrize("name", ["recorded", "recording", "exact", "differences"])
def test_longer_prompts_and_wider_numbers_need_more(name: str) -> None:
    def need(sizes: ModelSizes, prompt: PromptSize) -> int:
        return total(getattr(Needs(sizes, prompt), name)())

    assert need(LARGE, PromptSize(16)) < need(LARGE, PromptSize(32)) <= need(replace(LARGE, itemsize=4), PromptSize(32))
    if name != "exact":  # where every row has a copy of the prefix
        assert need(LARGE, PromptSize(8, 8)) < need(LARGE, PromptSize(16))


# --------------------------------------------------------------------------------------------------------------- plans


def planned(limit: float, pairs: int = 16, positions: int = 16, **more: int) -> MemoryPlan:
    budget = MemoryBudget(int(limit), more.pop("host", 0), pair_tokens=8192, pass_tokens=65536)
    return plan_memory(LARGE, [PromptSize(positions)] * pairs, budget, **more)


def test_more_memory_never_plans_for_less() -> None:
    plans = [planned(limit * GB) for limit in (2.5, 3, 4, 6, 10, 20, 40, 200)]
    needs = Needs(LARGE, PromptSize(16))
    for less, more in pairwise(plans):
        assert less.pair_tokens <= more.pair_tokens
        assert less.rows(needs.exact(), 16) <= more.rows(needs.exact(), 16)
        if less.pair_tokens == more.pair_tokens:
            assert less.attribution_tile <= more.attribution_tile
    assert plans[0].pair_tokens < plans[-1].pair_tokens
    assert plans[-1].attribution_tile == LARGE.n_senders
    assert len({plan.attribution_tile for plan in plans}) > 1


def test_activations_are_kept_layer_by_layer_only_where_those_of_all_layers_do_not_fit() -> None:
    prompt = PromptSize(512)
    needs = Needs(LARGE, prompt)
    fits = total(needs.recorded()) + total(needs.attribution(1))
    assert not planned(fits * 1.01, pairs=1, positions=512).checkpointing
    tight = planned(fits * 0.99, pairs=1, positions=512)
    assert tight.checkpointing
    assert "one layer's activations at a time" in str(tight)
    with pytest.raises(DeviceError, match="one prompt pair needs"):
        planned(fits * 0.99, pairs=1, positions=512, checkpointing=False)
    assert planned(100 * fits, pairs=1, positions=512, checkpointing=True).checkpointing


@pytest.mark.parametrize("limit", [2.5, 3, 5, 8, 20])
def test_a_plan_stays_within_its_budget(limit: float) -> None:
    plan, needs = planned(limit * GB), Needs(LARGE, PromptSize(16))
    pairs = plan.pairs(16)
    assert plan.held + pairs * total(needs.attribution(plan.attribution_tile)) <= limit * GB
    rows = plan.rows(needs.exact(), 16, beside=pairs * total(needs.differences()))
    assert plan.held + pairs * total(needs.differences()) + rows * total(needs.exact()) <= limit * GB


def test_a_budget_too_small_for_one_pair_is_refused_with_the_number_needed() -> None:
    with pytest.raises(
        DeviceError, match=r"one prompt pair needs (.*) of memory beside the model, and 1 MB"
    ) as refused:
        planned(10**6, pairs=1)
    advised = re.search(r"--memory (\d+)MB", str(refused.value))
    assert advised is not None
    assert planned(int(advised[1]) * 10**6, pairs=1).pairs(16) == 1
    with pytest.raises(DeviceError):
        planned((int(advised[1]) - 2) * 10**6, pairs=1)


def test_runs_that_have_no_place_are_refused_with_the_number_of_pairs_that_fit() -> None:
    with pytest.raises(DeviceError, match=r"the recorded runs of 4000 prompt pairs need .* \(--pairs\)") as refused:
        planned(20 * GB, pairs=4000)
    advised = re.search(r"Use at most (\d+) pairs", str(refused.value))
    assert advised is not None
    assert 0 < int(advised[1]) < 4000
    planned(20 * GB, pairs=int(advised[1]))
    with pytest.raises(DeviceError):
        planned(20 * GB, pairs=int(advised[1]) + 2)


def test_runs_wait_on_the_host_when_they_would_take_more_than_half_of_the_device() -> None:
    here, there = planned(20 * GB, pairs=64), planned(20 * GB, pairs=1000, host=100 * GB)
    assert (here.offload, there.offload) == (False, True)
    assert here.held == here.recorded
    assert there.held < 20 * GB < there.recorded
    assert "waiting in the host's memory" in str(there)
    with pytest.raises(DeviceError):
        planned(20 * GB, pairs=1000, host=10 * GB)


def test_the_plan_says_what_it_does() -> None:
    text = str(planned(20 * GB))
    assert re.fullmatch(
        r"20 GB: 16 pairs recorded in \S+ [MG]B \(kept\), up to 256 tokens of pairs together, "
        r"attribution in 1 tile of 1057 senders, the rest for \S+ GB of passes",
        text,
    )


def test_a_number_of_rows_given_by_the_user_is_taken() -> None:
    assert planned(20 * GB, batch_size=3).pairs(16) == 3


# ----------------------------------------------------------------------------------------------------- what users write


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("1.5 gb", 1.5e9), ("512MiB", 512 * 2**20), ("7b", 7), ("50%", 500), ("100%", 1000), ("auto", 250)],
)
def test_budgets_are_sizes_or_shares_of_what_is_free(text: str, size: float) -> None:
    assert parse_budget(text, 1000, default=0.25) == size


@pytest.mark.parametrize("text", ["", "8", "much", "-1GB", "0GB", "0%", "101%", "GB", "8 EB", "1e9B"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a size such as 8GB"):
        parse_budget(text, 1000, default=0.25)
    with pytest.raises(UsageError, match="a share such as 50%"):
        Resources(memory=text)


def test_sizes_are_written_for_people() -> None:
    assert [human(size) for size in (900, 1_500_000, 2.25e9, 3e13)] == ["0.9 kB", "1.5 MB", "2.25 GB", "30 TB"]


# ------------------------------------------------------------------------------------------------------ in experiments


def test_results_do_not_depend_on_the_memory_that_may_be_used() -> None:
    subject, pairs = subject_of("llama"), random_pairs(6, 9)
    edges = subject.some_edges(19)
    masks = np.random.default_rng(0).random((5, subject.graph.n_edges)) < 0.7
    ample = PatchingExperiment(subject.tracer, subject.graph, pairs, Options())
    scarce = PatchingExperiment(subject.tracer, subject.graph, pairs, Options(), resources=Resources(memory="0.8MB"))
    assert len(scarce.batches) > len(ample.batches)
    assert scarce.budget(scarce.batches[0]).rows < ample.budget(ample.batches[0]).rows
    np.testing.assert_allclose(scarce.edge_effects(edges), ample.edge_effects(edges), atol=2e-5)
    np.testing.assert_allclose(scarce.circuits(masks), ample.circuits(masks), atol=2e-5)
    np.testing.assert_allclose(scarce.attributions([0.5]), ample.attributions([0.5]), atol=2e-5, rtol=1e-5)


def test_an_experiment_refuses_a_budget_too_small_before_it_runs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("llama")
    monkeypatch.setattr(type(subject.tracer), "run", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(DeviceError, match="one prompt pair needs"):
        subject.experiment(memory="20kB")


def on_cpu(memory: str, free: float, monkeypatch: pytest.MonkeyPatch) -> MemoryPlan:
    """Plan 64 pairs of five tokens behind nine shared ones, as `ioi` has them, on a 135M model."""
    monkeypatch.setattr(batching, "free_memory", lambda _: int(free))
    monkeypatch.setattr(batching, "shared_memory", lambda: int(free))
    sizes = ModelSizes(ModelShape(30, 9, 3, 576, 64), 1536, 49152, 4, slack=0.6)
    return plan_memory(sizes, [PromptSize(5, 9)] * 64, batching.budget_of([torch.device("cpu")], memory))


def test_no_more_is_planned_for_than_makes_it_fast_however_much_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what was free was taken: 12 GB of 24, for a 135M model."""
    plan = on_cpu("auto", 24 * GB, monkeypatch)
    assert plan.budget.limit == on_cpu("auto", 200 * GB, monkeypatch).budget.limit < 1.6 * GB
    assert str(plan).startswith(human(plan.budget.limit))
    needs = Needs(plan.sizes, PromptSize(5, 9))
    assert plan.rows(needs.circuits(301), 5) >= 64  # all 320 tokens
    assert plan.rows(needs.circuits(40), 5) == 256
    assert (plan.pairs(5), plan.attribution_tile, plan.checkpointing) == (64, 301, False)


def test_what_is_asked_for_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_cpu("8GB", 24 * GB, monkeypatch).budget.limit == 8 * GB
    assert on_cpu("50%", 24 * GB, monkeypatch).budget.limit == 12 * GB


def test_a_third_of_what_is_free_is_taken_where_that_suffices_else_up_to_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """So two runs that start together get as much each, whichever counts first, and are not refused where they fit."""
    tight = on_cpu("auto", 2.4 * GB, monkeypatch)
    assert tight.budget.limit == 0.8 * GB
    assert 1 <= tight.rows(Needs(tight.sizes, PromptSize(5, 9)).circuits(301), 5) < 64
    least = tight.recorded + 2e7
    assert on_cpu("auto", 2.5 * least, monkeypatch).budget.limit == pytest.approx(1.25 * least)
    with pytest.raises(DeviceError, match="--memory"):
        on_cpu("auto", 1.5 * tight.recorded, monkeypatch)


def test_a_long_prompt_that_fits_alone_is_not_refused_for_frugality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda _: 60 * GB)
    monkeypatch.setattr(batching, "shared_memory", lambda: 60 * GB)
    sizes = ModelSizes(ModelShape(30, 9, 3, 576, 64), 1536, 49152, 4, slack=0.6)
    plan = plan_memory(sizes, [PromptSize(2000)], batching.budget_of([torch.device("cpu")], "auto"))
    assert not plan.checkpointing
    assert plan.budget.limit < 20 * GB


def test_sizes_are_read_from_the_model() -> None:
    sizes = ModelSizes.of(subject_of("llama").tracer.anatomy)
    assert (sizes.mlp, sizes.vocabulary, sizes.itemsize, sizes.scores) == (40, 320, 4, False)


def test_what_an_allocator_cannot_reuse_is_a_term_of_its_own() -> None:
    prompt = PromptSize(16)
    plain, slack = Needs(LARGE, prompt).exact(), Needs(replace(LARGE, slack=0.5), prompt).exact()
    assert slack["allocator"] == total(plain) // 2
    assert total(slack) == total(plain) + slack["allocator"]
    assert ModelSizes.of(subject_of("llama").tracer.anatomy).slack > 0
