"""How much of what a receiver reads is a sender's: information flow routes (Ferrando and Voita 2024, arXiv:2403.00824).

The proximity of a sender to what a receiver reads is ``max(0, |x_v| - |x_v without u|)``, by sums of absolute values;
its importance is its share of the proximities of all senders that the receiver can read. This is taken at every
position of the clean prompts, those before the first difference included, and averaged; what the logits read, at the
last position, where alone they are read. No metric and no corrupted prompt enters: it says what is written and read,
not what of it matters, and nothing is changed to see what follows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.errors import UnsupportedModelError
from circuits.graph import ComputationalGraph, Slot
from circuits.numbering import edges_into, end_receiver, fan_in_of, mlp_receiver, slot_receivers
from circuits.passes.estimate import Given
from circuits.passes.role_sums import RoleSums
from circuits.tracing.runs import Run, sender_changes

_AT_ONCE = 2**24
"""So many numbers of senders' changes are held at a time."""


@dataclass(frozen=True)
class InformationFlow:
    """The importance of every sender for every receiver, between 0 and 1; those of one receiver sum to 1 at most.

    In a graph with roles, an edge has the part of its role's positions. Queries, keys and values of a layer read the
    same, so their edges have the same importance. Cost: one forward pass, and products of every sender with every
    stream that is read.
    """

    of_metric: ClassVar[bool] = False
    whole_prompts: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What it is."""
        return "information flow"

    def __call__(self, given: Given) -> Float[Tensor, "pair edge"]:
        """Return the importance of every edge in the clean run of each pair."""
        graph, clean = given.graph, given.clean
        if graph.shape.only is not None:
            raise UnsupportedModelError(
                "ifr shares out what the end reads of the stream, and the circuit leads to what one head writes. "
                "Use another scorer, such as eap-ig."
            )
        pairs, positions, width = clean.stream[0].shape
        size = max(1, _AT_ONCE // (len(graph.senders) * width * pairs))
        spans = [slice(begin, begin + size) for begin in range(0, positions, size)]
        scores = torch.zeros(pairs, graph.n_edges, dtype=torch.float64, device=clean.stream[0].device)
        for span in spans:
            _add(scores, given, span, _streams_of_layers(graph), 1 / positions)
        end = end_receiver(graph)
        _add(scores, given, slice(positions - 1, positions), [(range(end, end + 1), "stream", -1)], 1.0)
        return scores


_Read = tuple[range, str, int]
"""The places of receivers that read the same, and where a run has that."""


def _add(scores: Float[Tensor, "pair edge"], given: Given, span: slice, reads: Iterable[_Read], weight: float) -> None:
    """Add the importances at some positions, times a weight, to the scores of edges into some receivers."""
    roles, run = None if given.roles is None else given.roles.at(span), given.clean.at(span)
    without = _without(given, run)
    for places, kind, layer in reads:
        stream: Tensor = getattr(run, kind)[layer]
        shares = _shares(stream, without[:, : fan_in_of(given.graph, places[0])])
        found = weight * _summed(shares, roles).repeat(1, len(places))
        scores[:, edges_into(given.graph, places[0], len(places))] += found.to(scores)


def _without(given: Given, run: Run) -> Float[Tensor, "pair sender pos d_model"]:
    """Return how the stream changes when each sender, alone, writes nothing; its norm's scale included."""
    anatomy = given.tracer.anatomy
    nothing = Run(
        run.ids,
        stream=(-run.stream[0],),
        middle=(),
        z=tuple(-z for z in run.z),
        attention=(),
        mlp=tuple(-mlp for mlp in run.mlp),
        projections=(),
        logits=run.logits,
    )
    return sender_changes(anatomy, run, nothing, range(len(given.graph.senders)))


def _streams_of_layers(graph: ComputationalGraph) -> list[_Read]:
    shape, found = graph.shape, list[_Read]()
    for layer in range(shape.n_layers):
        first, last = slot_receivers(shape, layer, Slot.Q).start, slot_receivers(shape, layer, Slot.V).stop
        found.append((range(first, last), "stream", layer))
        if shape.has_mlp(layer):
            mlp = mlp_receiver(shape, layer)
            found.append((range(mlp, mlp + 1), "middle", layer))
    return found


def _shares(
    stream: Float[Tensor, "pair pos d_model"], changes: Float[Tensor, "pair sender pos d_model"]
) -> Float[Tensor, "pair sender pos"]:
    """Return each sender's share of all proximities; 0 where there are none."""
    stream = stream.to(changes.device).unsqueeze(1)
    whole = stream.abs().sum(-1)
    proximities = (whole - (stream + changes).abs().sum(-1)).clamp(min=0)
    total = proximities.sum(1, keepdim=True)
    return torch.where(total > 0, proximities / total, 0.0)


def _summed(shares: Float[Tensor, "pair sender pos"], roles: RoleSums | None) -> Float[Tensor, "pair _"]:
    """Return the sum over positions, of each role where there are some: by role, then by sender."""
    if roles is None:
        return shares.sum(-1)
    ones = shares.new_ones(len(shares), 1, shares.shape[-1], 1)
    return roles.worth(ones, shares.unsqueeze(-1))[:, 0].flatten(1)
