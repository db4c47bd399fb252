"""Integrated gradients along the way of one block's output at a time (Hanna et al. 2024, arXiv:2403.17806).

Each block's output (the input, a layer's attention, its MLP) goes from its value in the base run to that in the clean
run, while everything before it stays as it is, and what follows is recomputed. Gradients along that way say what the
senders of this block are worth, so they alone are credited. The published code credits all edges in every one of these
runs, and takes the mean over all: that is here too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.numbering import head_senders, mlp_sender
from circuits.passes.attribution import attribute
from circuits.passes.estimate import Given
from circuits.passes.gradients import gradients_from
from circuits.tracing.plan import LayerSite, Plan, Visit, put
from circuits.tracing.runs import Run, difference
from circuits.tracing.taps import Gradients, Taps


@dataclass(frozen=True)
class BlockPaths:
    """Gradients averaged over ``points`` of every block's way, as shares of it from the base to the clean value.

    With ``every`` all edges are credited in every run, as published. Cost, for ``n`` layers: ``(1 + 2 n)`` times as
    many forward and backward passes as points; half of that without ``every``, since nothing before the block is run.
    With ``every`` all layers' activations are held.
    """

    points: tuple[float, ...]
    every: bool = False
    of_metric: ClassVar[bool] = True
    whole_prompts: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What it is and what it was told."""
        return f"block paths at {list(self.points)}, every {self.every}"

    def __call__(self, given: Given) -> Float[Tensor, "pair edge"]:
        """Return the estimate of every edge for each pair."""
        graph, change = given.graph, difference(given.clean, given.base)
        total = torch.zeros(len(given.clean.ids), graph.n_edges, device=given.clean.stream[0].device)
        runs = 0
        for senders, gradients in self._along(given):
            runs += 1
            credited = None if self.every else senders
            total += attribute(
                given.tracer, graph, change, gradients, tile=given.tile, roles=given.roles, senders=credited
            )
        return total / (runs if self.every else len(self.points))

    def _along(self, given: Given) -> Iterator[tuple[range, Gradients]]:
        """Take the gradients along every block's way; return each with the senders of the block."""
        shape, find = given.graph.shape, _of_all if self.every else _of_rest
        for point in self.points:
            yield range(1), find(given, point, -1, LayerSite.STREAM)
            for layer in range(shape.n_layers):
                yield head_senders(shape, layer), find(given, point, layer, LayerSite.Z)
                if shape.has_mlp(layer):
                    place = mlp_sender(shape, layer)
                    yield range(place, place + 1), find(given, point, layer, LayerSite.MLP_OUT)


def _between(base: Tensor, clean: Tensor, point: float) -> Tensor:
    return base + point * (clean - base)


def _value(given: Given, point: float, layer: int, site: LayerSite) -> Tensor:
    """Return what a block puts out at a point of its way: the stream that enters, head outputs, what an MLP adds."""

    def of(run: Run) -> Tensor:
        return {LayerSite.STREAM: run.stream, LayerSite.Z: run.z, LayerSite.MLP_OUT: run.mlp}[site][max(layer, 0)]

    return _between(of(given.base), of(given.clean), point)


def _of_rest(given: Given, point: float, layer: int, site: LayerSite) -> Gradients:
    """Run what follows a block, and return the gradients there."""
    tracer, here, anatomy = given.tracer, given.ends[0], given.tracer.anatomy
    run = partial(gradients_from, tracer, here, loss=given.loss, checkpointing=given.checkpointing)
    value = _value(given, point, layer, site)
    if site is LayerSite.STREAM:
        return run(0, value)
    if site is LayerSite.MLP_OUT:
        after = here.stream[layer + 1]
        return run(layer + 1, after + (value - here.mlp[layer]).to(after.device))
    attention = anatomy.attention_output(layer, value)
    found = run(layer, here.stream[layer], attention=attention)
    return found if anatomy.additive else replace(found, attention={layer: attention})


def _of_all(given: Given, point: float, layer: int, site: LayerSite) -> Gradients:
    """Run everything with one block's output replaced, and return all gradients."""
    here, taps, value = given.ends[0], Taps(), _value(given, point, layer, site)
    whole = site is LayerSite.STREAM
    visits: dict[tuple[int, LayerSite], Visit] = {} if whole else {(layer, site): partial(put, value)}
    plan = Plan(stream=(value if whole else here.stream[0]).detach().clone(), visits=visits)
    given.tracer.run(here.ids, taps.added_to(plan, given.tracer.anatomy), prefix=here.prefix, gradients=True)
    return taps.of_loss(given.loss)
