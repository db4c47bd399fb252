"""Write a circuit to a file; the suffix says as what."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from circuits.circuit import Circuit
from circuits.comparison import CircuitDiff
from circuits.diagrams.style import PLAIN, DiagramStyle, Level
from circuits.drawing.difference import difference_dot
from circuits.drawing.dot import circuit_dot
from circuits.drawing.mermaid import circuit_mermaid
from circuits.drawing.render import ImageFormat, image
from circuits.drawing.summary import summary_dot
from circuits.errors import UnknownNameError, UsageError
from circuits.files.atomic import write
from circuits.graph import Node
from circuits.interchange.formats import circuit_csv, circuit_graphml, circuit_mib_json, circuit_pt, mib_folder
from circuits.interchange.neuronpedia import neuronpedia_graph
from circuits.records import Example
from circuits.scores import EdgeScores, Floats
from circuits.showing import circuit_table


@dataclass(frozen=True)
class Drawing:
    """What is drawn: a circuit, and what is written beside it."""

    circuit: Circuit
    title: str | None = None
    evidence: Mapping[Node, str] = field(default_factory=dict[Node, str])
    prompts: Sequence[Example] = ()
    intervals: Floats | None = None
    style: DiagramStyle = PLAIN


Writer = Callable[[Drawing], bytes | str]
"""Give a file's contents."""


def draw(
    circuit: Circuit,
    path: str | Path,
    *,
    title: str | None = None,
    evidence: Mapping[Node, str] | None = None,
    prompts: Sequence[Example] = (),
    intervals: Floats | None = None,
    style: DiagramStyle = PLAIN,
) -> None:
    """Draw a circuit into a ``.svg``, ``.pdf``, ``.png``, ``.dot``, ``.mmd`` (Mermaid) or ``.html`` (report) file.

    ``evidence`` on heads goes into tooltips and the report; ``prompts`` and the ``intervals`` of the edges' scores into
    the report. ``style`` is of diagrams alone. Raises :class:`UnknownNameError` for another suffix,
    :class:`UsageError` for a summary as text or report, :class:`RenderError` when Graphviz is missing, and
    :class:`OutputError` when the place cannot be written to.
    """
    suffix = _suffix(path, DRAWINGS)
    if style.level is not Level.EDGE and suffix not in DIFFERENCE_SUFFIXES:
        known = " ".join(DIFFERENCE_SUFFIXES)
        raise UsageError(f"{suffix} files show every edge; summaries by {style.level} are drawn as {known}.")
    write(path, DRAWINGS[suffix](Drawing(circuit, title, evidence or {}, prompts, intervals, style)))


def svg(circuit: Circuit) -> str:
    """Return a circuit's diagram as SVG text. Raises :class:`RenderError` when Graphviz is missing."""
    return image(circuit_dot(circuit), ImageFormat.SVG).decode("utf-8")


def draw_difference(
    diff: CircuitDiff, path: str | Path, *, title: str | None = None, style: DiagramStyle = PLAIN
) -> None:
    """Draw two circuits into one diagram, as ``.svg``, ``.pdf``, ``.png`` or ``.dot``; errors as :func:`draw`.

    Raises :class:`UsageError` for a style with summaries, of which there are none of two circuits.
    """
    _suffix(path, DIFFERENCE_SUFFIXES)
    if style.level is not Level.EDGE:
        raise UsageError(f"two circuits are compared edge by edge; leave out the level '{style.level}'.")
    write_dot(difference_dot(diff, title=title, style=style), path)


def write_dot(dot: str, path: str | Path) -> None:
    """Write DOT text into a ``.dot`` file, or as a picture into a ``.svg``, ``.pdf`` or ``.png``; errors as above."""
    suffix = _suffix(path, DIFFERENCE_SUFFIXES)
    write(path, dot if suffix == ".dot" else image(dot, ImageFormat(suffix[1:])))


