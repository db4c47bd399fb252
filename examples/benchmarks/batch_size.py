"""Memory against speed: rows per pass against processor time and peak memory, on `ioi` in the built-in model.

    python examples/benchmarks/batch_size.py [--rows 8 16 32 64 128 256] [--pairs 64] [--threads 1] [--folder outputs]

Every number of rows is measured in a process of its own, on the built-in model. Time is processor time as a multiple
of plain forward passes of all pairs, which are repeated between the operations; memory is how far the resident set rose
above that of the loaded model, recorded runs included.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Figures, number, peak_megabytes, plain_forward, report, stopwatch, tell

import circuits
from circuits import Options, Resources
from circuits.patching.experiment import PatchingExperiment

EDGES, REMOVALS, EXACT = 300, 12, 24
"""Edges of the circuit that is measured, how many of its edges are removed one by one, and how many are exact."""
COLUMNS = ("record", "attribution", "gradient", "circuits", "exact")


def measured(rows: int, pairs: int) -> dict[str, Any]:
    """Measure every operation in this process with so many rows per pass; 0 leaves the number to the plan."""
    model = circuits.load_model("smollm2-135m")
    prompts = circuits.load_behaviour("ioi").prompts(model.tokenizer, discovery=pairs, heldout=4, seed=0)
    ids = torch.tensor([pair.clean for pair in prompts.discovery])
    forward = plain_forward(model.tracer.anatomy.module, ids[:16])  # as many as do not add to the peak
    forward()
    loaded, plain, taken = peak_megabytes(), list[float](), dict[str, float]()
    found = list[PatchingExperiment]()

    def record() -> None:
        resources = Resources(batch_size=rows or None)
        found.append(model.experiment(prompts.discovery, Options(prompts.metric), resources=resources))

    def operations() -> dict[str, Callable[[], object]]:
        experiment, n_edges = found[0], model.graph.n_edges
        best = np.sort(np.argsort(-np.abs(experiment.attributions([1.0])[0]))[:EDGES])
        mask = np.zeros(n_edges, dtype=np.bool_)
        mask[best] = True
        removals = np.repeat(mask[None], REMOVALS, axis=0)
        removals[np.arange(REMOVALS), best[:: EDGES // REMOVALS]] = False
        return {
            "attribution": lambda: experiment.attributions([0.5]),
            "gradient": lambda: experiment.circuit_gradient(mask.astype(float), among=best),
            "circuits": lambda: experiment.circuits(removals),
            "exact": lambda: experiment.edge_effects(best[:: EDGES // EXACT]),
        }

    def timed(name: str, run: Callable[[], object]) -> None:
        plain.append(stopwatch(forward).processor)
        taken[name] = stopwatch(run).processor

    timed("record", record)
    for name, run in operations().items():
        timed(name, run)
    whole = float(np.median(plain)) * pairs / 16
    tokens = found[0].batches[0].clean.ids.shape[1]
    return {
        "rows": rows,
        "tokens": tokens,
        "memory_mb": peak_megabytes() - loaded,
        "resident_mb": peak_megabytes(),
        "forward_s": whole,
        "plan": str(found[0].plan),
        "multiples": {name: seconds / whole for name, seconds in taken.items()},
    }


def in_own_process(rows: int, pairs: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(rows), "--pairs", str(pairs)]
    given = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", type=int, default=[8, 16, 32, 64, 128, 256, 0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one is not None:
        print(json.dumps(measured(chosen.one, chosen.pairs)))
        return
    results: list[dict[str, Any]] = []
    for rows in chosen.rows:
        tell(f"{rows or 'the default'} rows")
        results.append(in_own_process(rows, chosen.pairs, chosen.threads))
    lines = [
        (
            str(each["rows"] or "default"),
            str(each["rows"] * each["tokens"] or ""),
            f"{each['memory_mb']:.0f} MB",
            *(number(each["multiples"][name]) for name in COLUMNS),
            number(sum(each["multiples"].values())),
        )
        for each in results
    ]
    title = f"Processor time in plain forward passes of {chosen.pairs} pairs, and peak memory beyond the loaded model"
    figures = Figures(title, ("rows a pass", "tokens", "memory", *COLUMNS, "together"), lines)
    report("batch_size", chosen.folder, {"rows": results}, figures)


if __name__ == "__main__":
    main()
