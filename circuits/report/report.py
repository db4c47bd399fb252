"""The report of a circuit, and of the difference of two: one interactive, self-contained HTML page each."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from circuits.circuit import Circuit
from circuits.comparison import CircuitDiff, Membership
from circuits.diagrams.layout import count_nodes
from circuits.diagrams.markup import block_text, number, one_line
from circuits.diagrams.palette import MEMBER_COLOURS, colour_name
from circuits.drawing.difference import common_scale, difference_keys, difference_notes
from circuits.drawing.dot import SIGN, circuit_keys, circuit_notes
from circuits.graph import Node
from circuits.records import Example
from circuits.report.curve_chart import curve_svg
from circuits.report.page import EdgeRow, Group, Table, TableColumn, page_html, samples, size_text
from circuits.report.sentences import evaluation_sentences, facts
from circuits.scores import Floats

__all__ = ["Table", "comparison_html", "report_html"]

SHOWN = 10
"""How many prompt pairs of each part are shown."""
_PARTS = {"discovery": "searched on", "heldout": "judged on (held out)"}


def report_html(
    circuit: Circuit,
    svg: str,
    *,
    title: str | None = None,
    evidence: Mapping[Node, str] | None = None,
    prompts: Sequence[Example] = (),
    intervals: Floats | None = None,
) -> str:
    """Return the page: diagram, evaluation in words, curve, table of edges, evidence, prompts, how it was found.

    ``svg`` is the diagram as :func:`circuits.drawing.render.image` gives it (best of ``circuit_dot(circuit,
    page=True)``); it is put into the page as it is. Everything else is escaped. ``evidence`` is one text per head
    (``HeadRoles.texts()``); of ``prompts`` the first ten of each part are shown; ``intervals`` has a row of two numbers
    for every edge, from :meth:`circuits.scores.EdgeScores.intervals`.
    """
    evaluation = circuit.evaluation
    chosen = (len(circuit), evaluation.faithfulness) if evaluation else None
    return page_html(
        svg,
        title=_title(title, f"{circuit.behaviour.name} in {circuit.model.id}"),
        size=f"{len(circuit):,} of {circuit.graph.n_edges:,} edges, {count_nodes(circuit)}",
        size_name="|score|",
        relative="no",
        keys=samples(circuit_keys(circuit)),
        notes=[note for note in circuit_notes(circuit) if note != SIGN],
        sentences=evaluation_sentences(circuit),
        curve=Markup(curve_svg(evaluation.curve, chosen=chosen)) if evaluation else "",
        columns=_columns(circuit, intervals),
        about=f"{'measured' if circuit.measured else 'estimated'} by {circuit.method.scorer}",
        edges=_rows(circuit, intervals),
        edge_note=" ".join(_edge_notes(circuit, intervals)),
        evidence=_evidence(evidence or {}),
        prompts=_prompts(prompts),
        facts=facts(circuit),
        commands=[command for command in (circuit.provenance.command,) if command],
    )


def comparison_html(
    diff: CircuitDiff,
    svg: str,
    *,
    sentences: Sequence[str] = (),
    tables: Sequence[Table] = (),
    title: str | None = None,
) -> str:
    """Return the page of a comparison: what it says in words, the difference diagram, tables, both circuits' edges.

    ``svg`` as in :func:`report_html`, best of ``difference_dot(diff, page=True)``. The slider compares |score| with the
    largest of the circuit an edge is of; for shared edges the larger of both shares counts.
    """
    names = _names(diff)
    return page_html(
        svg,
        title=_title(title, f"{names[0]} and {names[1]}"),
        size=f"A: {names[0]}, {len(diff.a):,} edges. B: {names[1]}, {len(diff.b):,} edges. "
        f"Shared: {len(diff.shared):,}.",
        size_name="|score| relative to the " + ("largest" if common_scale(diff) else "circuit's largest"),
        relative="yes",
        keys=samples(difference_keys(diff)),
        notes=[note for note in difference_notes(diff) if note != SIGN],
        heading="In words",
        sentences=[one_line(text, limit=2000) for text in sentences],
        groups=_groups(diff),
        tables=tables,
        columns=[
            TableColumn("edge"),
            TableColumn("slot"),
            TableColumn("score in A", True),
            TableColumn("score in B", True),
            TableColumn("in"),
        ],
        about=f"A: {names[0]}; B: {names[1]}",
        edges=_difference_rows(diff),
        commands=[command for each in (diff.a, diff.b) if (command := each.provenance.command)],
    )


def _title(given: str | None, otherwise: str) -> str:
    return one_line(given if given is not None else otherwise)


# ------------------------------------------------------------------------------------------------------ rows of edges


def _columns(circuit: Circuit, intervals: Floats | None) -> list[TableColumn]:
    columns = [TableColumn("edge"), TableColumn("slot"), TableColumn(f"score ({circuit.behaviour.unit})", True)]
    if intervals is not None:
        columns.append(TableColumn("95 % interval", True))
    if circuit.removal is not None:
        columns.append(TableColumn("loss without it", True))
    return columns


def _edge_notes(circuit: Circuit, intervals: Floats | None) -> list[str]:
    notes: list[str] = []
    if intervals is not None:
        notes.append("Interval: of the mean over prompt pairs.")
    if circuit.removal is not None:
        notes.append("Loss without it: of faithfulness on the pairs searched on, when this one edge is taken out.")
    return notes


def _rows(circuit: Circuit, intervals: Floats | None) -> list[EdgeRow]:
    scores: list[float] = circuit.scores.tolist()
    return [_row(circuit, i, scores[i], cells=_cells(circuit, intervals, i)) for i in _strongest_first(circuit.scores)]


def _cells(circuit: Circuit, intervals: Floats | None, i: int) -> tuple[str, ...]:
    cells = [number(float(circuit.scores[i]))]
    if intervals is not None:
        low, high = intervals[i].tolist()
        cells.append(f"[{low:.3g}, {high:.3g}]" if low == low else "")  # noqa: PLR0124 - NaN
    if circuit.removal is not None:
        cells.append(number(float(circuit.removal[i])))
    return tuple(cells)


def _strongest_first(scores: Floats) -> list[int]:
    """Return places in the order of the table: ties in graph order, what has no score last."""
    order: list[int] = np.argsort(-np.nan_to_num(np.abs(scores)), kind="stable").tolist()
    return order


def _row(circuit: Circuit, i: int, size: float, *, cells: tuple[str, ...], group: str = "") -> EdgeRow:
    edge = circuit.edge_list[i]
    slot = edge.receiver.slot.value if edge.receiver.slot else ""
    return EdgeRow(str(edge), str(edge.sender), str(edge.receiver.node), slot, size_text(size), cells, group)


def _difference_rows(diff: CircuitDiff) -> list[EdgeRow]:
    union = Circuit(diff.a.model, diff.a.behaviour, diff.a.method, diff.union, np.zeros(len(diff.union)))
    scores = np.full((2, len(diff.union)), np.nan)
    for row, circuit in enumerate((diff.a, diff.b)):
        scores[row, np.searchsorted(diff.union, circuit.edges)] = circuit.scores
    sizes = relative_sizes(scores, common=common_scale(diff))
    both: list[list[float]] = scores.T.tolist()
    rows: list[EdgeRow] = []
    for i in _strongest_first(sizes):
        member = diff.membership[i]
        cells = (*("" if score != score else number(score) for score in both[i]), _MEMBERS[member])  # noqa: PLR0124 - NaN
        rows.append(_row(union, i, float(sizes[i]), cells=cells, group=member.value))
    return rows


def relative_sizes(scores: Floats, *, common: bool) -> Floats:
    """Return |score| as a share of its circuit's largest (or of the largest of both), the larger for shared edges.

    ``scores`` has one row per circuit; NaN where an edge has no score.
    """
    sizes = np.nan_to_num(np.abs(scores))
    largest = sizes.max(axis=None if common else 1, keepdims=True, initial=0.0)
    return (sizes / np.where(largest > 0, largest, 1.0)).max(axis=0)


_MEMBERS = {
    Membership.ONLY_A: "only A",
    Membership.ONLY_B: "only B",
    Membership.SHARED: "both",
    Membership.SIGN_FLIP: "both, opposite sign",
}


def _groups(diff: CircuitDiff) -> list[Group]:
    counts = dict.fromkeys(Membership, 0)
    for member in diff.membership:
        counts[member] += 1
    return [
        Group(member.value, f"{_MEMBERS[member]} ({count:,})", colour_name(MEMBER_COLOURS[member]))
        for member, count in counts.items()
    ]


def _names(diff: CircuitDiff) -> tuple[str, str]:
    return one_line(diff.names[0]), one_line(diff.names[1])


# ------------------------------------------------------------------------------------------------ evidence and prompts


def _evidence(texts: Mapping[Node, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for node, text in texts.items():
        label, *rest = one_line(text, limit=2000).split("; ")
        found.append({"node": str(node), "label": label, "facts": rest})
    return found


def _prompts(prompts: Sequence[Example]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for split, meaning in _PARTS.items():
        pairs = [prompt for prompt in prompts if prompt.split == split]
        if pairs:
            count = f"the first {SHOWN} of {len(pairs)}" if len(pairs) > SHOWN else str(len(pairs))
            parts.append({"title": f"{count} pairs {meaning}", "pairs": [_pair(pair) for pair in pairs[:SHOWN]]})
    return parts


def _pair(pair: Example) -> dict[str, Any]:
    clean, corrupted = block_text(pair.clean), block_text(pair.corrupted)
    return {
        "clean": clean,
        "corrupted": marked(clean, corrupted),
        "answers": [block_text(text) for text in pair.answers],
        "wrong_answers": [block_text(text) for text in pair.wrong_answers],
    }


def marked(clean: str, corrupted: str) -> Markup:
    """Return the corrupted prompt as markup, with the words marked in which it differs from the clean one."""
    old, new = re.findall(r"\w+|\W", clean), re.findall(r"\w+|\W", corrupted)
    parts: list[str] = []
    for what, _, _, begin, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        text = escape("".join(new[begin:end]))
        parts.append(text if what == "equal" or not text else Markup("<mark>{}</mark>").format(text))
    return Markup("").join(parts)
