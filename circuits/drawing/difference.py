"""Two circuits drawn into one diagram."""

import math
from itertools import pairwise

import networkx as nx
import numpy as np

from circuits.comparison import CircuitDiff, Membership
from circuits.diagrams.layout import Line, layered_dot
from circuits.diagrams.legend import Key, legend
from circuits.diagrams.markup import number, short_number
from circuits.diagrams.palette import GREY, INK, MEMBER_COLOURS
from circuits.diagrams.style import PLAIN, DiagramStyle
from circuits.drawing.dot import ON_PAGE, SIGN, line_style, node_keys
from circuits.graph import Edge, EdgeIndices, Node, NodeKind
from circuits.scores import Floats

PER_GROUP = 40
"""How many edges of each group are drawn, the strongest: only A, only B, both, both with opposite signs."""
_GROUPS = {
    Membership.ONLY_A: "only A",
    Membership.ONLY_B: "only B",
    Membership.SHARED: "both",
    Membership.SIGN_FLIP: "both, opposite sign",
}


def difference_dot(
    diff: CircuitDiff, *, title: str | None = None, page: bool = False, style: DiagramStyle = PLAIN
) -> str:
    """Return the DOT text of two circuits drawn into one diagram, in the layout of :func:`circuit_dot`.

    Hue says which circuit an edge belongs to, the arrow its slot; tooltips hold the score in each circuit. Of each
    group (only A, only B, both) the 40 strongest edges are drawn, so that a large circuit does not hide the other, and
    those that connect them with the input and the end; the legend says what is left out. Widths are relative to each
    circuit's own largest |score|, because scores of different behaviours have no common scale; measured effects of one
    behaviour have. For a ``page`` the 2,000 strongest edges of all are drawn, without legend, as :func:`circuit_dot`
    does. ``style`` says how large it is; it has no summaries.
    """
    scores, sizes = _scores(diff), _sizes(diff)
    keep = _strongest(sizes, ON_PAGE) if page else _strongest_of_each(diff, sizes)
    drawn = diff.a.with_edges(diff.union[keep], sizes[keep])
    lines = [
        _difference_line(edge, diff.membership[int(i)], float(sizes[i]), (float(scores[0, i]), float(scores[1, i])))
        for edge, i in zip(drawn.edge_list, keep, strict=True)
    ]
    heading = title if title is not None else f"A: {diff.names[0]} and B: {diff.names[1]}"
    facts = [*_difference_facts(diff), *_left_out(diff, keep)]
    keys, more = difference_keys(diff), difference_notes(diff)
    table = "" if page or not style.legend else legend(heading, facts, keys, more, letters=style.letters)
    return layered_dot(drawn, lines, table, borders=_borders(diff), style=style)


def common_scale(diff: CircuitDiff) -> bool:
    """Whether scores of both circuits are comparable in size: measured effects on one behaviour's prompts."""
    return diff.a.measured and diff.b.measured and diff.a.behaviour == diff.b.behaviour


def _scores(diff: CircuitDiff) -> Floats:
    scores = np.full((2, len(diff.union)), math.nan)
    for row, circuit in enumerate((diff.a, diff.b)):
        scores[row, np.searchsorted(diff.union, circuit.edges)] = circuit.scores
    return scores


def _sizes(diff: CircuitDiff) -> Floats:
    """Scale |score| to 0-1 within each circuit, or within both; the square root keeps weak edges visible."""
    sizes = np.nan_to_num(np.abs(_scores(diff)))
    if not sizes.size:
        return sizes.max(0, initial=0.0)
    largest = sizes.max(1, keepdims=True)
    if common_scale(diff):
        largest = largest.max(keepdims=True)
    return np.sqrt(sizes / np.where(largest > 0, largest, 1.0)).max(0)


def _strongest(sizes: Floats, count: int) -> EdgeIndices:
    return np.sort(np.argsort(-sizes, kind="stable")[:count])


def _strongest_of_each(diff: CircuitDiff, sizes: Floats) -> EdgeIndices:
    groups = [np.flatnonzero(np.array([member is group for member in diff.membership])) for group in _GROUPS]
    chosen = np.concatenate([group[_strongest(sizes[group], PER_GROUP)] for group in groups])
    return _connecting(diff, sizes, chosen)


