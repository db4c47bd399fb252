"""Circuits in the formats of other tools: GraphML, CSV, and the JSON of EAP-IG and the MIB benchmark."""

import csv
import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from circuits.builder import per_query_head
from circuits.circuit import Circuit
from circuits.diagrams.markup import one_line
from circuits.errors import OutputError, UsageError
from circuits.files.atomic import write
from circuits.files.documents import json_text, plain
from circuits.interchange.tensors import tensor_file
from circuits.scores import EdgeScores, Floats

CSV_COLUMNS = ("edge", "sender", "receiver", "slot", "score", "measured")
OWN = "circuits"
"""The key under which an exported file keeps what the layout has no place for."""
IMPORTANCES = "importances.json"
MIB_MODELS = {"gpt2": "gpt2", "qwen2.5": "qwen2.5-0.5b", "gemma2": "gemma-2-2b", "llama3": "llama-3.1-8b"}
"""MIB's names of its models, and the names these have themselves."""
SIGN = "positive score: corrupting the edge moves the metric away from clean behaviour"


def circuit_graphml(circuit: Circuit) -> str:
    """Return the circuit's networkx view as GraphML, with the edge's text as its id.

    All attributes are kept but numbers that are not finite, and marks in names that XML cannot hold.
    Arrows from key/value groups to their heads have ``kind="group"`` and no score.
    """
    view = circuit.to_networkx()
    for sender, receiver, key, attributes in view.edges(keys=True, data=True):
        slot = key if key == "group" else attributes["slot"]
        role = f"@{attributes['role']}" if "role" in attributes else ""
        attributes["text"] = f"{sender}->{receiver}{f'<{slot}>' if slot else ''}{role}"
        for name in [name for name in ("score", "removal") if not np.isfinite(attributes.get(name, 0.0))]:
            del attributes[name]
    about = {
        "model": circuit.model.id,
        "behaviour": circuit.behaviour.name,
        "metric": circuit.behaviour.metric,
        "scorer": circuit.method.scorer,
    }
    view.graph.update({name: one_line(text) for name, text in about.items()}, sign=SIGN)
    buffer = io.BytesIO()
    nx.write_graphml_xml(view, buffer, edge_id_from_attribute="text")
    return buffer.getvalue().decode("utf-8") + "\n"


