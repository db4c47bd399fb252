"""Circuits and score tables of EAP-IG, MIB and auto-circuit, read as circuits; what is lost is said.

EAP-IG and MIB name nodes as they are named here, but give keys and values to every query head; a file says nothing of
the model but its sizes. auto-circuit (Miller et al. 2024) saves scores by the module that reads, with one number for
every earlier sender. ``.pt`` and ``.pkl`` files are read with ``weights_only=True``, which runs no code in them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from circuits.builder import build_graph, per_query_head
from circuits.circuit import Circuit
from circuits.errors import CircuitsError, FormatError, UsageError
from circuits.files.documents import parse_json, read_json
from circuits.graph import ComputationalGraph, Edge, EdgeIndices, ModelShape, Slot
from circuits.interchange.formats import OWN
from circuits.interchange.tensors import SUFFIXES, read_tensors
from circuits.records import BehaviourInfo, Method, ModelInfo
from circuits.scores import EdgeScores, Floats

UNKNOWN = "unknown"
"""What a file of another tool does not say: the model's name, the behaviour's, the scorer's."""
_AUTO = re.compile(r"blocks\.(\d+)\.hook_(q_input|k_input|v_input|attn_in|mlp_in|resid_post)")


@dataclass(frozen=True)
class Imported:
    """A circuit that was read, the scores of all edges that its file had, and what was lost on the way."""

    circuit: Circuit
    scores: EdgeScores | None = None
    losses: tuple[str, ...] = ()

    @property
    def anonymous(self) -> bool:
        """Whether the file did not say which model it is of."""
        return self.circuit.model.id == UNKNOWN

    def of_model(self, model: ModelInfo) -> "Imported":
        """Return this as of a model; a circuit that knows its model is returned as it is.

        Where the model's heads share keys and values, the edges into those of the heads of a group become one, which is
        in the circuit if one of them was, and scores what they score together. Raises :class:`UsageError` for a
        model of other sizes.
        """
        if not self.anonymous:
            return self
        mine, other = self.circuit.model, model.shape
        if (mine.n_layers, mine.n_heads, mine.parallel) != (other.n_layers, other.n_heads, other.parallel):
            raise UsageError(
                f"the file is of a model with {mine.shape.describe()}{' (parallel blocks)' * mine.parallel}, but "
                f"{model.id} has {other.describe()}{' (parallel blocks)' * other.parallel}; give the model it was made "
                "with."
            )
        graph = build_graph(other)
        if not other.grouped:
            return self._on(model, graph, np.arange(graph.n_edges))
        return self._on(model, graph, per_query_head(graph)[1])

    def _on(self, model: ModelInfo, graph: ComputationalGraph, copied: EdgeIndices) -> "Imported":
        members = np.bincount(copied, self.circuit.mask(), graph.n_edges)
        edges = np.flatnonzero(members)
        split = int(np.sum((members > 0) & (members < graph.copies)))
        losses = self.losses
        if split:
            losses += (
                f"{model.id} shares keys and values among {model.shape.heads_per_group} heads: {split} edges stand for "
                "some heads of a group only in the file, and for the whole group here.",
            )
        known = np.full(self.circuit.graph.n_edges, np.nan) if self.scores is None else self.scores.values
        known = known.copy()
        known[self.circuit.edges] = self.circuit.scores
        values = np.bincount(copied, np.nan_to_num(known), graph.n_edges)
        values[np.bincount(copied, ~np.isnan(known), graph.n_edges) == 0] = np.nan
        scores = None if self.scores is None else replace(self.scores, graph=graph, values=values)
        circuit = replace(self.circuit, model=model, edges=edges, scores=values[edges])
        return Imported(circuit, scores, losses)


def read_circuit(path: str | Path) -> Imported:
    """Return the circuit in a file of this tool, of EAP-IG, MIB or auto-circuit; :class:`FormatError` for others."""
    path = Path(path)
    if path.suffix in SUFFIXES:
        return _of_tensors(read_tensors(path), str(path))
    return of_document(read_json(path), str(path))


