"""Activation patching against plain hooks, and its end points."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.errors import PromptError, UsageError
from circuits.patching.sites import SitePatching, patch_sites
from circuits.vocabulary import Ablation, Direction, Metric, Site
from tests.reference.anatomy import anatomy_of
from tests.reference.hooks import hooked, last_logits
from tests.subjects import PAIRS, Subject, clean_ids, corrupted_ids, metric_of, random_pairs, relative

LENGTH = len(PAIRS[0].clean)
TOKENS = [f"t{i}" for i in range(LENGTH)]
CHANGED = range(2, LENGTH)
"""Positions at which the two sides differ."""


def hook_at(subject: Subject, site: Site, layer: int, change: Callable[[Tensor], Tensor]) -> object:
    """Put a hook that changes what a site carries; heads are changed before the output projection."""
    anatomy = anatomy_of(subject.module)
    match site:
        case Site.RESID:
            return anatomy.blocks[layer].register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
        case Site.ATTN:
            return anatomy.output_projections[layer].register_forward_hook(lambda _, __, out: change(out))
        case Site.MLP:
            return anatomy.mlps[layer].register_forward_hook(lambda _, __, out: change(out))
        case Site.HEAD:
            return anatomy.output_projections[layer].register_forward_pre_hook(lambda _, args: (change(args[0]),))


@torch.no_grad()
def patched_with_hooks(subject: Subject, site: Site, layer: int, column: int, direction: Direction) -> float:
    """One place, measured with plain hooks only."""
    ids, other_ids = clean_ids(), corrupted_ids()
    if direction is Direction.DENOISING:
        ids, other_ids = other_ids, ids
    seen: list[Tensor] = []

    def look(value: Tensor) -> Tensor:
        seen.append(value.clone())
        return value

    def mix(value: Tensor) -> Tensor:
        mixed = value.clone()
        d = anatomy_of(subject.module).shape.d_head
        place = (..., slice(column * d, (column + 1) * d)) if site is Site.HEAD else (slice(None), column)
        mixed[place] = seen[0][place]
        return mixed

    with hooked() as handles:
        handles.append(hook_at(subject, site, layer, look))
        last_logits(subject.module, other_ids)
    with hooked() as handles:
        handles.append(hook_at(subject, site, layer, mix))
        return float(metric_of(Metric.LOGIT_DIFFERENCE)(last_logits(subject.module, ids)).mean())


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("site", list(Site))
def test_every_place_equals_a_run_with_plain_hooks(subject: Subject, site: Site, direction: Direction) -> None:
    found = patch_sites(subject.experiment(direction=direction), site, TOKENS)
    shape = subject.graph.shape
    columns = shape.n_heads if site is Site.HEAD else LENGTH
    expected = np.array(
        [
            [patched_with_hooks(subject, site, layer, column, direction) for column in range(columns)]
            for layer in range(shape.n_layers)
        ]
    )
    assert relative(found.values, expected, at_least=0.1) < 1e-4
    assert np.ptp(found.values) > 0.1
    assert found.columns == (tuple(f"h{head}" for head in range(shape.n_heads)) if site is Site.HEAD else tuple(TOKENS))


def test_the_stream_at_the_last_position_of_the_last_layer_carries_what_no_later_attention_can_add(
    subject: Subject,
) -> None:
    """Patching every position of the last layer's stream gives the other run; its last position alone does not."""
    experiment = subject.experiment(direction=Direction.DENOISING)
    whole = patch_sites(experiment, Site.RESID, TOKENS, by_position=False)
    assert whole.columns == ("all positions",)
    np.testing.assert_allclose(whole.values, experiment.clean.mean(), atol=2e-5)
    np.testing.assert_allclose(whole.restored, 1, atol=2e-5)


@pytest.mark.parametrize("direction", list(Direction))
def test_patching_where_both_prompts_agree_changes_nothing(subject: Subject, direction: Direction) -> None:
    experiment = subject.experiment(direction=direction)
    start = experiment.clean if direction is Direction.NOISING else experiment.corrupted
    for site in (Site.RESID, Site.ATTN, Site.MLP):
        found = patch_sites(experiment, site, TOKENS)
        np.testing.assert_allclose(found.values[:, :2], start.mean(), atol=2e-5)
        np.testing.assert_allclose(found.restored[:, :2], 0, atol=1e-4)
        assert np.abs(found.restored[:, LENGTH - 1]).max() > 0.01


def test_restored_is_zero_at_the_unpatched_run_and_one_at_the_other() -> None:
    values = np.array([[2.0, 6.0, 10.0]])
    noising = SitePatching(Site.RESID, Direction.NOISING, ("a", "b", "c"), values, clean=10.0, corrupted=2.0)
    denoising = SitePatching(Site.RESID, Direction.DENOISING, ("a", "b", "c"), values, clean=10.0, corrupted=2.0)
    assert noising.restored.tolist() == [[1, 0.5, 0]]
    assert denoising.restored.tolist() == [[0, 0.5, 1]]


def test_results_do_not_depend_on_the_batch_size(subject: Subject) -> None:
    wide = patch_sites(subject.experiment(), Site.MLP, TOKENS).values
    for size in (1, 3):
        np.testing.assert_allclose(
            patch_sites(subject.experiment(batch_size=size), Site.MLP, TOKENS).values, wide, atol=2e-5
        )


def test_prompts_of_several_lengths_are_patched_by_layer_and_head_but_not_by_position(subject: Subject) -> None:
    pairs = (*random_pairs(1, 5), *random_pairs(1, 8))
    experiment = subject.experiment(pairs)
    with pytest.raises(PromptError, match="one token length; use --by layer"):
        patch_sites(experiment, Site.RESID, TOKENS)
    for site, by_position in ((Site.MLP, False), (Site.HEAD, True)):
        found = patch_sites(experiment, site, TOKENS, by_position=by_position)
        alone = [patch_sites(subject.experiment((p,)), site, ["t"] * len(p.clean), by_position=False) for p in pairs]
        np.testing.assert_allclose(found.values, np.mean([one.values for one in alone], axis=0), atol=2e-5)


def test_zero_ablation_is_refused_because_nothing_is_exchanged(subject: Subject) -> None:
    with pytest.raises(UsageError, match="leave --ablation corrupted"):
        patch_sites(subject.experiment(ablation=Ablation.ZERO), Site.RESID, TOKENS)


def test_progress_counts_layers(subject: Subject) -> None:
    calls: list[tuple[int, int]] = []
    patch_sites(subject.experiment(), Site.HEAD, TOKENS, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
