"""How few edges follow the model pair by pair, on pairs that nothing was chosen on: searches side by side.

    python examples/benchmarks/fidelity.py ioi agreement [--fit 64 ...] [--fresh 3] [--choose 128]
        [--heldout 128] [--pruners closest nodes minimal ranking] [--scorer eap-ig] [--target 0.9] [--seed 0]
        [--out DIR]

Prints a row per search with the size, fidelity, faithfulness, error and correlation on held-out pairs, with 95 %
intervals, and seconds; of the search for the closest circuit also every circuit on its way. ``ranking`` is the best
edges by |score| alone: as many as each search before it found, and more and more until they reach the target.
Of every search a second table says what its circuit has on the pairs it was fitted to, for each number of pairs, and
how much less on held-out pairs. Every search judges by the same choose pairs, but ``minimal``, which has only its own.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from measuring import Figures, report

import circuits
from circuits.behaviours import clusters_of, load_behaviour
from circuits.discovery_settings import parts_of, prompts_for
from circuits.errors import BehaviourNotShownError
from circuits.graph import EdgeIndices
from circuits.model import Model
from circuits.patching.experiment import PatchingExperiment
from circuits.pruning import Selection, closest, minimal
from circuits.pruning.closest_nodes import nodes
from circuits.pruning.stopping import candidate
from circuits.scores import EdgeScores
from circuits.scoring import score
from circuits.statistics import Estimate, error, faithfulness, faithfulness_interval, likeness

SIZES = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200)


class Ends(NamedTuple):
    """The metric of the whole model and of the empty circuit, per pair."""

    clean: np.ndarray
    corrupted: np.ndarray


def measured(experiment: PatchingExperiment, edges: EdgeIndices, groups: np.ndarray) -> dict[str, object]:
    """Return what is said of a circuit on the held-out pairs."""
    mask = np.zeros(experiment.graph.n_edges, dtype=np.bool_)
    mask[edges] = True
    values = experiment.circuits([mask])[0]
    alike = likeness(experiment, values, compares=True, clusters=groups)
    low, high = faithfulness_interval(experiment, values, clusters=groups)
    f = Estimate(float(faithfulness(experiment, values)), low, high)
    nodes = {str(node) for edge in experiment.graph.edges(edges) for node in (edge.sender, edge.receiver.node)}
    told = {"fidelity": alike.fidelity, "f": f, "error": alike.error}
    return {
        "edges": len(edges),
        "nodes": len(nodes),
        **{name: estimate.describe() for name, estimate in told.items()},
        "correlation": alike.correlation.describe() if alike.correlation else "undefined",
        "agreement": alike.agreement.describe() if alike.agreement else "",
    }


def reached(experiment: PatchingExperiment, edges: EdgeIndices, target: float) -> bool:
    """Return whether a circuit has the target's fidelity on the held-out pairs, with faithfulness close to 1."""
    mask = np.zeros(experiment.graph.n_edges, dtype=np.bool_)
    mask[edges] = True
    return candidate(experiment, edges, experiment.circuits([mask])[0]).reaches(target)


def _itself(experiment: PatchingExperiment) -> PatchingExperiment:
    return experiment


def searches(
    wanted: list[str],
    fit: list[PatchingExperiment],
    choose: PatchingExperiment,
    scores: EdgeScores,
    target: float,
) -> Iterator[tuple[str, EdgeIndices, float]]:
    """Run each search; give its name, what it found and the seconds it took."""
    found_sizes: list[int] = []
    fresh = [partial(_itself, group) for group in fit[1:]]
    for name in wanted:
        begun = time.monotonic()
        if name == "ranking":
            ranked = scores.ranked(by_magnitude=True)
            sizes = sorted({*found_sizes, *(size for size in SIZES if size > min(found_sizes, default=0))})
            yield from ((f"best {size}", np.sort(ranked[:size]), 0.0) for size in sizes)
            continue
        if name == "closest":

            def told(step: str, found: Selection, begun: float = begun) -> None:
                seconds = time.monotonic() - begun
                numbers = f"{len(found.edges)} edges, error {found.error:.3f}, f {found.faithfulness:.3f}"
                print(f"  {step}: {numbers} on choose pairs, {seconds:.0f} s", flush=True)

            found = closest(fit[0], choose, scores, target=target, fresh=fresh, report=told)
        elif name == "nodes":
            found = nodes(fit[0], choose, target=target, fresh=fresh)
        else:
            found = minimal(fit[0], scores, target=target)
        found_sizes.append(len(found.edges))
        yield name, found.edges, time.monotonic() - begun


