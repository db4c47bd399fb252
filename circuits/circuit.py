"""A circuit as a value: edges, scores, how it was found, how well it works; JSON in and out; its networkx view."""

import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import networkx as nx
import numpy as np
from pydantic import TypeAdapter, ValidationError

from circuits.builder import build_graph
from circuits.equality import by_content, frozen
from circuits.errors import CircuitsError, FormatError, RenderError, UsageError
from circuits.files.atomic import write
from circuits.files.documents import first_change, json_text, plain, read_json
from circuits.graph import ComputationalGraph, Edge, EdgeIndices, Node, NodeKind
from circuits.records import (
    BehaviourInfo,
    Evaluation,
    Example,
    Method,
    ModelInfo,
    Provenance,
    SearchOutcome,
    Stability,
)
from circuits.scores import Floats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from circuits.scores import EdgeScores
    from circuits.showing import EdgeTable

FORMAT = "circuits/circuit"
VERSION = 1
PER_EDGE = ("removal", "removal_se", "inclusion", "withstands")
"""What is known of each edge in addition to its score, where it was measured."""
CORE, UNSTABLE = 0.9, 0.5
"""Edges that at least (at most) this share of the resamples selects are called core (unstable)."""
ELSEWHERE = "Circuits of EAP-IG, MIB and auto-circuit are read by circuits.read_circuit."


