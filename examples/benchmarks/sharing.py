"""What sharing one exact sweep among workers gains: measured on a small model, simulated for large ones.

    python examples/benchmarks/sharing.py [--workers 1 2 4] [--simulate 64] [--models smollm2-135m 8b] [--quick]

*Measured*: all edges of a small random Llama, by so many processes with one thread each that meet in a folder
(``circuits score --share``). Every result must be that of one process without sharing, bit for bit. Speed-up is told
twice: by wall time, which other work on the machine and too few cores make worse, and by processor time, from the
process that used most of it in its sweep: what the speed-up would be with a core for every process. Bytes are those of
the files that a process wrote, and read of others.

*Simulated*: the schedule of as many workers as wanted on larger models, where each takes the most costly shard that is
left. What an edge costs is measured in blocks of neighbours into some layers, and of edges into layers between them
taken from a straight line through these, for each kind of receiver. For ``8b``, of the shape of Llama 3.1 8B, it is
measured on a model of that width with few layers and random weights. Memory of ``smollm2-135m`` is the most that this
process had resident, libraries included; that of ``8b`` is counted: weights, recorded runs and one pass.
"""

import argparse
import heapq
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_operations import random_pairs
from measuring import Figures, number, peak_megabytes, report, stopwatch, tell
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

import circuits
from circuits.builder import build_graph
from circuits.graph import ComputationalGraph, ModelShape
from circuits.memory.needs import ModelSizes, Needs, PromptSize
from circuits.passes.exact import ReceiverGroup, receiver_groups
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.shards import shards_of

MEMORY = "400MB"
"""The same plan in every process, whatever memory is free: then batches are the same."""
SMALL = {"vocab_size": 99, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 6}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 12}
QUICK = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
EIGHT_BILLION = ModelShape(n_layers=32, n_heads=32, n_kv_heads=8, d_model=4096, d_head=128)
EIGHT_BILLION_MLP, EIGHT_BILLION_VOCABULARY, EIGHT_BILLION_WEIGHTS = 14_336, 128_256, 8_030_261_248
LENGTH = 12


def small_experiment(folder: Path, *, quick: bool, pairs: int) -> PatchingExperiment:
    """Return the experiment that all processes share, with a journal of its own in a folder."""
    torch.manual_seed(0)
    shape = QUICK | {"num_attention_heads": 4} if quick else SMALL | HEADS
    model = circuits.load_model(LlamaForCausalLM(LlamaConfig(**shape)).eval(), name="small")
    prompts, resources = random_pairs(pairs, LENGTH, shape["vocab_size"]), circuits.Resources(memory=MEMORY)
    return model.experiment(prompts, resources=resources, journal=circuits.Journal(folder / "journal"))


def work(folder: Path, name: str, *, of: int, quick: bool, pairs: int) -> None:
    """Be one process: sweep, alone or shared, and write scores and costs."""
    own = folder / name
    made: list[PatchingExperiment] = []
    starting = stopwatch(lambda: made.append(small_experiment(own, quick=quick, pairs=pairs)))
    (experiment,), measured = made, list[list[int]]()
    whole = experiment.edge_effects

    def noted(edges: Any, **told: Any) -> Any:
        measured.append([int(edge) for edge in edges])
        return whole(edges, **told)

    experiment.edge_effects = noted
    found: list[circuits.EdgeScores] = []
    (own / "ready").touch()
    while len(list(folder.glob("*/ready"))) < of:  # nobody has done everything before the others have begun
        time.sleep(0.05)

    def sweep() -> None:
        found.append(
            circuits.score_shared(experiment, folder / "shards") if of else circuits.score(experiment, "exact")
        )

    cost = stopwatch(sweep)
    np.savez(own / "scores.npz", values=found[0].values, sd=found[0].sd)
    told = {"wall": cost.wall, "processor": cost.processor, "starting": starting.processor, "shards": measured}
    (own / "costs.json").write_text(json.dumps(told))


