"""Every supported family is measured rightly: each test runs on a tiny random model of each family, by its name.

The reference (``tests.reference``) shares nothing with the adapters: it takes a layer apart where its attention
function is called, and measures the rest.
"""

from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.graph import NodeKind
from circuits.guards.checks import check
from circuits.guards.isolation import isolation
from circuits.metrics import AnswerTokens, measure
from circuits.passes.attribution import attribute
from circuits.passes.gradients import gradients_at
from circuits.patching.paths import Path, path_effects
from circuits.patching.sites import patch_sites
from circuits.tracing.runs import difference, record
from circuits.vocabulary import Ablation, Direction, Metric, Site
from tests.reference import gradients, hooks
from tests.reference.anatomy import INPUT, anatomy_of
from tests.reference.precision import in_float64
from tests.subjects import (
    PAIRS,
    TOKENIZER,
    Subject,
    all_but_one,
    bring_nearer,
    clean_ids,
    corrupted_ids,
    half_vocabulary_pairs,
    metric_of,
    random_masks,
    random_pairs,
    relative,
)
from tests.tiny import VOCABULARY
from tests.zoo import ZOO

LOSS = metric_of(Metric.LOGIT_DIFFERENCE)


@cache
def single(family: str) -> Subject:
    return Subject(family, ZOO[family]())


@cache
def double(family: str) -> Subject:
    return Subject(family, in_float64(ZOO[family]()).requires_grad_(False))


families = pytest.mark.parametrize("family", ZOO)


@families
def test_guards_pass_in_single_precision(family: str) -> None:
    results = check(single(family).tracer, single(family).graph, TOKENIZER)
    assert [result.name for result in results if not result.passed] == []
    assert max(result.error for result in results) < 1e-4


@families
def test_no_live_edge_is_the_corrupted_run_and_all_live_edges_are_the_clean_run(family: str) -> None:
    subject = double(family)
    nothing, everything = subject.experiment().circuits(
        [np.full(subject.graph.n_edges, live) for live in (False, True)]
    )
    clean, corrupted = (LOSS(subject.logits(ids())).numpy() for ids in (clean_ids, corrupted_ids))
    np.testing.assert_allclose(nothing, corrupted, atol=1e-9)
    np.testing.assert_allclose(everything, clean, atol=1e-9)
    assert np.abs(clean - corrupted).max() > 0.1


@families
def test_circuits_are_what_the_reference_measures(family: str) -> None:
    subject = double(family)
    masks = random_masks(subject.graph.n_edges, (0.3, 0.8))
    edges = list(subject.graph.edges())
    for mask, found in zip(masks, subject.experiment().circuits(masks), strict=True):
        live = [edge for edge, kept in zip(edges, mask, strict=True) if kept]
        expected = LOSS(hooks.masked_run(subject.module, clean_ids(), corrupted_ids(), live)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert np.abs(found - subject.experiment().clean).max() > 1e-3


@families
@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.ZERO])
def test_the_fast_path_equals_the_plain_masked_run(family: str, ablation: Ablation) -> None:
    subject = double(family)
    experiment = subject.experiment(ablation=ablation)
    sample = np.random.default_rng(0).choice(subject.graph.n_edges, 30, replace=False)
    edges = np.unique([*sample, subject.graph.n_edges - 3])
    kinds = {(r.node.kind, r.slot) for r in (subject.graph.receivers[i] for i in subject.graph.edge_receivers[edges])}
    assert len(kinds) == 5  # q, k, v, MLP, logits
    expected = experiment.clean - experiment.circuits(all_but_one(subject.graph.n_edges, edges))
    np.testing.assert_allclose(experiment.edge_effects(edges), expected, atol=1e-9)
    assert np.abs(expected).max() > 0.02


