"""A whole discovery: processor time by stage, in plain forward passes of its discovery pairs, and peak memory.

    python examples/benchmarks/discovery.py [BEHAVIOUR] [--model smollm2-135m] [--pairs 64] [--threads 1] [--quick]

The plain pass is the model's own, of the clean discovery prompts in batches of 16, logits at all positions; it is
repeated whenever a stage begins, and its time taken out of the stage's. A stage is what the progress says up to the
first number or colon. Peak memory is the most that this process had resident.
"""

import argparse
import re
import statistics
import time
from pathlib import Path

import torch
from measuring import Figures, number, peak_megabytes, plain_forward, report, stopwatch

import circuits
from circuits import DiscoverySettings
from circuits.vocabulary import PrunerName

ROWS = 16


class Stages:
    """Follows a discovery's progress: seconds of processor time by stage, and of plain passes between stages."""

    def __init__(self, model: circuits.Model, pairs: tuple[circuits.TokenPair, ...]) -> None:
        longest = max(len(pair.clean) for pair in pairs)
        clean = [pair.clean for pair in pairs if len(pair.clean) == longest][:ROWS]
        self._forward = plain_forward(model.tracer.anatomy.module, torch.tensor(clean))
        self._batches = len(pairs) / len(clean)
        self._forward()
        self.seconds: dict[str, float] = {}
        self.passes: list[float] = []
        self._stage, self._since = "beginning", time.process_time()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that a stage goes on, or begins."""
        del done, total
        name = re.split(r"[:(\d]", stage)[0].strip()
        if name != self._stage:
            self.end()
            self._stage = name

    def end(self) -> None:
        """Book the time since the last call on the present stage, and repeat the plain pass."""
        spent = time.process_time() - self._since
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent
        self.passes.append(stopwatch(self._forward).processor)
        self._since = time.process_time()

    @property
    def plain(self) -> float:
        """Processor seconds of a plain forward pass of all pairs."""
        return statistics.median(self.passes) * self._batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("behaviour", nargs="?", default="ioi")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="few pairs and no search, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    quick = DiscoverySettings(pairs=4, heldout=4, pruner=PrunerName.TOP, size=60, sample=8)
    settings = quick if chosen.quick else DiscoverySettings(pairs=chosen.pairs)
    model, behaviour = circuits.load_model(chosen.model), circuits.load_behaviour(chosen.behaviour)
    loaded = peak_megabytes()
    prompts = behaviour.prompts(model.tokenizer, discovery=settings.pairs, heldout=settings.heldout, seed=settings.seed)
    stages = Stages(model, prompts.discovery)
    begun = time.process_time()
    found = circuits.discover(model, behaviour, settings, progress=stages)
    stages.end()
    spent = time.process_time() - begun
    whole, plain = sum(stages.seconds.values()), stages.plain
    rows = [(name, number(seconds / plain), f"{seconds / whole:.0%}") for name, seconds in stages.seconds.items()]
    evaluation = found.circuit.evaluation
    results = {
        "behaviour": chosen.behaviour,
        "model": model.info.id,
        "pairs": settings.pairs,
        "edges": len(found.circuit),
        "faithfulness": evaluation.faithfulness if evaluation else None,
        "multiples": {name: seconds / plain for name, seconds in stages.seconds.items()},
        "multiple": whole / plain,
        "plain_forward_s": plain,
        "processor_s": spent,
        "resident_mb": peak_megabytes(),
        "loaded_mb": loaded,
        "prefix_cache": found.circuit.provenance.prefix_cache,
        "versions": found.circuit.provenance.versions,
    }
    title = f"discover {chosen.behaviour}, {settings.pairs} pairs: {number(whole / plain)} plain forward passes of them"
    memory = f"peak memory {peak_megabytes():.0f} MB, {loaded:.0f} MB when loaded; {len(found.circuit)} edges"
    report("discovery", chosen.out, results, Figures(f"{title}; {memory}", ("stage", "× forward", "share"), rows))


if __name__ == "__main__":
    main()
