"""The table of families in the guide on models: every figure is measured here, on the tiny models of ``tests.zoo``.

    python -m tests.family_table --write examples/guides/models.md

Figures are upper bounds, and the bounds to choose from are so far apart that the text does not depend on the machine.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.architecture import Architecture, by_group, concatenated
from circuits.graph import ModelShape, Slot
from circuits.guards.checks import check
from circuits.vocabulary import Metric
from examples.guides.figures import placed
from tests.reference import gradients, hooks
from tests.reference.precision import in_float64
from tests.subjects import TOKENIZER, Subject, all_but_one, clean_ids, corrupted_ids, metric_of, relative
from tests.zoo import FAMILIES, ZOO

NAME = "families"
"""Of the markers between which the table stands."""
HEADINGS = ("family", "class in transformers", "structure", "edges", "exact", "gradients", "guards")
SAMPLE = 16
"""How many edges are measured exactly, besides one into the logits."""

_BOUNDS = (1e-12, 1e-9, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_LOSS = metric_of(Metric.LOGIT_DIFFERENCE)


@dataclass(frozen=True)
class Row:
    """What is known of one family.

    ``exact`` is the largest difference between exact scores of sampled edges and both the plain masked run and the
    reference; ``gradients`` that between gradient scores of all edges and the reference, relative to the largest score;
    both in float64. ``guards`` is the largest error of any guard, in float32.
    """

    family: str
    model: str
    structure: str
    edges: int
    exact: float
    gradients: float
    guards: float

    def __str__(self) -> str:
        figures = (bound(error) for error in (self.exact, self.gradients, self.guards))
        return line((self.family, f"`{self.model}`", self.structure, str(self.edges), *figures))


def line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def bound(error: float) -> str:
    """Write the smallest bound that holds."""
    return next((f"<{limit:.0e}".replace("e-0", "e-") for limit in _BOUNDS if error < limit), "**wrong**")


def row_of(family: str) -> Row:
    """Measure one family."""
    single = Subject(family, ZOO[family]())
    double = Subject(family, in_float64(single.module).requires_grad_(False))
    anatomy = single.tracer.anatomy
    return Row(
        family=family,
        model=FAMILIES[family].model.__name__,
        structure=", ".join(structure(single.module, anatomy)),
        edges=single.graph.n_edges,
        exact=_exact_error(double),
        gradients=_gradient_error(double),
        guards=float(np.max([result.error for result in check(single.tracer, single.graph, TOKENIZER)])),
    )


def _exact_error(subject: Subject) -> float:
    n_edges, experiment = subject.graph.n_edges, subject.experiment()
    edges = np.unique([*np.random.default_rng(0).choice(n_edges, SAMPLE, replace=False), n_edges - 3])
    found, every = experiment.edge_effects(edges), list(subject.graph.edges())
    masked = experiment.clean - experiment.circuits(all_but_one(n_edges, edges))
    chosen = [every[int(edge)] for edge in edges]
    reference = hooks.exact_edge_effects(subject.module, clean_ids(), corrupted_ids(), chosen, _LOSS).numpy()
    assert np.abs(reference).max() > 0.02
    return float(np.max([np.abs(found - masked), np.abs(found - reference)]))


def _gradient_error(subject: Subject) -> float:
    expected = gradients.gradient_edge_scores(subject.module, clean_ids(), corrupted_ids(), _LOSS).mean(0).numpy()
    return relative(subject.experiment().attributions([1.0])[0], expected, at_least=0.02)


# ----------------------------------------------------------------------------------------------------------- structure


def structure(module: PreTrainedModel, anatomy: Anatomy) -> Iterator[str]:
    """Say in words how a model is built, from its adapter, its modules and its configuration."""
    names, shape = anatomy.architecture, anatomy.shape
    yield "parallel" if shape.parallel else "sequential"
    yield from _attention(names, shape)
    yield from _norms(module, names, shape)
    yield from (words for words, holds in _SPECIAL.items() if holds(module, names))


def _attention(names: Architecture, shape: ModelShape) -> Iterator[str]:
    if shape.n_kv_heads == 1:
        yield "multi-query"
    elif shape.grouped:
        yield "grouped queries"
    if len(set(names.projections.values())) == 1:
        own = "group by group" if shape.grouped else "head by head"
        known = {concatenated: "all q, all k, all v", by_group: own}
        order = known.get(names.layout, names.layout.__name__.replace("_", " "))
        yield f"fused qkv ({order})"


def _norms(module: PreTrainedModel, names: Architecture, shape: ModelShape) -> Iterator[str]:
    if names.attention_post_norm is not None:
        yield "norms after blocks only" if names.attention_norm is None else "sandwich norms"
    if shape.parallel:
        yield "one norm" if names.mlp_norm == names.attention_norm else "two norms"
    if Slot.Q in names.projection_norms:
        yield "QK norm over all heads"
    elif any(part in path for path in _paths(module) for part in ("q_norm", "q_layernorm", "query_layernorm")):
        yield "QK norm per head"


_SPECIAL: Mapping[str, Callable[[PreTrainedModel, Architecture], bool]] = {
    "experts": lambda module, _: any("expert" in path for path in _paths(module)),
    "local attention": lambda module, _: bool(_setting(module, "sliding_window", "window_size")),
    "ALiBi": lambda module, _: module.config.model_type in ("bloom", "mpt") or bool(_setting(module, "alibi")),
    "attention sinks": lambda module, _: any(name.endswith("sinks") for name, _ in module.named_parameters()),
    "clipped q, k, v": lambda module, _: bool(_setting(module, "clip_qkv")),
    "softcaps": lambda module, _: bool(_setting(module, "final_logit_softcapping")),
    "logit scale": lambda module, _: (_setting(module, "logit_scale", "logits_scaling") or 1) != 1,
    "residual multiplier": lambda _, names: names.residual_scale is not None,
    "blocks add the stream": lambda _, names: names.attention_adds_stream,
}


def _paths(module: nn.Module) -> list[str]:
    return [path for path, _ in module.named_modules()]


def _setting(module: PreTrainedModel, *names: str) -> Any:
    """The first of these configuration values that is set, also inside MPT's own section on attention."""
    sections = (module.config, getattr(module.config, "attn_config", None))
    return next(
        (getattr(section, name) for section in sections for name in names if getattr(section, name, None)), None
    )


# --------------------------------------------------------------------------------------------------------------- table


def table() -> str:
    """Measure every family and write the table."""
    rule = line(tuple("---" for _ in HEADINGS))
    return "\n".join([line(HEADINGS), rule, *(str(row_of(family)) for family in ZOO)])


def main(arguments: list[str]) -> None:
    made = table()
    if not arguments:
        sys.stdout.write(made + "\n")
        return
    if len(arguments) != 2 or arguments[0] != "--write":
        raise SystemExit("usage: python -m tests.family_table [--write examples/guides/models.md]")
    path = Path(arguments[1])
    path.write_text(placed(path.read_text(encoding="utf-8"), NAME, made), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
