"""What verification finds, and at what share of the full exact sweep.

    python examples/benchmarks/verified_scoring.py [--pairs 8] [--edges 3000 | all | layer:20] [--top 50] [--out DIR]

Measures all edges of a set exactly on all pairs (the full sweep: the truth), then finds its largest effects by
verification without and with budgets, by eap-ig alone, and at random. ``--edges 3000`` is a random set of that size,
``layer:20`` all edges into layers from 20 on and into the logits, ``all`` the whole graph (hours on a few processor
cores for the built-in model). Seconds are also given in plain forward passes of the pairs.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Cost, Figures, Meter, number, plain_forward, report, stopwatch

import circuits
from circuits.graph import ComputationalGraph, EdgeIndices, NodeKind
from circuits.patching.experiment import PatchingExperiment
from circuits.scores import EdgeScores
from circuits.scoring import score
from circuits.scoring.budget import Budget
from circuits.scoring.scorers import Settings
from circuits.scoring.verified import TopK
from circuits.vocabulary import ScorerName


def chosen_edges(graph: ComputationalGraph, text: str, seed: int) -> EdgeIndices:
    """Read ``--edges``."""
    if text == "all":
        return np.arange(graph.n_edges)
    if text.startswith("layer:"):
        first = int(text.removeprefix("layer:"))
        nodes = [receiver.node for receiver in graph.receivers]
        late = np.array([node.kind is NodeKind.LOGITS or node.layer >= first for node in nodes])
        return np.flatnonzero(late[graph.edge_receivers])
    return np.sort(np.random.default_rng(seed).choice(graph.n_edges, int(text), replace=False))


class Trials:
    """Ways to find the largest effects of a set of edges, each timed and held against the full sweep."""

    def __init__(self, experiment: PatchingExperiment, edges: EdgeIndices, top: int, seed: int, forward: Meter) -> None:
        self.experiment, self.edges, self.top, self.seed, self.forward = experiment, edges, top, seed, forward
        self.results: list[dict[str, Any]] = []
        self.truth: set[int] = set()

    def run(self, label: str, scorer: ScorerName, budget: Budget | None = None) -> EdgeScores:
        """Score the edges one way, and note how many of the exact top k it finds and what that took."""
        settings = Settings(self.edges, seed=self.seed, top=TopK(self.top, budget or Budget()))
        made: list[EdgeScores] = []
        cost: Cost = self.forward.once(lambda: made.append(score(self.experiment, scorer, settings)))
        (scores,) = made
        best = set(scores.ranked(by_magnitude=True)[: self.top].tolist())
        self.truth = best if scorer is ScorerName.EXACT else self.truth
        record = asdict(scores.verification) if scores.verification else {}
        shares = {ScorerName.EXACT: 1.0, ScorerName.VERIFIED: record.get("share_of_sweep", 0.0)}
        self.results.append(
            {
                "way": label,
                "found": len(best & self.truth),
                "share_of_sweep": shares.get(scorer, 0.0),
                "seconds": cost.wall,
                "forwards": (cost / self.forward.plain()).wall,
                "verification": record or None,
            }
        )
        return scores

    def row(self, result: dict[str, Any]) -> tuple[str, ...]:
        """Write a result as a row of the table."""
        record = result["verification"]
        claim = (
            ""
            if record is None
            else "certain"
            if record["uncertain"] + record["missed_at_most"] == 0
            else (f"{record['uncertain']} undecided, ~{record['missed_likely']:.1f} unseen")
        )
        found, share = f"{result['found']}/{self.top}", f"{result['share_of_sweep']:.2%}"
        return result["way"], found, share, number(result["seconds"]), number(result["forwards"]), claim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--behaviour", default="ioi")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--edges", default="3000", help="a number, layer:N or all")
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    options = parser.parse_args()
    model = circuits.load_model(options.model)
    pairs = circuits.load_behaviour(options.behaviour).prompts(model.tokenizer, discovery=options.pairs).discovery
    experiment = model.experiment(pairs)
    edges = chosen_edges(model.graph, options.edges, options.seed)
    ids = torch.tensor([pair.clean for pair in pairs if len(pair.clean) == len(pairs[0].clean)], device=model.device)
    trials = Trials(
        experiment, edges, options.top, options.seed, Meter(plain_forward(model.tracer.anatomy.module, ids))
    )
    stopwatch(lambda: experiment.edge_effects(edges[:8]))  # warm up
    trials.run("full exact sweep", ScorerName.EXACT)
    trials.run("verified", ScorerName.VERIFIED)
    for factor in (1.5, 2, 4):
        budget = Budget(edges=int(factor * options.top))
        trials.run(f"verified, {budget.edges} edges' worth", ScorerName.VERIFIED, budget)
    trials.run("eap-ig alone", ScorerName.EAP_IG)
    trials.run("random", ScorerName.RANDOM)
    title = (
        f"top {options.top} of {len(edges):,} edges ({options.edges}), {len(pairs)} pairs of {options.behaviour}, "
        f"{options.model}"
    )
    columns = ("way", "of the exact top", "share of sweep", "seconds", "forwards", "claim")
    figures = Figures(title, columns, [trials.row(result) for result in trials.results])
    report(
        "verified_scoring", options.out, {"options": {**vars(options), "out": None}, "ways": trials.results}, figures
    )


if __name__ == "__main__":
    main()
