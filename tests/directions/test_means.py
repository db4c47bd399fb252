"""The projection on the direction from corrupted to clean prompts, against plain forward passes with a hook."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.behaviours import Behaviour, Pair, TokenPair
from circuits.directions import direction_of
from circuits.discovery import discover
from circuits.discovery_settings import DiscoverySettings
from circuits.errors import UsageError
from circuits.model import Model, load_model
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.patching.sites import patch_sites
from circuits.vocabulary import Metric, PrunerName, Site
from tests.reference.hooks import exact_edge_effects, last_logits, masked_run
from tests.subjects import random_masks, random_pairs, relative, sorted_settings
from tests.tiny import FAMILIES, tiny_tokenizer
from tests.zoo import ZOO

THREE = ("llama", "qwen2", "gpt2")
PAIRS = [*random_pairs(3, 7), *random_pairs(2, 5, seed=8)]
REFERENCE = [*random_pairs(4, 6, seed=21), *random_pairs(3, 9, seed=22)]
NORMS = {"llama": "model.norm", "qwen2": "model.norm", "gpt2": "transformer.ln_f"}


@cache
def model(family: str) -> Model:
    return load_model(FAMILIES[family](), tokenizer=tiny_tokenizer(), name=family)


@cache
def zoo_model(family: str) -> Model:
    return load_model(ZOO[family](), tokenizer=tiny_tokenizer(), name=family)


def final(family: str, prompts: Sequence[Sequence[int]]) -> Tensor:
    """What the unembedding reads at the last position, caught by a hook on the final norm."""
    module, caught = model(family).tracer.anatomy.module, []
    hook = module.get_submodule(NORMS[family]).register_forward_hook(lambda _m, _i, out: caught.append(out[0, -1]))
    try:
        with torch.no_grad():
            for prompt in prompts:
                module(torch.tensor([list(prompt)]))
    finally:
        hook.remove()
    return torch.stack(caught)


def plain_direction(family: str) -> Tensor:
    means = [final(family, [getattr(pair, side) for pair in REFERENCE]).mean(0) for side in ("clean", "corrupted")]
    return (means[0] - means[1]) / (means[0] - means[1]).norm()


def experiment(family: str, pairs: Sequence[TokenPair] = PAIRS, **settings: object) -> PatchingExperiment:
    options, resources = sorted_settings({"metric": Metric.PROJECTION, **settings})
    found = model(family).experiment(pairs, options, resources=resources, reference=REFERENCE)
    assert isinstance(found, PatchingExperiment)
    return found


@pytest.mark.parametrize("family", THREE)
def test_the_direction_is_the_unit_difference_of_means_after_the_final_norm(family):
    direction = direction_of(model(family).tracer, REFERENCE)
    assert float(direction.norm()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(direction, plain_direction(family), atol=1e-5, rtol=1e-4)
    means = [
        (final(family, [getattr(pair, side) for pair in REFERENCE]) @ direction).mean()
        for side in ("clean", "corrupted")
    ]
    assert means[0] > means[1]


@pytest.mark.parametrize("family", THREE)
def test_both_runs_equal_a_plain_forward_pass_with_a_hook(family):
    found = experiment(family)
    for side, values in (("clean", found.clean), ("corrupted", found.corrupted)):
        expected = (final(family, [getattr(pair, side) for pair in PAIRS]) @ plain_direction(family)).double().numpy()
        assert relative(values, expected, at_least=0.1) < 1e-4


class _AsLogits:
    """Makes a module's unembedding the direction alone, without bias, for references that read logits."""

    def __init__(self, family: str) -> None:
        self.module, self.direction = model(family).tracer.anatomy.module, plain_direction(family)

    def __enter__(self) -> torch.nn.Module:
        self.head = self.module.get_output_embeddings()
        linear = torch.nn.Linear(len(self.direction), 1, bias=False)
        linear.weight.data = self.direction[None].clone()
        self.module.lm_head = linear.requires_grad_(False)
        return self.module

    def __exit__(self, *_: object) -> None:
        self.module.lm_head = self.head