def _connecting(diff: CircuitDiff, sizes: Floats, chosen: EdgeIndices) -> EdgeIndices:
    """Return chosen edges with those that connect each of them with input and end, where the two circuits do: few ones.

    Without them nodes hang whose other edges are left out, as if nothing led to them, or they to nothing.
    """
    whole, kept = diff.a.with_edges(diff.union, sizes), {int(i) for i in chosen}
    edges, view, places = whole.edge_list, whole.to_networkx(), dict[tuple[str, str, str], int]()
    for _, _, attributes in view.edges(data=True):
        attributes["cost"] = 0.0
    for i, edge in enumerate(edges):
        place = str(edge.sender), str(edge.receiver.node), edge.receiver.entrance
        places[place] = i
        view.edges[place]["cost"] = 0.0 if i in kept else 2.0 - float(sizes[i])
    found = set(kept)
    ends = str(Node(NodeKind.INPUT)), str(diff.a.model.shape.end)
    for start, graph in zip(ends, (view, view.reverse(copy=False)), strict=True):
        paths: dict[str, list[str]] = (
            nx.single_source_dijkstra_path(graph, start, weight="cost") if start in view else {}
        )
        for i in kept:
            edge = edges[i]
            path = paths.get(str(edge.sender if graph is view else edge.receiver.node), [])
            for here, there in pairwise(path if graph is view else path[::-1]):
                entrance = min(view[here][there], key=lambda key: view.edges[here, there, key]["cost"])
                found |= {places[here, there, entrance]} if (here, there, entrance) in places else set()
    return np.array(sorted(found), dtype=np.int64)


def _left_out(diff: CircuitDiff, keep: EdgeIndices) -> list[str]:
    """Return how many edges of each group are drawn, as a line of text, where that is not all of them."""
    if len(keep) == len(diff.union):
        return []
    drawn = [diff.membership[int(i)] for i in keep]
    counts: list[str] = []
    for group, name in _GROUPS.items():
        total, shown = diff.membership.count(group), drawn.count(group)
        more = f" and {shown - PER_GROUP} that connect them" if shown > PER_GROUP else ""
        part = f"the strongest {min(shown, PER_GROUP)} of {total:,}{more}"
        if total:
            counts.append(f"{name}: {part if shown < total else f'all {total}'}")
    return [f"drawn of {'; '.join(counts)}"]


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
    ends = frozenset((Node(NodeKind.INPUT), diff.a.model.shape.end))
    in_a, in_b = frozenset(diff.a.nodes) - ends, frozenset(diff.b.nodes) - ends
    borders: dict[Node, str] = {}
    for node in diff.a.graph.nodes:
        if node in in_a or node in in_b:
            owner = Membership.ONLY_A if node in in_a else Membership.ONLY_B
            borders[node] = INK if node in in_a and node in in_b else MEMBER_COLOURS[owner]
    return borders


def _difference_facts(diff: CircuitDiff) -> list[str]:
    levels = {each.kind: each for each in diff.edge_overlap.chances}
    chance = " or ".join(f"{levels[kind].expected:.3g}" for kind in ("uniform", "matched", "rewired") if kind in levels)
    return [
        f"A: {len(diff.a):,} edges, {diff.a.behaviour.name} in {diff.a.model.id}",
        f"B: {len(diff.b):,} edges, {diff.b.behaviour.name} in {diff.b.model.id}",
        f"shared edges {diff.edge_overlap.shared} (by chance {chance}: any edges, the same kinds and layers, rewired); "
        f"Jaccard {diff.edge_overlap.jaccard:.2f}, of nodes {diff.node_overlap.jaccard:.2f}",
    ]


def difference_keys(diff: CircuitDiff) -> list[list[Key]]:
    """Return the samples of membership, signs and nodes for the legend."""
    members = [
        Key("line", MEMBER_COLOURS[Membership.ONLY_A], f"only A ({len(diff.only_a)})"),
        Key("line", MEMBER_COLOURS[Membership.ONLY_B], f"only B ({len(diff.only_b)})"),
        Key("line", MEMBER_COLOURS[Membership.SHARED], f"both ({len(diff.shared) - len(diff.sign_flips)})"),
        Key("dots", MEMBER_COLOURS[Membership.SIGN_FLIP], f"both, opposite sign ({len(diff.sign_flips)})"),
    ]
    signs = [Key("line", GREY, "positive score"), Key("dashes", GREY, "negative score")]
    return [members, signs, node_keys(diff.a)]


def difference_notes(diff: CircuitDiff | None = None) -> list[str]:
    """Return in sentences what arrows, outlines and widths mean."""
    relative = "relative to each circuit's largest"
    if diff is not None and common_scale(diff):
        relative = f"on one scale, in {diff.a.behaviour.unit}"
    return [
        "Arrows into a head: triangle into its query, diamond into its keys, dot into its values. "
        "Outline of a node: the colour of its circuit, dark for both.",
        f"Width: size of the score, {relative}. Two numbers: score in A / score in B.",
        SIGN,
    ]
