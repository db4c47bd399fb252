"""The report of a circuit as a widget in a notebook, whose selection comes back to Python (extra ``notebook``)."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np

from circuits.circuit import Circuit
from circuits.drawing.pictures import report_of
from circuits.errors import UsageError
from circuits.graph import Node
from circuits.records import Example

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise UsageError(
        "the report as a widget needs anywidget; run pip install 'path-patching-circuits[notebook]', or write it as a "
        "page: circuit.draw('report.html')."
    ) from error

HEIGHT = 900
"""Pixels of a cell's output."""


class ReportWidget(anywidget.AnyWidget):
    """The page of a circuit in a cell of a notebook.

    What is chosen in it comes back: ``node``, whose paths are shown (empty: none), and ``edges``, the names of those
    that its table lists: above the threshold, on the paths through the node, and with the words looked for.
    ``selected`` is the circuit of these edges. ``widget.observe(function, names="edges")`` tells of every change.
    """

    _esm = files("circuits.report").joinpath("widget.js").read_text(encoding="utf-8")
    page = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(HEIGHT).tag(sync=True)
    node = traitlets.Unicode("").tag(sync=True)
    edges = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, circuit: Circuit, page: str, *, height: int = HEIGHT) -> None:
        names = [str(edge) for edge in circuit]
        super().__init__(page=page, height=height, edges=names)
        self.circuit = circuit

    @property
    def selected(self) -> Circuit:
        """The circuit of the edges that are listed; it was not evaluated itself."""
        listed = {str(name) for name in self.edges}
        places = np.array([i for i, edge in enumerate(self.circuit) if str(edge) in listed], dtype=np.int64)
        return self.circuit.with_edges(self.circuit.edges[places], self.circuit.scores[places])


def explore(
    circuit: Circuit,
    *,
    evidence: Mapping[Node, str] | None = None,
    prompts: Sequence[Example] = (),
    height: int = HEIGHT,
) -> ReportWidget:
    """Return the report of a circuit as a widget: the diagram, a threshold, paths through a node, the table of edges.

    ``evidence`` on heads (``head_roles(...).texts()``) and ``prompts`` are shown as in ``circuit.draw("report.html")``;
    ``height`` is in pixels. Raises :class:`UsageError` without anywidget, and :class:`RenderError` without Graphviz.
    """
    return ReportWidget(circuit, report_of(circuit, evidence=evidence, prompts=prompts), height=height)
