"""The identities of the design, on tiny models of every family; each came from a mistake in published code."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuits.evaluation.curve import SHARES, curve
from circuits.graph import Edge, NodeKind, Receiver, Slot
from circuits.passes.attribution import _products, attribute
from circuits.passes.gradients import gradients_at
from circuits.passes.masked import run_masked
from circuits.patching.paths import Path, path_effects
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import difference, record
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation, Direction, Metric, ScorerName
from tests.reference.anatomy import anatomy_of
from tests.reference.hooks import hooked, last_logits, sender_values
from tests.subjects import (
    ABLATIONS,
    PAIRS,
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
    subject_of,
    swapped,
)
from tests.tiny import FAMILIES

METRICS = [metric for metric in Metric if metric is not Metric.PROJECTION]  # which reads no logits


def nothing_and_everything(subject: Subject) -> list[np.ndarray]:
    return [np.full(subject.graph.n_edges, live) for live in (False, True)]


# ---------------------------------------------------------------------------------------------------- 1: the end points


@pytest.mark.parametrize("metric", METRICS)
def test_1_no_live_edge_is_the_corrupted_run_and_all_live_edges_are_the_clean_run(
    subject: Subject, metric: Metric
) -> None:
    clean, corrupted = subject.logits(clean_ids()), subject.logits(corrupted_ids())
    of = metric_of(metric, clean)
    experiment = subject.experiment(metric=metric)
    none, every = experiment.circuits(nothing_and_everything(subject))
    np.testing.assert_allclose(none, of(corrupted).numpy(), atol=2e-5)
    np.testing.assert_allclose(every, of(clean).numpy(), atol=2e-5)
    np.testing.assert_allclose(experiment.corrupted, none, atol=2e-5)
    np.testing.assert_allclose(experiment.clean, every, atol=2e-5)
    assert np.abs(none - every).max() > 100 * 2e-5


def test_1_holds_for_zero_ablation_whose_empty_circuit_reads_constants_alone(subject: Subject) -> None:
    anatomy = anatomy_of(subject.module)
    stream = torch.zeros(1, anatomy.shape.d_model)
    for layer in range(anatomy.shape.n_layers):
        stream = stream + anatomy.attention_bias(layer)
    constant = subject.module.lm_head(anatomy.final_norm(stream)).expand(len(PAIRS), -1)
    experiment = subject.experiment(ablation=Ablation.ZERO)
    none, every = experiment.circuits(nothing_and_everything(subject))
    of = metric_of(Metric.LOGIT_DIFFERENCE)
    np.testing.assert_allclose(none, of(constant).numpy(), atol=2e-5)
    np.testing.assert_allclose(every, of(subject.logits(clean_ids())).numpy(), atol=2e-5)


def test_1_one_dead_edge_is_enough_to_leave_the_clean_run(subject: Subject) -> None:
    """The negative control: a mask that is nearly full is told from a full one."""
    edge = subject.index("m2->logits")
    experiment = subject.experiment()
    (found,) = experiment.circuits(all_but_one(subject.graph.n_edges, np.array([edge])))
    assert np.abs(found - experiment.clean).max() > 0.1


# -------------------------------------------------------------------------------------------- 2: order, no side effects


def test_2_effects_do_not_depend_on_the_order_or_repetition_of_edges(subject: Subject) -> None:
    experiment = subject.experiment()
    edges = subject.some_edges(5)
    order = np.random.default_rng(0).permutation(len(edges))
    straight = experiment.edge_effects(edges)
    np.testing.assert_allclose(experiment.edge_effects(edges[order]), straight[order], atol=1e-5)
    twice = experiment.edge_effects(np.concatenate([edges[:4], edges[:4]]))
    np.testing.assert_allclose(twice, np.concatenate([straight[:4], straight[:4]]), atol=1e-5)
    assert np.abs(straight).max() > 0.1


def test_2_measuring_changes_neither_masks_nor_later_measurements(subject: Subject) -> None:
    experiment = subject.experiment()
    masks = random_masks(subject.graph.n_edges, (0.2, 0.8))
    copies = [mask.copy() for mask in masks]
    edges = subject.some_edges(20)
    before = (experiment.circuits(masks), experiment.edge_effects(edges), experiment.attributions([1.0]))
    after = (experiment.circuits(masks), experiment.edge_effects(edges), experiment.attributions([1.0]))
    for first, second in zip(before, after, strict=True):
        assert first.tobytes() == second.tobytes()
    assert all(np.array_equal(mask, copy) for mask, copy in zip(masks, copies, strict=True))


# ----------------------------------------------------------------------------------------------- 3: sums over receivers


def node_scores(subject: Subject) -> dict[str, float]:
    """Mean over pairs of <change of a sender, gradient at its output>, by autograd on plain hooks."""
    module, anatomy = subject.module, anatomy_of(subject.module)
    outputs: dict[str, Tensor] = {}

    def leaf(name: str, value: Tensor) -> Tensor:
        outputs[name] = value.detach().requires_grad_(True) if name == "input" else value
        return outputs[name]

    with torch.enable_grad(), hooked() as handles:
        handles.append(anatomy.blocks[0].register_forward_pre_hook(lambda _, a: (leaf("input", a[0]), *a[1:])))
        for i in range(anatomy.shape.n_layers):
            handles.append(
                anatomy.output_projections[i].register_forward_pre_hook(lambda _, a, i=i: (leaf(f"z{i}", a[0]),))
            )
            handles.append(anatomy.mlps[i].register_forward_hook(lambda _, __, out, i=i: leaf(f"m{i}", out)))
        total = metric_of(Metric.LOGIT_DIFFERENCE)(last_logits(module, clean_ids())).sum()
    gradients = dict(zip(outputs, torch.autograd.grad(total, list(outputs.values())), strict=True))
    clean, corrupted = sender_values(module, clean_ids()), sender_values(module, corrupted_ids())
    scores: dict[str, float] = {}
    for node in subject.graph.senders:
        if node.kind is NodeKind.HEAD:
            d, h = anatomy.shape.d_head, node.index
            rows = anatomy.output_projections[node.layer]
            weight = rows.weight.T if isinstance(rows, nn.Linear) else rows.weight
            at_z = gradients[f"z{node.layer}"][..., h * d : (h + 1) * d]
            # z W_O = a, so <a - a*, g> follows from the gradient at z and the z that gives a - a*
            change = (clean[node] - corrupted[node]) @ torch.linalg.pinv(weight[h * d : (h + 1) * d])
            scores[str(node)] = float((change * at_z).sum() / len(PAIRS))
        else:
            scores[str(node)] = float(((clean[node] - corrupted[node]) * gradients[str(node)]).sum() / len(PAIRS))
    return scores


def test_3_scores_into_all_receivers_add_up_to_the_gradient_score_of_the_sender(double: Subject) -> None:
    by_edge = double.experiment().attributions([1.0])[0]
    summed = np.zeros(len(double.graph.senders))
    np.add.at(summed, double.graph.edge_senders, by_edge)
    expected = node_scores(double)
    assert list(expected) == [str(node) for node in double.graph.senders]
    assert relative(summed, np.array(list(expected.values())), at_least=0.1) < 1e-5


# ---------------------------------------------------------------------------------- 4: silent senders, batches, lengths


def silence_group(module: PreTrainedModel) -> None:
    """Let the values of the first heads of layer 1 be zero: the first key/value group, or head 0."""
    anatomy = anatomy_of(module)
    node = next(r.node for r in anatomy.graph.receivers if r.slot is Slot.V and r.node.layer == 1)
    projection, columns = anatomy.projection(Receiver(node, Slot.V))
    if isinstance(projection, nn.Linear):
        projection.weight[columns] = 0
    else:
        projection.weight[:, columns] = 0
    if projection.bias is not None:
        projection.bias[columns] = 0


def test_4_a_sender_that_says_the_same_in_both_runs_scores_exactly_zero(subject: Subject) -> None:
    quiet = subject.changed(silence_group)
    heads = range(subject.graph.shape.heads_per_group)
    silent = {quiet.graph.sender_index[Edge.parse(f"a1.h{head}->logits").sender] for head in heads}
    edges = np.flatnonzero(np.isin(quiet.graph.edge_senders, list(silent)))
    assert len(edges) > 10
    experiment = quiet.experiment()
    assert not experiment.edge_effects(edges).any()
    for points in ([1.0], [0.1, 0.5]):
        assert not experiment.attributions(points)[0, edges].any()
    others = quiet.some_edges()
    others = others[~np.isin(others, edges)]
    speaking = np.abs(experiment.edge_effects(others)).max(1)
    receivers = quiet.graph.edge_receivers[others]
    read_by_silent = [quiet.graph.receivers[r].node.layer == 1 for r in receivers]
    assert (speaking[~np.array(read_by_silent)] > 0).mean() > 0.95
    assert np.abs(subject.experiment().edge_effects(edges)).max() > 0.05


def everything(subject: Subject, pairs: tuple = PAIRS, **options: object) -> np.ndarray:
    """Every kind of measurement, one row per number and one column per pair (of attributions the mean)."""
    experiment = subject.experiment(pairs, **options)
    masks = random_masks(subject.graph.n_edges, (0.1, 0.5, 0.9, 0.97))
    parts = [experiment.clean[None], experiment.corrupted[None]]
    parts += [experiment.circuits(masks), experiment.edge_effects(subject.some_edges(11))]
    return np.concatenate(parts)


@pytest.mark.parametrize("metric", METRICS)
def test_4_results_do_not_depend_on_the_batch_size(subject: Subject, metric: Metric) -> None:
    automatic = everything(subject, metric=metric)
    attributed = subject.experiment(metric=metric).attributions([0.3, 0.9])
    for size in (1, 3):
        np.testing.assert_allclose(everything(subject, metric=metric, batch_size=size), automatic, atol=3e-5)
        found = subject.experiment(metric=metric, batch_size=size).attributions([0.3, 0.9])
        np.testing.assert_allclose(found, attributed, atol=3e-5)


@pytest.mark.parametrize("size", [None, 1, 3])
def test_4_prompts_of_several_lengths_are_measured_as_if_each_came_alone(subject: Subject, size: int | None) -> None:
    mixed = (
        *random_pairs(2, 5, seed=1),
        *random_pairs(2, 9, seed=2),
        *random_pairs(1, 5, seed=4),
    )
    order = [2, 0, 4, 3, 1]
    pairs = tuple(mixed[i] for i in order)
    together = everything(subject, pairs, batch_size=size)
    alone = np.concatenate([everything(subject, (pair,)) for pair in pairs], axis=1)
    np.testing.assert_allclose(together, alone, atol=3e-5)
    each = [subject.experiment((pair,)).attributions([1.0])[0] for pair in pairs]
    mean, spread = subject.experiment(pairs, batch_size=size).attributions([1.0])
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=3e-5)
    np.testing.assert_allclose(spread, np.std(each, axis=0, ddof=1), atol=2e-4)


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, 3), (2, 4), (3, 9)])
def test_part_of_an_experiment_is_measured_as_in_the_whole(subject: Subject, begin: int, end: int) -> None:
    pairs = (*random_pairs(2, 5, seed=1), *random_pairs(2, 9, seed=2), *random_pairs(1, 5, seed=4))
    whole = subject.experiment(pairs, batch_size=2)
    masks, edges = random_masks(subject.graph.n_edges, (0.3, 0.9)), subject.some_edges(31)
    part = whole.part(begin, end)
    assert part.n_pairs == min(end, 5) - begin
    np.testing.assert_array_equal(part.clean, whole.clean[begin:end])
    np.testing.assert_allclose(part.circuits(masks), whole.circuits(masks)[:, begin:end], atol=3e-5)
    np.testing.assert_allclose(part.edge_effects(edges), whole.edge_effects(edges)[:, begin:end], atol=3e-5)
    assert part.attributions([1.0]).shape == (2, subject.graph.n_edges)
    assert whole.n_pairs == 5


# ------------------------------------------------------------------------------------------------------ 5: accumulation


def test_5_sums_of_attributions_are_float32_when_the_model_is_bfloat16() -> None:
    """257 ones add up to 256 in bfloat16."""
    ones = torch.ones(1, 1, 257, dtype=torch.bfloat16)
    assert float((ones @ ones.mT).item()) == 256
    assert _products(ones.float().unsqueeze(2), ones.unsqueeze(2), 1, None).item() == 257


@pytest.mark.parametrize("family", FAMILIES)
def test_5_a_bfloat16_model_gives_float32_scores_near_those_of_the_float32_model(family: str) -> None:
    rounded = subject_of(family).changed(lambda module: None)
    rounded.module.to(torch.bfloat16)
    fine = rounded.changed(lambda module: None)
    fine.module.to(torch.float32)
    experiment = rounded.experiment()
    run, other = (record(rounded.tracer, ids()) for ids in (clean_ids, corrupted_ids))
    change = difference(run, other)
    gradients = gradients_at(rounded.tracer, run, run.stream[0], metric_of(Metric.LOGIT_DIFFERENCE))
    found = attribute(rounded.tracer, rounded.graph, change, gradients)
    assert run.stream[0].dtype is torch.bfloat16
    assert found.dtype is torch.float32
    edges = rounded.some_edges()
    for measured in (lambda e: e.attributions([1.0])[0], lambda e: e.edge_effects(edges).mean(1)):
        assert np.corrcoef(measured(experiment), measured(fine.experiment()))[0, 1] > 0.98
    none, every = experiment.circuits(nothing_and_everything(rounded))
    assert relative(none, experiment.corrupted) < 0.05
    assert relative(every, experiment.clean) < 0.05


# ----------------------------------------------------------------------------------------- 6: first order against exact


@pytest.mark.parametrize("direction", list(Direction))
def test_6_first_order_and_exact_scores_agree_when_the_difference_is_small(
    double: Subject, direction: Direction
) -> None:
    pairs = half_vocabulary_pairs()
    errors = []
    for scale in (1e-2, 1e-3):
        near = double.changed(bring_nearer(scale))
        experiment = near.experiment(pairs, direction=direction)
        edges = near.some_edges(3)
        exact = experiment.edge_effects(edges).mean(1)
        estimated = experiment.attributions([1.0])[0, edges]
        large = np.abs(exact) > 0.01 * np.abs(exact).max()
        assert large.sum() > 30
        errors.append(float(np.median(np.abs(estimated[large] / exact[large] - 1))))
    assert errors[1] < 5e-3
    assert 5 < errors[0] / errors[1] < 20  # the error is of first order in the scale: ten times less


# ---------------------------------------------------------------------------------------------------- 9: head isolation


def attention_inputs(
    subject: Subject, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values that reach the attention kernel of each layer, in a run of one circuit."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    kernel = nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, *args: object, **options: object) -> Tensor:
        seen.append((query.clone(), key.clone(), value.clone()))
        return kernel(query, key, value, *args, **options)

    clean, corrupted = (record(subject.tracer, ids()) for ids in (clean_ids, corrupted_ids))
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", spy)
        changes = {0: corrupted.stream[0] - clean.stream[0]}
        run_masked(subject.tracer, subject.graph, clean, changes, mask[None])
    return seen


@pytest.mark.parametrize("slot", list(Slot))
def test_9_patching_one_unit_leaves_every_other_query_key_and_value_of_its_layer_alone(
    double: Subject, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = [r for r in double.graph.receivers if r.node.layer == 1 and r.slot is slot][-1]
    mask = np.zeros(double.graph.n_edges, dtype=np.bool_)
    mask[double.index(f"input->{receiver}")] = True
    heads = [receiver.node.index] if receiver.node.kind is NodeKind.HEAD else range(double.graph.shape.n_heads)
    for head in heads:
        mask[double.index(f"a1.h{head}->logits")] = True  # else nothing downstream needs this layer
    (patched,) = attention_inputs(double, mask, monkeypatch)
    plain: list[tuple[Tensor, Tensor, Tensor]] = []
    kernel = nn.functional.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(
            nn.functional,
            "scaled_dot_product_attention",
            lambda q, k, v, *args, **options: plain.append((q, k, v)) or kernel(q, k, v, *args, **options),
        )
        double.logits(clean_ids())
    for name, here, there in zip(Slot, patched, plain[1], strict=True):
        differs = (here - there).abs().amax(dim=(0, 2, 3)) > 1e-9
        expected = [name is slot and unit == receiver.node.index for unit in range(len(differs))]
        assert differs.tolist() == expected


# ----------------------------------------------------------------------------------- 10: the fast path for single edges


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_10_the_fast_path_equals_the_masked_run_with_all_edges_but_one(double: Subject, ablation: Ablation) -> None:
    experiment = double.experiment(ablation=ablation)
    edges = double.some_edges(4)
    kinds = {(r.node.kind, r.slot) for r in (double.graph.receivers[i] for i in double.graph.edge_receivers[edges])}
    assert len(kinds) == 5  # q, k, v, MLP, logits
    expected = experiment.clean - experiment.circuits(all_but_one(double.graph.n_edges, edges))
    np.testing.assert_allclose(experiment.edge_effects(edges), expected, atol=1e-9)
    assert np.abs(expected).max() > 0.3


def test_10_denoising_equals_the_masked_run_of_the_swapped_pairs(double: Subject) -> None:
    edges = double.some_edges(9)
    reverse = double.experiment(swapped(PAIRS))
    expected = reverse.circuits(all_but_one(double.graph.n_edges, edges)) - reverse.clean
    found = double.experiment(direction=Direction.DENOISING).edge_effects(edges)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(found - double.experiment().edge_effects(edges)).max() > 0.1


# --------------------------------------------------------------------------------------------------------------- 14: KL


def test_14_kl_of_the_clean_run_is_zero_and_of_the_empty_circuit_positive(subject: Subject) -> None:
    experiment = subject.experiment(metric=Metric.KL)
    none, every = experiment.circuits(nothing_and_everything(subject))
    np.testing.assert_allclose(experiment.clean, 0, atol=1e-6)
    np.testing.assert_allclose(every, 0, atol=1e-5)
    assert none.min() > 0.05
    assert (experiment.edge_effects(subject.some_edges()).mean(1) > -1e-6).all()  # no run is nearer than the clean one


# -------------------------------------------------------------------------------------------------------- 17: the curve


def test_17_the_curve_ends_at_one_and_reports_requested_and_actual_sizes(subject: Subject) -> None:
    experiment = subject.experiment()
    points, _ = curve(experiment, score(experiment, ScorerName.EAP))
    assert points[-1].faithfulness == pytest.approx(1, abs=1e-4)
    assert points[-1].edges == subject.graph.n_edges
    assert [point.requested for point in points] == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    copies = subject.graph.copies
    for point, share in zip(points, SHARES, strict=True):
        asked = int(share * copies.sum())
        assert asked / copies.max() - 1 <= point.edges <= asked
    assert abs(points[4].faithfulness - 1) > 0.05


# --------------------------------------------------------------------------------------------------- 18: a linear model


class Scale(nn.Module):
    """A norm without statistics."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def linearise(module: PreTrainedModel) -> None:
    """Take everything that is not linear out of a model: statistics of norms, attention patterns, activations."""
    generator = torch.Generator().manual_seed(0)
    width, gpt2 = module.config.hidden_size, module.config.model_type == "gpt2"
    for block in module.transformer.h if gpt2 else module.model.layers:
        names = ("ln_1", "ln_2") if gpt2 else ("input_layernorm", "post_attention_layernorm")
        for name in names:
            setattr(block, name, Scale(getattr(block, name)))
        block.mlp = nn.Linear(width, width).to(module.dtype)
        block.mlp.weight.copy_(torch.randn(width, width, generator=generator) / width**0.5)
        block.requires_grad_(False)
        if gpt2:
            block.attn.c_attn.weight[:, :width] = 0
            block.attn.c_attn.bias[:width] = 0
        else:
            block.self_attn.q_proj.weight.zero_()
            if block.self_attn.q_proj.bias is not None:
                block.self_attn.q_proj.bias.zero_()
    if gpt2:
        module.transformer.ln_f = Scale(module.transformer.ln_f)
    else:
        module.model.norm = Scale(module.model.norm)