def export(
    circuit: Circuit, path: str | Path, *, scores: EdgeScores | None = None, prompts: Sequence[Example] = ()
) -> Path:
    """Write a circuit for other tools or a paper; return the file.

    The suffix says as what: ``.graphml``, ``.csv``, a table as ``.tex`` (LaTeX, booktabs) or ``.md`` (Markdown) with
    standard deviations and intervals from the ``scores``, ``.mib.json`` or ``.mib.pt``. The last two, which EAP-IG and
    MIB read, hold all ``scores`` where they are given. ``.neuronpedia.json`` is an attribution graph, which shows the
    first of the ``prompts``. A path that ends in ``.mib`` is made the folder that MIB evaluates. Errors as
    :func:`draw`, and :class:`UsageError` for missing scores and for token roles, which other tools do not have.
    """
    suffix = _suffix(path, EXPORT_SUFFIXES)
    if circuit.model.roles and suffix in (".mib.json", ".mib.pt", GRAPH, FOLDER):
        raise UsageError(
            f"{suffix} has no place for the token roles of this circuit's edges ({', '.join(circuit.model.roles)}); "
            "write .csv, .graphml, .tex or .md."
        )
    if suffix == FOLDER:
        return mib_folder(circuit, scores, Path(path))
    write(path, neuronpedia_graph(circuit, prompts) if suffix == GRAPH else EXPORTS[suffix](circuit, scores))
    return Path(path)


def _picture(kind: ImageFormat) -> Writer:
    return lambda drawing: image(_dot(drawing), kind)


def _dot(drawing: Drawing) -> str:
    if drawing.style.level is not Level.EDGE:
        return summary_dot(drawing.circuit, title=drawing.title, style=drawing.style)
    return circuit_dot(drawing.circuit, title=drawing.title, notes=drawing.evidence, style=drawing.style)


def report_of(
    circuit: Circuit,
    *,
    title: str | None = None,
    evidence: Mapping[Node, str] | None = None,
    prompts: Sequence[Example] = (),
    intervals: Floats | None = None,
) -> str:
    """Return the report of a circuit as the text of a page; what it shows, and errors, as :func:`draw`."""
    from circuits.report.report import report_html

    svg = image(circuit_dot(circuit, page=True), ImageFormat.SVG).decode("utf-8")
    return report_html(circuit, svg, title=title, evidence=evidence or {}, prompts=prompts, intervals=intervals)


def _report(drawing: Drawing) -> str:
    return report_of(
        drawing.circuit,
        title=drawing.title,
        evidence=drawing.evidence,
        prompts=drawing.prompts,
        intervals=drawing.intervals,
    )


def _suffix(path: str | Path, known: Iterable[str]) -> str:
    name = Path(path).name.lower()
    for suffix in known:
        if name.endswith(suffix):
            return suffix
    raise UnknownNameError("file format", Path(name).suffix or name, known, hint=f"The file was to be {path}.")


DRAWINGS: dict[str, Writer] = {
    ".svg": _picture(ImageFormat.SVG),
    ".pdf": _picture(ImageFormat.PDF),
    ".png": _picture(ImageFormat.PNG),
    ".dot": _dot,
    ".mmd": lambda drawing: circuit_mermaid(drawing.circuit, title=drawing.title, flow=drawing.style.flow),
    ".html": _report,
}
DIFFERENCE_SUFFIXES = (".svg", ".pdf", ".png", ".dot")
EXPORTS: dict[str, Callable[[Circuit, EdgeScores | None], bytes | str]] = {
    ".graphml": lambda circuit, _: circuit_graphml(circuit),
    ".csv": lambda circuit, _: circuit_csv(circuit),
    ".tex": lambda circuit, scores: circuit_table(circuit, scores=scores).to_latex(),
    ".md": lambda circuit, scores: circuit_table(circuit, scores=scores).to_markdown(),
    ".mib.json": circuit_mib_json,
    ".mib.pt": circuit_pt,
}
GRAPH, FOLDER = ".neuronpedia.json", ".mib"
EXPORT_SUFFIXES = (*EXPORTS, GRAPH, FOLDER)
