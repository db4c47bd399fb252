"""Circuits of whole nodes, and what every node is worth inside one, to first order.

In a circuit of nodes with weights ``w``, what a node sends to every reader is ``base_u + w_u (current_u - base_u)``;
with weights 0 and 1 that is the circuit of all edges among the nodes of weight 1. It takes one ordinary run, in which
the outputs of heads and MLPs are mixed as they are made, and one backward pass gives the derivative of each pair's
metric with respect to every weight, those of nodes outside the circuit included.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.graph import ComputationalGraph
from circuits.numbering import head_senders, mlp_sender
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.runs import Columns, Run
from circuits.tracing.taps import Loss
from circuits.tracing.tracer import Tracer


def node_gradient(
    tracer: Tracer,
    graph: ComputationalGraph,
    clean: Run,
    base: Run,
    weights: NDArray[np.float64],
    loss: Loss,
    *,
    columns: Columns | None = None,
    gradients: bool = True,
) -> tuple[Float[Tensor, " pair"], Float[Tensor, "pair sender"]]:
    """Return the loss of a circuit of weighted nodes for each pair, and its gradient with respect to every weight.

    ``weights`` has one number per sender of the graph. Without ``gradients`` these are 0. Cost: one forward pass, and
    one backward pass.
    """
    pairs = len(base.ids)
    given = torch.as_tensor(weights, dtype=base.stream[0].dtype, device=base.ids.device)
    leaf = given.repeat(pairs, 1).requires_grad_(gradients)
    logits = list[Tensor]()
    embedding = base.stream[0] + leaf[:, :1, None] * (clean.stream[0] - base.stream[0])
    plan = Plan(stream=embedding, visits=_mixing(graph, base, leaf), logits=logits.append, columns=columns)
    tracer.run(base.ids, plan, prefix=base.prefix, gradients=gradients)
    values = loss(logits[0])
    if not gradients:
        return values.detach(), torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), found


def _mixing(
    graph: ComputationalGraph, base: Run, weights: Float[Tensor, "pair sender"]
) -> dict[tuple[int, LayerSite], Visit]:
    """Return the visits that mix what heads and MLPs put out with what they have in the base run."""
    shape, visits = graph.shape, dict[tuple[int, LayerSite], Visit]()
    for layer in range(shape.n_layers):
        heads = list(head_senders(shape, layer))
        of_heads = weights[:, heads].repeat_interleave(base.z[layer].shape[-1] // shape.n_heads, dim=1)
        visits[layer, LayerSite.Z] = _Mix(base.z[layer], of_heads[:, None])
        if shape.mlps:
            place = mlp_sender(shape, layer)
            visits[layer, LayerSite.MLP_OUT] = _Mix(base.mlp[layer], weights[:, place, None, None])
    return visits


@dataclass(frozen=True)
class _Mix:
    """A visit that moves a value towards its base by a weight: 0 is the base, 1 the value itself."""

    base: Tensor
    weight: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        """Return the mixture."""
        return self.base + self.weight.to(value.device) * (value - self.base)
