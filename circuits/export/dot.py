"""Circuits and differences of circuits as Graphviz DOT text: pure functions, the same bytes every time.

Shape and fill tell heads from MLPs, the colour and arrow of an edge its slot, its line style the sign of the score, its
width the size of the score. Every edge carries its stored score in its tooltip.
"""

import math
from dataclasses import replace

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison import CircuitDiff, Membership
from circuits.export.layout import Line, count_nodes, layered_dot
from circuits.export.legend import Key, legend
from circuits.export.markup import number, short_number
from circuits.export.palette import (
    GREY,
    INK,
    LIGHT_GREY,
    MEMBER_COLOURS,
    NODE_BORDERS,
    NODE_FILLS,
    SLOT_COLOURS,
)
from circuits.graph import Edge, Node, NodeKind, Slot

AT_MOST = 200
"""How many edges are drawn: the strongest. More cannot be told apart."""
SIGN = "A positive score means that corrupting the edge moves the metric away from clean behaviour."


def circuit_dot(circuit: Circuit, *, title: str | None = None) -> str:
    """Give the DOT text of a circuit's diagram, layers from bottom to top.

    Up to 30 edges carry their score as a label; all have it in their tooltip, with six significant digits as in
    ``circuit.json``. Of more than 200 edges the strongest are drawn, and the legend says so. Deterministic: the same
    circuit gives the same bytes. ``title`` replaces the first line of the legend.
    """
    drawn = circuit.strongest(AT_MOST)
    lines = [
        Line(
            edge=edge,
            colour=SLOT_COLOURS[edge.receiver.slot],
            style=_style(score),
            strength=strength,
            tooltip=_tooltip(drawn, i),
            label=short_number(score),
        )
        for i, (edge, score, strength) in enumerate(
            zip(drawn.edge_list, drawn.scores.tolist(), _strengths(drawn), strict=True)
        )
    ]
    heading = title if title is not None else f"{circuit.behaviour.name} in {circuit.model.id}"
    facts = [*_facts(circuit), *_omitted(len(drawn), len(circuit))]
    return layered_dot(drawn, lines, legend(heading, facts, _circuit_keys(drawn), _notes(drawn)))


def difference_dot(diff: CircuitDiff, *, title: str | None = None) -> str:
    """Give the DOT text of two circuits drawn into one diagram, in the layout of :func:`circuit_dot`.

    Hue says which circuit an edge belongs to, the arrow its slot; tooltips hold the score in each circuit. Widths are
    relative to each circuit's own largest |score|, because scores of different behaviours have no common scale.
    """
    places = {int(index): i for i, index in enumerate(diff.union)}
    strengths = np.zeros(len(diff.union))
    scores = np.full((2, len(diff.union)), math.nan)
    for row, circuit in enumerate((diff.a, diff.b)):
        for index, score, strength in zip(circuit.edges, circuit.scores, _strengths(circuit), strict=True):
            place = places[int(index)]
            scores[row, place] = score
            strengths[place] = max(strengths[place], strength)
    keep = np.sort(np.argsort(-strengths, kind="stable")[:AT_MOST])
    drawn = replace(diff.a, edges=diff.union[keep], scores=strengths[keep], removal=None, evaluation=None)
    lines = [
        _difference_line(edge, diff.membership[int(i)], float(strengths[i]), (float(scores[0, i]), float(scores[1, i])))
        for edge, i in zip(drawn.edge_list, keep, strict=True)
    ]
    names = _names(diff)
    heading = title if title is not None else f"{names[0]} and {names[1]}"
    facts = [*_difference_facts(diff), *_omitted(len(drawn), len(diff.union))]
    table = legend(heading, facts, _difference_keys(diff), _difference_notes())
    return layered_dot(drawn, lines, table, borders=_borders(diff))


def _omitted(drawn: int, total: int) -> list[str]:
    return [f"drawn: the {drawn} strongest of {total:,} edges"] if drawn < total else []


def _strengths(circuit: Circuit) -> list[float]:
    """Scale |score| to 0-1; the square root keeps weak edges visible beside one very strong one."""
    sizes = np.nan_to_num(np.abs(circuit.scores))
    largest = float(sizes.max()) if len(sizes) else 0.0
    return [math.sqrt(size / largest) if largest > 0 else 0.0 for size in sizes.tolist()]


def _style(score: float) -> str:
    if math.isnan(score):
        return "dotted"
    return "dashed" if score < 0 else "solid"