def of_document(document: Any, name: str) -> Imported:
    """Return the circuit in a parsed JSON document: ``circuit.json``, or what EAP-IG and MIB write."""
    if not is_foreign(document):
        return Imported(Circuit.from_document(document, name))
    table = _validated(_Document, document, name)
    graph = build_graph(_shape(table.cfg, name))
    values, members = np.full(graph.n_edges, np.nan), np.zeros(graph.n_edges, dtype=np.bool_)
    for text, edge in table.edges.items():
        try:
            index = graph.index(Edge.parse(text))
        except CircuitsError as error:
            raise FormatError(f"{name}: {error}") from error
        values[index], members[index] = np.nan if edge.score is None else edge.score, edge.in_graph
    losses = list[str]()
    neurons = sum(isinstance(node, dict) and "neurons" in node for node in table.nodes.values())
    if neurons:
        losses.append(f"{name} says of {neurons} nodes which neurons are in the circuit; here a node is whole.")
    return _imported(_Table(graph, table.cfg, values, members, document.get(OWN)), name, losses)


def is_foreign(document: Any) -> bool:
    """Return whether a parsed document is of EAP-IG's layout."""
    return isinstance(document, dict) and {"cfg", "nodes", "edges"} <= cast("dict[str, Any]", document).keys()


class _Cfg(BaseModel):
    model_config = ConfigDict(strict=True)
    n_layers: int
    n_heads: int
    d_model: int
    parallel_attn_mlp: bool = False


class _Edge(BaseModel):
    model_config = ConfigDict(strict=True)
    score: float | None = None
    in_graph: bool


class _Document(BaseModel):
    cfg: _Cfg
    nodes: dict[str, Any]
    edges: dict[str, _Edge]


class _Own(BaseModel):
    model: ModelInfo
    behaviour: BehaviourInfo
    method: Method
    measured: bool


_Kind = TypeVar("_Kind", bound=BaseModel)


@dataclass(frozen=True)
class _Table:
    """What a file says of the edges of a graph with keys and values for every query head."""

    graph: ComputationalGraph
    cfg: _Cfg
    values: Floats
    members: NDArray[np.bool_]
    own: Any = None


def _validated(kind: type[_Kind], document: Any, name: str) -> _Kind:
    try:
        return TypeAdapter(kind).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{name}, {place}: {first['msg']} (got {first.get('input')!r:.60}).") from error
    except CircuitsError as error:
        raise FormatError(f"{name}: {error}") from error


