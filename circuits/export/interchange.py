"""Circuits in the formats of other tools: GraphML, CSV, and the JSON of EAP-IG and the MIB benchmark."""

import csv
import io
import json
from typing import Any

import networkx as nx
import numpy as np

from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.graph import Edge, NodeKind

CSV_COLUMNS = ("edge", "sender", "receiver", "slot", "score", "measured")
SIGN = "positive score: corrupting the edge moves the metric away from clean behaviour"


def circuit_graphml(circuit: Circuit) -> str:
    """Give the circuit's networkx view as GraphML, with the edge's text as its id and all attributes kept.

    Arrows from key/value groups to their heads have ``kind="group"`` and no score.
    """
    view = circuit.to_networkx()
    for sender, receiver, key, attributes in view.edges(keys=True, data=True):
        slot = f"<{key}>" if key in ("q", "k", "v") else ""
        suffix = f"<{key}>" if key == "group" else slot
        attributes["text"] = f"{sender}->{receiver}{suffix}"
    view.graph.update(
        model=circuit.model.id,
        behaviour=circuit.behaviour.name,
        metric=circuit.behaviour.metric,
        scorer=circuit.method.scorer,
        sign=SIGN,
    )
    buffer = io.BytesIO()
    nx.write_graphml_xml(view, buffer, edge_id_from_attribute="text")
    return buffer.getvalue().decode("utf-8") + "\n"


def circuit_csv(circuit: Circuit) -> str:
    """Give the circuit's edges with the columns of ``scores.csv``, in graph order; scores as in ``circuit.json``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for edge, score in zip(circuit.edge_list, circuit.scores.tolist(), strict=True):
        slot = edge.receiver.slot.value if edge.receiver.slot else ""
        stored = "" if np.isnan(score) else f"{score:.6g}"
        writer.writerow([str(edge), str(edge.sender), str(edge.receiver.node), slot, stored, circuit.measured])
    return buffer.getvalue()


def circuit_mib_json(circuit: Circuit) -> str:
    """Give the circuit in the JSON layout of EAP-IG (Hanna et al. 2024, arXiv:2403.17806) and MIB (arXiv:2504.13151).

    All nodes are listed, and the edges of the circuit; readers take edges that are absent to be outside it. That layout
    has a key and a value input for *every query head*. With grouped queries an edge into a group's keys or values
    becomes one edge for each head of the group, with an equal share of the score: the group's score is the sum of the
    heads' to first order, so adding the copies up gives it back. Raises :class:`UsageError` when an edge has no score,
    because the layout cannot say so.
    """
    missing = int(np.isnan(circuit.scores).sum())
    if missing:
        raise UsageError(
            f"{missing} of {len(circuit)} edges have no score, and the MIB layout needs a number for every edge. Score "
            "them first, or export to .graphml or .csv."
        )
    used = frozenset(circuit.nodes)
    document = {
        "cfg": {
            "n_layers": circuit.model.n_layers,
            "n_heads": circuit.model.n_heads,
            "d_model": circuit.model.d_model,
            "parallel_attn_mlp": circuit.model.parallel,
        },
        "nodes": {
            str(node): {"in_graph": node in used} for node in circuit.graph.nodes if node.kind is not NodeKind.KV
        },
        "edges": _per_query_head(circuit),
        "sign": SIGN,
    }
    return json.dumps(document, indent=1) + "\n"


def _per_query_head(circuit: Circuit) -> dict[str, dict[str, Any]]:
    edges: dict[str, dict[str, Any]] = {}
    for edge, score in zip(circuit.edge_list, circuit.scores.tolist(), strict=True):
        names = _heads_of(edge, circuit.model.shape.heads_per_group)
        for name in names:
            edges[name] = {"score": float(f"{score / len(names):.6g}"), "in_graph": True}
    return edges


def _heads_of(edge: Edge, per_group: int) -> list[str]:
    node, slot = edge.receiver.node, edge.receiver.slot
    if node.kind is not NodeKind.KV or slot is None:
        return [str(edge)]
    first = node.index * per_group
    return [f"{edge.sender}->a{node.layer}.h{head}<{slot.value}>" for head in range(first, first + per_group)]
