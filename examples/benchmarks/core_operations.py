"""Time and memory of the core operations, as multiples of a plain forward pass of the same prompts in the same run.

    python examples/benchmarks/core_operations.py [--models gpt2-random smollm2-135m] [--threads 2] [--quick]

``gpt2-random`` is GPT-2 small with random weights and 16 pairs of 16 random tokens that share the first; otherwise the
pairs are 16 of ``ioi``. A plain forward pass is the model's own, of the 16 clean prompts, logits at all positions; it
is repeated before and after everything that is measured. Attribution includes the clean and the corrupted run; edges
and circuits use runs recorded once, whose cost is a row of its own. Memory is the most that a process of its own had
resident, the model and all libraries included, over that of a process that runs the model forward and backward once.

Exact edges are measured in blocks of neighbours in the order of a full sweep (by layer and slot of the receiver, then
by sender): two random blocks from every one of ``--strata`` equal parts of that order. Their mean is that of all edges,
and blocks of one part give the standard error. A block pays once what a call costs, as the sweep does for all edges.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Cost, Figures, Meter, number, peak_megabytes, plain_forward, report, tell
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel

import circuits
from circuits.graph import ComputationalGraph, NodeKind, Slot

RANDOM = "gpt2-random"
MIDPOINTS = [0.1, 0.3, 0.5, 0.7, 0.9]


@dataclass(frozen=True)
class Bar:
    """What issue and peers say of a row: processor time as a multiple of a plain forward pass."""

    elsewhere: str
    bar: float
    stretch: float


_CIRCUIT = Bar("18-19 (EAP-IG, MIB, auto-circuit), 2080 (TransformerLens)", 2.5, 1)
_CIRCUITS = Bar("18-19 (EAP-IG, MIB, auto-circuit), 2080 (TransformerLens)", 2, 0.8)
_MEMORY = Bar("3.6 (EAP-IG), 5.2 (auto-circuit)", 1.3, 1.1)
BARS = {
    ("eap", True): Bar("46 (auto-circuit), 57 (EAP-IG), 168 (TransformerLens)", 5, 3.5),
    ("eap", False): Bar("90 (EAP-IG)", 5, 3.5),
    ("eap-ig", True): Bar("169 (auto-circuit), 200 (EAP-IG)", 16, 12),
    ("edge", True): Bar("2.5 (ACDC), 3.9 (auto-circuit), 16.5 (EAP-IG)", 0.25, 0.1),
    ("edge", False): Bar("23 (EAP-IG)", 0.12, 0.05),
    ("circuit", True): _CIRCUIT,
    ("circuit", False): _CIRCUIT,
    ("circuits", True): _CIRCUITS,
    ("circuits", False): _CIRCUITS,
    ("memory", True): _MEMORY,
    ("memory", False): _MEMORY,
}
NAMES = {
    "recorded": "clean and corrupted run, recorded",
    "eap": "EAP, all edges",
    "eap-ig": "EAP-IG, 5 steps, all edges",
    "edge": "one exact edge, mean over all edges",
    "circuit": "one circuit of 200 edges",
    "circuits": "10 circuits of 200 edges at once, each",
    "memory": "peak memory of EAP over a forward and backward pass",
}


@dataclass(frozen=True)
class Subject:
    """A model and the pairs it is measured on."""

    model: circuits.Model
    pairs: list[circuits.TokenPair]

    @property
    def ids(self) -> torch.Tensor:
        """The clean prompts."""
        return torch.tensor([pair.clean for pair in self.pairs], device=self.model.tracer.anatomy.device)

    def forward(self, pairs: int | None = None) -> Callable[[], object]:
        """Return a plain forward pass of the first pairs' clean prompts."""
        return plain_forward(self.model.tracer.anatomy.module, self.ids[:pairs])