@families
@pytest.mark.parametrize("direction", list(Direction))
def test_exact_scores_are_what_the_reference_measures(family: str, direction: Direction) -> None:
    subject = double(family)
    edges = subject.some_edges(31)
    all_edges = list(subject.graph.edges())
    expected = hooks.exact_edge_effects(
        subject.module,
        clean_ids(),
        corrupted_ids(),
        [all_edges[int(edge)] for edge in edges],
        LOSS,
        direction=direction.value,
    )
    found = subject.experiment(direction=direction).edge_effects(edges)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-9)
    assert np.abs(found).max() > 0.01


@families
@pytest.mark.parametrize("points", [(1.0,), (0.25, 0.75)], ids=["eap", "eap-ig"])
def test_gradient_scores_are_what_the_reference_measures(family: str, points: tuple[float, ...]) -> None:
    subject = double(family)
    expected = gradients.gradient_edge_scores(subject.module, clean_ids(), corrupted_ids(), LOSS, points=points)
    found = subject.experiment().attributions(points)[0]
    assert relative(found, expected.mean(0).numpy(), at_least=0.02) < 1e-5  # sums of products are in float32


@families
def test_first_order_and_exact_scores_agree_at_differences_of_a_thousandth(family: str) -> None:
    near = double(family).changed(bring_nearer(1e-3))
    experiment = near.experiment(half_vocabulary_pairs())
    edges = near.some_edges(3)
    exact, estimated = experiment.edge_effects(edges).mean(1), experiment.attributions([1.0])[0, edges]
    large = np.abs(exact) > 0.01 * np.abs(exact).max()
    assert large.sum() > 30
    assert np.median(np.abs(estimated[large] / exact[large] - 1)) < 5e-3


