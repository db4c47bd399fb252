"""CPR and CMD against MIB's published rule, evaluated apart from this tool: on its exported file, with plain hooks.

A model whose heads share keys and values is run as MIB runs it: every query head with keys and values of its own.
"""

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from circuits.circuit import Circuit
from circuits.drawing.pictures import export
from circuits.evaluation.curve import curve
from circuits.graph import Edge
from circuits.records import BehaviourInfo, Method, ModelInfo
from circuits.scores import EdgeScores
from circuits.vocabulary import Metric, Universe
from tests.reference.hooks import masked_run
from tests.subjects import Subject, clean_ids, corrupted_ids, metric_of, subject_of

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


def ungrouped(module: PreTrainedModel) -> PreTrainedModel:
    """The same function with as many key and value heads as query heads: each group's repeated."""
    model = copy.deepcopy(module)
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    model.config.num_key_value_heads = heads
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.num_key_value_groups = 1
        for name in ("k_proj", "v_proj"):
            old = getattr(attention, name)
            new = nn.Linear(old.in_features, old.out_features * heads // groups, bias=old.bias is not None)
            for each in ("weight", "bias")[: 1 + (old.bias is not None)]:
                rows = getattr(old, each).data.unflatten(0, (groups, -1)).repeat_interleave(heads // groups, dim=0)
                getattr(new, each).data = rows.flatten(0, 1)
            setattr(attention, name, new.eval().requires_grad_(requires_grad=False))
    return model


def rule(document: dict, order: Callable[[float], float], f: Callable[[list[str]], float]) -> list[float]:
    """f of MIB's top n at its ten shares; of tied copies of a group that do not all fit, none is taken."""
    edges = {name: edge["score"] for name, edge in document["edges"].items()}
    ranked = sorted(edges, key=lambda name: -order(edges[name]))
    found = []
    for share in SHARES:
        taken = ranked[: int(share * len(edges))]
        cut = ranked[len(taken) : len(taken) + 1]
        tied = {name for name in taken if cut and edges[name] == edges[cut[0]]}
        found.append(f([name for name in taken if name not in tied]))
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_cpr_and_cmd_are_those_of_mibs_rule_on_the_exported_file(family: str, tmp_path: Path) -> None:
    subject: Subject = subject_of(family)
    graph, experiment = subject.graph, subject.experiment()
    values = np.random.default_rng(0).normal(size=graph.n_edges) + 0.3
    scores = EdgeScores(graph, values, "random", measured=False)
    shape = graph.shape
    info = ModelInfo(family, shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.d_model, shape.d_head)
    about = BehaviourInfo("x", "logit-difference", "nats"), Method("random", "top")
    circuit = Circuit(info, *about, np.arange(3), values[:3])
    document = json.loads(export(circuit, tmp_path / "x.mib.json", scores=scores).read_text())

    module = ungrouped(subject.module) if shape.grouped else subject.module
    assert shape.grouped is (family != "gpt2")
    torch.testing.assert_close(module(clean_ids()).logits, subject.module(clean_ids()).logits)
    metric = metric_of(Metric.LOGIT_DIFFERENCE)

    def mean(names: list[str]) -> float:
        logits = masked_run(module, clean_ids(), corrupted_ids(), [Edge.parse(name) for name in names])
        return float(metric(logits).mean())

    empty, full = mean([]), mean(list(document["edges"]))

    def f(names: list[str]) -> float:
        return (mean(names) - empty) / (full - empty)

    signed, absolute = rule(document, lambda score: score, f), rule(document, abs, f)
    cpr = sum((x2 - x1) * (f1 + f2) / 2 for (x1, x2), (f1, f2) in zip(pairwise(SHARES), pairwise(signed), strict=True))
    gaps = [abs(1 - f) for f in absolute]
    cmd = sum((x2 - x1) * (f1 + f2) / 2 for (x1, x2), (f1, f2) in zip(pairwise(SHARES), pairwise(gaps), strict=True))

    _, (areas,) = curve(experiment, scores, universes=[Universe.QUERY_HEAD])
    assert areas.edges == len(document["edges"])
    assert (areas.cpr, areas.cmd) == pytest.approx((cpr, cmd), rel=1e-3, abs=1e-3)
    assert cmd > 0.05
    assert signed != pytest.approx(absolute, abs=0.05)