@pytest.mark.parametrize("family", THREE)
def test_circuits_and_edges_equal_the_slow_reference_with_the_direction_as_unembedding(family):
    pairs = PAIRS[:3]
    found = experiment(family, pairs)
    masks = random_masks(found.graph.n_edges, (0.3, 0.8))
    edges = np.arange(0, found.graph.n_edges, 29)
    circuits, effects = found.circuits(masks), found.edge_effects(edges)
    every = list(found.graph.edges())
    clean, corrupted = (torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted"))
    with _AsLogits(family) as module:
        runs = [masked_run(module, clean, corrupted, [every[i] for i in np.flatnonzero(mask)]) for mask in masks]
        expected = torch.stack([run[:, 0] for run in runs]).double().numpy()
        slow = exact_edge_effects(module, clean, corrupted, [every[i] for i in edges], lambda logits: logits[:, 0])
        assert last_logits(module, clean).shape == (3, 1)
    assert relative(circuits, expected) < 1e-4
    assert relative(effects, slow.double().numpy()) < 1e-3


@pytest.mark.parametrize("family", THREE)
def test_attributions_are_exact_to_first_order(family):
    """Between runs that hardly differ, an estimate is the effect."""
    near = load_model(FAMILIES[family](), tokenizer=tiny_tokenizer(), name="near")
    half = 160
    with torch.no_grad():
        table = near.tracer.anatomy.module.get_input_embeddings().weight
        table[half:] = table[:half] + 1e-2 * table[half:]
    prompts = [pair.clean for pair in random_pairs(3, 6, below=half)]
    pairs = [TokenPair(p, (*p[:2], *(t + half for t in p[2:])), (3,), (5,), "", "") for p in prompts]
    found = near.experiment(pairs, Options(Metric.PROJECTION), reference=REFERENCE)
    edges = np.arange(0, found.graph.n_edges, 17)
    exact, estimated = found.edge_effects(edges).mean(1), found.attributions((1.0,))[0][edges]
    assert relative(estimated, exact, at_least=1e-5) < 0.05
    assert relative(-estimated, exact, at_least=1e-5) > 1


@pytest.mark.parametrize("family", ["gemma2", "cohere", "phi"])
def test_caps_scales_and_biases_of_the_unembedding_take_no_part(family):
    found = zoo_model(family).experiment(PAIRS, Options(Metric.PROJECTION), reference=REFERENCE)
    module, direction = zoo_model(family).tracer.anatomy.module, direction_of(zoo_model(family).tracer, REFERENCE)
    norm, caught = zoo_model(family).tracer.anatomy.architecture.final_norm, []
    hook = module.get_submodule(norm).register_forward_hook(lambda _m, _i, out: caught.append(out[0, -1]))
    with torch.no_grad():
        logits = [module(torch.tensor([pair.clean])).logits[0, -1] for pair in PAIRS]
    hook.remove()
    expected = (torch.stack(caught) @ direction).double().numpy()
    assert relative(found.clean, expected, at_least=0.1) < 1e-4
    plain = torch.stack(caught) @ module.get_output_embeddings().weight.T
    assert not torch.allclose(torch.stack(logits), plain, atol=1e-2)  # a cap, a scale or a bias does something


def test_patching_works_on_projections_and_all_of_the_last_stream_restores_all():
    found = experiment("llama", PAIRS[:3])
    shares = patch_sites(found, Site.RESID).restored
    np.testing.assert_allclose(shares[0], [1.0], atol=1e-4)


def test_the_model_itself_is_left_as_it_was():
    ids = torch.tensor([PAIRS[0].clean])
    module = model("llama").tracer.anatomy.module
    before = module(ids).logits
    experiment("llama").circuits(random_masks(model("llama").graph.n_edges, (0.5,)))
    assert torch.equal(module(ids).logits, before)
    assert model("llama").experiment(PAIRS).clean.shape == (len(PAIRS),)


def test_without_reference_pairs_or_a_difference_there_is_no_direction():
    with pytest.raises(UsageError, match="difference of means over reference pairs, and there are none"):
        model("llama").experiment(PAIRS, Options(Metric.PROJECTION))
    same = [TokenPair(pair.clean, pair.clean, (3,), (5,), "", "") for pair in REFERENCE]
    with pytest.raises(UsageError, match="have the same mean, so no direction leads"):
        direction_of(model("llama").tracer, same)
    with pytest.raises(UsageError, match="reads the residual stream along a direction"):
        model("llama").experiment(PAIRS).with_metric(Metric.PROJECTION)


def test_discovery_takes_the_direction_from_discovery_pairs_alone():
    words = [f"{a}{b}" for a in "abcdef" for b in "xyz"]
    pairs = [Pair(f"When {word} and John", f"When {word} and Paul", (" to",), (" is",)) for word in words]
    behaviour = Behaviour("mine", "a test", lambda _: pairs, metric=Metric.PROJECTION)
    found = discover(
        model("llama"), behaviour, DiscoverySettings(pairs=4, heldout=4, pruner=PrunerName.TOP, size=60, sample=8)
    )
    texts = {pair.clean_text for pair in found.prompts.reference}
    assert texts >= {pair.clean_text for pair in found.prompts.discovery}
    assert not texts & {pair.clean_text for pair in found.prompts.heldout}
    few = behaviour.prompts(model("llama").tokenizer, discovery=0, heldout=4)
    assert few.reference == found.prompts.reference
    assert found.circuit.behaviour.metric == "projection"
    assert found.circuit.behaviour.unit == "length"
