"""Circuits, scores and results as tables: for papers (LaTeX), texts (Markdown), data frames, and notebooks (HTML)."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.graph import Edge
from circuits.scores import EdgeScores, Floats

if TYPE_CHECKING:
    import pandas as pd

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "→": r"$\to$", "−": "$-$"}
)
_ROWS_OF_A_PAGE = 45
_MARKDOWN = str.maketrans({"|": r"\|", "<": "&lt;", ">": "&gt;", "\n": " "})
SHOWN = 10
"""Rows of a table that a notebook shows by itself."""


@dataclass(frozen=True)
class EdgeTable:
    """Edges and what is known of each; a column is there where something is known of some edge.

    ``columns`` are the names of the columns, with units; ``numbers`` their values, NaN where nothing is known.
    """

    title: str
    edges: tuple[Edge, ...]
    columns: tuple[str, ...]
    numbers: tuple[Floats, ...]

    def to_latex(self) -> str:
        r"""Return a LaTeX table with the rules of the package ``booktabs``; see :func:`latex_table`."""
        rows = ([_arrow(edge), *row] for edge, row in self._rows())
        return latex_table(self.title, ["edge", *self.columns], rows)

    def to_markdown(self) -> str:
        """Return a Markdown table."""
        heading = ["edge", *self.columns]
        lines = [heading, ["---", *["---:"] * len(self.columns)]]
        lines += [[_arrow(edge), *map(_number, row)] for edge, row in self._rows()]
        return "".join(f"| {' | '.join(cell.translate(_MARKDOWN) for cell in line)} |\n" for line in lines)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a data frame with the edges' names as index, their ends, and the columns."""
        import pandas as pd

        ends = {
            "sender": [str(edge.sender) for edge in self.edges],
            "receiver": [str(edge.receiver.node) for edge in self.edges],
            "slot": [edge.receiver.slot.value if edge.receiver.slot else "" for edge in self.edges],
        }
        if any(edge.receiver.role for edge in self.edges):
            ends["role"] = [edge.receiver.role for edge in self.edges]
        names = pd.Index([str(edge) for edge in self.edges], name="edge")
        return pd.DataFrame(ends | dict(zip(self.columns, self.numbers, strict=True)), index=names)

    def to_html(self) -> str:
        """Return an HTML table, all texts escaped."""
        return html_table(
            self.title, ["edge", *self.columns], [[_arrow(e), *map(_number, row)] for e, row in self._rows()]
        )

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        return self.to_html()

    def _rows(self) -> Iterable[tuple[Edge, list[float]]]:
        values = np.array(self.numbers).reshape(len(self.columns), len(self.edges)).T
        return zip(self.edges, values.tolist(), strict=True)


def circuit_table(circuit: Circuit, *, scores: EdgeScores | None = None, top: int | None = None) -> EdgeTable:
    """Return the table of a circuit's edges, the largest |score| first; ``top`` of them, or all.

    Args:
        circuit: The circuit.
        scores: Of all edges, for the standard deviation over pairs and the 95 % interval of each mean.
        top: How many edges.

    Raises :class:`UsageError` for scores of another graph, or where ``top`` is below 1.
    """
    if top is not None and top < 1:
        raise UsageError(f"a table has at least 1 edge, got {top}.")
    if scores is not None and scores.graph.shape != circuit.model.shape:
        raise UsageError("these scores are of a model of another shape than the circuit's.")
    order = np.argsort(-np.nan_to_num(np.abs(circuit.scores)), kind="stable")[:top]
    unit, interval = circuit.behaviour.unit, scores.intervals(circuit.edges) if scores else None
    columns: dict[str, Any] = {
        f"score ({unit})": circuit.scores,
        "sd": None if scores is None or scores.sd is None else scores.sd[circuit.edges],
        "95 % low": None if interval is None else interval[:, 0],
        "95 % high": None if interval is None else interval[:, 1],
        "removal": circuit.removal,
        "inclusion": circuit.inclusion,
    }
    known = {name: np.asarray(values, float)[order] for name, values in columns.items() if values is not None}
    edges = tuple(circuit.edge_list[place] for place in map(int, order))
    return EdgeTable(_title(circuit), edges, tuple(known), tuple(known.values()))


def scores_table(scores: EdgeScores, *, top: int = SHOWN) -> EdgeTable:
    """Return the table of the edges with the largest |score|."""
    ranked = scores.ranked(by_magnitude=True)[:top]
    interval = scores.intervals(ranked)
    known: dict[str, Floats] = {"score": scores.values[ranked]}
    known |= {} if scores.sd is None else {"sd": scores.sd[ranked]}
    known |= {} if interval is None else {"95 % low": interval[:, 0], "95 % high": interval[:, 1]}
    return EdgeTable(repr(scores), tuple(scores.graph.edges(ranked)), tuple(known), tuple(known.values()))


def circuit_html(circuit: Circuit) -> str:
    """Return what a notebook shows of a circuit: what it is, its strongest edges, its diagram if Graphviz is there."""
    diagram = circuit._repr_svg_() or ""  # pyright: ignore[reportPrivateUsage]
    return f"<p>{html.escape(repr(circuit))}</p>{circuit_table(circuit, top=SHOWN).to_html()}{diagram}"


def doubts_html(doubts: Iterable[str]) -> str:
    """Return sentences as a list in HTML; nothing where there are none."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in doubts)
    return f"<ul>{items}</ul>" if items else ""


def html_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts as HTML, all of them escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def latex_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    r"""Return texts and numbers as a LaTeX table with the rules of ``booktabs``, the first column to the left.

    It is a ``tabular``; with more rows than fit a page, a ``longtable`` (of the package of that name, which needs pages
    of one column), with its headings on each page.
    """
    heading = f"{' & '.join(_latex(name) for name in headings)} \\\\"
    cells = ([_latex(each) if isinstance(each, str) else _latex_number(each) for each in row] for row in rows)
    body = [f"{' & '.join(row)} \\\\" for row in cells]
    long = len(body) > _ROWS_OF_A_PAGE
    kind, columns = "longtable" if long else "tabular", f"l{'r' * (len(headings) - 1)}"
    ends = ["\\endhead", "\\bottomrule", "\\endfoot"] if long else []
    lines = [f"\\begin{{{kind}}}{{{columns}}}", "\\toprule", heading, "\\midrule", *ends, *body]
    lines += [*([] if long else ["\\bottomrule"]), f"\\end{{{kind}}}"]
    return "".join(f"{line}\n" for line in (f"% {' '.join(title.split())}", *lines))


def _title(circuit: Circuit) -> str:
    return f"{circuit.behaviour.name} in {circuit.model.id}: {len(circuit):,} of {circuit.graph.n_edges:,} edges"


def _arrow(edge: Edge) -> str:
    slot, role = f" ({edge.receiver.slot.value})" if edge.receiver.slot else "", edge.receiver.role
    return f"{edge.sender} → {edge.receiver.node}{slot}{f' at {role}' if role else ''}"


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else ""


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def _latex_number(value: float) -> str:
    return f"${value:.4g}$" if math.isfinite(value) else ""
