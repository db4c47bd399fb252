"""AtP* against brute force: queries and keys replaced one by one, layers left out of backward passes by hooks."""

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.errors import UnsupportedModelError, UsageError
from circuits.graph import NodeKind, Receiver, Slot
from circuits.passes.atp_star import AtpStar
from circuits.passes.exact_patterns import pattern_changes
from circuits.passes.gradients import gradients_with_drops
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.tracing.state import foreign_hooks
from circuits.vocabulary import Direction, Metric, ScorerName
from tests.reference.anatomy import Anatomy, anatomy_of
from tests.reference.gradients import _before_norm
from tests.reference.hooks import hooked, last_logits, rewired, sender_values
from tests.reference.layers import Heads, Rest
from tests.reference.precision import in_float64
from tests.subjects import (
    PAIRS,
    Subject,
    clean_ids,
    corrupted_ids,
    double_of,
    metric_of,
    random_pairs,
    relative,
    subject_of,
)
from tests.zoo import ZOO

SEVERAL = ("llama", "gpt2", "gemma2", "qwen3", "bloom", "falcon", "gpt_neox", "mistral", "gpt_oss", "olmo2")
"""Scores that are capped, biased by distance, seen through a window; sinks; shared keys; norms of queries and keys."""
METRIC = metric_of(Metric.LOGIT_DIFFERENCE)


def double(family: str) -> Subject:
    return Subject(family, in_float64(ZOO[family]()).requires_grad_(False))


class Layers:
    """What every layer's attention reads in a run, and the metric's gradient at what its heads put out."""

    def __init__(self, subject: Subject, ids: Tensor) -> None:
        self.anatomy: Anatomy = anatomy_of(subject.module)
        self.reads: list[tuple[Tensor, Rest]] = []
        mixed: list[Tensor] = []

        def note(_: Any, args: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            self.reads.append((args[0].detach(), Rest(args[1:], options)))

        def start(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].detach().requires_grad_(), *args[1:])

        def keep(_: Any, args: tuple[Tensor, ...]) -> None:
            mixed.append(args[0])

        with torch.enable_grad(), hooked() as handles:
            handles.append(self.anatomy.blocks[0].register_forward_pre_hook(start))
            handles += [block.register_forward_pre_hook(note, with_kwargs=True) for block in self.anatomy.blocks]
            handles += [each.register_forward_pre_hook(keep) for each in self.anatomy.output_projections]
            total = METRIC(last_logits(subject.module, ids)).sum()
        heads = self.anatomy.shape.n_heads
        found = torch.autograd.grad(total, mixed)
        self.gradients = [g.reshape(*ids.shape, heads, -1).transpose(1, 2) for g in found]

    def heads(self, layer: int) -> Heads:
        return self.anatomy.layers[layer].heads(*self.reads[layer])

    @torch.no_grad()
    def worth(self, layer: int, heads: Heads) -> Tensor:
        """<what heads put out, the metric's gradient there>, by pair."""
        mixed, _ = self.anatomy.layers[layer].attend(*self.reads[layer], heads)
        return (mixed * self.gradients[layer]).sum((1, 2, 3))

    def effect(self, layer: int, slot: Slot, unit: int, position: int, other: Heads) -> Tensor:
        """What one query, or one key, of another run changes the metric by, to first order behind the pattern."""
        plain = self.heads(layer)
        changed = [each.clone() for each in plain]
        place = list(Slot).index(slot)
        changed[place][:, unit, position] = other[place][:, unit, position]
        return self.worth(layer, (changed[0], changed[1], changed[2])) - self.worth(layer, plain)


def effects(subject: Subject, ids: tuple[Tensor, Tensor], layer: int) -> dict[Slot, Tensor]:
    """(pair, pos, unit) for queries and keys, each replaced alone."""
    here, there = Layers(subject, ids[0]), Layers(subject, ids[1]).heads(layer)
    shape, length = here.anatomy.shape, ids[0].shape[1]
    return {
        slot: torch.stack(
            [
                torch.stack([here.effect(layer, slot, unit, place, there) for unit in range(units)], -1)
                for place in range(length)
            ],
            1,
        )
        for slot, units in ((Slot.Q, shape.n_heads), (Slot.K, shape.n_kv_heads))
    }


@pytest.mark.parametrize("family", SEVERAL)
def test_corrected_effects_are_those_of_replacing_queries_and_keys_one_by_one(family: str) -> None:
    subject = double(family)
    experiment = subject.experiment(prefix_cache=False)
    given = experiment.given(experiment.batches[0])
    found = {each.layer: each.plain for each in gradients_with_drops(subject.tracer, given.clean, given.loss)}
    for layer in range(subject.graph.shape.n_layers):
        expected = effects(subject, (clean_ids(), corrupted_ids()), layer)
        ours = pattern_changes(given, layer).effects(found[layer].z[layer])
        for slot, values in expected.items():
            assert float((ours[slot] - values).abs().max()) < 1e-6 * max(1.0, float(values.abs().max())), (layer, slot)
        assert max(float(values.abs().max()) for values in expected.values()) > 1e-3