def _shape(cfg: _Cfg, name: str) -> ModelShape:
    """Return the shape that sizes tell; that of single heads is told by nothing, and is what is usual."""
    try:
        d_head = max(1, cfg.d_model // max(1, cfg.n_heads))
        return ModelShape(cfg.n_layers, cfg.n_heads, cfg.n_heads, cfg.d_model, d_head, cfg.parallel_attn_mlp)
    except CircuitsError as error:
        raise FormatError(f"{name}: {error}") from error


def _imported(table: _Table, name: str, losses: list[str]) -> Imported:
    members = table.members
    if not members.any():
        members = np.nan_to_num(table.values) != 0
        losses.append(
            f"{name} marks no edge as in the circuit; the {int(members.sum()):,} edges whose score is not 0 are taken."
        )
    if not members.any():
        raise FormatError(f"{name} has no edge in the circuit, and no score that is not 0; there is nothing to read.")
    shape = table.graph.shape
    model = ModelInfo(
        UNKNOWN, shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.d_model, shape.d_head, shape.parallel
    )
    edges = np.flatnonzero(members)
    circuit = Circuit(
        model, BehaviourInfo(UNKNOWN, "", ""), Method(UNKNOWN, UNKNOWN, rank_by="|score|"), edges, table.values[edges]
    )
    scored = int(np.sum(~np.isnan(table.values)))
    scores = EdgeScores(table.graph, table.values, UNKNOWN, measured=False) if scored > len(edges) else None
    if table.own is None:
        losses.append(f"{name} does not say of which model, behaviour and scorer it is.")
        return Imported(circuit, scores, tuple(losses))
    own = _validated(_Own, table.own, f"{name}, {OWN}")
    regrouped = Imported(circuit, scores, tuple(losses)).of_model(own.model)
    about = {"behaviour": own.behaviour, "method": own.method, "measured": own.measured}
    known = regrouped.scores
    if known is not None:
        known = replace(known, scorer=own.method.scorer, measured=own.measured)
    return Imported(replace(regrouped.circuit, **about), known, regrouped.losses)


# ------------------------------------------------------------------------------------------------------------- tensors


def _of_tensors(document: Any, name: str) -> Imported:
    if not isinstance(document, dict):
        raise FormatError(f"{name} holds a {type(document).__name__}; expected a dictionary of EAP-IG or auto-circuit.")
    found = cast("dict[str, Any]", document)
    if "edges_scores" in found:
        return _of_eap(found, name)
    return _of_auto_circuit(found, name)


def _of_eap(found: Mapping[str, Any], name: str) -> Imported:
    cfg = _validated(_Cfg, found.get("cfg"), f"{name}, cfg")
    graph = build_graph(_shape(cfg, name))
    size = (len(graph.senders), len(graph.receivers))
    scores, members = (_matrix(found, key, size, name) for key in ("edges_scores", "edges_in_graph"))
    place = graph.edge_senders, graph.edge_receivers
    losses = [f"{name} says which neurons of a node are in the circuit; here a node is whole."]
    own = found.get(OWN)
    table = _Table(graph, cfg, scores[place], members[place] != 0, parse_json(own, name) if own else None)
    return _imported(table, name, losses if "neurons_in_graph" in found else [])


def _matrix(found: Mapping[str, Any], key: str, size: tuple[int, ...], name: str) -> Floats:
    value = found.get(key)
    shape = tuple(getattr(value, "shape", ()))
    if shape != size:
        raise FormatError(f"{name}, {key}: expected a tensor of {size[0]} senders by {size[1]} inputs, got {shape}.")
    return np.asarray(cast(Any, value).double().numpy(), dtype=np.float64)


def _of_auto_circuit(found: Mapping[str, Any], name: str) -> Imported:
    matched = {key: _AUTO.fullmatch(str(key)) for key in found}
    if not found or not all(matched.values()):
        keys = ", ".join(str(key)[:40] for key in list(found)[:4])
        raise FormatError(
            f"{name} holds {keys or 'nothing'}; expected edges_scores (EAP-IG), or scores by module as auto-circuit "
            "has them, such as blocks.0.hook_q_input: save the PruneScores of one task and algorithm."
        )
    parts = {(int(m[1]), m[2]): np.asarray(found[key].double().numpy()) for key, m in matched.items() if m}
    losses = [f"{name}: auto-circuit does not say how wide the model is."]
    heads = next((each for (_, site), each in parts.items() if site in ("q_input", "attn_in")), None)
    if heads is None or heads.ndim not in (2, 3):
        raise FormatError(f"{name} has no scores of attention heads; expected blocks.0.hook_q_input or hook_attn_in.")
    if heads.ndim == 3:
        losses.append(f"{name} scores edges at each of {len(heads)} positions; here they are added up.")
        parts = {key: value.sum(0) for key, value in parts.items()}
    if any(site == "attn_in" for _, site in parts):
        losses.append(f"{name} scores a head's input as a whole; here its q, k and v have a third of the score each.")
    layers, n_heads = max(layer for layer, _ in parts) + 1, int(heads.shape[-2])
    middle = parts.get((0, "mlp_in"))
    parallel = middle is not None and middle.shape[-1] == 1
    cfg = _Cfg(n_layers=layers, n_heads=n_heads, d_model=n_heads, parallel_attn_mlp=parallel)
    graph = build_graph(_shape(cfg, name))
    values = np.full(graph.n_edges, np.nan)
    for place, receiver in enumerate(graph.receivers):
        layer, slot = (layers - 1 if receiver.node.layer < 0 else receiver.node.layer), receiver.slot
        site = f"{slot.value}_input" if slot else "resid_post" if receiver.node.layer < 0 else "mlp_in"
        row = parts.get((layer, site))
        if row is None and slot is not None and (layer, "attn_in") in parts:
            row = parts[layer, "attn_in"] / len(Slot)
        if row is None:
            continue
        row = row[receiver.node.index] if slot else row
        if row.shape != (graph.fan_in[place],):
            raise FormatError(
                f"{name}: {receiver} has scores of {row.shape[-1] if row.ndim else 0} senders; expected "
                f"{graph.fan_in[place]}, all that write before it."
            )
        values[graph.offsets[place] : graph.offsets[place + 1]] = row
    return _imported(_Table(graph, cfg, values, np.zeros(graph.n_edges, dtype=np.bool_)), name, losses)
