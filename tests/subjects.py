"""Tiny models of every family, ready to be measured, and prompt pairs for them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from circuits.adapters.anatomy import Anatomy
from circuits.behaviours.pairs import TokenPair
from circuits.builder import build_graph
from circuits.graph import ComputationalGraph, Edge
from circuits.metrics import AnswerTokens, measure
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation, Metric
from tests.reference.gradients import in_float64
from tests.tiny import FAMILIES, VOCABULARY, tiny_tokenizer

Floats = NDArray[np.float64]
Masks = list[NDArray[np.bool_]]
TOKENIZER = tiny_tokenizer()
ABLATIONS = [ablation for ablation in Ablation if ablation not in (Ablation.RESAMPLE, Ablation.OPTIMAL)]
"""Those of an experiment that take no fit; to resample is to measure other pairs."""


@dataclass(frozen=True)
class Subject:
    """One model with its tracer and graph."""

    name: str
    module: PreTrainedModel

    @cached_property
    def tracer(self) -> Tracer:
        return Tracer(Anatomy(self.module))

    @cached_property
    def graph(self) -> ComputationalGraph:
        return build_graph(self.tracer.anatomy.shape)

    def experiment(self, pairs: Sequence[TokenPair] | None = None, **settings: object) -> PatchingExperiment:
        """Set up an experiment; means are taken over the pairs themselves."""
        options, resources = sorted_settings(settings)
        pairs = PAIRS if pairs is None else pairs
        reference = pairs if options.ablation.by_means else ()
        return PatchingExperiment(self.tracer, self.graph, pairs, options, resources=resources, reference=reference)

    def logits(self, ids: Tensor) -> Tensor:
        """The model's own next-token logits, not through the tracer."""
        with torch.no_grad():
            return self.module(ids, use_cache=False).logits[:, -1]

    def index(self, edge: str) -> int:
        return self.graph.index(Edge.parse(edge))

    def some_edges(self, step: int = 7) -> NDArray[np.int64]:
        """Edges of every slot and kind, early and late; ``step`` shares no factor with the number of senders."""
        return np.arange(0, self.graph.n_edges, step)

    def changed(self, change: Callable[[PreTrainedModel], None]) -> "Subject":
        """A copy of the model with changed weights."""
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            change(module)
        return Subject(self.name, module)


def sorted_settings(settings: Mapping[str, object]) -> tuple[Options, Resources]:
    """Sort settings into what is measured, and what measuring may use."""
    used = {field.name for field in fields(Resources)}
    what = {name: value for name, value in settings.items() if name not in used}
    return Options(**what), Resources(**{name: settings[name] for name in used & set(settings)})


def subject_of(family: str) -> Subject:
    return Subject(family, FAMILIES[family]())


def double_of(family: str) -> Subject:
    """The same model in float64, norms too."""
    return Subject(family, in_float64(FAMILIES[family]()).requires_grad_(False))


def random_pairs(
    n: int = 4, length: int = 7, *, seed: int = 3, below: int = VOCABULARY, shared: int = 2
) -> tuple[TokenPair, ...]:
    """Random prompts; the corrupted side keeps the first tokens, by default two, and changes the others."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = torch.randint(below, (2, n, length), generator=generator)
    corrupted[:, :shared] = clean[:, :shared]
    answers = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:4] for _ in range(n)]).tolist()
    rows = zip(clean.tolist(), corrupted.tolist(), answers, strict=True)
    return tuple(
        TokenPair(tuple(here), tuple(there), (a, b) if i % 2 else (a,), (c, d), str(here), str(there))
        for i, (here, there, (a, b, c, d)) in enumerate(rows)
    )


PAIRS = random_pairs()


def swapped(pairs: Sequence[TokenPair]) -> tuple[TokenPair, ...]:
    """The same pairs with clean and corrupted exchanged."""
    return tuple(
        TokenPair(pair.corrupted, pair.clean, pair.answers, pair.wrong_answers, pair.corrupted_text, pair.clean_text)
        for pair in pairs
    )


def clean_ids(pairs: Sequence[TokenPair] = PAIRS) -> Tensor:
    return torch.tensor([pair.clean for pair in pairs])


def corrupted_ids(pairs: Sequence[TokenPair] = PAIRS) -> Tensor:
    return torch.tensor([pair.corrupted for pair in pairs])


def metric_of(
    metric: Metric, clean_logits: Tensor | None = None, pairs: Sequence[TokenPair] = PAIRS
) -> Callable[[Tensor], Tensor]:
    """A metric as a function of logits, for the reference."""
    return lambda logits: measure(metric, logits, AnswerTokens.of(pairs), clean_logits)


def all_but_one(n_edges: int, edges: NDArray[np.int64]) -> Masks:
    masks = [np.ones(n_edges, dtype=np.bool_) for _ in edges]
    for mask, edge in zip(masks, edges, strict=True):
        mask[edge] = False
    return masks


def random_masks(n_edges: int, shares: Sequence[float], *, seed: int = 0) -> Masks:
    generator = np.random.default_rng(seed)
    return [generator.random(n_edges) < share for share in shares]


def relative(actual: Floats, expected: Floats, *, at_least: float = 1e-3) -> float:
    """Largest difference over the largest expected value, which must be of a size worth comparing."""
    assert actual.shape == expected.shape
    scale = float(np.abs(expected).max())
    assert scale > at_least
    return float(np.abs(actual - expected).max() / scale)


def bring_nearer(scale: float) -> Callable[[PreTrainedModel], None]:
    """Make the second half of the vocabulary embed as the first half does, but for ``scale`` of its own embedding."""
    half = VOCABULARY // 2

    def change(module: PreTrainedModel) -> None:
        table = module.get_input_embeddings().weight
        table[half:] = table[:half] + scale * table[half:]

    return change


def half_vocabulary_pairs() -> tuple[TokenPair, ...]:
    """Pairs whose corrupted tokens are the clean ones, moved by half the vocabulary."""
    half = VOCABULARY // 2
    prompts = [pair.clean for pair in random_pairs(3, 6, below=half)]
    changed = [(*prompt[:2], *(token + half for token in prompt[2:])) for prompt in prompts]
    return tuple(
        TokenPair(prompt, other, pair.answers, pair.wrong_answers, "", "")
        for prompt, other, pair in zip(prompts, changed, PAIRS, strict=False)
    )
