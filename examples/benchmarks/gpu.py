"""What a GPU computes and how fast: held against the CPU on five families, then timed; at most ten minutes.

    python examples/benchmarks/gpu.py [--device auto] [--limit 600] [--threads 4] [--quick]

*Equality*: attribution, exact effects and circuits of small random models of five families, in float32, with TF32
products and in bfloat16, against float32 on the CPU: rank correlation, and the largest change over the largest score.
*Times* on GPT-2 small's shape with random weights, 64 pairs of 16 tokens: attribution, exact effects, circuits, and the
full sweep of all 32,491 edges. *Memory* of attribution in a random Llama of 8 billion weights in bfloat16.
*Synchronisations*: where the host waits for the device in these operations, by line, as torch warns of them.

Without a GPU the small part runs on the CPU, against itself, and what needs a GPU is listed as not run; --quick is that
with the least sizes, to see that it runs. What no time is left for is listed too. Writes JSON.
"""

import argparse
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_operations import circuits_of, random_pairs
from measuring import Figures, report, stopwatch, tell
from precision import agreement
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import circuits

MIDPOINTS = [0.1, 0.3, 0.5, 0.7, 0.9]
GPT2_EDGES = 32_491
SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GQA = {"head_dim": 16}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**{name: value for name, value in SMALL.items() if name != "num_key_value_heads"})
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **GQA, query_pre_attn_scalar=16)),
}
EIGHT_BILLION = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
WAYS = {
    "float32": (torch.float32, "highest"),
    "TF32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
}
Scores = dict[str, np.ndarray[Any, Any]]


@dataclass
class Bench:
    """What is measured on, until when, and what was not run."""

    device: str
    quick: bool
    until: float
    skipped: list[str] = field(default_factory=list[str])

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device == "cuda"

    def may(self, what: str, seconds: float, *, gpu: bool = True) -> bool:
        """Say whether something is run that takes about so long; note what is not, and why."""
        if gpu and not self.on_gpu:
            self.skipped.append(f"{what}: needs a GPU")
        elif time.monotonic() + seconds > self.until:
            self.skipped.append(f"{what}: no time left")
        else:
            tell(what)
            return True
        return False


def loaded(make: Callable[[], nn.Module], device: str, dtype: torch.dtype = torch.float32) -> circuits.Model:
    torch.manual_seed(0)
    return circuits.load_model(make().eval().to(device=device, dtype=dtype))