@by_content
@dataclass(frozen=True, eq=False)
class Circuit:
    """The edges that are kept, as positions in the graph of the whole model, with everything known about them.

    ``scores[i]`` belongs to ``edges[i]``; positive: corrupting this edge moves the metric away from clean behaviour.
    ``removal[i]``, where the pruner measured it, is the loss of faithfulness when this one edge is taken out of the
    circuit (on the discovery prompts), with the standard error ``removal_se[i]`` over pairs; a circuit is *locally
    minimal* when no single edge can go. ``inclusion[i]`` is the share of resamples of the pairs that select
    ``edges[i]``, and ``withstands[i]`` how many pairs may be replaced by any others before it could leave (-1: none is
    certified); ``stability`` sums both up.
    """

    model: ModelInfo
    behaviour: BehaviourInfo
    method: Method
    edges: EdgeIndices
    scores: Floats
    measured: bool = False
    removal: Floats | None = None
    removal_se: Floats | None = None
    evaluation: Evaluation | None = None
    inclusion: Floats | None = None
    withstands: "NDArray[np.int64] | None" = None
    stability: Stability | None = None
    provenance: Provenance = field(default_factory=Provenance)
    search: SearchOutcome | None = None

    def __post_init__(self) -> None:
        kinds = {"edges": np.int64, "withstands": np.int64}
        for name in ("edges", "scores", *PER_EDGE):
            dtype = kinds.get(name, np.float64)
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen(getattr(self, name), dtype, f"the {name} of a circuit"))
        if np.any(np.diff(self.edges) <= 0):
            raise UsageError("a circuit's edges must be distinct and in graph order.")
        if len(self.edges) and not 0 <= self.edges[0] <= self.edges[-1] < self.model.shape.n_edges:
            raise UsageError(
                f"a circuit has the edges {self.edges[0]} to {self.edges[-1]}; this model's are 0 to "
                f"{self.model.shape.n_edges - 1} (circuit.graph.index finds an edge's position by its name)."
            )
        for array in (self.scores, *(getattr(self, name) for name in PER_EDGE)):
            if array is not None and array.shape != self.edges.shape:
                raise UsageError(f"a circuit of {len(self.edges)} edges has {array.shape} scores.")

    def __len__(self) -> int:
        return len(self.edges)

    def __iter__(self) -> "Iterator[Edge]":
        return iter(self.edge_list)

    def __repr__(self) -> str:
        judged = self.evaluation
        found = f"{len(self):,} of {self.graph.n_edges:,} edges, {len(self.nodes)} nodes"
        how = f", faithfulness {judged.faithfulness:.2f} on {judged.n} held-out pairs" if judged else ", not evaluated"
        return f"Circuit({self.behaviour.name[:60]!r} in {self.model.id[:60]!r}: {found}{how})"

    @cached_property
    def graph(self) -> ComputationalGraph:
        """The graph of the whole model."""
        return build_graph(self.model.shape)

    @cached_property
    def edge_list(self) -> tuple[Edge, ...]:
        """The edges themselves, in graph order."""
        return tuple(self.graph.edges(self.edges))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes at the ends of the edges, in graph order."""
        used = {node for edge in self.edge_list for node in (edge.sender, edge.receiver.node)}
        return tuple(node for node in self.graph.nodes if node in used)

    @cached_property
    def digest(self) -> str:
        """A SHA-256 over the model's weights, the prompts and the edges, to which what is measured of it belongs."""
        known = [self.model.id, self.model.digest, self.behaviour.name, self.behaviour.digest]
        known += [self.model.target.digest] if self.model.target else []
        return hashlib.sha256("\n".join([*known, *map(str, self.edge_list)]).encode()).hexdigest()

    def mask(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """One boolean per edge of the whole graph: is it in the circuit?"""
        return self.graph.mask(self.edges)

    def remark_on(self, model: ModelInfo, *, nodes: bool = False) -> str:
        """Return a remark where this model is another than the circuit's; see :meth:`ModelInfo.remark_on`."""
        return self.model.remark_on(model, nodes=nodes)

    def strongest(self, count: int) -> Self:
        """Return the ``count`` edges with the largest |score| (all, if there are no more), for a diagram."""
        return self._part(np.sort(np.argsort(-np.nan_to_num(np.abs(self.scores)), kind="stable")[:count]))

    def core(self, least: float = CORE) -> Self:
        """Return the edges that at least this share of the resamples of the pairs selects; it was not evaluated itself.

        Raises :class:`UsageError` where nothing was resampled.
        """
        if self.inclusion is None:
            raise UsageError("this circuit does not say how stable its edges are; discover says so up to 400 edges.")
        return replace(self._part(np.flatnonzero(self.inclusion >= least)), evaluation=None)

    def _part(self, places: EdgeIndices) -> Self:
        kept = {name: array[places] for name in PER_EDGE if (array := getattr(self, name)) is not None}
        return replace(self, edges=self.edges[places], scores=self.scores[places], search=None, **kept)

    def with_edges(self, edges: EdgeIndices, scores: Floats, **changes: Any) -> Self:
        """Return a circuit of other edges, of the same origin, of which nothing else is known."""
        unknown: dict[str, Any] = dict.fromkeys((*PER_EDGE, "evaluation", "stability", "search"))
        return replace(self, edges=edges, scores=scores, **(unknown | changes))

    def with_evaluation(self, evaluation: Evaluation) -> Self:
        """Return the same circuit with another evaluation."""
        return replace(self, evaluation=evaluation)

    def to_networkx(self) -> "nx.MultiDiGraph[str]":
        """View the circuit as a networkx multigraph: one edge per slot (and role), keyed by it; all attributes kept.

        Key/value groups are nodes of their own; an edge with ``kind="group"`` leads from a group to each head of the
        circuit that reads it, so that reachability is what it is in the model.
        """
        view: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        for node in self.nodes:
            view.add_node(str(node), kind=node.kind.value, layer=node.layer, index=node.index)
        for i, edge in enumerate(self.edge_list):
            key, slot = edge.receiver.entrance, edge.receiver.slot.value if edge.receiver.slot else ""
            attributes: dict[str, Any] = {"kind": "edge", "slot": slot, "score": float(self.scores[i])}
            if edge.receiver.role:
                attributes["role"] = edge.receiver.role
            if self.removal is not None:
                attributes["removal"] = float(self.removal[i])
            view.add_edge(str(edge.sender), str(edge.receiver.node), key=key, **attributes)
        per_group = self.model.shape.heads_per_group
        heads = [node for node in self.nodes if node.kind is NodeKind.HEAD]
        for group in (node for node in self.nodes if node.kind is NodeKind.KV):
            for head in heads:
                if head.layer == group.layer and head.index // per_group == group.index:
                    view.add_edge(str(group), str(head), key="group", kind="group")
        return view

    def save(self, path: str | Path) -> None:
        """Write ``circuit.json``; saving, loading and saving again gives the same bytes."""
        write(path, self.to_json())

    def draw(
        self,
        path: str | Path,
        *,
        title: str | None = None,
        evidence: "Mapping[Node, str] | None" = None,
        prompts: "Sequence[Example]" = (),
        **style: "Any",
    ) -> None:
        """Draw the circuit into a file; the suffix (.svg .pdf .png .dot .mmd .html) says as what.

        ``evidence`` is shown on nodes (``head_roles(...).texts()``), ``style`` are the fields of
        :class:`circuits.DiagramStyle`. See :func:`circuits.drawing.pictures.draw`.
        """
        from circuits.drawing.pictures import DiagramStyle, draw

        draw(self, path, title=title, evidence=evidence, prompts=prompts, style=DiagramStyle(**style))

    def table(self, *, scores: "EdgeScores | None" = None, top: int | None = None) -> "EdgeTable":
        """Return the edges, strongest first, with all that is known of each; see :mod:`circuits.showing`.

        The table has ``to_latex()``, ``to_markdown()``, ``to_pandas()``, and shows itself in notebooks. ``scores`` of
        the whole graph add standard deviations and intervals; ``top`` takes so many edges.
        """
        from circuits.showing import circuit_table

        return circuit_table(self, scores=scores, top=top)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the table as a data frame with one row per edge, strongest first."""
        return self.table().to_pandas()

    def _repr_html_(self) -> str:
        """Show what it is, its strongest edges, and the diagram."""
        from circuits.showing import circuit_html

        return circuit_html(self)

    def _repr_svg_(self) -> str | None:
        """Show the diagram in a notebook; without Graphviz the notebook falls back to text."""
        from circuits.drawing.pictures import svg

        try:
            return svg(self)
        except RenderError:
            return None

    def to_json(self) -> str:
        """Return the text of ``circuit.json``: sorted keys, floats with six digits, edges in graph order."""
        return json_text(self.to_document(), sort_keys=True)

    def to_document(self) -> dict[str, Any]:
        """Return what ``circuit.json`` holds, as JSON has it: lists, texts, numbers, and None for what is no number."""
        edges = [
            {
                "edge": str(edge),
                "sender": str(edge.sender),
                "receiver": str(edge.receiver.node),
                "slot": edge.receiver.slot.value if edge.receiver.slot else None,
                **({"role": edge.receiver.role} if edge.receiver.role else {}),
                "score": float(self.scores[i]),
                "measured": self.measured,
                "removal": None if self.removal is None else float(self.removal[i]),
                **{name: array[i].item() for name, array in self._known_beside_removal()},
            }
            for i, edge in enumerate(self.edge_list)
        ]
        document = {
            "format": FORMAT,
            "version": VERSION,
            "model": _model_document(self.model),
            "behaviour": asdict(self.behaviour),
            "method": asdict(self.method),
            "edges": edges,
            "evaluation": asdict(self.evaluation) if self.evaluation else None,
            "provenance": asdict(self.provenance),
        }
        if self.search is not None:
            document["search"] = asdict(self.search)
        if self.stability is not None:
            document["stability"] = asdict(self.stability)
        return cast("dict[str, Any]", plain(document, digits=6))

    def _known_beside_removal(self) -> "list[tuple[str, NDArray[Any]]]":
        """Return what is known of each edge and stands in files only where it is."""
        return [(name, array) for name in PER_EDGE[1:] if (array := getattr(self, name)) is not None]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``circuit.json``. Raises :class:`FormatError` that says what is wrong with the file.

        Circuits of EAP-IG, MIB and auto-circuit (``.json``, ``.pt``) are read by :func:`circuits.read_circuit`.
        """
        if Path(path).suffix in (".pt", ".pkl"):
            raise FormatError(f"{path} is no circuit.json. {ELSEWHERE}")
        return cls.from_document(read_json(path), str(path))

    @classmethod
    def from_document(cls, document: Any, name: str = "document") -> Self:
        """Build a circuit from parsed JSON; ``name`` is used in messages.

        Raises :class:`FormatError` also for whatever would not come out as it went in, were the circuit written again:
        a sender that is not its edge's, an unknown field, a text where a number belongs.
        """
        if not isinstance(document, dict) or cast("dict[str, Any]", document).get("format") != FORMAT:
            raise FormatError(f'{name} is not a circuit; expected a JSON object with "format": "{FORMAT}". {ELSEWHERE}')
        data = cast("dict[str, Any]", document)
        version = data.get("version")
        if type(version) is not int or version < 1:
            raise FormatError(f"{name} has version {version!r}; expected a whole number from 1 to {VERSION}.")
        if version > VERSION:
            raise FormatError(
                f"{name} has version {version}; this release reads up to {VERSION}. Install a newer circuits."
            )
        data = _without_old_areas(data)
        try:
            circuit = cls._from_sections(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FormatError(f"{name}: {error.title} {place}: {first['msg']} (got {first.get('input')!r}).") from error
        except KeyError as error:
            raise FormatError(f"{name} has no field {error}.") from error
        except CircuitsError as error:
            raise FormatError(f"{name}: {error}") from error
        change = first_change(data, circuit.to_document())
        if change:
            raise FormatError(f"{name}: {change} Correct the file, or have it written again.")
        return circuit

    @classmethod
    def _from_sections(cls, data: dict[str, Any]) -> Self:
        model = TypeAdapter(ModelInfo).validate_python(data["model"])
        graph = build_graph(model.shape)
        rows = TypeAdapter(list[dict[str, Any]]).validate_python(data["edges"])
        number = TypeAdapter(float | None)
        indices = np.array([graph.index(Edge.parse(str(row["edge"]))) for row in rows], dtype=np.int64)
        removal = _float_array([number.validate_python(row.get("removal")) for row in rows])
        evaluation, stability = data.get("evaluation"), data.get("stability")
        return cls(
            model=model,
            behaviour=TypeAdapter(BehaviourInfo).validate_python(data["behaviour"]),
            method=_checked_method(TypeAdapter(Method).validate_python(data["method"])),
            edges=indices,
            scores=_float_array([number.validate_python(row["score"]) for row in rows]),
            measured=bool(rows) and all(row.get("measured") is True for row in rows),
            removal=None if np.isnan(removal).all() else removal,
            evaluation=None if evaluation is None else TypeAdapter(Evaluation).validate_python(evaluation),
            provenance=TypeAdapter(Provenance).validate_python(data.get("provenance", {})),
            search=TypeAdapter(SearchOutcome | None).validate_python(data.get("search")),
            removal_se=_if_given("removal_se", rows, TypeAdapter(float)),
            inclusion=_if_given("inclusion", rows, TypeAdapter(float)),
            withstands=_if_given("withstands", rows, TypeAdapter(int)),
            stability=None if stability is None else TypeAdapter(Stability).validate_python(stability),
        )


def _model_document(model: ModelInfo) -> dict[str, Any]:
    """Return a model's facts without those that most do not have: no MLPs, an end before the logits, token roles."""
    usual = {"mlps": True, "target": None, "roles": ()}
    return {key: value for key, value in asdict(model).items() if key not in usual or value != usual[key]}


def _without_old_areas(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out the areas of files of an earlier release: they were computed by a rule that was not MIB's."""
    evaluation = data.get("evaluation")
    if not isinstance(evaluation, dict):
        return data
    kept = {key: value for key, value in cast("dict[str, Any]", evaluation).items() if key not in ("cpr", "cmd")}
    return {**data, "evaluation": kept}


def _checked_method(method: Method) -> Method:
    if method.target is not None and not 0 < method.target <= 1:
        raise FormatError(f"method.target is {method.target:g}; expected a faithfulness above 0 and up to 1, or null.")
    if method.seed < 0:
        raise FormatError(f"method.seed is {method.seed}; expected a number from 0 up.")
    return method


def _if_given(name: str, rows: list[dict[str, Any]], number: "TypeAdapter[Any]") -> "NDArray[Any] | None":
    """Return a number of every edge as an array; None where no edge has it."""
    if not any(name in row for row in rows):
        return None
    return np.array([number.validate_python(row[name]) for row in rows])


def _float_array(values: list[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
