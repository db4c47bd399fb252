"""The files of a comparison: numbers, diagrams, a report, and the parts as circuits."""

from dataclasses import dataclass, replace
from pathlib import Path

from circuits.circuit import Circuit
from circuits.comparison import CircuitDiff, Column, Comparison, Part, TransferMatrix
from circuits.comparison.parts import only
from circuits.drawing.difference import difference_dot
from circuits.drawing.node_map import draw_several
from circuits.drawing.pictures import draw_difference
from circuits.drawing.render import ImageFormat, image
from circuits.errors import RenderError
from circuits.files.atomic import file_names, make_folder, write
from circuits.files.documents import json_text
from circuits.records import Evaluation
from circuits.report.comparison_tables import tables_of
from circuits.report.report import Table, comparison_html

NUMBERS, DIFFERENCE, REPORT = "comparison.json", "difference", "report"
MAP, SHARED = "nodes.svg", "shared.svg"


@dataclass(frozen=True)
class ComparisonFiles:
    """What was written where; ``text`` is that of ``comparison.json``, ``undrawn`` why diagrams are missing, if so."""

    folder: Path
    files: tuple[str, ...]
    text: str
    undrawn: str = ""


def save_comparison(comparison: Comparison, folder: str | Path, *, command: str = "") -> ComparisonFiles:
    """Write a comparison into a folder, which is made if need be: numbers, parts as circuits, diagrams and a report.

    Numbers and parts come first: where Graphviz is missing, ``undrawn`` of what is returned says so. ``command`` is
    recorded as the command that compared. Raises :class:`OutputError` for a folder that cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    document = comparison.to_dict() | {"command": command}
    text = json_text(document, sort_keys=True)
    write(folder / NUMBERS, text)
    files = [NUMBERS, *_parts(comparison, folder, command)]
    try:
        files += _diagrams(comparison, folder)
    except RenderError as problem:
        return ComparisonFiles(folder, tuple(files), text, str(problem))
    return ComparisonFiles(folder, tuple(files), text)


def _diagrams(comparison: Comparison, folder: Path) -> list[str]:
    files = [MAP]
    draw_several(comparison, folder / MAP)
    if len(comparison.circuits) > 2:
        draw_several(comparison, folder / SHARED, shared=True)
        files.append(SHARED)
    for name, diff, title in _differences(comparison):
        for suffix in (".dot", ".svg"):
            draw_difference(diff, folder / f"{name}{suffix}", title=title)
        page = f"{name.replace(DIFFERENCE, REPORT)}.html"
        write(folder / page, _page(comparison, diff, title))
        files += [f"{name}.dot", f"{name}.svg", page]
    return files


def _parts(comparison: Comparison, folder: Path, command: str) -> list[str]:
    files = [f"{name}.json" for name in file_names([part.name for part in comparison.parts])]
    for part, file in zip(comparison.parts, files, strict=True):
        write(folder / file, _as_circuit(part, comparison, command).to_json())
    return files


def _page(comparison: Comparison, diff: CircuitDiff, title: str) -> str:
    svg = image(difference_dot(diff, page=True), ImageFormat.SVG).decode("utf-8")
    tables = [
        Table(each.title, tuple(each.columns), tuple(tuple(row) for row in each.rows), each.note)
        for each in tables_of(comparison)
    ]
    return comparison_html(diff, svg, sentences=comparison.sentences(), tables=tables, title=title)


def _differences(comparison: Comparison) -> list[tuple[str, CircuitDiff, str]]:
    """Return every difference that is drawn, with the name of its file and its title."""
    pairs = [f"{a}-{b}" for a, b in (diff.names for diff in comparison.pairs)]
    changes = [change.name for change in comparison.changes]
    stems = [DIFFERENCE] if len(pairs) == 1 else [f"{DIFFERENCE}-{name}" for name in file_names(pairs)]
    stems += ["changes"] if len(changes) == 1 else [f"changes-{name}" for name in file_names(changes)]
    drawn = [(diff, f"{diff.names[0]} (A) and {diff.names[1]} (B)") for diff in comparison.pairs]
    drawn += [(change.difference(), change.title) for change in comparison.changes]
    return [(stem, *each) for stem, each in zip(stems, drawn, strict=True)]


def _as_circuit(part: Part, comparison: Comparison, command: str) -> Circuit:
    """Return a part as it is written: with how well it does on its circuit's behaviour, where that was measured."""
    circuit = replace(part.circuit, provenance=replace(part.circuit.provenance, command=command))
    owner = {only(name): name for name in comparison.names}.get(part.name, "")
    for column in comparison.columns:
        own = column.name == owner or (not owner and column.behaviour == circuit.behaviour.name)
        if own and comparison.transfer and (part.name, column.name) in comparison.transfer.cells:
            return circuit.with_evaluation(_evaluation(part, column, comparison.transfer))
    return circuit


def _evaluation(part: Part, column: Column, transfer: TransferMatrix) -> Evaluation:
    share = transfer.cell(part.name, column.name)
    return Evaluation(
        n=column.n,
        metric_clean=float(column.clean.mean()),
        metric_corrupted=float(column.corrupted.mean()),
        metric_circuit=float(column.alone[part.name].mean()),
        faithfulness=share.value.value,
        faithfulness_ci=(share.value.low, share.value.high),
    )
