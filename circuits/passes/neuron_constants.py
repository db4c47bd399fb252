"""Optimal ablation of neurons: the constant of each that disturbs the model least when sets of them are replaced.

As that of senders (:mod:`circuits.tracing.optimal_constants`): the divergence from the model's own predictions over
clean prompts, in each of which a random set of neurons is replaced, of a share between none and all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.behaviours.tokens import Tokens
from circuits.memory.batching import by_length
from circuits.tracing.optimal_constants import PROMPTS, ROUNDS, chosen, divergence, least
from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import Recorder
from circuits.tracing.tracer import Tracer

Constants = Mapping[int, Float[Tensor, "1 neuron"]]
"""Values of the neurons of some layers, for all positions."""


@dataclass(frozen=True)
class NeuronFit:
    """Prompts with the model's own predictions, and the neurons of each layer that are kept in each."""

    tracer: Tracer
    groups: tuple[tuple[Tensor, Tensor, Mapping[int, Bool[Tensor, "row 1 neuron"]]], ...]

    @classmethod
    def of(cls, tracer: Tracer, prompts: Sequence[Tokens], widths: Mapping[int, int], seed: int = 0) -> "NeuronFit":
        """Run prompts, and draw which neurons are kept. Cost: a forward pass of the first :data:`PROMPTS`."""
        prompts, groups = prompts[:PROMPTS], list[tuple[Tensor, Tensor, dict[int, Tensor]]]()
        generator, device = torch.Generator().manual_seed(seed), tracer.anatomy.device
        for members in by_length(map(len, prompts), lambda _: PROMPTS):
            ids, recorder = torch.tensor([prompts[place] for place in members], device=device), Recorder()
            tracer.run(ids, Plan(logits=recorder.keep_logits))
            shares = torch.rand(len(ids), 1, 1, generator=generator)
            kept = {
                layer: (torch.rand(len(ids), 1, width, generator=generator) < shares).to(device)
                for layer, width in widths.items()
            }
            groups.append((ids, recorder.logits, kept))
        return cls(tracer, tuple(groups))

    def loss(self, constants: Constants, *, gradients: bool = False) -> Float[Tensor, ""]:
        """Return the mean divergence over prompts, in nats. Cost: a forward pass."""
        total = torch.zeros((), device=self.tracer.anatomy.device)
        for ids, own, kept in self.groups:
            logits = list[Tensor]()
            visits = {(at, LayerSite.NEURONS): partial(chosen, kept[at], each) for at, each in constants.items()}
            self.tracer.run(ids, Plan(visits=visits, logits=logits.append), gradients=gradients)
            total = total + divergence(own, logits[0])
        return total / sum(len(ids) for ids, _, _ in self.groups)


def optimal_neurons(fit: NeuronFit, start: Constants, *, rounds: int = ROUNDS) -> dict[int, Float[Tensor, "1 neuron"]]:
    """Return constants of a loss no larger than that of ``start``. Cost: see ``optimal_constants.least``."""

    def loss(values: Sequence[Tensor], gradients: bool) -> Tensor:
        return fit.loss(dict(zip(start, values, strict=True)), gradients=gradients)

    return dict(zip(start, least(loss, list(start.values()), rounds=rounds), strict=True))