def circuit_csv(circuit: Circuit) -> str:
    """Return the circuit's edges with the columns of ``scores.csv``, in graph order; scores as in ``circuit.json``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for edge, score in zip(circuit.edge_list, circuit.scores.tolist(), strict=True):
        slot = edge.receiver.slot.value if edge.receiver.slot else ""
        stored = f"{score:.6g}" if np.isfinite(score) else ""
        writer.writerow([str(edge), str(edge.sender), str(edge.receiver.node), slot, stored, circuit.measured])
    return buffer.getvalue()


def circuit_mib_json(circuit: Circuit, scores: EdgeScores | None = None) -> str:
    """Return the circuit in the JSON layout of EAP-IG (Hanna et al. 2024, arXiv:2403.17806) and MIB (arXiv:2504.13151).

    All nodes are listed. With ``scores`` all edges that have one are, and the circuit's are marked as in the graph;
    without, the circuit's alone: readers take edges that are absent to be outside it and to score 0. That layout has a
    key and a value input for *every query head*. With grouped queries an edge into a group's keys or values becomes one
    edge for each head of the group, with an equal share of the score: the group's score is the sum of the heads' to
    first order, so adding the copies up gives it back. What the layout has no place for is kept under ``circuits``,
    which its readers skip. Raises :class:`UsageError` when an edge of the circuit has no score, because the layout
    cannot say so.
    """
    graph, copied = per_query_head(circuit.graph)
    shares, in_graph = _shares(circuit, scores), circuit.mask()
    used = frozenset(circuit.nodes)
    edges = {
        str(edge): {"score": float(f"{shares[copy]:.9g}"), "in_graph": bool(in_graph[copy])}
        for edge, copy in zip(graph.edges(), copied.tolist(), strict=True)
        if np.isfinite(shares[copy])
    }
    nodes = {str(node): {"in_graph": node in used} for node in graph.nodes}
    document = {"cfg": _cfg(circuit), "nodes": nodes, "edges": edges, "sign": SIGN, OWN: _own(circuit)}
    return json_text(document)


def circuit_pt(circuit: Circuit, scores: EdgeScores | None = None) -> bytes:
    """Return the circuit in EAP-IG's ``.pt`` layout: plain tensors, texts and numbers, as :func:`circuit_mib_json`.

    What is made is read back with ``weights_only=True``, which runs no code, before it is given away. Scores are
    float32 there, and unscored edges score 0.
    """
    graph, copied = per_query_head(circuit.graph)
    place, size = (graph.edge_senders, graph.edge_receivers), (len(graph.senders), len(graph.receivers))
    scored, members = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.bool_)
    scored[place], members[place] = np.nan_to_num(_shares(circuit, scores))[copied], circuit.mask()[copied]
    used = frozenset(circuit.nodes)
    return tensor_file(
        {
            "cfg": _cfg(circuit),
            "src_nodes": [str(node) for node in graph.senders],
            "dst_nodes": [str(receiver) for receiver in graph.receivers],
            "edges_scores": scored,
            "edges_in_graph": members,
            "nodes_in_graph": np.array([node in used for node in graph.senders]),
            OWN: json.dumps(plain(_own(circuit))),
        }
    )


def mib_folder(circuit: Circuit, scores: EdgeScores | None, path: Path) -> Path:
    """Write the folder that MIB's evaluation and leaderboard take, and return the file in it.

    It is ``path/TASK_MODEL/importances.json``, by MIB's names where it has one for the behaviour or model. Raises
    :class:`UsageError` unless every edge has a score: MIB ranks all of them.
    """
    if scores is None or len(scores.scored) < circuit.graph.n_edges:
        raise UsageError(
            "MIB ranks all edges, and not all of this circuit's model have a score; keep the scores.parquet that "
            "discover wrote beside the circuit, or score all edges."
        )
    name = circuit.model.id.rstrip("/").rpartition("/")[2].lower()
    model = next((short for short, long in MIB_MODELS.items() if name == long), name)
    task = re.sub(r"[^a-z0-9-]+", "-", circuit.behaviour.name.lower()).strip("-") or "behaviour"
    folder = path / f"{task}_{re.sub(r'[^a-z0-9.-]+', '-', model).strip('-.') or 'model'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}. Choose another place.") from error
    write(folder / IMPORTANCES, circuit_mib_json(circuit, scores))
    return folder / IMPORTANCES


def _cfg(circuit: Circuit) -> dict[str, Any]:
    model = circuit.model
    if model.target is not None:
        raise UsageError(
            f"the circuit leads to {model.shape.end}, and this format knows circuits that lead to the logits only; "
            "write it as .graphml or .csv."
        )
    numbers = {"n_layers": model.n_layers, "n_heads": model.n_heads, "d_model": model.d_model}
    return {**numbers, "parallel_attn_mlp": model.parallel}


def _own(circuit: Circuit) -> dict[str, Any]:
    about = {"model": asdict(circuit.model), "behaviour": asdict(circuit.behaviour), "method": asdict(circuit.method)}
    return {**about, "measured": circuit.measured}


def _shares(circuit: Circuit, scores: EdgeScores | None) -> Floats:
    """Return what each edge of the circuit's graph scores per query head that reads through it; NaN: nothing known."""
    missing = int((~np.isfinite(circuit.scores)).sum())
    if missing:
        raise UsageError(
            f"{missing} of {len(circuit)} edges have no finite score, and the MIB layout needs a number for every "
            "edge. Score them first, or export to .graphml or .csv."
        )
    values = np.full(circuit.graph.n_edges, np.nan) if scores is None else scores.values.copy()
    values[circuit.edges] = circuit.scores
    return values / circuit.graph.copies
