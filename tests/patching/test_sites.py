"""Activation patching against plain hooks, and its end points."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.errors import PromptError, UsageError
from circuits.patching.site_results import SitePatching
from circuits.patching.sites import patch_sites
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
    whole = patch_sites(experiment, Site.RESID)
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


def of_pairs(
    per_pair: object, clean: object, corrupted: object, *, site: Site = Site.ATTN, columns: tuple[str, ...] = ()
) -> SitePatching:
    """Results of a run that is denoised, as they would be measured."""
    values = np.array(per_pair, dtype=np.float64)
    names = columns or tuple(f"t{i}" for i in range(values.shape[1]))
    ends = np.array(clean, dtype=np.float64), np.array(corrupted, dtype=np.float64)
    metric, clusters = Metric.LOGIT_DIFFERENCE, np.arange(values.shape[2])
    return SitePatching(site, Direction.DENOISING, metric, names, values, *ends, clusters)


def test_restored_is_zero_at_the_unpatched_run_and_one_at_the_other() -> None:
    values = np.array([[2.0, 6.0, 10.0]])
    noising, denoising = (replace(of_pairs(values[..., None], [10.0], [2.0]), direction=each) for each in Direction)
    assert noising.restored.tolist() == [[1, 0.5, 0]]
    assert denoising.restored.tolist() == [[0, 0.5, 1]]


def test_every_pair_is_patched_by_itself_and_the_mean_is_over_pairs(subject: Subject) -> None:
    found = patch_sites(subject.experiment(), Site.ATTN, TOKENS)
    alone = [patch_sites(subject.experiment((pair,)), Site.ATTN, TOKENS).values for pair in PAIRS]
    np.testing.assert_allclose(found.per_pair, np.stack(alone, axis=-1), atol=2e-5)
    assert np.ptp(found.per_pair, axis=-1).max() > 0.1


def test_intervals_are_those_of_a_ratio_of_means_and_missing_of_one_pair() -> None:
    generator = np.random.default_rng(0)
    clean, corrupted = 4 + generator.normal(size=40), generator.normal(size=40)
    per_pair = np.stack([corrupted, 0.5 * (clean + corrupted) + generator.normal(size=40)])[None]
    found = of_pairs(per_pair, clean, corrupted)
    assert found.intervals[0, 0].tolist() == [0, 0]
    low, high = found.intervals[0, 1]
    assert low < found.restored[0, 1] < high
    expected = 1 / np.sqrt(40) * np.std(per_pair[0, 1] - corrupted - found.restored[0, 1] * (clean - corrupted))
    assert high - low == pytest.approx(2 * 1.96 * expected / (clean - corrupted).mean(), rel=0.15)
    doubled = SitePatching(
        found.site, found.direction, found.metric, found.columns, found.per_pair, clean, corrupted, np.arange(40) // 4
    )
    assert np.ptp(doubled.intervals[0, 1]) != pytest.approx(high - low, rel=0.01)
    assert np.isnan(of_pairs([[[2.0]]], [3.0], [1.0]).intervals).all()
    assert np.isnan(of_pairs([[[2.0, 3.5]]], [3.0, 5.0], [1.0, 1.0]).intervals).all()


def test_all_positions_of_the_stream_say_that_they_restore_everything_by_construction() -> None:
    by_layer = of_pairs([[[3.0]], [[3.0]]], [3.0], [1.0], site=Site.RESID, columns=("all positions",))
    assert "1.00 by construction" in by_layer.remark
    assert "--by layer,position" in by_layer.remark
    assert "by construction" in by_layer.picture(".svg").decode()
    assert not of_pairs([[[3.0]]], [3.0], [1.0], columns=("all positions",)).remark
    assert not of_pairs([[[3.0]]], [3.0], [1.0], site=Site.RESID).remark


def texts_of(svg: str) -> str:
    """All texts of a picture, in a line."""
    return " ".join(line for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg) for line in text.split("\n"))


def test_a_picture_says_what_was_measured_and_shows_itself_in_notebooks() -> None:
    bars = of_pairs([[[2, 2.4, 3]], [[1, 1.2, 1]]], [3, 3.5, 3.25], [1, 0.5, 0.75], columns=("all positions",))
    heads = of_pairs([[[2, 2.4, 3], [1, 1.2, 1]]], [3, 3.5, 3.25], [1, 0.5, 0.75], site=Site.HEAD)
    for found, site in ((bars, "attn"), (heads, "head")):
        drawn = texts_of(found.picture(".svg", title="mine in small").decode())
        assert f"mine in small {site} of the clean run put into the corrupted run (denoising) " in drawn
        assert "logit-difference: clean 3.250, corrupted 0.750 nats; 3 pairs" in drawn
        assert found._repr_png_().startswith(b"\x89PNG")
        assert len(repr(found)) < 300
    assert "95 % interval" in texts_of(bars.picture(".svg").decode())
    assert repr(bars).count("largest share 0.69 at layer 0")


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
    for site, tokens in ((Site.MLP, None), (Site.HEAD, TOKENS)):
        found = patch_sites(experiment, site, tokens)
        alone = [patch_sites(subject.experiment((p,)), site) for p in pairs]
        np.testing.assert_allclose(found.values, np.mean([one.values for one in alone], axis=0), atol=2e-5)


def test_zero_ablation_is_refused_because_nothing_is_exchanged(subject: Subject) -> None:
    with pytest.raises(UsageError, match="leave --ablation corrupted"):
        patch_sites(subject.experiment(ablation=Ablation.ZERO), Site.RESID, TOKENS)


def test_progress_counts_layers(subject: Subject) -> None:
    calls: list[tuple[int, int]] = []
    patch_sites(subject.experiment(), Site.HEAD, TOKENS, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
