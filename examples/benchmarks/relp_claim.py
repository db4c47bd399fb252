"""Does relp come nearer to exact effects than plain gradients where MLPs are concerned? The claim of arXiv:2508.21258.

    python examples/benchmarks/relp_claim.py [--model smollm2-135m] [--behaviour ioi] [--pairs 8] [--edges 60]

Nodes: the exact effect of an MLP is that of corrupting all edges out of it at once; its estimate is the sum of theirs.
Edges: a sample of those out of MLPs, and of those into them, at random. The paper reports a Pearson correlation of 0.99
on the MLPs of GPT-2 small where plain gradients have 0.20.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Figures, report, tell
from numpy.typing import NDArray
from scipy import stats

import circuits
from circuits.graph import NodeKind
from circuits.scoring import score

SCORERS = ("eap", "relp", "gim", "eap-ig")


def correlations(estimated: NDArray[np.float64], exact: NDArray[np.float64]) -> tuple[float, float]:
    """Return Pearson's and Spearman's correlation."""
    by_rank: Any = stats.spearmanr(estimated, exact)
    return float(np.corrcoef(estimated, exact)[0, 1]), float(by_rank.statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--behaviour", default="ioi")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--edges", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    chosen = parser.parse_args()
    model = circuits.load_model(chosen.model)
    pairs = circuits.load_behaviour(chosen.behaviour).prompts(model.tokenizer, discovery=chosen.pairs).discovery
    experiment, graph = model.experiment(pairs), model.graph
    of_mlp = np.array([node.kind is NodeKind.MLP for node in graph.senders])
    into_mlp = np.array([receiver.node.kind is NodeKind.MLP for receiver in graph.receivers])
    mlps = np.flatnonzero(of_mlp)
    tell("MLPs, exactly")
    masks = np.stack([graph.edge_senders != mlp for mlp in mlps])
    nodes = (experiment.clean - experiment.circuits(masks)).mean(axis=1)
    generator = np.random.default_rng(chosen.seed)
    samples = {
        "edges out of MLPs": np.flatnonzero(of_mlp[graph.edge_senders]),
        "edges into MLPs": np.flatnonzero(into_mlp[graph.edge_receivers]),
    }
    samples = {name: np.sort(generator.choice(edges, chosen.edges, replace=False)) for name, edges in samples.items()}
    tell("edges, exactly")
    exact = {name: experiment.edge_effects(edges).mean(axis=1) for name, edges in samples.items()}
    rows, found = list[tuple[str, ...]](), dict[str, Any]()
    for name in SCORERS:
        tell(name)
        values = score(experiment, name).values
        sums = np.array([values[graph.edge_senders == mlp].sum() for mlp in mlps])
        agreed = {"MLPs": correlations(sums, nodes)}
        agreed |= {what: correlations(values[edges], exact[what]) for what, edges in samples.items()}
        found[name] = agreed
        rows.append((name, *(f"{each:.2f}" for both in agreed.values() for each in both)))
    heads = [f"{what}, {kind}" for what in ("MLPs", *samples) for kind in ("Pearson", "Spearman")]
    title = f"Correlation with exact effects: {len(mlps)} MLPs, {chosen.edges} edges each, {chosen.pairs} pairs"
    figures = Figures(f"{title} of {chosen.behaviour}, {chosen.model}", ("scorer", *heads), rows)
    report("relp_claim", chosen.out, {"options": {**vars(chosen), "out": None}, "scorers": found}, figures)


if __name__ == "__main__":
    main()
