"""Circuits made by hand or at random, with every field filled in, for tests that need no model."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from circuits.builder import build_graph
from circuits.circuit import Circuit
from circuits.graph import Edge
from circuits.records import Areas, BehaviourInfo, CurvePoint, Evaluation, Method, ModelInfo, Provenance, RandomBaseline

PLAIN = ModelInfo("tiny-plain", n_layers=12, n_heads=12, n_kv_heads=12, d_model=24, d_head=2)
GROUPED = ModelInfo("tiny-grouped", n_layers=11, n_heads=6, n_kv_heads=2, d_model=24, d_head=4)
ONE_LAYER = ModelInfo("one-layer", n_layers=1, n_heads=2, n_kv_heads=2, d_model=4, d_head=2)

EVALUATION = Evaluation(
    n=64,
    metric_clean=4.92,
    metric_corrupted=-0.11,
    metric_circuit=4.58,
    faithfulness=0.934567,
    faithfulness_ci=(0.88, 0.97),
    necessity=0.06,
    random_baseline=RandomBaseline(50, 0.01, -0.02, 0.04),
    curve=(CurvePoint(10, 0.3, 0.001), CurvePoint(100, 0.8, 0.01), CurvePoint(1000, 1.0, 1.0)),
    areas=(Areas("group", 1000, 0.97, 0.03), Areas("query-head", 1500, 0.96, 0.05)),
    accuracy_clean=0.98,
    accuracy_circuit=0.95,
)


def circuit_of(scores: Mapping[str, float], model: ModelInfo = GROUPED, *, name: str = "toy") -> Circuit:
    """Make a circuit of named edges with these scores."""
    graph = build_graph(model.shape)
    indices = sorted((graph.index(Edge.parse(text)), score) for text, score in scores.items())
    return Circuit(
        model=model,
        behaviour=BehaviourInfo(name, "logit-difference", "nats", 64, 64, "digest"),
        method=Method("eap-ig", "minimal", target=0.9),
        edges=np.array([index for index, _ in indices], dtype=np.int64),
        scores=np.array([score for _, score in indices], dtype=np.float64),
        evaluation=EVALUATION,
        provenance=Provenance("circuits discover toy", "cpu", 12.0, {"torch": "2", "circuits": "0.1"}),
    )


def random_circuit(n_edges: int, model: ModelInfo = GROUPED, *, seed: int = 0, name: str = "toy") -> Circuit:
    """Make a circuit of edges drawn at random, with scores of both signs and measured removals."""
    generator = np.random.default_rng(seed)
    graph = build_graph(model.shape)
    chosen = np.sort(generator.choice(graph.n_edges, n_edges, replace=False))
    scores = generator.normal(0, 1, n_edges) * 10.0 ** generator.integers(-5, 1, n_edges)
    named = {str(edge): float(score) for edge, score in zip(graph.edges(chosen), scores, strict=True)}
    return replace(circuit_of(named, model, name=name), removal=np.abs(scores) / 7)
