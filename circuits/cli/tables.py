"""Results as tables that read well on narrow and on wide terminals."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from circuits.circuit import CORE, UNSTABLE, Circuit
from circuits.diagrams.layout import count_nodes
from circuits.graph import EdgeIndices
from circuits.records import FEWEST_RESAMPLED, MOST_RESAMPLED, Evaluation
from circuits.report.sentences import verdict
from circuits.statistics import Likeness
from circuits.vocabulary import Universe

if TYPE_CHECKING:
    from circuits.rivals import Rivals

STRONGEST, NEAR_TIES = 10, 5
_TWO_SIDED = 1.96
"""So many standard errors reach to the ends of a 95 % interval."""


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> Group:
    """Make a table under a title; ``numbers`` are the columns that are aligned on the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="right" if place in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return Group(Text(title, style="bold"), made)


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Group:
    """Make a table of names and values under a title."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="cyan", overflow="fold", max_width=22)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(Text(name), Text(value))
    return Group(Text(title, style="bold"), made, Text())


def size_rows(circuit: Circuit) -> list[tuple[str, str]]:
    """Return how large a circuit is, as names and values."""
    graph, rows = circuit.graph, list[tuple[str, str]]()
    counts = {Universe.GROUP: (len(circuit), graph.n_edges)}
    if graph.shape.grouped:
        counts[Universe.QUERY_HEAD] = (int(graph.copies[circuit.edges].sum()), int(graph.copies.sum()))
    for universe, (edges, all_edges) in counts.items():
        words = f", {universe.words}" if graph.shape.grouped else ""
        rows.append(("edges", f"{edges:,} of {all_edges:,} ({edges / all_edges:.2%}{words})"))
    return [*rows, ("nodes", count_nodes(circuit))]


def evaluation_rows(
    evaluation: Evaluation, *, metric: str, unit: str, target: float | None = None
) -> list[tuple[str, str]]:
    """Return how well a circuit works as names and values: fidelity first, what it means last."""
    faithfulness = f"{evaluation.faithfulness:.3f} {evaluation.interval().removeprefix('interval ')}"
    alike = evaluation.likeness
    if alike is None:
        rows = [("faithfulness", f"{faithfulness}, {evaluation.n} held-out pairs")]
    else:
        rows = [
            ("fidelity", f"{alike.fidelity.describe()}, {evaluation.n} held-out pairs"),
            ("faithfulness", faithfulness),
            *likeness_rows(alike),
        ]
    if evaluation.necessity is not None:
        rows.append(("without the circuit", f"{evaluation.necessity:.3f} of the behaviour is left (necessity)"))
    random = evaluation.random_baseline
    if random is not None:
        rows.append(
            (
                "random circuits",
                f"faithfulness {random.median:.3f} [{random.q05:.3f}, {random.q95:.3f}], {random.n} "
                + ("with other heads of the same layers" if random.heads else "of the same size"),
            )
        )
        if random.fidelities:
            below, middle, above = random.fidelities
            rows.append(("", f"fidelity {middle:.3f} [{below:.3f}, {above:.3f}]"))
    values = (
        f"clean {evaluation.metric_clean:.3f}, circuit {evaluation.metric_circuit:.3f}, "
        f"corrupted {evaluation.metric_corrupted:.3f} {unit}"
    )
    rows.append((metric, values))
    if evaluation.accuracy_clean is not None and evaluation.accuracy_circuit is not None:
        text = f"model {evaluation.accuracy_clean:.0%}, circuit {evaluation.accuracy_circuit:.0%}"
        rows.append(("above 0 on", f"{text} of the pairs"))
    for areas in evaluation.areas:
        counted = f"of {areas.edges:,} edges, {Universe(areas.universe).words}"
        known = [(name, value) for name, value in (("CPR", areas.cpr), ("CMD", areas.cmd)) if value is not None]
        rows.append(("by MIB's rule", ", ".join(f"{name} {value:.3f}" for name, value in known) + f" ({counted})"))
    rows += [("verdict", sentence) for sentence in verdict(evaluation, target)]
    return [*rows, ("what this means", "circuits guide evidence")]


def stability_rows(circuit: Circuit) -> list[tuple[str, str]]:
    """Return how much of a circuit other pairs would have chosen, as names and values."""
    found, inclusion, withstands = circuit.stability, circuit.inclusion, circuit.withstands
    if found is None or inclusion is None or withstands is None:
        limits = f"up to {MOST_RESAMPLED} edges, from {FEWEST_RESAMPLED} independent pairs on; not by --quick"
        return [("stability", f"not measured ({limits})")]
    core, unstable = int((inclusion >= CORE).sum()), int((inclusion < UNSTABLE).sum())
    return [
        (
            "stability",
            f"{core} edges core, {len(circuit) - core - unstable} contingent, {unstable} unstable (in at least "
            f"{CORE:.0%}, fewer, fewer than {UNSTABLE:.0%} of {found.resamples} resamples of the pairs)",
        ),
        (
            "",
            f"Jaccard of resamples {found.jaccard_edges:.2f} by edges, {found.jaccard_nodes:.2f} by nodes; of "
            f"{found.candidates} candidates",
        ),
        (
            "certificate",
            f"{int((withstands >= 1).sum())} edges stay whatever 1 of {found.pairs} pairs is replaced by, "
            f"{int((withstands >= 2).sum())} for any 2 (subsamples of {found.subsample}, error {found.error:.0%})",
        ),
    ]


def likeness_rows(alike: Likeness) -> list[tuple[str, str]]:
    """Return what else is said of a circuit's values beside the model's, pair by pair."""
    named = (
        ("error", alike.error),
        ("correlation", alike.correlation),
        ("agreement", alike.agreement),
        ("KL", alike.kl),
    )
    rows = [(name, estimate.describe()) for name, estimate in named if estimate is not None]
    if alike.correlation is None:
        rows.append(("correlation", "undefined: the model's own values hardly vary over these pairs"))
    return rows


def strongest(circuit: Circuit) -> EdgeIndices:
    """Return the places (in the circuit) of the edges whose scores are largest in size."""
    return np.argsort(-np.nan_to_num(np.abs(circuit.scores)), kind="stable")[:STRONGEST]


def near_ties(circuit: Circuit) -> EdgeIndices:
    """Return the places (in the circuit) of the edges whose removal changes least, where that was measured.

    Where the spread over pairs is known too, those of the least change in its units.
    """
    if circuit.removal is None:
        return np.empty(0, dtype=np.int64)
    if circuit.removal_se is not None:
        return np.argsort(np.abs(circuit.removal) / np.maximum(circuit.removal_se, 1e-12), kind="stable")[:NEAR_TIES]
    return np.argsort(np.abs(circuit.removal), kind="stable")[:NEAR_TIES]


def needed_row(circuit: Circuit) -> list[tuple[str, str]]:
    """Return of how many edges it is sure that removing them costs something, where that was measured."""
    if circuit.removal is None or circuit.removal_se is None:
        return []
    sure = int((circuit.removal > _TWO_SIDED * circuit.removal_se).sum())
    text = f"removing one of {sure} edges surely costs faithfulness; the other {len(circuit) - sure} are near-ties"
    return [("each edge", text)]


def edge_table(circuit: Circuit, places: EdgeIndices, title: str) -> Group:
    """List edges of a circuit with their scores and what removing them costs."""
    headings = ["edge", f"score ({circuit.behaviour.unit})"]
    if circuit.removal is not None:
        headings.append("removal costs")
    rows: list[list[str]] = []
    for place in map(int, places):
        row = [str(circuit.edge_list[place]), f"{circuit.scores[place]:.4g}"]
        if circuit.removal is not None:
            spread = "" if circuit.removal_se is None else f" ± {_TWO_SIDED * circuit.removal_se[place]:.4f}"
            row.append(f"{circuit.removal[place]:.4f}{spread}")
        rows.append(row)
    return table(title, headings, rows, numbers=(1, 2))


def rival_table(rivals: "Rivals") -> Group:
    """List a circuit and its rivals: their sizes, what they share with it, and how good they are on held-out pairs."""
    rows: list[list[str]] = []
    for number, each in enumerate((rivals.first, *rivals.rivals)):
        evaluation = each.evaluation
        alike = evaluation.likeness if evaluation else None
        reached = "" if each.search is None else "yes" if each.search.reached else "no"
        shared = (f"{rivals.shared(each)}", f"{rivals.shared_nodes(each)} of {len(each.nodes)}")
        numbers = (
            ("", "")
            if alike is None or evaluation is None
            else (alike.fidelity.describe(2), f"{evaluation.faithfulness:.2f}")
        )
        rows.append([f"rival {number}" if number else "circuit", f"{len(each)}", *shared, reached, *numbers])
    headings = ["", "edges", "shared", "nodes shared", "target", "fidelity", "f"]
    return table("rivals: searched again with a price on the edges found before", headings, rows, numbers=(1, 2, 3))
