r"""Gradients with respect to the mask: what every edge is worth inside a circuit, to first order.

In a circuit with weights ``w``, a receiver reads ``base_v + sum over u of w_uv (current_u - base_u)``; with weights 0
and 1 that is the masked run. The derivative of a metric with respect to ``w_uv`` is
``sum over positions of <current_u - base_u, gradient at what v reads>``, both taken inside the circuit, where values of
edges that are left out are the base's. At the whole model this is EAP (arXiv:2310.10348).

The pass notes its reads and writes on a tape. On the way back, the gradient at a read gives those of all its edges in
one matrix product per pair with the senders' changes, and adds to the senders' own gradients, which the write then
hands on. Beside the changes this takes one more array of their size, and a number per pair and edge; no derivative is
stored per edge and position.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from circuits.graph import ComputationalGraph
from circuits.numbering import edges_into, fan_in_of, idle_edges
from circuits.passes.masked import NOTHING_WITHIN, Changes, MaskedPass, Visits, needed_senders
from circuits.passes.role_sums import RoleSums
from circuits.tracing.plan import Plan
from circuits.tracing.runs import Columns, Run
from circuits.tracing.taps import Loss
from circuits.tracing.tracer import Tracer


def mask_gradient(
    tracer: Tracer,
    graph: ComputationalGraph,
    base: Run,
    changes: Changes,
    weights: NDArray[np.float64],
    loss: Loss,
    *,
    among: NDArray[np.bool_],
    columns: Columns | None = None,
    within: Visits = NOTHING_WITHIN,
    inputs: Sequence[Tensor] = (),
    roles: RoleSums | None = None,
) -> tuple[Float[Tensor, " pair"], Float[Tensor, "pair edge"]]:
    """Return the loss of a weighted circuit for each pair, and its gradient with respect to every weight.

    Edges that neither have a weight nor are ``among`` those of interest get the gradient 0. ``within`` visits layers'
    neurons; leaves of what it does there are given as ``inputs``, and have their gradients afterwards. ``roles`` are
    those of the positions, for a graph with roles. Cost: one forward and one backward pass of the layers that all these
    edges lead through.
    """
    if (idle := idle_edges(graph)) is not None:
        among, weights = among & ~idle, np.where(idle, 0.0, weights)
    live = among | (weights != 0)
    needed = needed_senders(graph, live, tuple(changes), recorded=base.recorded)
    wide = torch.promote_types(base.stream[0].dtype, torch.float32)
    tape = _Tape(graph, torch.as_tensor(weights, dtype=wide, device=base.ids.device), len(base.ids))
    masked = MaskedPass(tracer, graph, base, changes, live[None], needed, tape=tape, within=within, roles=roles)
    try:
        masked.run(0, graph.shape.n_layers)
        values = loss(_unembedded(tracer, base, masked.final(), columns))
        if values.requires_grad:
            tape.gradients = torch.zeros_like(masked.changes[0])
            torch.autograd.backward(values.sum(), inputs=[tape.start, *inputs])
    finally:
        tape.forget()
    tape.found[:, torch.as_tensor(~live, device=tape.found.device)] = 0
    return values.detach(), tape.found


def _unembedded(
    tracer: Tracer, base: Run, final: Float[Tensor, "1 1 pair 1 d_model"], columns: Columns | None
) -> Float[Tensor, "pair d_vocab"]:
    logits: list[Tensor] = []
    stream = final.flatten(0, 2)
    plan = Plan(start=tracer.anatomy.shape.n_layers, stream=stream, logits=logits.append, columns=columns)
    tracer.run(base.ids[:, -1:], plan, gradients=True)
    return logits[0]


class _Tape:
    """The reads and writes of one pass of one circuit; a token makes each write wait for all later reads' gradients."""

    def __init__(self, graph: ComputationalGraph, weights: Float[Tensor, " edge"], pairs: int) -> None:
        self.graph, self.weights = graph, weights
        self.start = torch.zeros((), device=weights.device, requires_grad=True)
        self.token = self.start
        self.found = weights.new_zeros(pairs, len(weights))
        self.gradients = torch.empty(0)

    def read(
        self, masked: MaskedPass, receivers: list[int], base: Float[Tensor, "pair pos d_model"], positions: slice
    ) -> Float[Tensor, "1 receiver pair pos d_model"]:
        return _READ(self.token, _Reading(self, masked, receivers, base, positions))

    def write(self, masked: MaskedPass, places: list[int], made: Float[Tensor, "1 sender pair pos d_model"]) -> None:
        self.token = _WRITE(self.token, made[0], self, masked, places)

    def forget(self) -> None:
        """Let go of the pass: a tape that holds its token is part of a cycle through autograd, which gc cannot see."""
        self.token, self.gradients = self.start, torch.empty(0)