def _tooltip(circuit: Circuit, i: int) -> str:
    text = f"{circuit.edge_list[i]}: score {number(float(circuit.scores[i]))}"
    if circuit.removal is not None:
        text += f"; removing it costs {number(float(circuit.removal[i]))} of the faithfulness"
    return text


def _facts(circuit: Circuit) -> list[str]:
    size = f"{len(circuit):,} of {circuit.graph.n_edges:,} edges, {count_nodes(circuit)}"
    evaluation = circuit.evaluation
    if evaluation is None:
        return [size, "not evaluated on held-out prompts"]
    low, high = evaluation.faithfulness_ci
    return [
        size,
        f"faithfulness {evaluation.faithfulness:.2f}, interval [{low:.2f}, {high:.2f}], on n = {evaluation.n} "
        "held-out prompt pairs",
    ]


def _notes(circuit: Circuit) -> list[str]:
    sizes = np.abs(circuit.scores[np.isfinite(circuit.scores)])
    width = "Width: size of the score"
    if len(sizes):
        width += f", from {float(sizes.min()):.2g} to {float(sizes.max()):.2g} {circuit.behaviour.unit}"
    kind = "measured" if circuit.measured else "estimated"
    return [
        f"{width} ({circuit.behaviour.metric}, {kind} by {circuit.method.scorer}, {circuit.method.direction}).",
        SIGN,
    ]


def _node_keys(circuit: Circuit) -> list[Key]:
    keys = [
        Key("round", NODE_FILLS[NodeKind.HEAD], "attention head", NODE_BORDERS[NodeKind.HEAD]),
        Key("box", NODE_FILLS[NodeKind.MLP], "MLP", NODE_BORDERS[NodeKind.MLP]),
    ]
    if circuit.model.shape.grouped:
        group = Key("round", NODE_FILLS[NodeKind.KV], "key/value group", NODE_BORDERS[NodeKind.KV])
        keys += [group, Key("line", LIGHT_GREY, "head of the group")]
    return keys


def _circuit_keys(circuit: Circuit) -> list[list[Key]]:
    slots = [
        Key("line", SLOT_COLOURS[Slot.Q], "into query"),
        Key("line", SLOT_COLOURS[Slot.K], "into key"),
        Key("line", SLOT_COLOURS[Slot.V], "into value"),
        Key("line", SLOT_COLOURS[None], "into MLP or logits"),
    ]
    signs = [Key("line", INK, "positive score"), Key("dashes", INK, "negative score")]
    if np.isnan(circuit.scores).any():
        signs.append(Key("dots", INK, "no score"))
    return [_node_keys(circuit), slots, signs]


def _names(diff: CircuitDiff) -> tuple[str, str]:
    return (f"A: {diff.a.behaviour.name}", f"B: {diff.b.behaviour.name}")


def _difference_line(edge: Edge, member: Membership, strength: float, scores: tuple[float, float]) -> Line:
    if member is Membership.SIGN_FLIP:
        strength = max(strength, 0.4)  # dotted lines vanish when thin
    known = [score for score in scores if not math.isnan(score)]
    parts = [f"{name} {number(score)}" for name, score in zip("AB", scores, strict=True) if not math.isnan(score)]
    style = "dotted" if member is Membership.SIGN_FLIP or not known else _style(known[0])
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


def _difference_keys(diff: CircuitDiff) -> list[list[Key]]:
    members = [
        Key("line", MEMBER_COLOURS[Membership.ONLY_A], f"only A ({len(diff.only_a)})"),
        Key("line", MEMBER_COLOURS[Membership.ONLY_B], f"only B ({len(diff.only_b)})"),
        Key("line", MEMBER_COLOURS[Membership.SHARED], f"both ({len(diff.shared) - len(diff.sign_flips)})"),
        Key("dots", MEMBER_COLOURS[Membership.SIGN_FLIP], f"both, opposite sign ({len(diff.sign_flips)})"),
    ]
    signs = [Key("line", GREY, "positive score"), Key("dashes", GREY, "negative score")]
    return [members, signs, _node_keys(diff.a)]


def _difference_notes() -> list[str]:
    return [
        "Arrows into a head: triangle into its query, diamond into its keys, dot into its values. "
        "Outline of a node: the colour of its circuit, dark for both.",
        "Width: size of the score, relative to each circuit's largest. Two numbers: score in A / score in B.",
        SIGN,
    ]
