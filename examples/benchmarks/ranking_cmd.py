"""What brings CMD down? Rankings of one behaviour, by other scorers, pairs, steps and ablations: CMD by MIB's rule.

    python examples/benchmarks/ranking_cmd.py [--model smollm2-135m] [--behaviour ioi] [--pairs 32] [--heldout 16]
        [--rankings eap-ig learned-masks ...]

All are judged on the same held-out pairs, each with the ablation that it was made with. Time is processor time, as a
multiple of that of the first, eap-ig on 8 pairs. CMD is dominated by circuits of 5 to 50 % of the edges, and counts how
far f is from 1 either way (arXiv:2504.13151). The tables are written anew after every ranking.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import Figures, number, report, tell

import circuits
from circuits.evaluation.curve import curve
from circuits.patching.measurement import Options
from circuits.scores import EdgeScores
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.vocabulary import Ablation

SHOWN = (0.001, 0.005, 0.02, 0.1, 0.5)
WEIGHTY = (0.05, 0.2, 0.5)
FEW = 8


@dataclass(frozen=True)
class Ranking:
    """A way to rank edges: on so many pairs, with an ablation."""

    name: str
    pairs: int
    make: Callable[[Any], EdgeScores]
    ablation: Ablation = Ablation.CORRUPTED


def by(scorer: str, steps: int = 5) -> Callable[[Any], EdgeScores]:
    """Rank edges by a scorer."""
    return lambda experiment: score(experiment, scorer, Settings(steps=steps))


def rankings(pairs: int) -> Sequence[Ranking]:
    return (
        Ranking("eap-ig", FEW, by("eap-ig")),
        Ranking("eap-ig, optimal", FEW, by("eap-ig"), Ablation.OPTIMAL),
        Ranking("eap-ig, mean-by-template", FEW, by("eap-ig"), Ablation.MEAN_BY_TEMPLATE),
        Ranking("eap-ig", pairs, by("eap-ig")),
        Ranking("learned-masks", FEW, by("learned-masks")),
        Ranking("recursive-elimination", FEW, by("recursive-elimination")),
        Ranking("recursive-elimination", pairs, by("recursive-elimination")),
        Ranking("gim", pairs, by("gim")),
        Ranking("eap-ig, 20 steps", pairs, by("eap-ig", 20)),
        Ranking("conductance", pairs, by("conductance")),
    )


def measure(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure one ranking after the other."""
    model, pairs = circuits.load_model(chosen.model), FEW if chosen.quick else chosen.pairs
    prompts = circuits.load_behaviour(chosen.behaviour).prompts(
        model.tokenizer, discovery=pairs, heldout=FEW if chosen.quick else chosen.heldout
    )
    judges = dict[Ablation, Any]()
    wanted = [each for each in rankings(pairs) if not chosen.rankings or each.name in chosen.rankings]
    for each in wanted[:1] if chosen.quick else wanted:
        tell(f"{each.name}, {each.pairs} pairs")
        options, reference = Options(ablation=each.ablation), prompts.reference
        begun = time.process_time()
        here = model.experiment(prompts.discovery[: each.pairs], options, reference=reference)
        found = each.make(here)
        seconds = time.process_time() - begun
        if each.ablation not in judges:
            judges[each.ablation] = model.experiment(prompts.heldout, options, reference=reference)
        points, areas = curve(judges[each.ablation], found, by_magnitude=True)
        row: dict[str, Any] = {"ranking": each.name, "pairs": each.pairs, "seconds": seconds, "cmd": areas[0].cmd}
        row["f"] = {point.requested: point.faithfulness for point in points}
        row["fidelity"] = {point.requested: 1 - (point.error or 0) ** 2 for point in points}
        tell(f"CMD {row['cmd']:.3f}; f {', '.join(f'{f:.2f}' for f in row['f'].values())}; {seconds:.0f} s")
        yield row


def write(chosen: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """Print and write all that was measured so far."""
    table = [
        (
            row["ranking"],
            str(row["pairs"]),
            number(row["seconds"] / rows[0]["seconds"]),
            *(f"{row['fidelity'][share]:.2f}" for share in SHOWN),
            *(f"{row['f'][share]:.2f}" for share in WEIGHTY),
            f"{row['cmd']:.3f}",
        )
        for row in rows
    ]
    sizes = [*(f"fidelity, {share:.1%} of edges" for share in SHOWN), *(f"f, {share:.0%}" for share in WEIGHTY)]
    title = f"Rankings of {chosen.behaviour}, {chosen.model}, judged on {chosen.heldout} held-out pairs"
    figures = Figures(title, ("ranking", "pairs", "time", *sizes, "CMD"), table)
    report("ranking_cmd", chosen.out, {"options": {**vars(chosen), "out": None}, "rankings": list(rows)}, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--behaviour", default="ioi")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--heldout", type=int, default=16)
    parser.add_argument(
        "--rankings", nargs="+", help="the names of those to measure, the first one first (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help=f"the first ranking alone, judged on {FEW} pairs")
    chosen = parser.parse_args()
    rows = list[dict[str, Any]]()
    for row in measure(chosen):
        rows.append(row)
        write(chosen, rows)


if __name__ == "__main__":
    main()