def brute_force(subject: Subject, ids: tuple[Tensor, Tensor]) -> Tensor:
    """Edges into queries and keys by gradients with the corrected effects, from autograd on hooks: (pair, edge)."""
    here, there = (Layers(subject, each) for each in ids)
    clean, corrupted = (sender_values(subject.module, each) for each in ids)
    scores = torch.full((len(ids[0]), subject.graph.n_edges), torch.nan, dtype=torch.float64)
    for layer in range(subject.graph.shape.n_layers):
        corrected = effects(subject, ids, layer)
        x, rest = here.reads[layer]
        for receiver in here.anatomy.receivers(layer):
            if receiver.slot not in corrected:
                continue
            place, unit = list(Slot).index(receiver.slot), receiver.node.index
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                made = here.anatomy.layers[layer].heads(leaf, rest)
                cut = tuple(each.detach().requires_grad_() for each in made)
                mixed, _ = here.anatomy.layers[layer].attend(x, rest, cut)
                plain = torch.autograd.grad(mixed, cut[place], here.gradients[layer])[0][:, unit]
                change = (made[place] - there.heads(layer)[place])[:, unit].detach()
                missing = -corrected[receiver.slot][..., unit] - (change * plain).sum(-1)
                mended = plain + change * (missing / change.square().sum(-1)).nan_to_num(0).unsqueeze(-1)
                (pulled,) = torch.autograd.grad(made[place][:, unit], leaf, mended)
            for edge in subject.graph.edges():
                if edge.receiver == receiver:
                    found = ((clean[edge.sender] - corrupted[edge.sender]) * pulled).sum((1, 2))
                    scores[:, subject.graph.index(edge)] = found
    return scores


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edges_into_queries_and_keys_are_scored_by_the_nearest_gradient_with_the_corrected_effect(family: str) -> None:
    subject = double_of(family)
    expected = brute_force(subject, (clean_ids(), corrupted_ids())).mean(0).numpy()
    experiment, into = subject.experiment(), ~np.isnan(expected)
    found, plain = (experiment.estimates(AtpStar(drops=False, correct=each))[0] for each in (True, False))
    assert relative(found[into], expected[into], at_least=0.02) < 1e-5
    assert relative(plain[into], expected[into], at_least=0.02) > 0.05  # which the correction changes
    np.testing.assert_allclose(found[~into], plain[~into], atol=1e-6)  # and nothing else


# --------------------------------------------------------------------------------------------------------- GradDrop


def gradients_without(subject: Subject, layer: int) -> tuple[dict[Receiver, Tensor], dict[Any, Tensor]]:
    """The metric's gradient at what each receiver reads, where nothing passes back through one layer."""
    anatomy, copies, values = anatomy_of(subject.module), dict[Receiver, Tensor](), dict[Any, Tensor]()

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        copies[receiver] = stream.clone()
        return copies[receiver]

    def cut(_: Any, args: tuple[Tensor, ...], output: Any) -> Any:
        after = output[0] if isinstance(output, tuple) else output
        made = args[0] + (after - args[0]).detach()
        return (made, *output[1:]) if isinstance(output, tuple) else made

    start = sender_values(subject.module, clean_ids())[subject.graph.senders[0]].requires_grad_()
    with torch.enable_grad(), rewired(anatomy, read, values.update, embedding=start), hooked() as handles:
        handles.append(anatomy.blocks[layer].register_forward_hook(cut))
        total = METRIC(last_logits(subject.module, clean_ids())).sum()
    found = torch.autograd.grad(total, list(copies.values()), materialize_grads=True, allow_unused=True)
    return dict(zip(copies, found, strict=True)), {node: value.detach() for node, value in values.items()}


def graddrop(subject: Subject) -> Tensor:
    """Mean of |score| over the layers left out, the receiver's own one excepted, one pass each: (pair, edge)."""
    anatomy = anatomy_of(subject.module)
    clean, corrupted = (sender_values(subject.module, ids) for ids in (clean_ids(), corrupted_ids()))
    layers, total = subject.graph.shape.n_layers, torch.zeros(len(PAIRS), subject.graph.n_edges, dtype=torch.float64)
    for layer in range(layers):
        gradients, values = gradients_without(subject, layer)
        for place, edge in enumerate(subject.graph.edges()):
            gradient, sender = gradients[edge.receiver], edge.sender
            if sender.kind is NodeKind.HEAD and anatomy.sandwich[sender.layer]:
                gradient = _before_norm(anatomy, sender.layer, values, gradient)
            found = ((clean[sender] - corrupted[sender]) * gradient).sum((1, 2)).abs()
            total[:, place] += found / (layers if edge.receiver.node.kind is NodeKind.LOGITS else layers - 1)
            assert edge.receiver.node.layer != layer or not found.any()
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_sizes_are_means_over_backward_passes_that_leave_one_layer_out(family: str) -> None:
    subject = double(family)
    expected = graddrop(subject)
    mean, spread = subject.experiment().estimates(AtpStar(correct=False))
    assert relative(mean, expected.mean(0).numpy(), at_least=0.02) < 1e-5
    assert relative(spread, expected.std(0).numpy(), at_least=0.02) < 1e-4
    assert relative(np.abs(subject.experiment().attributions([1.0])[0]), mean) > 0.05