def random_pairs(count: int, length: int, vocabulary: int, shared: int = 1) -> list[circuits.TokenPair]:
    """Draw pairs of random tokens that share the first few."""
    drawn = torch.randint(0, vocabulary, (count, 2, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [circuits.TokenPair(tuple(a), (*a[:shared], *b[shared:]), (1,), (2,), "", "") for a, b in drawn]


def load(name: str, *, quick: bool) -> Subject:
    if name != RANDOM:
        model = circuits.load_model(name)
        return Subject(model, list(circuits.load_behaviour("ioi").prompts(model.tokenizer, discovery=16).discovery))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4) if quick else GPT2Config()
    model = circuits.load_model(GPT2LMHeadModel(config).eval(), name="gpt2-random")
    return Subject(model, random_pairs(16, 16, config.vocab_size))


def sweep_order(graph: ComputationalGraph) -> NDArray[np.int64]:
    """Return all edges in the order in which a full sweep measures them."""
    slots: list[Slot | None] = [*Slot, None]
    last = graph.shape.n_layers
    layer = np.array([last if r.node.kind is NodeKind.LOGITS else r.node.layer for r in graph.receivers])
    slot = np.array([slots.index(r.slot) for r in graph.receivers])
    return np.lexsort((graph.edge_senders, slot[graph.edge_receivers], layer[graph.edge_receivers]))


@dataclass(frozen=True)
class Sweep:
    """The cost of one exact edge in a full sweep, estimated from blocks."""

    cost: Cost
    error: float
    n_measured: int
    n_edges: int

    def described(self, forward: Cost) -> dict[str, float]:
        """Return the figures of the whole sweep, for a file."""
        hours = self.cost.wall * self.n_edges * forward.wall / 3600
        return {
            "edges": self.n_edges,
            "edges_measured": self.n_measured,
            "multiple": self.cost.processor,
            "standard_error": self.error,
            "multiple_of_all_edges": self.cost.processor * self.n_edges,
            "hours_of_all_edges": hours,
        }


def sweep(meter: Meter, experiment: Any, strata: int, block: int) -> Sweep:
    """Measure two random blocks of each part of the sweep's order."""
    order, generator = sweep_order(experiment.graph), np.random.default_rng(0)
    block = min(block, len(order) // (2 * strata))
    taken: list[list[Cost]] = []
    experiment.edge_effects(order[:1])
    before = len(meter.forwards)
    for part in np.array_split(order, strata):
        starts = generator.integers(0, len(part) - block + 1, size=2)
        edges = [part[start : start + block] for start in starts]
        taken.append([meter.once(lambda chosen=chosen: experiment.edge_effects(chosen)).per(block) for chosen in edges])
    forwards = meter.forwards[before:]
    plain = Cost(float(np.mean([f.wall for f in forwards])), float(np.mean([f.processor for f in forwards])))
    wall = np.array([[cost.wall for cost in pair] for pair in taken])
    processor = np.array([[cost.processor for cost in pair] for pair in taken])
    error = np.sqrt(((processor[:, 0] - processor[:, 1]) ** 2).sum()) / (2 * strata) / plain.processor
    mean = Cost(float(wall.mean()), float(processor.mean())) / plain
    return Sweep(mean, float(error), 2 * strata * block, len(order))


def circuits_of(scores: NDArray[np.float64], count: int, size: int) -> NDArray[np.bool_]:
    """Draw circuits that share the edges with the highest scores: half their size; the rest is drawn from the next."""
    ranked, generator = np.argsort(-np.abs(scores)), np.random.default_rng(0)
    masks = np.zeros((count, len(scores)), dtype=np.bool_)
    masks[:, ranked[: size // 2]] = True
    others = ranked[size // 2 : size // 2 + size]
    for mask in masks:
        mask[generator.choice(others, min(size - size // 2, len(others)), replace=False)] = True
    return masks


def measure(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows for one model."""
    tell(f"{name}: attribution")
    subject = load(name, quick=chosen.quick)
    meter = Meter(subject.forward(), chosen.repeats)
    experiment = subject.model.experiment(subject.pairs)

    def attributions(points: list[float]) -> NDArray[np.float64]:
        resources = circuits.Resources(keep_gradients=1.0 in points)
        return subject.model.experiment(subject.pairs, resources=resources).attributions(points)

    costs = {
        "recorded": meter.multiple(lambda: subject.model.experiment(subject.pairs)),
        "eap": meter.multiple(lambda: attributions([1.0])),
        "eap-ig": meter.multiple(lambda: attributions(MIDPOINTS)),
    }
    tell(f"{name}: circuits")
    scores = experiment.attributions([1.0])[0]
    best = np.zeros((1, len(scores)), dtype=np.bool_)
    best[0, np.argsort(-np.abs(scores))[:200]] = True
    many = circuits_of(scores, 10, 200)
    costs["circuit"] = meter.multiple(lambda: experiment.circuits(best))
    costs["circuits"] = meter.multiple(lambda: experiment.circuits(many), 10)
    tell(f"{name}: exact edges, {2 * chosen.strata} blocks of {chosen.block}, twice")
    edges = sweep(meter, experiment, chosen.strata, chosen.block)
    costs["edge"] = edges.cost
    half = len(subject.pairs) // 2
    fewer = Meter(subject.forward(half))
    part = sweep(fewer, experiment.part(0, half), chosen.strata, chosen.block)
    tell(f"{name}: memory")
    return {
        "model": name,
        "pairs": len(subject.pairs),
        "tokens": subject.ids.shape[1],
        "edges": experiment.graph.n_edges,
        "forward_seconds": vars(meter.plain()),
        "multiples": {key: vars(cost) for key, cost in costs.items()},
        "sweep": {str(len(subject.pairs)): edges.described(meter.plain()), str(half): part.described(fewer.plain())},
        "memory_megabytes": {what: peak_of(what, name, chosen) for what in ("forward_and_backward", "eap")},
    }


def peak_of(what: str, name: str, chosen: argparse.Namespace) -> float:
    """Measure peak memory in a process of its own, which loads the model, does one thing and ends."""
    command = [sys.executable, __file__, "--peak-of", what, "--models", name, "--threads", str(chosen.threads)]
    command += ["--quick"] if chosen.quick else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def do(what: str, subject: Subject) -> None:
    """Do what is measured for its memory; the plain backward pass gives gradients of the embeddings, not of weights."""
    if what == "eap":
        subject.model.experiment(subject.pairs, resources=circuits.Resources(keep_gradients=True)).attributions([1.0])
        return
    module = subject.model.tracer.anatomy.module
    embeddings = module.get_input_embeddings()(subject.ids).detach().requires_grad_(True)
    module(inputs_embeds=embeddings, use_cache=False).logits[:, -1].logsumexp(-1).sum().backward()


def rows_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    random = result["model"] == RANDOM
    values = {key: (cost["processor"], cost["wall"]) for key, cost in result["multiples"].items()}
    memory = result["memory_megabytes"]
    values["memory"] = (memory["eap"] / memory["forward_and_backward"],) * 2
    rows: list[tuple[str, ...]] = []
    for key, name in NAMES.items():
        processor, wall = values[key]
        bar = BARS.get((key, random))
        goal = (bar.elsewhere, number(bar.bar), number(bar.stretch), _verdict(processor, bar)) if bar else ("",) * 4
        error = f" ± {number(result['sweep'][str(result['pairs'])]['standard_error'])}" if key == "edge" else ""
        rows.append((name, result["model"], number(processor) + error, number(wall), *goal))
    return rows


def _verdict(value: float, bar: Bar) -> str:
    return "stretch" if value <= bar.stretch else "pass" if value <= bar.bar else "no"


def tables(results: list[dict[str, Any]]) -> list[Figures]:
    columns = ("operation", "model", "processor time", "wall clock", "elsewhere", "bar", "stretch", "reached")
    core = Figures("Multiples of a plain forward pass", columns, [row for result in results for row in rows_of(result)])
    sweeps = [
        (
            result["model"],
            pairs,
            f"{found['edges']:,}",
            f"{found['edges_measured']:,}",
            f"{number(found['multiple'])} ± {number(found['standard_error'])}",
            f"{found['multiple_of_all_edges']:,.0f}",
            number(found["hours_of_all_edges"]),
        )
        for result in results
        for pairs, found in result["sweep"].items()
    ]
    of_sweeps = ("model", "pairs", "edges", "measured", "× forward, one edge", "× forward, all edges", "hours")
    return [core, Figures("The full exact sweep, extrapolated", of_sweeps, sweeps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="gpt2-random, or models that circuits loads")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="of everything but the sweep")
    parser.add_argument("--strata", type=int, default=12, help="parts of the sweep, two blocks of each")
    parser.add_argument("--block", type=int, default=64, help="edges of a block")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    models = chosen.models or ([RANDOM] if chosen.quick else [RANDOM, "smollm2-135m"])
    if chosen.peak_of:
        do(chosen.peak_of, load(models[0], quick=chosen.quick))
        print(json.dumps(peak_megabytes()))
        return
    if chosen.quick:
        chosen.repeats, chosen.strata, chosen.block = 1, 2, 8
    results = [measure(name, chosen) for name in models]
    report("core_operations", chosen.out, {"quick": chosen.quick, "models": results}, *tables(results))


if __name__ == "__main__":
    main()
