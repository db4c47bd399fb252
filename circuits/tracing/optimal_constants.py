"""Optimal ablation (Li and Janson 2024, arXiv:2409.09951): the constant of each sender that disturbs the model least.

What is minimised is the divergence of the next-token distribution from the model's own, over clean prompts of reference
pairs, in each of which a random set of senders is replaced: of shares between none and all, so that the constants serve
circuits of any size. The sets are drawn once, so that the loss is a function of the constants alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.behaviours.tokens import Tokens
from circuits.memory.batching import by_length
from circuits.numbering import first_sender, head_senders, mlp_sender
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.replacements import SenderMeans
from circuits.tracing.runs import Run, record
from circuits.tracing.tracer import Tracer

PROMPTS, ROUNDS = 16, 20
"""Prompts that constants are fitted to, at most, and rounds of the optimiser."""


@dataclass(frozen=True)
class ConstantFit:
    """Prompts with the senders that are kept in each; ``loss`` is that of constants in their place."""

    tracer: Tracer
    groups: tuple[tuple[Run, Bool[Tensor, "row sender"]], ...]

    @classmethod
    def of(cls, tracer: Tracer, prompts: Sequence[Tokens], seed: int = 0) -> "ConstantFit":
        """Record prompts, and draw which senders are kept. Cost: a forward pass of the first :data:`PROMPTS`."""
        prompts, groups = prompts[:PROMPTS], list[tuple[Run, Tensor]]()
        shape, generator = tracer.anatomy.shape, torch.Generator().manual_seed(seed)
        senders = first_sender(shape, shape.n_layers)
        for members in by_length(map(len, prompts), lambda _: PROMPTS):
            ids = torch.tensor([prompts[place] for place in members], device=tracer.anatomy.device)
            shares = torch.rand(len(ids), 1, generator=generator)
            kept = torch.rand(len(ids), senders, generator=generator) < shares
            groups.append((record(tracer, ids), kept.to(ids.device)))
        return cls(tracer, tuple(groups))

    def loss(self, constants: SenderMeans, *, gradients: bool = False) -> Float[Tensor, ""]:
        """Return the mean divergence over prompts, in nats. Cost: a forward pass."""
        total = torch.zeros((), device=self.tracer.anatomy.device)
        for run, kept in self.groups:
            logits = list[Tensor]()
            stream = chosen(kept[:, :1, None], constants.stream, run.stream[0])
            plan = Plan(stream=stream, visits=self._visits(constants, kept), logits=logits.append)
            self.tracer.run(run.ids, plan, gradients=gradients)
            total = total + divergence(run.logits, logits[0])
        return total / sum(len(kept) for _, kept in self.groups)

    def _visits(self, constants: SenderMeans, kept: Bool[Tensor, "row sender"]) -> dict[tuple[int, LayerSite], Visit]:
        shape, visits = self.tracer.anatomy.shape, dict[tuple[int, LayerSite], Visit]()
        for layer in range(shape.n_layers):
            heads = kept[:, list(head_senders(shape, layer))].repeat_interleave(shape.d_head, dim=1)
            visits[layer, LayerSite.Z] = partial(chosen, heads[:, None], constants.z[layer])
            if shape.has_mlp(layer):
                mlp = kept[:, mlp_sender(shape, layer), None, None]
                visits[layer, LayerSite.MLP_OUT] = partial(chosen, mlp, constants.mlp[layer])
        return visits


def optimal_constants(fit: ConstantFit, start: SenderMeans, *, rounds: int = ROUNDS) -> SenderMeans:
    """Return constants of a loss no larger than that of ``start``, means that serve for all positions.

    Cost: as :func:`least`.
    """

    def loss(values: Sequence[Tensor], gradients: bool) -> Tensor:
        return fit.loss(_in_form_of(start, values), gradients=gradients)

    return _in_form_of(start, least(loss, (start.stream, *start.z, *start.mlp), rounds=rounds))


def least(
    loss: Callable[[Sequence[Tensor], bool], Float[Tensor, ""]], start: Sequence[Tensor], *, rounds: int = ROUNDS
) -> list[Tensor]:
    """Return values of a loss no larger than that of ``start``; the loss is told whether its gradients are wanted.

    Cost: about 1.3 forward and backward passes of the prompts for each of at most ``rounds`` rounds of L-BFGS.
    """
    leaves = [value.detach().clone().requires_grad_(True) for value in start]
    optimiser: Any = torch.optim.LBFGS(leaves, max_iter=rounds, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        found = loss(leaves, True)
        for leaf, slope in zip(leaves, torch.autograd.grad(found, leaves, materialize_grads=True), strict=True):
            leaf.grad = slope
        return found.detach()

    optimiser.step(closure)
    found = [leaf.detach() for leaf in leaves]
    return found if float(loss(found, False)) <= float(loss(start, False)) else list(start)


def _in_form_of(start: SenderMeans, values: Sequence[Tensor]) -> SenderMeans:
    layers = len(start.z)
    return replace(start, stream=values[0], z=tuple(values[1 : 1 + layers]), mlp=tuple(values[1 + layers :]))


def divergence(own: Float[Tensor, "row d_vocab"], found: Float[Tensor, "row d_vocab"]) -> Float[Tensor, ""]:
    """Return the divergence of next-token distributions from the model's own, in nats, summed over rows."""
    here, there = own.float().log_softmax(-1), found.float().log_softmax(-1)
    return (here.exp() * (here - there)).sum()


def chosen(kept: Tensor, constant: Tensor, value: Tensor) -> Tensor:
    """Return a value where it is kept, a constant elsewhere."""
    return torch.where(kept.to(value.device), value, constant.to(value))
