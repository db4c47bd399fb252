"""The benchmarks run, print and write what they promise; their estimates are right where the truth is known."""

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import circuits
from circuits.passes.exact import receiver_groups
from tests.tiny import tiny_llama

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"


Run = Callable[[str], tuple[str, dict[str, Any]]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def run_quickly(
    load: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """Run a benchmark in this process, and give what it printed and wrote."""
    threads = torch.get_num_threads()

    def run(name: str) -> tuple[str, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--threads", "1", "--out", str(tmp_path)])
        load(name).main()
        assert (tmp_path / f"{name}.md").read_text().startswith("**")
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["benchmark"] == name
        assert found["machine"]["threads"] == 1
        return capsys.readouterr().out, found

    yield run
    torch.set_num_threads(threads)


def test_core_operations_prints_every_row_beside_its_bar(run_quickly: Run, load: Any) -> None:
    printed, found = run_quickly("core_operations")
    for name in load("core_operations").NAMES.values():
        assert name[:30] in printed
    (result,) = found["models"]
    assert set(result["multiples"]) == {"recorded", "eap", "eap-ig", "edge", "circuit", "circuits"}
    assert all(cost["processor"] > 0 for cost in result["multiples"].values())
    sweep = result["sweep"]["16"]
    assert sweep["edges"] == result["edges"] == 110
    assert sweep["edges_measured"] == 32
    assert sweep["multiple_of_all_edges"] == pytest.approx(110 * sweep["multiple"])
    assert result["memory_megabytes"]["eap"] > 100


def test_precision_holds_every_arithmetic_against_float32(run_quickly: Run, load: Any) -> None:
    printed, found = run_quickly("precision")
    ways = found["ways"]
    assert list(ways) == [way.name for way in load("precision").WAYS if not way.compiled]
    assert ways["float32 again"]["attribution"]["largest_change"] == 0
    assert 0 < ways["bfloat16"]["exact"]["largest_change"] < 0.1
    changes = [ways[f"{bits} bits, expanded"]["exact"]["largest_change"] for bits in (8, 4)]
    assert 0 < 2 * changes[0] < changes[1] < 0.5
    assert ways["bfloat16"]["attribution"]["rank_correlation"] > 0.99
    assert "bfloat16" in printed
    assert torch.get_float32_matmul_precision() == "highest"


def test_weights_are_rounded_to_blocks_of_few_values(load: Any) -> None:
    model = circuits.load_model(tiny_llama().eval())
    weight = model.tracer.anatomy.module.get_submodule("model.layers.1.self_attn.q_proj").weight
    before = weight.clone()
    load("precision").round_weights(model, "Q4_0")
    blocks = weight.reshape(-1, 32)
    assert max(len(block.unique()) for block in blocks) <= 16
    assert 0 < (weight - before).abs().max() < before.abs().max() / 4


def test_processes_that_share_have_the_scores_of_one_and_bytes_are_counted(run_quickly: Run) -> None:
    _, found = run_quickly("sharing")
    one, two = found["measured"]["shared"]
    assert one["equal"]
    assert two["equal"]
    assert sum(two["measured"]) >= two["shards"] == one["shards"] == sum(one["measured"])
    assert one["read"] == [0]
    assert sum(two["read"]) > 0
    assert found["simulated"] == []


def test_costs_of_edges_are_fitted_and_shards_go_to_whoever_is_free(load: Any) -> None:
    module = load("sharing")
    line = module.Line.through([1, 2, 4], [3.0, 5.0, 9.0])
    assert (line.fixed, line.layer) == pytest.approx((1, 2))
    below = module.Line.through([1, 2, 4], [0.0, 2.0, 6.0])
    assert (below.fixed, below.layer) == pytest.approx((0, 28 / 21))
    assert module.Line.through([2], [3.0]).at(4) == pytest.approx(6)
    assert sorted(module.schedule([5.0, 3.0, 2.0, 2.0], 2)) == [5.0, 7.0]


def test_peers_that_are_not_installed_are_listed_with_what_installs_them(run_quickly: Run) -> None:
    printed, found = run_quickly("peers")
    assert set(found["peers"]["circuits"]["multiples"]) == {
        "EAP, all edges",
        "one exact edge",
        "one circuit of 200 edges",
    }
    if importlib.util.find_spec("auto_circuit") is None:
        assert found["peers"]["auto-circuit"]["not_installed"].startswith("pip install auto-circuit")
        assert "pip install auto-circuit" in re.sub(r"\W*\n\W*", " ", printed)


def test_scaling_fits_every_exponent_and_draws_them(run_quickly: Run, tmp_path: Path) -> None:
    _, found = run_quickly("scaling")
    assert set(found["exponents"]["exact edges"]) == {"layers", "heads", "positions", "pairs", "edges"}
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_where_time_goes_divides_the_whole_time(run_quickly: Run) -> None:
    _, found = run_quickly("where_time_goes")
    for operation in found["models"]["gpt2-random"].values():
        assert sum(operation["shares"].values()) == pytest.approx(1, abs=0.1)


def test_long_prompts_are_measured_beside_a_plain_forward_and_backward_pass(run_quickly: Run) -> None:
    printed, found = run_quickly("long_prompts")
    shorter, longer = found["peaks"]["1"]["64"], found["peaks"]["1"]["128"]
    assert list(longer) == list(shorter)
    assert all(1.8 < longer[name] / shorter[name] < 2.3 for name in longer)
    assert 1 < longer["eap"] / longer["plain forward and backward"] < 3
    assert "128 tokens" in printed


@pytest.mark.real
def test_packed_weights_are_held_against_expanded_ones(run_quickly: Run, smol: Path) -> None:
    printed, found = run_quickly("packed_weights")
    forms = found["found"]["Q4_0"]
    assert {name: each["digest"] for name, each in forms["packed"].items()} == {
        name: each["digest"] for name, each in forms["expanded"].items()
    }
    assert "MB, packed" in printed


@pytest.mark.real
def test_the_stages_of_a_discovery_make_up_its_time(run_quickly: Run, smol: Path) -> None:
    printed, found = run_quickly("discovery")
    assert {"scoring", "evaluating on held-out prompts"} <= set(found["multiples"])
    assert sum(found["multiples"].values()) == pytest.approx(found["multiple"])
    assert found["multiple"] * found["plain_forward_s"] < found["processor_s"]  # without the plain passes
    assert found["loaded_mb"] <= found["resident_mb"]  # the peak may be that of loading, or of tests before
    assert found["prefix_cache"] == "on"
    assert "discover ioi, 4 pairs" in printed


def test_the_order_of_the_sampled_sweep_is_the_order_of_the_sweep(load: Any) -> None:
    graph = circuits.load_model(tiny_llama().eval()).graph
    swept = np.concatenate([group.edges for group in receiver_groups(graph, np.arange(graph.n_edges))])
    np.testing.assert_array_equal(load("core_operations").sweep_order(graph), swept)


class Clockwork:
    """A meter for which an edge costs its place in the sweep, and a plain forward pass 10."""

    def __init__(self, module: ModuleType, experiment: Any) -> None:
        self.module, self.experiment = module, experiment
        self.forwards: list[Any] = []

    def once(self, run: Any) -> Any:
        self.forwards.append(self.module.Cost(10.0, 10.0))
        run()
        return self.module.Cost(self.experiment.spent, self.experiment.spent)


class Counted:
    """An experiment that adds up what its edges cost."""

    def __init__(self, graph: Any, cost: np.ndarray) -> None:
        self.graph, self.cost, self.spent = graph, cost, 0.0

    def edge_effects(self, edges: np.ndarray) -> None:
        self.spent = float(self.cost[edges].sum())


def test_the_mean_over_all_edges_is_estimated_from_blocks_within_its_error(load: Any) -> None:
    module = load("core_operations")
    graph = circuits.load_model(tiny_llama().eval()).graph
    cost = np.empty(graph.n_edges)
    cost[module.sweep_order(graph)] = np.arange(graph.n_edges)
    experiment = Counted(graph, cost)
    found = module.sweep(Clockwork(module, experiment), experiment, strata=6, block=4)
    assert found.n_measured == 48
    assert found.error > 0
    assert found.cost.processor == pytest.approx(cost.mean() / 10, abs=3 * found.error)
    assert found.error < cost.mean() / 10 / 10


def test_circuits_measured_at_once_have_a_live_path_and_differ(load: Any) -> None:
    model = circuits.load_model(tiny_llama().eval())
    drawn = load("core_operations").random_pairs(4, 8, 320)
    experiment = model.experiment(drawn)
    masks = load("core_operations").circuits_of(experiment.attributions([1.0])[0], 5, 60)
    assert (masks.sum(axis=1) == 60).all()
    assert len(np.unique(masks, axis=0)) == 5
    assert (np.abs(experiment.circuits(masks) - experiment.corrupted).max(axis=1) > 1e-3).all()


def test_exponents_are_those_of_power_laws(load: Any) -> None:
    assert load("scaling").exponent((2, 4, 8), [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_multiples_are_of_the_passes_among_which_something_ran(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("measuring")
    clock = {"now": 0.0}
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(module.time, "process_time", lambda: 2 * clock["now"])
    spend = {"forward": 2.0}

    def work(seconds: float) -> None:
        clock["now"] += seconds

    meter = module.Meter(lambda: work(spend["forward"]), repeats=3)
    assert meter.multiple(lambda: work(12.0), items=3).wall == pytest.approx(2)
    spend["forward"] = 4.0  # the machine became slower
    assert meter.multiple(lambda: work(12.0)).processor == pytest.approx(3)


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("aten::addmm", "products with weights"),
        ("aten::bmm", "assembly: batched products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::tanh", "norms and element-wise"),
        ("aten::copy_", "copies, joins, fresh memory"),
    ],
)
def test_operators_are_counted_in_their_group(load: Any, operator: str, group: str) -> None:
    assert load("where_time_goes").group_of(operator) == group


def test_gpu_holds_families_against_the_cpu_and_says_what_was_not_run(run_quickly: Run) -> None:
    """Its CPU part: without a GPU, float32 against itself is equal to the last bit, bfloat16 is not."""
    printed, found = run_quickly("gpu")
    assert "EAP in 8 billion weights: needs a GPU" in found["skipped"] or found["device"] == "cuda"
    assert "against float32 on the CPU" in printed
    for name, scores in found["equality"].items():
        for each in scores.values():
            assert each["largest_change"] < (0.2 if "bfloat16" in name else 1e-3)
    assert found["equality"]["gpt2, bfloat16"]["exact"]["largest_change"] > 0
    assert found["times"]["full sweep"]["edges"] > 50