def run_processes(folder: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Let so many processes share the sweep, 0 for one that does not share; return costs, bytes and scores."""
    names = [f"worker-{number}" for number in range(max(1, count))]
    command = [sys.executable, __file__, "--pairs", str(options.pairs), "--threads", "1"]
    command += ["--quick"] if options.quick else []
    running: list[subprocess.Popen[bytes]] = []
    for name in names:
        (folder / name).mkdir(parents=True)
        running.append(subprocess.Popen([*command, "--be", name, "--of", str(count), "--meet", str(folder)]))
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a worker failed; its error stands above.")
    costs = [json.loads((folder / name / "costs.json").read_text()) for name in names]
    with np.load(folder / names[0] / "scores.npz") as first:
        scores = {key: first[key] for key in first.files}
    for name in names[1:]:
        with np.load(folder / name / "scores.npz") as other:
            if any(not np.array_equal(scores[key], other[key], equal_nan=True) for key in scores):
                raise SystemExit(f"{name} has other scores than {names[0]}.")
    sizes = {int(edges[0]): size for edges, size in _files(folder / "shards")}
    written = [sum(sizes.get(edges[0], 0) for edges in cost["shards"]) for cost in costs]
    return {
        "workers": count,
        "scores": scores,
        "wall": max(cost["wall"] for cost in costs),
        "processor": [cost["processor"] for cost in costs],
        "starting": [cost["starting"] for cost in costs],
        "shards": len(sizes),
        "measured": [len(cost["shards"]) for cost in costs],
        "written": written,
        "read": [sum(sizes.values()) - own for own in written],
    }


def _files(folder: Path) -> list[tuple[NDArray[np.int64], int]]:
    found: list[tuple[NDArray[np.int64], int]] = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as kept:
            found.append((kept["edges"], file.stat().st_size))
    return found


def shared_sweeps(options: argparse.Namespace) -> dict[str, Any]:
    """Sweep alone, then with every number of workers; return what each took, and whether scores are equal."""
    with tempfile.TemporaryDirectory() as folder:
        tell("one process, not sharing")
        alone = run_processes(Path(folder, "alone"), 0, options)
        rows: list[dict[str, Any]] = []
        for count in options.workers:
            tell(f"{count} sharing")
            found = run_processes(Path(folder, f"of-{count}"), count, options)
            mine, theirs = found.pop("scores"), alone["scores"]
            found["equal"] = all(np.array_equal(mine[key], theirs[key], equal_nan=True) for key in theirs)
            rows.append(found)
    edges = int(np.count_nonzero(~np.isnan(alone.pop("scores")["values"])))
    return {"edges": edges, "alone": alone, "shared": rows}


@dataclass(frozen=True)
class Line:
    """What an edge into some kind of receiver costs in seconds: ``fixed``, and ``layer`` for each layer that is run."""

    fixed: float
    layer: float

    @classmethod
    def through(cls, layers: Sequence[int], seconds: Sequence[float]) -> "Line":
        """Fit a line, through the origin where it would begin below that, or there is but one point."""
        if len(set(layers)) > 1:
            slope, fixed = np.polyfit(layers, seconds, 1)
            if fixed >= 0:
                return cls(float(fixed), max(0.0, float(slope)))
        return cls(0.0, float(np.dot(layers, seconds) / np.dot(layers, layers)))

    def at(self, layers: int) -> float:
        """Return what an edge costs for which so many layers are run."""
        return self.fixed + self.layer * layers


Lines = dict[str, Line]


def lines_of(experiment: PatchingExperiment, layers: Sequence[int], block: int) -> Lines:
    """Measure a block of neighbours for every kind of receiver of some layers, and fit what an edge costs."""
    graph = experiment.graph
    taken: dict[str, list[tuple[int, float]]] = {}
    for group in receiver_groups(graph, np.arange(graph.n_edges)):
        if group.layer in layers or group.layer == graph.shape.n_layers:
            first = max(0, (len(group.edges) - block) // 2)
            edges = group.edges[first : first + block]
            tell(f"{len(edges)} edges into layer {group.layer}, {_kind(graph, group)}")
            cost = stopwatch(lambda edges=edges: experiment.edge_effects(edges)).processor / len(edges)
            taken.setdefault(_kind(graph, group), []).append((graph.shape.n_layers + 1 - group.layer, cost))
    return {kind: Line.through(*zip(*points, strict=True)) for kind, points in taken.items()}


def _kind(graph: ComputationalGraph, group: ReceiverGroup) -> str:
    return "logits" if group.layer == graph.shape.n_layers else str(group.slot or "mlp")


def seconds_of_shards(graph: ComputationalGraph, lines: Lines, at_once: int) -> list[float]:
    """Return what every shard of all edges costs, in the order in which workers take them."""
    kinds, layers = _places(graph)
    seconds: list[float] = []
    for shard in shards_of(graph, np.arange(graph.n_edges), at_once=at_once):
        place = int(graph.edge_receivers[shard.edges[0]])
        seconds.append(len(shard.edges) * lines[kinds[place]].at(layers[place]))
    return seconds


def _places(graph: ComputationalGraph) -> tuple[list[str], list[int]]:
    """Return of every receiver its kind, and how many layers are run for it."""
    last = graph.shape.n_layers
    found = [
        ("logits", 1)
        if receiver.node == graph.shape.end
        else (str(receiver.slot or "mlp"), last + 1 - receiver.node.layer)
        for receiver in graph.receivers
    ]
    return [kind for kind, _ in found], [layers for _, layers in found]


def schedule(seconds: Sequence[float], workers: int) -> list[float]:
    """Return how long each worker is busy, where one that is free takes the next shard."""
    busy = [0.0] * workers
    heapq.heapify(busy)
    for each in seconds:
        heapq.heappush(busy, heapq.heappop(busy) + each)
    return busy


def simulated(
    name: str, graph: ComputationalGraph, seconds: list[float], workers: int, starting: float
) -> dict[str, Any]:
    """Return the schedule of one model: hours of one worker and of many, how evenly these work, and speed-up."""
    busy = schedule(seconds, workers)
    makespan = starting + max(busy)
    return {
        "model": name,
        "edges": graph.n_edges,
        "shards": len(seconds),
        "workers": workers,
        "one_worker_s": sum(seconds) + starting,
        "makespan_s": makespan,
        "balance": float(np.mean(busy)) / max(busy),
        "speed_up": (sum(seconds) + starting) / makespan,
        "starting_s": starting,
        "longest_shard_s": max(seconds),
    }


def smol(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate SmolLM2-135M from costs measured on itself."""
    made: list[circuits.Model] = []
    loading = stopwatch(lambda: made.append(circuits.load_model("smollm2-135m"))).processor
    (model,) = made
    pairs = list(circuits.load_behaviour("ioi").prompts(model.tokenizer, discovery=options.pairs).discovery)
    experiments: list[PatchingExperiment] = []
    resources = circuits.Resources(memory="2GB")
    recording = stopwatch(lambda: experiments.append(model.experiment(pairs, resources=resources))).processor
    (experiment,) = experiments
    lines = lines_of(experiment, [1, 10, 20, 29], options.block)
    seconds = seconds_of_shards(model.graph, lines, at_once_of(experiment))
    found = simulated("smollm2-135m", model.graph, seconds, options.simulate, loading + recording)
    weights = sum(each.numel() * each.element_size() for each in model.tracer.anatomy.module.parameters())
    return found | {
        "pairs": len(pairs),
        "lines": {kind: vars(line) for kind, line in lines.items()},
        "weights_mb": weights / 1e6,
        "recorded_mb": experiment.plan.recorded / 1e6,
        "memory_mb": peak_megabytes(),
    }


def at_once_of(experiment: PatchingExperiment) -> int:
    """Return how many edges run in one batch."""
    return math.lcm(*(max(1, experiment.budget(batch).rows // len(batch.index)) for batch in experiment.batches))


def eight_billion(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate the shape of 8 billion weights from costs measured on few layers of that width."""
    shape, layers = EIGHT_BILLION, 3
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=shape.d_model,
        intermediate_size=EIGHT_BILLION_MLP,
        num_hidden_layers=layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
    )
    torch.manual_seed(0)
    model = circuits.load_model(LlamaForCausalLM(config).eval(), name="8b, few layers")
    pairs = random_pairs(options.pairs, LENGTH, 1000)
    experiments: list[PatchingExperiment] = []
    resources = circuits.Resources(memory="2GB")
    recording = stopwatch(lambda: experiments.append(model.experiment(pairs, resources=resources))).processor
    lines = lines_of(experiments[0], range(layers), options.block)
    graph = build_graph(shape)
    seconds = seconds_of_shards(graph, lines, at_once_of(experiments[0]))
    found = simulated("8b", graph, seconds, options.simulate, recording * shape.n_layers / layers)
    sizes = ModelSizes(shape, EIGHT_BILLION_MLP, EIGHT_BILLION_VOCABULARY, itemsize=2)
    needs = Needs(sizes, PromptSize(LENGTH - 1, 1))
    recorded = options.pairs * sum(needs.recorded().values())
    row = options.pairs * (sum(needs.exact().values()) + sum(needs.differences().values()))
    return found | {
        "pairs": options.pairs,
        "lines": {kind: vars(line) for kind, line in lines.items()},
        "weights_mb": 2 * EIGHT_BILLION_WEIGHTS / 1e6,
        "recorded_mb": recorded / 1e6,
        "memory_mb": (2 * EIGHT_BILLION_WEIGHTS + recorded + row) / 1e6,
    }


MODELS = {"smollm2-135m": smol, "8b": eight_billion}


def tables(found: dict[str, Any]) -> list[Figures]:
    """Return what was measured, and what was simulated."""
    measured, alone = found["measured"], found["measured"]["alone"]
    rows = [
        (
            str(each["workers"]),
            "yes" if each["equal"] else "NO",
            f"{each['wall']:.1f}",
            f"{alone['wall'] / each['wall']:.2f}",
            f"{max(each['processor']):.1f}",
            f"{alone['processor'][0] / max(each['processor']):.2f}",
            f"{sum(each['processor']) / alone['processor'][0]:.2f}",
            "+".join(map(str, each["measured"])),
            f"{sum(each['written']):,}",
            f"{sum(each['read']):,}",
        )
        for each in measured["shared"]
    ]
    columns = ("workers", "equal", "wall s", "speed-up", "longest, processor s", "speed-up", "work", "shards of each")
    title = (
        f"{measured['edges']:,} edges; one process, not sharing: {alone['wall']:.1f} s, {alone['processor'][0]:.1f} s"
    )
    figures = [Figures(title, (*columns, "bytes written", "bytes read"), rows)]
    planned = [
        (
            f"{each['model']}, {each['pairs']} pairs",
            f"{each['edges']:,}",
            f"{each['shards']:,}",
            number(each["one_worker_s"] / 3600),
            number(each["makespan_s"] / 3600),
            f"{each['speed_up']:.1f}",
            f"{each['balance']:.3f}",
            f"{each['memory_mb'] / 1000:.1f}",
        )
        for each in found["simulated"]
    ]
    columns = ("model", "edges", "shards", "hours of one worker", "hours", "speed-up", "balance", "GB of each")
    return [*figures, *([Figures(f"simulated: {found['workers']} workers", columns, planned)] if planned else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--simulate", type=int, default=64, help="workers of the simulated schedules")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="that are simulated")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--block", type=int, default=32, help="edges that are measured of each kind and layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, two workers, nothing simulated")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meet", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.be:
        work(options.meet, options.be, of=options.of, quick=options.quick, pairs=options.pairs)
        return
    if options.quick:
        options.workers, options.models = [1, 2], []
    found: dict[str, Any] = {"quick": options.quick, "workers": options.simulate, "measured": shared_sweeps(options)}
    found["simulated"] = [MODELS[name](options) for name in options.models]
    report("sharing", options.out, found, *tables(found))
    if not all(each["equal"] for each in found["measured"]["shared"]):
        raise SystemExit("a shared sweep has other scores than one process.")


if __name__ == "__main__":
    main()
