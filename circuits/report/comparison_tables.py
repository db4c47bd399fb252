"""A comparison as tables, for the terminal and for the report."""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from circuits.comparison import (
    Chance,
    CircuitDiff,
    Comparison,
    EdgeChanges,
    Overlap,
    ScoreEstimate,
    Share,
    TransferMatrix,
)
from circuits.comparison.crossing import Contrast, Dissociation
from circuits.comparison.overlap import MATCHED, REWIRED, UNIFORM
from circuits.comparison.parts import CORE, only

LEAST_P, LONGEST = 0.001, 12
"""The smallest p-value that is written as a number; the longest name that stands in tables."""
SHOWN = 10
"""How many of the most changed edges and nodes are listed."""


@dataclass(frozen=True)
class Tabulated:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def short_names(comparison: Comparison) -> dict[str, str]:
    """Return what circuits and parts are called in tables: letters where the names are long."""
    names = comparison.names
    letters = [string.ascii_uppercase[i % 26] for i in range(len(names))]
    called = dict(zip(names, letters if max(map(len, names)) > LONGEST else names, strict=True))
    return called | {only(name): only(short) for name, short in called.items()} | {CORE: CORE}


def tables_of(comparison: Comparison) -> list[Tabulated]:
    """Return every table that a comparison has something for."""
    short = short_names(comparison)
    tables = [_overlap(diff, short) for diff in comparison.pairs]
    if len(comparison.circuits) > 2:
        tables.append(_memberships(comparison, short))
    if comparison.parts:
        tables.append(_parts(comparison, short))
    if comparison.transfer:
        tables.append(_transfer(comparison, comparison.transfer, short))
    tables += [_dissociation(each, short) for each in comparison.dissociations]
    for change in comparison.changes:
        tables += _changes(change)
    letters = [f"{short[name]} is {name}" for name in comparison.names if short[name] != name]
    if letters and tables:
        tables[0] = replace(tables[0], note=f"{tables[0].note} {', '.join(letters)}.".strip())
    return tables


def _overlap(diff: CircuitDiff, short: Mapping[str, str]) -> Tabulated:
    edges, nodes, scores = diff.edge_overlap, diff.node_overlap, diff.scores
    levels = {each.kind: each for each in nodes.chances}
    rows = [["in both", str(edges.shared), str(nodes.shared), ""]]
    rows += [
        [f"in {short[name]}", str(size), str(size_of_nodes), ""]
        for name, size, size_of_nodes in zip(
            diff.names, (edges.size_a, edges.size_b), (nodes.size_a, nodes.size_b), strict=True
        )
    ]
    rows.append(["Jaccard index", _jaccard(edges), _jaccard(nodes), scores.weighted.describe()])
    for each in edges.chances:
        beside = levels.get(each.kind)
        weighted = next((level for level in diff.weighted_chances if level.kind == each.kind), None)
        shared = [_level(each), _level(beside) if beside else "", _level(weighted, digits=2) if weighted else ""]
        rows.append([_CHANCE[each.kind], *shared])
    rows.append([f"ranks, {scores.n} edges", "", "", scores.ranks.describe()])
    if scores.ranks_chance is not None:
        rows.append([_CHANCE[MATCHED], "", "", _level(scores.ranks_chance, digits=2)])
    return Tabulated(
        f"{short[diff.names[0]]} and {short[diff.names[1]]}: overlap, and what chance would give",
        ["", "edges", "nodes", "|score|"],
        rows,
        "Chance: any sets of these sizes; sets of the same kinds and layers; circuits whose nodes have as many edges.",
    )


_CHANCE = {UNIFORM: "  any by chance", MATCHED: "  of same layers", REWIRED: "  rewired"}


def _jaccard(overlap: Overlap) -> str:
    return ScoreEstimate(overlap.jaccard, *overlap.jaccard_ci).describe()


def _level(chance: Chance, *, digits: int = 0) -> str:
    if not math.isfinite(chance.expected):
        return ""
    few = 2 if abs(chance.expected) < 1 else 3
    expected = f"{chance.expected:.2f}" if digits else f"{chance.expected:.{few}g}"
    p_value = "< 0.001" if chance.p_value < LEAST_P else f"{chance.p_value:.3f}"
    return f"{expected} (p {p_value})"


