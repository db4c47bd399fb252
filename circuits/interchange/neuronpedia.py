"""Circuits as attribution graphs, in the JSON that Neuronpedia shows.

Its schema is published with it (github.com/hijohnnylin/neuronpedia, ``graph-schema.json``) and made for graphs of
features at token positions. Here a head stands where it has features of attention (``lorsa``), an MLP where it has
those of a transcoder, and the weight of a link is the score of the edges between two nodes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from circuits.circuit import Circuit
from circuits.diagrams.merging import arrows
from circuits.diagrams.style import Level
from circuits.errors import UsageError
from circuits.files.documents import json_text, plain
from circuits.graph import Node, NodeKind
from circuits.records import Example

_KINDS = {
    NodeKind.INPUT: "embedding",
    NodeKind.HEAD: "lorsa",
    NodeKind.MLP: "cross layer transcoder",
    NodeKind.LOGITS: "logit",
    NodeKind.RESID: "logit",
    NodeKind.MIDDLE: "logit",
}
_NO_POSITIONS = (
    "Edges hold for all token positions at once, so the whole prompt stands for one position; it is one of those that "
    "the circuit was found or judged on."
)


def neuronpedia_graph(
    circuit: Circuit,
    prompts: Sequence[Example] = (),
    *,
    tokens: Sequence[str] = (),
    positions: Mapping[Node, int] | None = None,
) -> str:
    """Return a circuit as the text of an attribution graph.

    Edges of a circuit hold for all positions, so without more the prompt (the first of ``prompts``) is one token of
    the graph. Where it is known at which positions nodes act, give its ``tokens`` and the ``positions`` of nodes; the
    others stand at the last one. Several edges between two nodes (query, key, value) are one link with the sum of their
    scores; an edge into keys or values that heads share is divided among the circuit's heads of that group. Edges
    without a score have the weight 0. Raises :class:`UsageError` for positions that the tokens do not have.
    """
    prompt = prompts[0].clean if prompts else circuit.behaviour.name
    shown, places = list(tokens) or [prompt], dict(positions or {})
    wrong = [f"{node}: {place}" for node, place in places.items() if not 0 <= place < len(shown)]
    if wrong:
        raise UsageError(f"{len(shown)} tokens have the positions 0 to {len(shown) - 1}; got {', '.join(wrong[:5])}.")
    ids: dict[str, str] = {}
    nodes: list[dict[str, Any]] = []
    for node in circuit.nodes:
        if node.kind in _KINDS:
            nodes.append(_node(circuit, node, places.get(node, len(shown) - 1)))
            ids[str(node)] = nodes[-1]["node_id"]
    document = {
        "metadata": {
            "slug": re.sub(r"[^a-z0-9]+", "-", f"{circuit.behaviour.name}-{circuit.model.id}".lower()).strip("-"),
            "scan": circuit.model.id,
            "prompt_tokens": shown,
            "prompt": prompt,
            "info": {"description": _description(circuit, bool(tokens)), "generator": {"name": "circuits"}},
        },
        "qParams": {"pinnedIds": list(ids.values()), "supernodes": [], "linkType": "both", "clickedId": ""},
        "nodes": nodes,
        "links": [
            {"source": ids[arrow.sender.name], "target": ids[arrow.receiver.name], "weight": arrow.score}
            for arrow in arrows(circuit, Level.NODE)
        ],
    }
    return json_text(plain(document, digits=6))


def _node(circuit: Circuit, node: Node, place: int) -> dict[str, Any]:
    """Return what the schema asks of a node, and the constants that its viewer reads."""
    kind, end = _KINDS[node.kind], circuit.model.shape.n_layers
    layer = {"embedding": "E", "logit": str(end)}.get(kind, str(node.layer))
    feature = {"lorsa": node.index or 0, "cross layer transcoder": circuit.model.n_heads}.get(kind, 0)
    return {
        "node_id": f"{layer}_{feature}_{place}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": place,
        "feature_type": kind,
        "jsNodeId": f"{layer}_{feature}-{place}",
        "clerp": str(node),
        "is_target_logit": kind == "logit",
        "run_idx": 0,
        "reverse_ctx_idx": 0,
    }


def _description(circuit: Circuit, placed: bool) -> str:
    behaviour, method = circuit.behaviour, circuit.method
    judged = f", faithfulness {circuit.evaluation.faithfulness:.3g} on held-out pairs" if circuit.evaluation else ""
    found = f"{len(circuit)} edges by {method.scorer} and {method.pruner}{judged}"
    sign = (
        f"Weights are scores in {behaviour.unit} of {behaviour.metric}: positive where corrupting the edge lowers it."
    )
    return " ".join([f"{behaviour.name} in {circuit.model.id}: {found}.", sign, *([] if placed else [_NO_POSITIONS])])