def pooled(experiments: Sequence[PatchingExperiment], edges: EdgeIndices) -> float:
    """Return a circuit's fidelity on the pairs of several experiments together."""
    mask = np.zeros(experiments[0].graph.n_edges, dtype=np.bool_)
    mask[edges] = True
    ends = Ends(*(np.concatenate([getattr(each, side) for each in experiments]) for side in Ends._fields))
    return 1 - float(error(ends, np.concatenate([each.circuits([mask])[0] for each in experiments]))) ** 2


def run(model: Model, name: str, pairs: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """Compare the searches on one behaviour, with so many pairs to fit to."""
    counts = {"pairs": pairs, "choose": options.choose, "fresh": options.fresh, "heldout": options.heldout}
    settings = circuits.DiscoverySettings(seed=options.seed, **counts)
    drawn = prompts_for(model, load_behaviour(name), settings)
    groups_to_fit, to_choose_by, _ = parts_of(drawn, settings)
    fit, choose = [model.experiment(pairs) for pairs in groups_to_fit], model.experiment(to_choose_by)
    heldout, groups = model.experiment(drawn.heldout), clusters_of(drawn.heldout)
    begun = time.monotonic()
    scores = score(fit[0], options.scorer)
    fitted = " + ".join(str(group.n_pairs) for group in fit)
    parts = f"{fitted} fit, {choose.n_pairs} choose, {heldout.n_pairs} held-out pairs"
    print(f"{name}: {parts}; scored in {time.monotonic() - begun:.0f} s", flush=True)
    rows: list[dict[str, object]] = []
    try:
        for search, edges, seconds in searches(options.pruners, fit, choose, scores, options.target):
            row = {
                **{"behaviour": name, "search": search, **measured(heldout, edges, groups), "seconds": round(seconds)},
                **{"fit pairs": pairs, "on fit pairs": pooled(fit, edges), "on choose pairs": pooled([choose], edges)},
                "on held-out pairs": pooled([heldout], edges),
            }
            print(row, flush=True)
            rows.append(row)
            if search.startswith("best") and reached(heldout, edges, options.target):
                break
    except BehaviourNotShownError as problem:
        print(f"{name}: {problem}")
    return rows


def shown(rows: Sequence[dict[str, object]], target: float) -> Figures:
    """Return a table of the searches, and of the best edges of as many as each and of the first that reach the target.

    By their fidelity alone: the rankings' faithfulness comes close to 1 later, if it does.
    """
    headings = ("behaviour", "search", "edges", "nodes", "fidelity", "f", "correlation", "agreement")
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row["behaviour"] for row in rows):
        own = [row for row in rows if row["behaviour"] == name]
        found = {row["edges"] for row in own if not str(row["search"]).startswith("best")}
        ranked = [row for row in own if str(row["search"]).startswith("best")]
        first = next((row for row in ranked if float(str(row["fidelity"]).split()[0]) >= target), None)
        lines += [
            tuple(f"{row[key]:,}" if isinstance(row[key], int) else str(row[key]) for key in headings)
            for row in own
            if row not in ranked or row["edges"] in found or row is first
        ]
    return Figures("circuits on held-out pairs", headings, lines)


def gaps(rows: Sequence[dict[str, object]]) -> Figures:
    """Return a table of what each search's circuits have on the pairs they were found on, and on others."""
    where = ("on fit pairs", "on choose pairs", "on held-out pairs")
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if not str(row["search"]).startswith("best"):
            values = [float(str(row[key])) for key in where]
            numbers = [*(f"{value:.3f}" for value in values), f"{values[0] - values[2]:+.3f}"]
            lines.append(
                (str(row["behaviour"]), str(row["search"]), str(row["fit pairs"]), f"{row['edges']:,}", *numbers)
            )
    return Figures(
        "fidelity on the pairs it was found on", ("behaviour", "search", "pairs", "edges", *where, "gap"), lines
    )


def main() -> None:
    """Run every behaviour asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("behaviours", nargs="+")
    parser.add_argument("--fit", type=int, nargs="+", default=[64])
    for option, value in (("--fresh", 3), ("--choose", 128), ("--heldout", 128), ("--seed", 0)):
        parser.add_argument(option, type=int, default=value)
    parser.add_argument("--scorer", default="eap-ig")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--pruners", nargs="+", default=["closest", "minimal", "ranking"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = circuits.load_model()
    rows: list[dict[str, object]] = []
    for name, pairs in product(options.behaviours, options.fit):
        rows += run(model, name, pairs, options)
        if options.out:  # each time: a search can take long, and be stopped
            report("fidelity", options.out, {"rows": rows}, shown(rows, options.target), gaps(rows))


if __name__ == "__main__":
    main()