def scores_of(model: circuits.Model, edges: np.ndarray[Any, Any] | None) -> tuple[Scores, np.ndarray[Any, Any]]:
    """Return attribution of all edges, exact effects of a sample, and circuits, and which edges the sample has."""
    experiment = model.experiment(random_pairs(8, 12, 300))
    attribution = experiment.attributions(MIDPOINTS)[0]
    if edges is None:
        edges = np.sort(np.random.default_rng(0).choice(len(attribution), min(96, len(attribution)), replace=False))
    exact = experiment.edge_effects(edges).mean(1)
    masks = circuits_of(np.random.default_rng(1).standard_normal(len(attribution)), 8, len(attribution) // 3)
    found = {"attribution": attribution, "exact": exact, "circuits": experiment.circuits(masks).ravel()}
    return found, edges


def equality(bench: Bench) -> dict[str, Any]:
    """Hold every family's scores on the device against the CPU's."""
    found: dict[str, Any] = {}
    before = torch.get_float32_matmul_precision()
    for family, make in list(FAMILIES.items())[: 2 if bench.quick else None]:
        if not bench.may(f"equality of {family}", 30, gpu=False):
            continue
        expected, edges = scores_of(loaded(make, "cpu"), None)
        for way, (dtype, precision) in WAYS.items():
            model = loaded(make, bench.device, dtype)
            torch.set_float32_matmul_precision(precision)  # after the guards, which hold the model against itself
            try:
                scores, _ = scores_of(model, edges)
            finally:
                torch.set_float32_matmul_precision(before)
            found[f"{family}, {way}"] = {name: agreement(scores[name], expected[name]) for name in expected}
    return found


def times(bench: Bench) -> dict[str, Any]:
    """Time attribution, exact effects, circuits and the full sweep on GPT-2 small's shape."""
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4) if bench.quick else GPT2Config()
    if not (bench.quick or bench.may("times on GPT-2 small's shape", 120)):
        return {}
    model = loaded(lambda: GPT2LMHeadModel(config), bench.device)
    pairs = random_pairs(4 if bench.quick else 64, 16, config.vocab_size)
    experiment = model.experiment(pairs)
    ranking = experiment.attributions([1.0])[0]
    masks, edges = circuits_of(ranking, 32, min(200, len(ranking) // 3)), np.arange(0, len(ranking), 127)
    runs: dict[str, Callable[[], object]] = {
        "recording": lambda: model.experiment(pairs),
        "EAP": lambda: experiment.attributions([1.0]),
        "EAP-IG, 5 steps": lambda: experiment.attributions(MIDPOINTS),
        f"exact, {len(edges)} edges": lambda: experiment.edge_effects(edges),
        "32 circuits": lambda: experiment.circuits(masks),
    }
    found: dict[str, Any] = {}
    for name, run in runs.items():
        run()
        found[name] = {"seconds": stopwatch(run).wall}
        if bench.on_gpu:
            found[name]["waits"] = waits(run)
    if bench.quick or bench.may("the full sweep", 100):
        every = np.arange(model.graph.n_edges)
        found["full sweep"] = {"edges": len(every), "seconds": stopwatch(lambda: experiment.edge_effects(every)).wall}
    return found


def waits(run: Callable[[], object]) -> dict[str, int]:
    """Return where the host waits for the device while something runs, by line of this package."""
    places: Counter[str] = Counter()

    def noted(*_: object, **__: object) -> None:
        frames = [each for each in traceback.extract_stack() if "/circuits/" in each.filename]
        where = frames[-1] if frames else traceback.extract_stack()[0]
        places[f"{Path(where.filename).name}:{where.lineno} {where.name}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(places.most_common(12))


def eight_billion(bench: Bench) -> dict[str, Any]:
    """Attribute in a random Llama of 8 billion weights; return seconds and the most memory, of a goal of 80 GB."""
    if not bench.may("EAP in 8 billion weights", 120) or bench.quick:
        return {}
    torch.manual_seed(0)
    with torch.device(bench.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            module = LlamaForCausalLM(LlamaConfig(**EIGHT_BILLION)).eval()
        finally:
            torch.set_default_dtype(before)
    model = circuits.load_model(module)
    torch.cuda.reset_peak_memory_stats()
    experiment = model.experiment(random_pairs(8, 16, 1000), resources=circuits.Resources(memory="50GB"))
    cost = stopwatch(lambda: experiment.attributions([1.0]))
    return {
        "edges": model.graph.n_edges,
        "seconds": cost.wall,
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9,
    }


def tables(found: dict[str, Any]) -> list[Figures]:
    columns = ("model and arithmetic", "scores", "rank correlation", "largest change")
    rows = [
        (name, what, f"{each['rank_correlation']:.5f}", f"{each['largest_change']:.1e}")
        for name, results in found["equality"].items()
        for what, each in results.items()
    ]
    timed = [(name, f"{each['seconds']:.3f}") for name, each in found["times"].items()]
    return [
        Figures("against float32 on the CPU", columns, rows),
        Figures("GPT-2 small's shape, random weights", ("operation", "seconds"), timed),
        Figures("not run", ("what and why",), [(text,) for text in found["skipped"]]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which nothing more is begun")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="the least sizes, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if chosen.device == "auto" else chosen.device
    bench = Bench(device, chosen.quick, time.monotonic() + chosen.limit)
    found: dict[str, Any] = {"quick": chosen.quick, "device": device}
    if bench.on_gpu:
        found["gpu"] = torch.cuda.get_device_name()
    for part in (equality, times, eight_billion):
        found[part.__name__] = part(bench)
    found["skipped"] = bench.skipped
    report("gpu", chosen.out, found, *tables(found))


if __name__ == "__main__":
    main()
