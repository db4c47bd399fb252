r"""Conductance of all edges: at every step from the corrupted to the clean embedding, what a sender changes in it.

``sum over steps and positions of <a_u(end of step) - a_u(its beginning), dm/dx_v (its middle)>``, where integrated
gradients would multiply each gradient by an equal part of the whole change. So the edges into the logits sum to the gap
between the two runs as steps get small, also where senders change in jumps (Dhamdhere et al. 2018, arXiv:1805.12233; of
edges: arXiv:2606.16920). Values at the ends of steps are taken halfway between those of their middles: no run is made
for them alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.passes.attribution import attribute
from circuits.passes.estimate import Given
from circuits.passes.gradients import gradients_by_layer
from circuits.tracing.runs import Run, difference, halfway, record
from circuits.tracing.taps import Gradients, Loss, Taps
from circuits.tracing.tracer import Tracer


@dataclass(frozen=True)
class Conductance:
    """Conductance at ``points``, the middles of steps as shares of the way; their order does not matter.

    Cost: one forward and one backward pass per point, with checkpointing two forward passes more.
    """

    points: tuple[float, ...]
    of_metric: ClassVar[bool] = True
    whole_prompts: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What it is and what it was told."""
        return f"conductance at {list(self.points)}"

    def __call__(self, given: Given) -> Float[Tensor, "pair edge"]:
        """Return every edge's conductance for each pair, from the base to the clean run."""
        tracer, graph, base, clean = given.tracer, given.graph, given.base, given.clean
        way = clean.stream[0] - base.stream[0]
        total = torch.zeros(len(clean.ids), graph.n_edges, device=way.device)
        begun, before = base, None
        for point in sorted(self.points):
            embedding = base.stream[0] + point * way
            run, gradients = _middle(tracer, clean, embedding, given.loss, checkpointing=given.checkpointing)
            if before is not None:
                end = halfway(before[0], run)
                change = difference(end, begun)
                total += attribute(tracer, graph, change, before[1], tile=given.tile, roles=given.roles)
                begun = end
            before = run, gradients
        if before is not None:
            change = difference(clean, begun)
            total += attribute(tracer, graph, change, before[1], tile=given.tile, roles=given.roles)
        return total


def _middle(
    tracer: Tracer, like: Run, embedding: Float[Tensor, "pair pos d_model"], loss: Loss, *, checkpointing: bool
) -> tuple[Run, Gradients]:
    """Return the values of the run with this embedding, and the gradients of the loss there."""
    taps = None if checkpointing else Taps()
    run = record(tracer, like.ids, like.prefix, taps=taps, embedding=embedding)
    return run, gradients_by_layer(tracer, like, embedding, loss) if taps is None else taps.of_loss(loss)