def _memberships(comparison: Comparison, short: Mapping[str, str]) -> Tabulated:
    rows = [
        [*("●" if name in each.circuits else "·" for name in comparison.names), str(each.edges), str(each.nodes)]
        for each in comparison.memberships
    ]
    title = "edges and nodes by the circuits that have them, and no other"
    return Tabulated(title, [*(short[name] for name in comparison.names), "edges", "nodes"], rows)


def _parts(comparison: Comparison, short: Mapping[str, str]) -> Tabulated:
    rows = [[short[part.name], str(len(part.circuit)), str(part.live)] for part in comparison.parts]
    note = "Edges on no path from input to logits within a part change nothing when it runs alone."
    return Tabulated("parts", ["", "edges", "on a path"], rows, note)


def _transfer(comparison: Comparison, matrix: TransferMatrix, short: Mapping[str, str]) -> Tabulated:
    rows = [
        [short[row], *(_share(matrix.cells.get((row, column))) for column in matrix.columns)]
        for row in matrix.rows
        if any((row, column) in matrix.cells for column in matrix.columns)
    ]
    rows += [
        [f"random, {short[row]}", *(_random(matrix.cells.get((row, column))) for column in matrix.columns)]
        for row in comparison.names
        if any((share := matrix.cells.get((row, column))) and share.random for column in matrix.columns)
    ]
    n = ", ".join(f"{short[column.name]} {column.n}" for column in comparison.columns)
    return Tabulated(
        "faithfulness alone (rows) on the prompts of (columns)",
        ["", *(short[column] for column in matrix.columns)],
        rows,
        f"95 % intervals over held-out pairs: {n}. Random circuits of the same size and wiring: median, largest.",
    )


def _share(share: Share | None) -> str:
    return share.value.describe() if share else "not shown"


def _random(share: Share | None) -> str:
    return f"{_number(share.random_median)}, {_number(max(share.random))}" if share and share.random else ""


def _dissociation(found: Dissociation, short: Mapping[str, str]) -> Tabulated:
    rows = _contrast(found.whole, "all of {}", short)
    if found.only is not None:
        rows += _contrast(found.only, "only {} has", short)
    if found.shared is not None:
        rows.append(["what both have", *(_number(share.value.value) for share in found.shared), "", ""])
    note = "Random: own − other of random knock-outs of the same size and wiring: median, largest."
    a, b = short[found.a], short[found.b]
    columns = ["knocked out", a, b, "own − other", "random"]
    return Tabulated(f"{a} and {b}: share of the behaviour lost", columns, rows, note)


def _contrast(contrast: Contrast, what: str, short: Mapping[str, str]) -> list[list[str]]:
    rows = [
        [
            what.format(short[contrast.behaviours[i]]),
            *(_number(contrast.losses[knocked, behaviour].value.value) for behaviour in contrast.behaviours),
            contrast.gains[i].value.describe(),
            _random(contrast.gains[i]),
        ]
        for i, knocked in enumerate(contrast.knocked)
    ]
    return [*rows, ["  together", "", "", contrast.interaction.describe(), ""]]


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def _changes(change: EdgeChanges) -> list[Tabulated]:
    here, there = change.model_names
    order = change.strongest_edges[:SHOWN]
    unit = change.circuit.behaviour.unit
    edges = [
        [
            str(change.circuit.edge_list[place]),
            f"{change.there.bounds[0, place]:.3f}",
            f"{change.here.bounds[0, place]:.3f}",
            change.estimate(place).describe(),
        ]
        for place in order
    ]
    nodes = [
        [each.node, f"{each.there:.3f}", f"{each.here:.3f}", each.change.describe()] for each in change.nodes[:SHOWN]
    ]
    return [
        Tabulated(f"most changed edges of {change.name}, effects in {unit}", ["edge", there, here, "change"], edges),
        Tabulated(
            f"most changed senders of {change.name}, effects in {unit}",
            ["node", there, here, "change"],
            nodes,
            "Effects of the node's edges, each measured alone, summed.",
        ),
    ]
