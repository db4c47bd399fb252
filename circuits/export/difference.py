"""Two circuits drawn into one diagram."""

import math
from dataclasses import replace

import numpy as np

from circuits.comparison import CircuitDiff, Membership
from circuits.export.dot import AT_MOST, ON_PAGE, SIGN, line_style, node_keys, omitted, strengths
from circuits.export.layout import Line, layered_dot
from circuits.export.legend import Key, legend
from circuits.export.markup import number, short_number
from circuits.export.palette import GREY, INK, MEMBER_COLOURS
from circuits.graph import Edge, Node, NodeKind


def difference_dot(diff: CircuitDiff, *, title: str | None = None, page: bool = False) -> str:
    """Give the DOT text of two circuits drawn into one diagram, in the layout of :func:`circuit_dot`.

    Hue says which circuit an edge belongs to, the arrow its slot; tooltips hold the score in each circuit. Widths are
    relative to each circuit's own largest |score|, because scores of different behaviours have no common scale. For a
    ``page`` more edges are drawn, without legend, as :func:`circuit_dot` does.
    """
    places = {int(index): i for i, index in enumerate(diff.union)}
    sizes = np.zeros(len(diff.union))
    scores = np.full((2, len(diff.union)), math.nan)
    for row, circuit in enumerate((diff.a, diff.b)):
        for index, score, strength in zip(circuit.edges, circuit.scores, strengths(circuit), strict=True):
            place = places[int(index)]
            scores[row, place] = score
            sizes[place] = max(sizes[place], strength)
    keep = np.sort(np.argsort(-sizes, kind="stable")[: ON_PAGE if page else AT_MOST])
    drawn = replace(diff.a, edges=diff.union[keep], scores=sizes[keep], removal=None, evaluation=None)
    lines = [
        _difference_line(edge, diff.membership[int(i)], float(sizes[i]), (float(scores[0, i]), float(scores[1, i])))
        for edge, i in zip(drawn.edge_list, keep, strict=True)
    ]
    names = _names(diff)
    heading = title if title is not None else f"{names[0]} and {names[1]}"
    facts = [*_difference_facts(diff), *omitted(len(drawn), len(diff.union))]
    table = "" if page else legend(heading, facts, difference_keys(diff), difference_notes())
    return layered_dot(drawn, lines, table, borders=_borders(diff))


def _names(diff: CircuitDiff) -> tuple[str, str]:
    return (f"A: {diff.a.behaviour.name}", f"B: {diff.b.behaviour.name}")


def _difference_line(edge: Edge, member: Membership, strength: float, scores: tuple[float, float]) -> Line:
    if member is Membership.SIGN_FLIP:
        strength = max(strength, 0.4)  # dotted lines vanish when thin
    known = [score for score in scores if not math.isnan(score)]
    parts = [f"{name} {number(score)}" for name, score in zip("AB", scores, strict=True) if not math.isnan(score)]
    style = "dotted" if member is Membership.SIGN_FLIP or not known else line_style(known[0])
    label = " / ".join(short_number(score) for score in known)
    tooltip = f"{edge}: score " + (", ".join(parts) or "not measured")
    return Line(edge, MEMBER_COLOURS[member], style, strength, tooltip, label)


def _borders(diff: CircuitDiff) -> dict[Node, str]:
    ends = frozenset((Node(NodeKind.INPUT), Node(NodeKind.LOGITS)))
    in_a, in_b = frozenset(diff.a.nodes) - ends, frozenset(diff.b.nodes) - ends
    borders: dict[Node, str] = {}
    for node in diff.a.graph.nodes:
        if node in in_a or node in in_b:
            owner = Membership.ONLY_A if node in in_a else Membership.ONLY_B
            borders[node] = INK if node in in_a and node in in_b else MEMBER_COLOURS[owner]
    return borders


def _difference_facts(diff: CircuitDiff) -> list[str]:
    overlap = diff.edge_overlap
    return [
        f"A: {len(diff.a):,} edges, {diff.a.behaviour.name} in {diff.a.model.id}",
        f"B: {len(diff.b):,} edges, {diff.b.behaviour.name} in {diff.b.model.id}",
        f"shared edges {overlap.shared} (by chance {overlap.expected_shared:.2g}); Jaccard {overlap.jaccard:.2f}; "
        f"Jaccard of nodes {diff.node_overlap.jaccard:.2f}",
    ]


def difference_keys(diff: CircuitDiff) -> list[list[Key]]:
    """Give the samples of membership, signs and nodes for the legend."""
    members = [
        Key("line", MEMBER_COLOURS[Membership.ONLY_A], f"only A ({len(diff.only_a)})"),
        Key("line", MEMBER_COLOURS[Membership.ONLY_B], f"only B ({len(diff.only_b)})"),
        Key("line", MEMBER_COLOURS[Membership.SHARED], f"both ({len(diff.shared) - len(diff.sign_flips)})"),
        Key("dots", MEMBER_COLOURS[Membership.SIGN_FLIP], f"both, opposite sign ({len(diff.sign_flips)})"),
    ]
    signs = [Key("line", GREY, "positive score"), Key("dashes", GREY, "negative score")]
    return [members, signs, node_keys(diff.a)]


def difference_notes() -> list[str]:
    """Say what arrows, outlines and widths mean."""
    return [
        "Arrows into a head: triangle into its query, diamond into its keys, dot into its values. "
        "Outline of a node: the colour of its circuit, dark for both.",
        "Width: size of the score, relative to each circuit's largest. Two numbers: score in A / score in B.",
        SIGN,
    ]
