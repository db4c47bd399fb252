"""What every scorer costs: time and memory, as multiples of one step of eap-ig, and time in plain forward passes.

    python examples/benchmarks/scorer_costs.py [--model smollm2-135m] [--behaviour ioi] [--pairs 8] [--quick]

Pairs are recorded beforehand. Time is processor time, per backward pass: of ``n`` layers, relp, gim and eap take one,
eap-ig and conductance one per step, atp-star one without and about ``n / 2`` with layers left out, eap-ig-activations
``1 + 2 n`` of the layers behind each block, half of all on average, which count as half a pass. Memory is the most that
a process of its own had resident, model and libraries included, over that of one in which eap-ig took one step.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import Cost, Figures, Meter, number, peak_megabytes, plain_forward, report, tell

import circuits
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.vocabulary import ScorerName

TIME, MEMORY = 1.3, 1.2
"""The bars: multiples of a step of eap-ig, per backward pass."""
STEP = "eap-ig"
MEASURED = tuple(name for name in ScorerName if name.by_gradients and name is not ScorerName.VERIFIED)
SLOW = ("atp-star", "eap-ig-activations", "eap-ig-activations-published")
"""Measured once, without a warm-up."""


@dataclass(frozen=True)
class Subject:
    """Recorded pairs of a model."""

    model: circuits.Model
    experiment: Any
    pairs: tuple[circuits.TokenPair, ...]

    def passes(self, name: str) -> float:
        """Return how many backward passes of the whole model a scorer takes, with one step."""
        layers = self.model.graph.shape.n_layers
        return {
            "clean-corrupted": 2.0,
            "atp-star": 1 + (layers + 1) / 2,
            "eap-ig-activations": (1 + 2 * layers) / 2,
            "eap-ig-activations-published": 1 + 2 * layers,
        }.get(name, 1.0)

    def run(self, name: str) -> None:
        """Score all edges, with one step."""
        score(self.experiment, name, Settings(steps=1))


def load(chosen: argparse.Namespace) -> Subject:
    model = circuits.load_model(chosen.model)
    pairs = circuits.load_behaviour(chosen.behaviour).prompts(model.tokenizer, discovery=chosen.pairs).discovery
    return Subject(model, model.experiment(pairs), pairs)


def peak_of(name: str, chosen: argparse.Namespace) -> float:
    """Measure peak memory in a process of its own, which loads the model, scores once and ends."""
    command = [sys.executable, __file__, "--peak-of", name, "--model", chosen.model, "--behaviour", chosen.behaviour]
    done = subprocess.run([*command, "--pairs", str(chosen.pairs)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every scorer."""
    subject = load(chosen)
    length = len(subject.pairs[0].clean)
    ids = torch.tensor([pair.clean for pair in subject.pairs if len(pair.clean) == length], device=subject.model.device)
    forward = plain_forward(subject.model.tracer.anatomy.module, ids)
    meter, rows = Meter(forward, chosen.repeats), list[dict[str, Any]]()
    share = len(subject.pairs) / len(ids)
    for name in [name for name in MEASURED if not chosen.quick or name not in SLOW]:
        tell(name)
        once = name in SLOW
        cost: Cost = (
            meter.once(lambda name=name: subject.run(name)) / meter.plain()
            if once
            else meter.multiple(lambda name=name: subject.run(name))
        )
        passes = subject.passes(name)
        forwards = cost.processor / share
        rows.append({"scorer": name, "passes": passes, "forwards": forwards, "per_pass": forwards / passes})
        rows[-1]["megabytes"] = peak_of(name, chosen)
    step = next(row for row in rows if row["scorer"] == STEP)
    for row in rows:
        row["time"], row["memory"] = row["per_pass"] / step["per_pass"], row["megabytes"] / step["megabytes"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--behaviour", default="ioi")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="without the slow ones, once each")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak_of:
        load(chosen).run(chosen.peak_of)
        print(json.dumps(peak_megabytes()))
        return
    if chosen.quick:
        chosen.repeats = 1
    rows = measure(chosen)
    table = [
        (
            row["scorer"],
            number(row["passes"]),
            number(row["forwards"]),
            f"{row['time']:.2f}",
            f"{row['memory']:.2f}",
            "yes" if row["time"] <= TIME and row["memory"] <= MEMORY else "no",
        )
        for row in rows
    ]
    columns = ("scorer", "backward passes", "forwards", "time, × a step of eap-ig", "memory, × the same", "within bars")
    title = f"One step, {chosen.pairs} pairs of {chosen.behaviour}, {chosen.model}; bars {TIME} and {MEMORY}"
    options = {**vars(chosen), "out": None}
    report("scorer_costs", chosen.out, {"options": options, "scorers": rows}, Figures(title, columns, table))


if __name__ == "__main__":
    main()