def test_18_on_a_linear_model_every_gradient_scorer_is_exact_whatever_its_number_of_steps(double: Subject) -> None:
    single = tuple(
        type(pair)(pair.clean, pair.corrupted, pair.answers[:1], pair.wrong_answers[:1], "", "") for pair in PAIRS
    )  # with one token each the logit difference is linear in the logits
    experiment = double.changed(linearise).experiment(single)
    edges = np.arange(double.graph.n_edges)
    exact = score(experiment, ScorerName.EXACT, Settings(edges=edges)).values
    estimates = [score(experiment, ScorerName.EAP_IG, Settings(steps=steps)).values for steps in (1, 2, 7)]
    estimates += [score(experiment, name).values for name in (ScorerName.EAP, ScorerName.CLEAN_CORRUPTED)]
    for estimate in estimates:
        assert relative(estimate, exact, at_least=1) < 1e-5
    few, many = (score(double.experiment(), ScorerName.EAP_IG, Settings(steps=steps)).values for steps in (1, 7))
    assert np.abs(few - many).max() > 0.05  # the model as it is tells the numbers of steps apart


# ------------------------------------------------------------------------------------------ 20: leaving the model alone


class VisitError(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize("error", [VisitError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize(
    "place", [(0, LayerSite.STREAM), (1, LayerSite.Q), (1, LayerSite.Z), (2, LayerSite.MLP_IN), (2, LayerSite.MLP_OUT)]
)
def test_20_a_run_that_raises_leaves_the_models_outputs_as_they_were(
    subject: Subject, place: tuple[int, LayerSite], error: type[BaseException]
) -> None:
    before = subject.logits(clean_ids())
    seen: list[Tensor] = []

    def visit(value: Tensor) -> Tensor:
        seen.append(value)
        raise error("on purpose")

    ruin = {(0, LayerSite.MLP_OUT): lambda value: value * 100} if place[0] else {}
    with pytest.raises(error, match="on purpose"):
        subject.tracer.run(clean_ids(), Plan(visits={**ruin, place: visit}))
    assert seen
    assert torch.equal(subject.logits(clean_ids()), before)
    again = record(subject.tracer, clean_ids())
    torch.testing.assert_close(again.logits, before, atol=1e-5, rtol=1e-5)


def test_eap_takes_two_forward_passes_and_one_backward_pass_and_nothing_more(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Plan] = []
    run = Tracer.run

    def counted(self: Tracer, ids: Tensor, plan: Plan, **how: Any) -> None:
        runs.append(plan)
        run(self, ids, plan, **how)

    plain = subject.experiment()
    monkeypatch.setattr(Tracer, "run", counted)
    experiment = subject.experiment(keep_gradients=True)
    expected = plain.attributions([1.0])
    runs.clear()
    made = subject.experiment(keep_gradients=True)
    np.testing.assert_allclose(made.attributions([1.0]), expected, atol=1e-5, rtol=1e-5)
    assert len(runs) == 2
    np.testing.assert_allclose(made.attributions([1.0]), expected, atol=1e-5, rtol=1e-5)
    assert len(runs) == 3, "the graph of the recorded run was used up"
    np.testing.assert_allclose(
        experiment.part(0, 2).attributions([1.0]), plain.part(0, 2).attributions([1.0]), atol=1e-5, rtol=1e-5
    )
    assert not made.batches[0].clean.logits.requires_grad


def test_20_a_run_that_raises_with_gradients_leaves_gradients_off(subject: Subject) -> None:
    experiment = subject.experiment()
    batch = experiment.batches[0]

    def failing(_: Tensor) -> Tensor:
        raise VisitError("in the metric")

    with pytest.raises(VisitError, match="in the metric"):
        gradients_at(subject.tracer, batch.clean, batch.clean.stream[0], failing)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in subject.module.parameters())
    again = record(subject.tracer, clean_ids())
    assert not again.logits.requires_grad


# ----------------------------------------------------------------------------- 21: all edges of a sender and its output


@pytest.mark.parametrize("name", ["input", "a0.h1", "a1.h3", "m0", "m1"])
def test_21_corrupting_all_edges_out_of_a_sender_equals_replacing_its_output(double: Subject, name: str) -> None:
    module, anatomy = double.module, anatomy_of(double.module)
    node = next(sender for sender in double.graph.senders if str(sender) == name)
    clean, corrupted = sender_values(module, clean_ids())[node], sender_values(module, corrupted_ids())[node]

    with hooked() as handles:
        match node.kind:
            case NodeKind.INPUT:
                hook = anatomy.blocks[0].register_forward_pre_hook(lambda _, args: (corrupted, *args[1:]))
            case NodeKind.MLP:
                hook = anatomy.mlps[node.layer].register_forward_hook(lambda *_: corrupted)
            case _:
                hook = anatomy.output_projections[node.layer].register_forward_hook(
                    lambda _, __, output: output - clean + corrupted
                )
        handles.append(hook)
        expected = metric_of(Metric.LOGIT_DIFFERENCE)(double.logits(clean_ids())).numpy()
    mask = double.graph.edge_senders != double.graph.sender_index[node]
    (found,) = double.experiment().circuits([mask])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(found - double.experiment().clean).max() > 0.01


# -------------------------------------------------------------------------------------------- 22: nothing to tell apart


@pytest.mark.parametrize("direction", list(Direction))
def test_22_identical_prompts_score_zero_everywhere(subject: Subject, direction: Direction) -> None:
    same = tuple(type(pair)(pair.clean, pair.clean, pair.answers, pair.wrong_answers, "", "") for pair in PAIRS)
    experiment = subject.experiment(same, direction=direction)
    assert not experiment.edge_effects(np.arange(subject.graph.n_edges)).any()
    assert not experiment.attributions([1.0]).any()
    assert not experiment.attributions([0.1, 0.5]).any()
    found = experiment.circuits(random_masks(subject.graph.n_edges, (0.0, 0.5, 1.0)))
    np.testing.assert_allclose(found, np.broadcast_to(experiment.clean, found.shape), atol=2e-5)


# ------------------------------------------------------------------------------------------------- 23: paths of one hop


@pytest.mark.parametrize("metric", METRICS)
def test_23_a_path_of_one_hop_is_the_exact_score_of_that_edge(double: Subject, metric: Metric) -> None:
    names = ["input->logits", "a0.h2->logits", "m1->logits", "a2.h3->logits"]
    experiment = double.experiment(metric=metric)
    paths = path_effects(experiment, [Path.parse(name, double.graph) for name in names])
    edges = experiment.edge_effects(np.array([double.index(name) for name in names]))
    np.testing.assert_allclose(paths, edges, atol=1e-7)
    assert np.abs(paths).max() > 0.01
