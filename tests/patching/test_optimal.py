"""Optimal ablation: constants that lose no more than means, against hooks that put them in."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens
from circuits.errors import UsageError
from circuits.files.journal import Journal
from circuits.graph import Node, NodeKind
from circuits.patching import fitted_constants
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.tracing.optimal_constants import ConstantFit, optimal_constants
from circuits.tracing.replacements import SenderMeans, sender_means
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation, Direction, Metric
from tests.reference.anatomy import INPUT, anatomy_of
from tests.reference.hooks import hooked, last_logits, live_run, sender_values
from tests.subjects import PAIRS, Subject, clean_ids, double_of, metric_of, random_masks, random_pairs, subject_of

REFERENCE = random_pairs(6, 7, seed=21)
FAMILIES = ("llama", "gpt2")


def fitted(subject: Subject, **options: Any) -> tuple[ConstantFit, SenderMeans, SenderMeans]:
    start = sender_means(subject.tracer, [pair.corrupted for pair in REFERENCE], by_position=False)
    fit = ConstantFit.of(subject.tracer, [pair.clean for pair in REFERENCE])
    return fit, start, optimal_constants(fit, start, **options)


def by_hooks(subject: Subject, fit: ConstantFit, constants: SenderMeans) -> float:
    """The divergence, with constants put in by hooks on the model's own modules."""
    anatomy, shape = anatomy_of(subject.module), subject.graph.shape
    ((run, kept),) = fit.groups

    def of_head(layer: int) -> Any:
        first = 1 + layer * shape.senders_per_layer
        own = kept[:, first : first + shape.n_heads].repeat_interleave(shape.d_head, 1)[:, None]
        return lambda _, args: (torch.where(own, args[0], constants.z[layer]),)

    def of_mlp(layer: int) -> Any:
        own = kept[:, (layer + 1) * shape.senders_per_layer][:, None, None]
        return lambda _, __, output: torch.where(own, output, constants.mlp[layer])

    def start(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.where(kept[:, :1, None], args[0], constants.stream), *args[1:])

    with torch.no_grad(), hooked() as handles:
        own = last_logits(subject.module, run.ids).log_softmax(-1)
        handles.append(anatomy.blocks[0].register_forward_pre_hook(start))
        for layer in range(shape.n_layers):
            handles.append(anatomy.output_projections[layer].register_forward_pre_hook(of_head(layer)))
            handles.append(anatomy.mlps[layer].register_forward_hook(of_mlp(layer)))
        found = last_logits(subject.module, run.ids).log_softmax(-1)
    return float((own.exp() * (own - found)).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_hooks_and_no_larger_than_that_of_means(family: str) -> None:
    subject = double_of(family)
    fit, start, found = fitted(subject)
    before, after = float(fit.loss(start)), float(fit.loss(found))
    assert before == pytest.approx(by_hooks(subject, fit, start), rel=1e-4)
    assert after == pytest.approx(by_hooks(subject, fit, found), rel=1e-4)
    assert after < 0.9 * before


def test_at_the_optimum_the_gradient_is_nearly_nothing() -> None:
    subject = double_of("gpt2")
    fit, start, found = fitted(subject, rounds=300)

    def steepness(constants: SenderMeans) -> float:
        leaves = [value.detach().clone().requires_grad_(True) for value in (constants.stream, *constants.z)]
        moved = SenderMeans(leaves[0], tuple(leaves[1:]), constants.mlp)
        loss = fit.loss(moved, gradients=True)
        return max(float(each.abs().max()) for each in torch.autograd.grad(loss, leaves))

    assert steepness(found) < 0.05 * steepness(start)


@pytest.mark.parametrize("family", FAMILIES)
def test_circuits_over_constants_equal_runs_of_hooks_that_are_given_them(family: str) -> None:
    subject = double_of(family)
    _, _, constants = fitted(subject)
    options = Options(ablation=Ablation.OPTIMAL)
    experiment = PatchingExperiment(subject.tracer, subject.graph, PAIRS, options, reference=REFERENCE)
    like = sender_values(subject.module, clean_ids())
    base = dict[Node, Tensor]()
    for node, value in like.items():
        if node.kind is NodeKind.HEAD:
            heads = list(range(subject.graph.shape.n_heads))
            made = subject.tracer.anatomy.head_outputs(node.layer, constants.z[node.layer].to(value), heads)
            base[node] = made[0, node.index].expand_as(value)
        else:
            own = constants.stream if node == INPUT else constants.mlp[node.layer]
            base[node] = own.to(value).expand_as(value)
    every = list(subject.graph.edges())
    masks = random_masks(subject.graph.n_edges, (0.0, 0.3, 0.9))
    for mask, found in zip(masks, experiment.circuits(masks), strict=True):
        live = [every[place] for place in np.flatnonzero(mask)]
        logits = live_run(subject.module, clean_ids(), base=base, live=live)
        np.testing.assert_allclose(found, metric_of(Metric.LOGIT_DIFFERENCE)(logits).numpy(), atol=1e-5)
    effects = experiment.edge_effects(subject.some_edges(9))
    assert np.abs(effects - subject.experiment(ablation=Ablation.MEAN).edge_effects(subject.some_edges(9))).max() > 0.01


def measured(subject: Subject, reference: tuple[TokenPair, ...] = REFERENCE, **given: Any) -> PatchingExperiment:
    options = Options(ablation=Ablation.OPTIMAL)
    return PatchingExperiment(subject.tracer, subject.graph, PAIRS, options, reference=reference, **given)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each fit had, one by one."""
    found, usual = list[int](), fitted_constants.ConstantFit.of

    def counted(tracer: Tracer, prompts: Sequence[Tokens]) -> ConstantFit:
        found.append(len(prompts))
        return usual(tracer, prompts)

    monkeypatch.setattr(fitted_constants.ConstantFit, "of", counted)
    return found


def test_constants_are_fitted_once_for_the_same_weights_and_pairs(fits: list[int]) -> None:
    subject, mask = subject_of("gpt2"), random_masks(subject_of("gpt2").graph.n_edges, (0.3,))
    first = measured(subject).circuits(mask)
    np.testing.assert_array_equal(measured(subject).circuits(mask), first)
    assert len(fits) == 1
    passes, usual = list[Any](), Tracer.run

    def counted(tracer: Tracer, *args: Any, **given: Any) -> None:
        passes.append(args)
        usual(tracer, *args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracer, "run", counted)
        fitted_constants.fitted_constants(subject.tracer, REFERENCE)
        assert not passes
        fitted_constants.fitted_constants(subject.tracer, REFERENCE[:3])
        assert passes
    assert len(fits) == 2


def test_other_pairs_and_other_weights_are_fitted_anew(fits: list[int]) -> None:
    subject = subject_of("gpt2")
    mask = random_masks(subject.graph.n_edges, (0.3,))
    first = measured(subject).circuits(mask)
    other = (*REFERENCE[:-1], replace(REFERENCE[-1], corrupted=REFERENCE[0].corrupted))
    assert np.abs(measured(subject, other).circuits(mask) - first).max() > 0
    assert len(fits) == 2
    with torch.no_grad():
        next(iter(subject.module.parameters())).mul_(1.1)
    changed = measured(subject).circuits(mask)
    assert len(fits) == 3
    fresh = Subject("gpt2", copy.deepcopy(subject.module))
    np.testing.assert_allclose(changed, measured(fresh).circuits(mask), rtol=1e-6)
    assert len(fits) == 4


def test_a_resumed_run_takes_constants_from_its_journal(fits: list[int], tmp_path: Path) -> None:
    found = list[Any]()
    for resume in (False, True):
        subject = subject_of("llama")  # another process has a model of its own
        with Journal(tmp_path / "journal", resume=resume) as journal:
            experiment = measured(subject, shelf=journal.shelf(model="the same"))
            found.append(experiment.corrupted)
    np.testing.assert_array_equal(*found)
    assert len(fits) == 1


def test_it_needs_reference_pairs_and_predictions() -> None:
    subject = double_of("llama")
    with pytest.raises(UsageError, match=r"optimal ablation takes means over reference pairs.*there are none"):
        PatchingExperiment(subject.tracer, subject.graph, PAIRS, Options(ablation=Ablation.OPTIMAL))
    with pytest.raises(UsageError, match="optimal ablation has no corrupted run"):
        Options(ablation=Ablation.OPTIMAL, direction=Direction.DENOISING)
    projection = Options(Metric.PROJECTION, Ablation.OPTIMAL)
    with pytest.raises(UsageError, match="keeps next-token predictions, and the metric projection reads none"):
        PatchingExperiment(subject.tracer, subject.graph, PAIRS, projection, reference=REFERENCE)