@families
def test_scores_into_all_receivers_add_up_to_the_gradient_score_of_the_sender(family: str) -> None:
    """Of heads and the input, by autograd on the plain model; that of MLPs follows from the comparison of all edges."""
    subject = double(family)
    module, anatomy = subject.module, anatomy_of(subject.module)
    taps: dict[str, Tensor] = {}

    def tap(name: str, value: Tensor) -> Tensor:
        taps[name] = value.detach().requires_grad_(True) if name == "input" else value
        return taps[name]

    def run(ids: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad(), hooks.hooked() as handles:
            handles.append(anatomy.blocks[0].register_forward_pre_hook(lambda _, a: (tap("input", a[0]), *a[1:])))
            for layer, output in enumerate(anatomy.output_projections):
                handles.append(output.register_forward_pre_hook(lambda _, a, i=layer: (tap(f"z{i}", a[0]),)))
            total = LOSS(hooks.last_logits(module, ids)).sum()
        return dict(zip(taps, torch.autograd.grad(total, list(taps.values())), strict=True))

    slopes = run(clean_ids())
    clean = dict(taps)
    run(corrupted_ids())
    by_edge = subject.experiment().attributions([1.0])[0]
    summed = np.zeros(len(subject.graph.senders))
    np.add.at(summed, subject.graph.edge_senders, by_edge)
    heads = anatomy.shape.n_heads
    found, expected = [], []
    for sender, value in zip(subject.graph.senders, summed, strict=True):
        if sender.kind is NodeKind.MLP:
            continue
        name = "input" if sender == INPUT else f"z{sender.layer}"
        product = ((clean[name] - taps[name]) * slopes[name]).detach()
        if sender != INPUT:
            product = product.unflatten(-1, (heads, -1))[..., sender.index, :]
        found.append(value)
        expected.append(float(product.sum() / len(PAIRS)))
    assert relative(np.array(found), np.array(expected), at_least=0.05) < 1e-5


@families
def test_patching_a_head_leaves_the_other_heads_of_its_layer_alone(family: str) -> None:
    """Every query, key and value of every layer is changed in turn: no other head's output moves."""
    subject = double(family)
    run = record(subject.tracer, clean_ids()[:, :6])
    assert run.ids.max() < VOCABULARY
    for layer in range(subject.graph.shape.n_layers):
        error, untested = isolation(subject.tracer, run, layer)
        assert error < 1e-12
        assert untested == []


@families
def test_a_path_of_one_hop_is_the_exact_score_of_that_edge(family: str) -> None:
    subject = double(family)
    names = ["input->logits", "a0.h2->logits", "m1->logits", "a2.h3->logits"]
    experiment = subject.experiment()
    paths = path_effects(experiment, [Path.parse(name, subject.graph) for name in names])
    edges = experiment.edge_effects(np.array([subject.index(name) for name in names]))
    np.testing.assert_allclose(paths, edges, atol=1e-7)
    assert np.abs(paths).max() > 0.01


@families
@pytest.mark.parametrize("site", [Site.ATTN, Site.MLP, Site.HEAD])
def test_patching_an_activation_equals_corrupting_all_edges_out_of_its_senders(family: str, site: Site) -> None:
    subject = double(family)
    experiment = subject.experiment(direction=Direction.NOISING)
    found = patch_sites(experiment, site).values
    shape, senders = subject.graph.shape, subject.graph.edge_senders
    for layer in range(shape.n_layers):
        first = 1 + layer * (shape.n_heads + 1)
        heads = range(first, first + shape.n_heads)
        patched = {Site.ATTN: [list(heads)], Site.MLP: [[heads.stop]], Site.HEAD: [[head] for head in heads]}[site]
        masks = [~np.isin(senders, each) for each in patched]
        np.testing.assert_allclose(found[layer], experiment.circuits(masks).mean(1), atol=1e-9)
    assert np.abs(found - experiment.clean.mean()).max() > 0.01


@families
def test_positions_that_prompts_share_can_be_left_out_of_every_run(family: str) -> None:
    """The shared part is longer than the window of local layers."""
    subject = double(family)
    assert subject.tracer.prefix_cache.on, subject.tracer.prefix_cache
    pairs = random_pairs(3, 11, shared=7)
    short, full = (subject.experiment(pairs, prefix_cache=cached) for cached in (True, False))
    assert [run.ids.shape for run in (short.batches[0].clean, full.batches[0].clean)] == [(3, 4), (3, 11)]
    masks = random_masks(subject.graph.n_edges, (0.0, 0.3, 0.8, 1.0))
    edges = subject.some_edges(17)
    np.testing.assert_allclose(short.clean, full.clean, atol=1e-9)
    np.testing.assert_allclose(short.circuits(masks), full.circuits(masks), atol=1e-9)
    np.testing.assert_allclose(short.edge_effects(edges), full.edge_effects(edges), atol=1e-9)
    np.testing.assert_allclose(short.attributions([0.5, 1.0]), full.attributions([0.5, 1.0]), atol=1e-6, rtol=1e-5)
    assert np.abs(full.edge_effects(edges)).max() > 0.01


@families
@pytest.mark.parametrize("tile", [1, 3, 7])
def test_attribution_in_tiles_of_senders_equals_attribution_of_all_at_once(family: str, tile: int) -> None:
    subject = double(family)
    batch = subject.experiment().batches[0]
    change = difference(batch.clean, batch.base)
    loss = partial(measure, Metric.LOGIT_DIFFERENCE, answers=AnswerTokens.of(PAIRS))
    gradients = gradients_at(subject.tracer, batch.clean, batch.clean.stream[0], loss)
    whole, tiled = (attribute(subject.tracer, subject.graph, change, gradients, tile=size) for size in (None, tile))
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=1e-5)
    assert whole.abs().max() > 0.01


@families
@pytest.mark.parametrize("direction", Direction)
def test_attribution_layer_by_layer_and_from_the_recorded_run_equals_that_of_a_run_of_its_own(
    family: str, direction: Direction
) -> None:
    subject = double(family)
    plain, by_layer, reused = (
        subject.experiment(direction=direction, **how)
        for how in ({"checkpointing": False}, {"checkpointing": True}, {"keep_gradients": True})
    )
    for points in ([1.0], [0.0, 0.3]):
        expected = plain.attributions(points)
        np.testing.assert_allclose(by_layer.attributions(points), expected, atol=1e-6)
        np.testing.assert_allclose(reused.attributions(points), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.01
