"""How the time of each operation grows: with layers, positions, pairs, heads, edges measured and circuits.

    python examples/benchmarks/scaling.py [--threads 2] [--repeats 3] [--quick]

Small Llama shapes with random weights. One size is varied while the others keep the middle of their values. The
exponent ``b`` of ``time = a · size^b`` is fitted by least squares to the logarithms of processor time. The plain
forward pass has rows of its own: where an operation grows faster, that is its own doing. Writes a table, JSON and a
plot.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from core_operations import circuits_of, random_pairs
from measuring import Figures, median, plain_forward, report, stopwatch, tell
from transformers import LlamaConfig, LlamaForCausalLM

import circuits

SIZES = {
    "layers": (4, 8, 16),
    "heads": (4, 8, 16),
    "positions": (8, 16, 32),
    "pairs": (4, 8, 16),
    "edges": (16, 64, 256),
    "circuits": (2, 8, 32),
}
QUICK = {"layers": (1, 2), "heads": (1, 2), "positions": (4, 8), "pairs": (1, 2), "edges": (4, 8), "circuits": (1, 2)}
USED = {
    "plain forward": ("layers", "heads", "positions", "pairs"),
    "EAP": ("layers", "heads", "positions", "pairs"),
    "exact edges": ("layers", "heads", "positions", "pairs", "edges"),
    "circuits": ("layers", "heads", "positions", "pairs", "circuits"),
}
Times = dict[str, float]


def prepare(sizes: dict[str, int]) -> dict[str, Callable[[], object]]:
    """Make a model and pairs of these sizes, and give what is to be timed."""
    tell(", ".join(f"{size} {value}" for size, value in sizes.items()))
    torch.manual_seed(0)
    heads, layers, positions = sizes["heads"], sizes["layers"], sizes["positions"]
    width = 32 * heads
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    model = circuits.load_model(LlamaForCausalLM(config).eval())
    pairs = random_pairs(sizes["pairs"], positions, 1000)
    ids = torch.tensor([pair.clean for pair in pairs])
    experiment = model.experiment(pairs)
    scores = experiment.attributions([1.0])[0]
    masks = circuits_of(scores, sizes["circuits"], min(100, len(scores) // 3))
    edges = np.random.default_rng(0).choice(len(scores), min(sizes["edges"], len(scores)), replace=False)
    return {
        "plain forward": plain_forward(model.tracer.anatomy.module, ids),
        "EAP": lambda: model.experiment(pairs, resources=circuits.Resources(keep_gradients=True)).attributions([1.0]),
        "exact edges": lambda: experiment.edge_effects(edges),
        "circuits": lambda: experiment.circuits(masks),
    }


def times_of(runs: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Return processor seconds: the median of repeats, in turn over the operations."""
    for run in runs.values():
        run()
    taken = [{name: stopwatch(run) for name, run in runs.items()} for _ in range(repeats)]
    return {name: median([each[name] for each in taken]).processor for name in runs}


def exponent(sizes: tuple[int, ...], times: list[float]) -> float:
    """Fit ``b`` of ``time = a · size^b``."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def table_of(values: dict[str, tuple[int, ...]], found: dict[str, list[Times]]) -> Figures:
    """One row for each operation and size that it depends on: milliseconds at each value, and the exponent."""
    rows: list[tuple[str, ...]] = []
    for operation, varied in USED.items():
        for size in varied:
            times = [each[operation] for each in found[size]]
            at = [f"{value}: {1000 * time:.3g}" for value, time in zip(values[size], times, strict=True)]
            rows.append((operation, size, "   ".join(at), f"{exponent(values[size], times):.2f}"))
    return Figures("Growth", ("operation", "size", "milliseconds of processor time", "exponent"), rows)


def draw(values: dict[str, tuple[int, ...]], found: dict[str, list[Times]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(values), figsize=(3 * len(values), 3.6), sharey=True, layout="constrained")
    for axis, (size, at) in zip(axes, values.items(), strict=True):
        for place, operation in enumerate(USED):
            if size not in USED[operation]:
                continue
            times = [each[operation] for each in found[size]]
            axis.plot(at, times, marker="o", color=f"C{place}", label=operation)
            axis.annotate(f" {exponent(at, times):.1f}", (at[-1], times[-1]), color=f"C{place}", va="center")
        axis.set(xscale="log", yscale="log", xlabel=size, xticks=at, xticklabels=at)
        axis.margins(x=0.2)
        axis.minorticks_off()
    axes[0].set_ylabel("processor time (s)")
    title = "growth of each operation; numbers are exponents"
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(USED), title=title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    values = QUICK if chosen.quick else SIZES
    middle = {size: at[len(at) // 2] for size, at in values.items()}
    found = {
        size: [times_of(prepare(middle | {size: value}), 1 if chosen.quick else chosen.repeats) for value in at]
        for size, at in values.items()
    }
    results = {"quick": chosen.quick, "fixed": middle, "sizes": values, "processor_seconds": found}
    results["exponents"] = {
        operation: {size: exponent(values[size], [each[operation] for each in found[size]]) for size in varied}
        for operation, varied in USED.items()
    }
    report("scaling", chosen.out, results, table_of(values, found))
    draw(values, found, chosen.out / "scaling.png")


if __name__ == "__main__":
    main()
