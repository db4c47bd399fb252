"""What faster arithmetic or smaller weights do to the scores: bfloat16, TF32, compiled MLPs, 8 and 4 bits.

    python examples/benchmarks/precision.py [--model smollm2-135m] [--edges 256] [--only WAY ...] [--quick]

Scores of eap-ig (all edges) and exact effects (a sample of edges, half of them with the largest estimates) on 16 pairs,
held against those of float32: rank correlation, how much of the top is the same, the largest change in units of the
largest score, and the processor time over that of float32. `high` and `medium` are torch's names of matmul precisions:
TF32 or two bfloat16 numbers, and one bfloat16 number, where the device has such products; elsewhere they change
nothing. `compiled` gives every MLP to torch.compile. `8 bits, expanded` and `4 bits, expanded` round every matrix to
GGUF's Q8_0 or Q4_0 and expand it again, layer by layer, as a file of such weights is loaded: products are those of
float32. The built-in models come as files of 4 bits (Q4_1), so on them this says less than on others.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_operations import RANDOM, random_pairs
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from measuring import Cost, Figures, number, report, stopwatch, tell
from numpy.typing import NDArray
from scipy.stats import spearmanr
from transformers import GPT2Config, GPT2LMHeadModel

import circuits
from circuits.errors import CircuitsError

Scores = NDArray[np.float64]
MIDPOINTS = [(step + 0.5) / 5 for step in range(5)]
TOP = 100


@dataclass(frozen=True)
class Way:
    """A way to calculate: type of the weights, matmul precision, compiled MLPs, GGUF type to round weights to."""

    name: str
    dtype: str = "float32"
    precision: str = "highest"
    compiled: bool = False
    rounded: str = ""


WAYS = (
    Way("float32"),
    Way("float32 again"),
    Way("float32, high", precision="high"),
    Way("float32, medium", precision="medium"),
    Way("float32, compiled MLPs", compiled=True),
    Way("bfloat16", dtype="bfloat16"),
    Way("8 bits, expanded", rounded="Q8_0"),
    Way("4 bits, expanded", rounded="Q4_0"),
)


@dataclass(frozen=True)
class Measured:
    """What one way gave, and what it took."""

    attribution: Scores
    exact: Scores
    costs: dict[str, Cost]


def load(name: str, dtype: str, *, quick: bool) -> circuits.Model:
    if name != RANDOM:
        return circuits.load_model(name, dtype=dtype)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4) if quick else GPT2Config()
    return circuits.load_model(GPT2LMHeadModel(config).eval().to(getattr(torch, dtype)), name=RANDOM)


def prompts(model: circuits.Model, *, quick: bool) -> list[circuits.TokenPair]:
    if model.tokenizer is None:
        return random_pairs(16, 16, 99 if quick else 50257)
    return list(circuits.load_behaviour("ioi").prompts(model.tokenizer, discovery=16).discovery)


def compile_mlps(model: circuits.Model) -> None:
    for module in model.tracer.anatomy.module.modules():
        if type(module).__name__.endswith("MLP"):
            module.compile(dynamic=True)


@torch.no_grad()
def round_weights(model: circuits.Model, kind: str) -> None:
    """Round every matrix of the model to a GGUF type and expand it again, one after the other."""
    into = GGMLQuantizationType[kind]
    for weight in model.tracer.anatomy.module.parameters():
        if weight.dim() == 2 and weight.shape[1] % 32 == 0:
            kept = quantize(weight.float().numpy(), into)
            weight.copy_(torch.from_numpy(dequantize(kept, into).copy()))


def measure(way: Way, chosen: argparse.Namespace, edges: NDArray[np.int64] | None) -> Measured:
    """Measure one way; of ``edges`` None, the first time, the ones to measure exactly are chosen."""
    model = load(chosen.model, way.dtype, quick=chosen.quick)
    torch.set_float32_matmul_precision(way.precision)  # after the guards, which hold the model against itself exactly
    if way.compiled:
        compile_mlps(model)
    if way.rounded:
        round_weights(model, way.rounded)
    experiment = model.experiment(prompts(model, quick=chosen.quick))
    found: dict[str, Any] = {"attribution": experiment.attributions(MIDPOINTS)[0]}
    edges = sample(found["attribution"], chosen.edges) if edges is None else edges
    experiment.edge_effects(edges[:8])
    runs: dict[str, Callable[[], Any]] = {
        "attribution": lambda: experiment.attributions(MIDPOINTS)[0],
        "exact": lambda: experiment.edge_effects(edges).mean(1),
    }
    costs = {what: stopwatch(lambda what=what, run=run: found.update({what: run()})) for what, run in runs.items()}
    return Measured(found["attribution"], found["exact"], costs)


def sample(scores: Scores, count: int) -> NDArray[np.int64]:
    """Choose edges: half of them the largest by their estimate, the others at random."""
    order = np.argsort(-np.abs(scores))
    count = min(count, len(order))
    others = np.random.default_rng(0).choice(order[count // 2 :], count - count // 2, replace=False)
    return np.sort(np.concatenate([order[: count // 2], others]))


def agreement(found: Scores, expected: Scores) -> dict[str, float]:
    """Hold scores against those of float32."""
    top = min(TOP, len(expected) // 2)
    best, others = (set(np.argsort(-np.abs(scores))[:top].tolist()) for scores in (expected, found))
    return {
        "rank_correlation": float(spearmanr(found, expected).statistic),
        "same_of_top": len(best & others) / top,
        "largest_change": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }


def compared(found: Measured, base: Measured) -> dict[str, Any]:
    return {
        what: agreement(getattr(found, what), getattr(base, what))
        | {"cost": (found.costs[what] / base.costs[what]).processor}
        for what in ("attribution", "exact")
    }


def rows(name: str, result: dict[str, Any]) -> list[tuple[str, ...]]:
    if "refused" in result:
        return [(name, result["refused"], *[""] * 4)]
    return [
        (
            name,
            what,
            f"{found['rank_correlation']:.4f}",
            f"{found['same_of_top']:.0%}",
            f"{found['largest_change']:.1e}",
            number(found["cost"]),
        )
        for what, found in result.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edges", type=int, default=256)
    parser.add_argument("--only", nargs="+", choices=[way.name for way in WAYS[1:]], help="ways beside float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.quick:
        chosen.model, chosen.edges = RANDOM, 20
    before = torch.get_float32_matmul_precision()
    results: dict[str, Any] = {}
    base, edges = None, None
    for way in WAYS:
        if chosen.only and way is not WAYS[0] and way.name not in chosen.only:
            continue
        if chosen.quick and way.compiled:
            continue  # needs a compiler, and a minute
        tell(way.name)
        try:
            found = measure(way, chosen, edges)
        except CircuitsError as error:
            results[way.name] = {"refused": str(error)}
            continue
        finally:
            torch.set_float32_matmul_precision(before)
        base = base or found
        edges = sample(base.attribution, chosen.edges)
        results[way.name] = compared(found, base)
    columns = ("arithmetic", "scores", "rank correlation", f"same of top {TOP}", "largest change", "processor time")
    table = Figures(
        f"{chosen.model}, against float32", columns, [r for name in results for r in rows(name, results[name])]
    )
    report("precision", chosen.out, {"quick": chosen.quick, "model": chosen.model, "ways": results}, table)


if __name__ == "__main__":
    main()
