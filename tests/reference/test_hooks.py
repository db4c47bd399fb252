"""The oracle itself is checked against direct computations and against its own other half."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from circuits.graph import Edge, Node, NodeKind, Receiver
from tests.reference.anatomy import INPUT, anatomy_of
from tests.reference.gradients import gradient_edge_scores
from tests.reference.hooks import (
    clean_run,
    exact_edge_effect,
    exact_edge_effects,
    live_run,
    masked_run,
    sender_values,
)
from tests.reference.small_models import close, logit_difference, pairs, small_gpt2, some_edges

CLEAN, CORRUPTED = pairs()


def hooks_of(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def test_a_model_in_training_mode_is_refused(model: nn.Module) -> None:
    model.train()
    try:
        with pytest.raises(ValueError, match="eval"):
            sender_values(model, CLEAN)
    finally:
        model.eval()


# ------------------------------------------------------------------------------------------------------------- senders


def test_senders_and_output_biases_add_up_to_the_final_residual(model: nn.Module) -> None:
    anatomy, seen = anatomy_of(model), []
    handle = anatomy.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    clean_run(model, CLEAN)
    handle.remove()
    values = sender_values(model, CLEAN)
    assert tuple(values) == anatomy.graph.senders
    biases = sum(anatomy.attention_bias(layer) for layer in range(anatomy.shape.n_layers))
    close(sum(values.values()) + biases, seen[0])


def test_a_bias_left_out_of_the_sum_would_be_noticed() -> None:
    anatomy = anatomy_of(small_gpt2())
    assert float(anatomy.attention_bias(1).detach().abs().max()) > 0.1


def test_senders_are_also_recorded_for_another_embedding(model: nn.Module) -> None:
    plain = sender_values(model, CLEAN)
    replayed = sender_values(model, CORRUPTED, embedding=plain[INPUT])
    for node, value in plain.items():
        close(replayed[node], value)


# ------------------------------------------------------------------------------------------- circuits: the end points


def test_all_edges_live_is_the_clean_run(model: nn.Module) -> None:
    close(masked_run(model, CLEAN, CORRUPTED, list(anatomy_of(model).graph.edges())), clean_run(model, CLEAN))


def test_no_edge_live_is_the_corrupted_run(model: nn.Module) -> None:
    close(masked_run(model, CLEAN, CORRUPTED, []), clean_run(model, CORRUPTED))


def test_all_edges_live_is_the_clean_run_under_zero_ablation_too(model: nn.Module) -> None:
    edges = list(anatomy_of(model).graph.edges())
    close(masked_run(model, CLEAN, CORRUPTED, edges, ablation="zero"), clean_run(model, CLEAN))


def test_no_edge_live_under_zero_ablation_reads_the_output_biases_alone(model: nn.Module) -> None:
    anatomy = anatomy_of(model)
    x = torch.zeros(len(CLEAN), anatomy.shape.d_model)
    for layer in range(anatomy.shape.n_layers):
        x = x + anatomy.attention_bias(layer)
    close(masked_run(model, CLEAN, CORRUPTED, [], ablation="zero"), model.lm_head(anatomy.final_norm(x)))


def test_half_the_edges_give_neither_end_point(model: nn.Module) -> None:
    logits = masked_run(model, CLEAN, CORRUPTED, list(anatomy_of(model).graph.edges())[::2])
    for end in (CLEAN, CORRUPTED):
        assert float((logits - clean_run(model, end)).abs().max()) > 0.1


# ------------------------------------------------------------------------------------------------------- single edges


def test_an_edge_into_the_logits_equals_the_final_norm_of_the_changed_residual(model: nn.Module) -> None:
    anatomy = anatomy_of(model)
    clean, corrupted = sender_values(model, CLEAN), sender_values(model, CORRUPTED)
    biases = sum(anatomy.attention_bias(layer) for layer in range(anatomy.shape.n_layers))
    logits = Receiver(Node(NodeKind.LOGITS))
    for sender in (INPUT, Node(NodeKind.HEAD, 1, 3), Node(NodeKind.MLP, 2)):
        x = sum(clean.values()) + biases - clean[sender] + corrupted[sender]
        changed = model.lm_head(anatomy.final_norm(x))[:, -1]
        expected = logit_difference(clean_run(model, CLEAN)) - logit_difference(changed)
        actual = exact_edge_effect(model, CLEAN, CORRUPTED, Edge(sender, logits), logit_difference)
        close(actual, expected)
        assert float(actual.abs().max()) > 0.01


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_an_edge_effect_is_the_masked_run_with_one_edge_replaced(double: nn.Module, direction: str) -> None:
    every = list(anatomy_of(double).graph.edges())
    edges = some_edges(double)
    effects = exact_edge_effects(double, CLEAN, CORRUPTED, edges, logit_difference, direction=direction)
    clean, corrupted = logit_difference(clean_run(double, CLEAN)), logit_difference(clean_run(double, CORRUPTED))
    for edge, effect in zip(edges, effects, strict=True):
        others = [other for other in every if other != edge]
        if direction == "noising":
            expected = clean - logit_difference(masked_run(double, CLEAN, CORRUPTED, others))
        else:
            restored = live_run(double, CORRUPTED, base=sender_values(double, CLEAN), live=others)
            expected = logit_difference(restored) - corrupted
        close(effect, expected, 1e-9)
    assert float(effects.abs().max()) > 0.3


def test_a_zeroed_edge_is_the_masked_run_over_zeros(double: nn.Module) -> None:
    every = list(anatomy_of(double).graph.edges())
    edges = some_edges(double)[::4]
    effects = exact_edge_effects(double, CLEAN, CORRUPTED, edges, logit_difference, ablation="zero")
    clean = logit_difference(clean_run(double, CLEAN))
    for edge, effect in zip(edges, effects, strict=True):
        others = [other for other in every if other != edge]
        close(effect, clean - logit_difference(masked_run(double, CLEAN, CORRUPTED, others, ablation="zero")), 1e-9)


def test_denoising_over_zeros_restores_one_edge_of_the_run_without_an_input(double: nn.Module) -> None:
    every = list(anatomy_of(double).graph.edges())
    clean = sender_values(double, CLEAN)
    nothing = {INPUT: torch.zeros_like(clean[INPUT])}
    untouched = logit_difference(live_run(double, CORRUPTED, base=clean, live=every, override=nothing))
    for edge in some_edges(double)[::8]:
        others = [other for other in every if other != edge]
        restored = logit_difference(live_run(double, CORRUPTED, base=clean, live=others, override=nothing))
        actual = exact_edge_effect(
            double, CLEAN, CORRUPTED, edge, logit_difference, direction="denoising", ablation="zero"
        )
        close(actual, restored - untouched, 1e-9)


def test_the_sign_is_turned_for_metrics_where_lower_is_better(model: nn.Module) -> None:
    edges = some_edges(model)[:3]
    higher = exact_edge_effects(model, CLEAN, CORRUPTED, edges, logit_difference)
    lower = exact_edge_effects(model, CLEAN, CORRUPTED, edges, lambda x: -logit_difference(x), lower_is_better=True)
    close(lower, higher)


def test_clean_equal_to_corrupted_gives_every_edge_an_effect_of_zero(model: nn.Module) -> None:
    effects = exact_edge_effects(model, CLEAN, CLEAN, some_edges(model), logit_difference)
    assert float(effects.abs().max()) == 0


def test_corrupting_all_edges_out_of_a_sender_equals_replacing_the_senders_output(double: nn.Module) -> None:
    anatomy = anatomy_of(double)
    corrupted = sender_values(double, CORRUPTED)
    every = list(anatomy.graph.edges())
    for layer, head in ((0, 1), (1, 2)):
        node = Node(NodeKind.HEAD, layer, head)
        columns = slice(head * anatomy.shape.d_head, (head + 1) * anatomy.shape.d_head)

        def replace_output(
            _: nn.Module, args: tuple[Tensor, ...], output: Tensor, node=node, columns=columns
        ) -> Tensor:
            kept = args[0].clone()
            kept[..., columns] = 0
            return anatomy.output_projections[node.layer].forward(kept) + corrupted[node]

        handle = anatomy.output_projections[layer].register_forward_hook(replace_output)
        expected = clean_run(double, CLEAN)
        handle.remove()
        others = [edge for edge in every if edge.sender != node]
        close(masked_run(double, CLEAN, CORRUPTED, others), expected, 1e-9)
    mlp = Node(NodeKind.MLP, 1)
    handle = anatomy.mlps[1].register_forward_hook(lambda *_: corrupted[mlp])
    expected = clean_run(double, CLEAN)
    handle.remove()
    others = [edge for edge in every if edge.sender != mlp]
    close(masked_run(double, CLEAN, CORRUPTED, others), expected, 1e-9)


def test_the_anatomy_of_a_model_is_the_same_while_a_hook_changes_its_runs(model: nn.Module) -> None:
    plain, seen = anatomy_of(model), []
    handle = plain.blocks[1].register_forward_pre_hook(lambda *_: seen.append(anatomy_of(model)))
    clean_run(model, CLEAN)
    clean_run(model, CLEAN)
    handle.remove()
    assert [anatomy.graph.shape for anatomy in seen] == [plain.graph.shape] * 2
    close(torch.stack(seen[0].biases), torch.stack(plain.biases), 0.0)


# ------------------------------------------------------------------------------------------------ leaving no trace


def test_no_hook_is_left_behind_even_when_the_metric_fails(model: nn.Module) -> None:
    before = list(hooks_of(model))  # transformers leaves some of its own

    def failing(_: Tensor) -> Tensor:
        raise RuntimeError("metric failed")

    with pytest.raises(RuntimeError, match="metric failed"):
        exact_edge_effects(model, CLEAN, CORRUPTED, some_edges(model), failing)
    with pytest.raises(RuntimeError, match="metric failed"):
        gradient_edge_scores(model, CLEAN, CORRUPTED, failing)
    masked_run(model, CLEAN, CORRUPTED, [])
    assert list(hooks_of(model)) == before
    assert all(parameter.grad is None for parameter in model.parameters())