# ---------------------------------------------------------------------------------------------------- on every family


@pytest.mark.parametrize("family", list(ZOO))
def test_without_correction_and_drops_it_is_plain_attribution_and_the_model_is_as_it_was(family: str) -> None:
    subject = Subject(family, ZOO[family]())
    experiment, hooks = subject.experiment(), foreign_hooks(subject.module)
    plain = experiment.attributions([1.0])
    bare = experiment.estimates(AtpStar(drops=False, correct=False))
    assert relative(bare[0], plain[0]) < 1e-4
    scores = score(experiment, ScorerName.ATP_STAR).values
    assert np.isfinite(scores).all()
    assert relative(scores, plain[0]) > 0.02
    assert foreign_hooks(subject.module) == hooks
    np.testing.assert_array_equal(experiment.attributions([1.0]), plain)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_batches_nor_the_prefix_nor_tiles_matter(family: str) -> None:
    pairs, subject = (*random_pairs(3, 6), *random_pairs(3, 8)), subject_of(family)
    for direction in Direction:
        whole = subject.experiment(pairs, prefix_cache=False, direction=direction).estimates(AtpStar())
        for changes in ({}, {"batch_size": 2}, {"checkpointing": True}):
            found = subject.experiment(pairs, direction=direction, **changes).estimates(AtpStar())
            assert relative(found, whole) < 1e-3, changes


def test_denoising_is_noising_of_the_swapped_pairs_with_the_other_sign() -> None:
    subject = double_of("llama")
    swapped = [type(p)(p.corrupted, p.clean, p.answers, p.wrong_answers, "", "") for p in PAIRS]
    estimate = AtpStar(drops=False)
    here = subject.experiment(direction=Direction.DENOISING).estimates(estimate)[0]
    assert relative(here, -subject.experiment(swapped).estimates(estimate)[0]) < 1e-6


def test_a_score_has_the_size_of_graddrop_and_the_sign_of_the_corrected_estimate() -> None:
    experiment = subject_of("llama").experiment()
    scores = score(experiment, ScorerName.ATP_STAR)
    sizes, signed = (experiment.estimates(AtpStar(drops))[0] for drops in (True, False))
    np.testing.assert_array_equal(np.abs(scores.values), sizes)
    np.testing.assert_array_equal(np.sign(scores.values)[sizes > 0], np.sign(signed)[sizes > 0])
    frozen = score(experiment, ScorerName.ATP_STAR, Settings(freeze_norms=True, freeze_patterns=True)).values
    slots = [experiment.graph.receivers[int(receiver)].slot for receiver in experiment.graph.edge_receivers]
    assert not frozen[[slot in (Slot.Q, Slot.K) for slot in slots]].any()


@pytest.mark.parametrize("sharpness", [3, 30])
def test_the_correction_finds_what_saturated_patterns_hide_from_plain_gradients(sharpness: float) -> None:
    """Edges into queries and keys of the last layer, behind whose pattern all is nearly linear, against exact ones."""

    def sharpen(module: Any) -> None:
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight *= sharpness

    experiment = double_of("llama").changed(sharpen).experiment()
    read = [edge.receiver for edge in experiment.graph.edges()]
    into = [e for e, receiver in enumerate(read) if receiver.node.layer == 2 and receiver.slot in (Slot.Q, Slot.K)]
    exact = experiment.edge_effects(np.array(into)).mean(1)
    plain, mended = (experiment.estimates(AtpStar(drops=False, correct=each))[0][into] for each in (False, True))
    assert np.corrcoef(mended, exact)[0, 1] > np.corrcoef(plain, exact)[0, 1] + 0.05


def test_what_it_cannot_be_made_of_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("llama", ZOO["llama"]())
    with pytest.raises(UsageError, match="zero gradient at the clean run, so atp-star would not tell one edge"):
        score(subject.experiment(metric=Metric.KL), ScorerName.ATP_STAR)
    subject.module.config._attn_implementation = "eager"
    experiment, hooks = subject.experiment(), foreign_hooks(subject.module)
    messages = " \\(LlamaAttention\\) has 0 softmaxes", " shifts the scores of every query"
    for shifts, message in zip((False, True), messages, strict=True):
        attend = partial(_attend, shifts)
        monkeypatch.setattr(sys.modules[type(subject.module).__module__], "eager_attention_forward", attend)
        with pytest.raises(UnsupportedModelError, match=rf"layers\.2\.self_attn'{message}"):
            score(experiment, ScorerName.ATP_STAR)
        assert foreign_hooks(subject.module) == hooks


def _attend(
    shifts: bool, _: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **__: Any
) -> Any:
    """Attend without torch's softmax, or with it, after shifting scores so that the largest is 0."""
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = query @ key.mT * scaling + (0 if mask is None else mask)
    scores = scores - scores.amax(-1, keepdim=True)
    weights = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
    weights = scores.softmax(-1) if shifts else weights
    return (weights @ value).transpose(1, 2).contiguous(), weights
