"""Gradient scores against exact effects, node gradients and their own average."""

import copy

import torch
from torch import Tensor, nn

from circuits.graph import Node, NodeKind
from tests.reference.anatomy import anatomy_of
from tests.reference.gradients import gradient_edge_scores
from tests.reference.hooks import exact_edge_effects, sender_values
from tests.reference.small_models import close, logit_difference, pairs, some_edges

CLEAN, CORRUPTED = pairs()


def test_gradient_scores_agree_with_exact_effects_when_the_difference_is_small(double: nn.Module) -> None:
    """Tokens 36-59 embed almost as tokens 6-29 do, so corrupting a prompt by +30 is a step of 1e-5."""
    nearby, generator = copy.deepcopy(double), torch.Generator().manual_seed(5)
    table = nearby.get_input_embeddings().weight
    with torch.no_grad():
        table[36:60] = table[6:30] + 1e-5 * torch.randn(24, table.shape[1], generator=generator)
    clean = torch.randint(6, 30, (3, 6), generator=generator)
    graph, edges = anatomy_of(nearby).graph, some_edges(nearby)
    exact = exact_edge_effects(nearby, clean, clean + 30, edges, logit_difference)
    estimate = gradient_edge_scores(nearby, clean, clean + 30, logit_difference)
    estimated = torch.stack([estimate[:, graph.index(edge)] for edge in edges])
    torch.testing.assert_close(estimated, exact, rtol=1e-2, atol=1e-9)
    assert float(exact.abs().median()) > 1e-7


def test_gradient_scores_into_all_receivers_add_up_to_the_senders_own(double: nn.Module) -> None:
    anatomy = anatomy_of(double)
    scores = gradient_edge_scores(double, CLEAN, CORRUPTED, logit_difference)
    clean, corrupted = sender_values(double, CLEAN), sender_values(double, CORRUPTED)
    mlp = Node(NodeKind.MLP, 0)
    output: list[Tensor] = []
    handle = anatomy.mlps[0].register_forward_hook(lambda _, __, out: output.append(out))
    total = logit_difference(double(CLEAN, use_cache=False).logits[:, -1]).sum()
    handle.remove()
    gradient = torch.autograd.grad(total, output)[0]
    expected = ((clean[mlp] - corrupted[mlp]) * gradient).sum(dim=(1, 2))
    from_sender = [i for i, edge in enumerate(anatomy.graph.edges()) if edge.sender == mlp]
    close(scores[:, from_sender].sum(1), expected, 1e-9)
    assert float(expected.abs().max()) > 0.1


def test_gradients_are_averaged_over_the_points(double: nn.Module) -> None:
    both = gradient_edge_scores(double, CLEAN, CORRUPTED, logit_difference, points=(0.0, 1.0))
    apart = [gradient_edge_scores(double, CLEAN, CORRUPTED, logit_difference, points=(p,)) for p in (0.0, 1.0)]
    close(both, (apart[0] + apart[1]) / 2, 1e-9)
    assert float((apart[0] - apart[1]).abs().max()) > 0.1