class _Reading:
    """What some receivers read: forward the sum of weighted changes, backward the gradients of weights and changes."""

    def __init__(
        self,
        tape: _Tape,
        masked: MaskedPass,
        receivers: list[int],
        base: Float[Tensor, "pair pos d_model"],
        positions: slice,
    ) -> None:
        self.tape, self.masked, self.base, self.positions = tape, masked, base, positions
        fan_in = fan_in_of(tape.graph, receivers[0])
        self.senders = np.asarray(masked.needed[: np.searchsorted(masked.needed, fan_in)], dtype=np.int64)
        self.roles = None if masked.roles is None else masked.roles.at(positions)
        by_role = () if self.roles is None else (self.roles.n,)
        into = [edges_into(tape.graph, receiver) for receiver in receivers]
        blocks = [np.arange(each.start, each.stop).reshape(*by_role, fan_in) for each in into]
        edges = np.stack(blocks)[..., self.senders]
        self.edges: Int[Tensor, "receiver *role sender"] = torch.as_tensor(edges, device=tape.weights.device)

    def forward(self) -> Float[Tensor, "receiver pair pos d_model"]:
        total = self.base.to(self.edges.device, self.masked.wide).expand(len(self.edges), *self.base.shape)
        for places, layer in self._parts():
            total = total + (self._sum(places) if layer is None else self._written(layer, self._sum(places)))
        return total.to(self.base.dtype)

    def backward(self, gradient: Float[Tensor, "receiver pair pos d_model"]) -> None:
        for places, layer in self._parts():
            pulled = gradient.to(self.masked.wide)
            if layer is not None:
                with torch.enable_grad():
                    total = self._sum(places).requires_grad_(True)
                    (pulled,) = torch.autograd.grad(self._written(layer, total), total, pulled)
            self._give(places, pulled)

    def _give(self, places: Int[Tensor, " place"], pulled: Float[Tensor, "receiver pair pos d_model"]) -> None:
        """Add the gradients of weights, and those that go on to the senders."""
        tape, weights, changes = self.tape, self._weights(places), self._changes(places)
        if self.roles is not None:
            worth = self.roles.worth(pulled.transpose(0, 1), changes.transpose(0, 1))
            tape.found[:, self.edges[..., places]] += worth
            tape.gradients[places, :, self.positions] += self.roles.handed_back(weights, pulled)
            return
        by_pair = (pulled.flatten(2).transpose(0, 1), changes.flatten(2).permute(1, 2, 0))
        tape.found[:, self.edges[:, places]] += torch.bmm(*by_pair)
        back = weights.T, pulled.flatten(1)
        if len(places) == len(self.senders) and pulled.shape[2] == tape.gradients.shape[2]:
            tape.gradients[: len(places)].flatten(1).addmm_(*back)  # in place: an array of all changes' size less
        else:
            tape.gradients[places, :, self.positions] += torch.mm(*back).reshape(len(places), *pulled.shape[1:])

    def _parts(self) -> Iterator[tuple[Int[Tensor, " place"], int | None]]:
        """Part the senders into those that add to the stream, and heads of layers with a norm behind their sum."""
        summed, normed = self.masked.how_read(np.arange(len(self.senders)))
        parts: list[tuple[NDArray[np.int64], int | None]] = [(summed, None), *((v, k) for k, v in normed.items())]
        for places, layer in parts:
            if len(places):
                yield torch.as_tensor(places, device=self.edges.device), layer

    def _weights(self, places: Int[Tensor, " place"]) -> Float[Tensor, "receiver *role place"]:
        return self.tape.weights[self.edges[..., places]]

    def _changes(self, places: Int[Tensor, " place"]) -> Float[Tensor, "place pair pos d_model"]:
        changes = self.masked.changes[0, : len(self.senders), :, self.positions]
        return changes if len(places) == len(changes) else changes[places]

    def _sum(self, places: Int[Tensor, " place"]) -> Float[Tensor, "receiver pair pos d_model"]:
        changes = self._changes(places)
        if self.roles is not None:
            return self.roles.carried(self._weights(places), changes)
        return (self._weights(places) @ changes.flatten(1)).reshape(-1, *changes.shape[1:])

    def _written(
        self, layer: int, total: Float[Tensor, "receiver pair pos d_model"]
    ) -> Float[Tensor, "receiver pair pos d_model"]:
        """Return what a sum of heads' changes does to the stream behind the layer's norm."""
        before = self.masked.base.attention[layer][:, self.positions]
        anatomy = self.masked.tracer.anatomy
        after = (before + anatomy.at(layer, total)).to(before.dtype)
        return (anatomy.written(layer, after) - anatomy.written(layer, before)).to(total.device)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, reading: _Reading) -> Tensor:
        del token
        ctx.reading = reading
        return reading.forward().unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.reading.backward(gradients[0][0])
        return torch.zeros((), device=gradients[0].device), None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, made: Tensor, tape: _Tape, masked: MaskedPass, places: list[int]) -> Tensor:
        masked.changes[0, places] = made
        ctx.tape, ctx.places = tape, places
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        return gradients[0], ctx.tape.gradients[ctx.places], None, None, None


_READ: Callable[..., Tensor] = cast(Any, _Read).apply
_WRITE: Callable[..., Tensor] = cast(Any, _Write).apply
