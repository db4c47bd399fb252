"""First-order edge scores the slow way: autograd, with a copy of x_v of its own for every receiver."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from circuits.graph import Node, NodeKind, Receiver
from tests.reference.anatomy import INPUT, Anatomy, anatomy_of
from tests.reference.hooks import Ablation, MetricFn, last_logits, replacements, rewired, sender_values
from tests.reference.precision import in_float64

__all__ = ["gradient_edge_scores", "in_float64"]


def gradient_edge_scores(
    model: nn.Module,
    clean_ids: Tensor,
    corrupted_ids: Tensor,
    metric_fn: MetricFn,
    *,
    points: Sequence[float] = (1.0,),
    ablation: Ablation = "corrupted",
    stepwise: bool = False,
) -> Tensor:
    """Estimate every edge to first order, (pair, edge) in graph order: sum over positions of <a_u - a_u*, dm/dx_v>.

    The average over runs whose block-0 input is a* + point (a - a*); ``(1.0,)`` is plain EAP. In a layer with a norm
    after attention a head's difference is multiplied by that norm's Jacobian at the attention output of each such run.
    ``stepwise`` multiplies by what senders change between the means of neighbouring runs, and sums (conductance).
    """
    anatomy = anatomy_of(model)
    graph = anatomy.graph
    clean, replaced = sender_values(model, clean_ids), sender_values(model, corrupted_ids)
    replaced = replacements(replaced, ablation)
    difference = {node: clean[node] - replaced[node] for node in clean}
    scores = torch.zeros(len(clean_ids), graph.n_edges).to(clean[INPUT])
    starts = [torch.lerp(replaced[INPUT], clean[INPUT], point) for point in points]
    runs = [_gradients(model, anatomy, clean_ids, metric_fn, start) for start in starts]
    between = [{node: (a[node] + b[node]) / 2 for node in clean} for (a, _), (b, _) in pairwise(runs)]
    for place, (values, gradients) in enumerate(runs):
        if stepwise:
            ends = [replaced, *between, clean][place : place + 2]
            difference = {node: (ends[1][node] - ends[0][node]) * len(points) for node in clean}
        for i, edge in enumerate(graph.edges()):
            gradient = gradients[edge.receiver]
            if edge.sender.kind is NodeKind.HEAD and anatomy.sandwich[edge.sender.layer]:
                gradient = _before_norm(anatomy, edge.sender.layer, values, gradient)
            scores[:, i] += (difference[edge.sender] * gradient).sum(dim=(1, 2)) / len(points)
    return scores


def _gradients(
    model: nn.Module, anatomy: Anatomy, ids: Tensor, metric_fn: MetricFn, start: Tensor
) -> tuple[dict[Node, Tensor], dict[Receiver, Tensor]]:
    """Give the values of all senders in one run, and the metric's gradient with respect to what each receiver reads."""
    copies: dict[Receiver, Tensor] = {}
    values: dict[Node, Tensor] = {}

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        copies[receiver] = stream.clone()
        return copies[receiver]

    with torch.enable_grad(), rewired(anatomy, read, values.update, embedding=start.requires_grad_()):
        total = metric_fn(last_logits(model, ids)).sum()
    found = torch.autograd.grad(total, list(copies.values()))
    return {node: value.detach() for node, value in values.items()}, dict(zip(copies, found, strict=True))


def _before_norm(anatomy: Anatomy, layer: int, values: Mapping[Node, Tensor], gradient: Tensor) -> Tensor:
    """Pull a gradient with respect to the stream back through the norm after a layer's attention."""
    silent = anatomy.silent[layer].expand_as(values[INPUT])
    heads = [value for node, value in values.items() if node.kind is NodeKind.HEAD and node.layer == layer]
    with torch.enable_grad():
        output = (sum(heads) + silent).requires_grad_()
        return torch.autograd.grad(anatomy.layers[layer].added(output), output, gradient)[0]
