"""Edges with token roles the slow way: plain hooks that change the positions of one role, and no others.

``roles[pair, pos]`` is the place of a position's role among ``names``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from circuits.graph import Edge, Node, Receiver
from tests.reference.anatomy import INPUT, anatomy_of
from tests.reference.hooks import MetricFn, last_logits, rewired, sender_values


@torch.no_grad()
def effects_by_role(
    model: nn.Module,
    ids: tuple[Tensor, Tensor],
    edges: Sequence[Edge],
    metric_fn: MetricFn,
    *,
    roles: Tensor,
    names: Sequence[str],
) -> Tensor:
    """Noise single edges at their roles' positions, (edge, pair): the clean run's metric minus the patched run's."""
    anatomy = anatomy_of(model)
    clean, corrupted = (sender_values(model, side) for side in ids)

    def measure(edge: Edge) -> Tensor:
        at_role = (roles == list(names).index(edge.receiver.role)).unsqueeze(-1)
        change = anatomy.stream_change(clean, edge.sender, corrupted[edge.sender]) * at_role
        where = replace(edge.receiver, role="")

        def read(receiver: Receiver, stream: Tensor) -> Tensor:
            return stream + change[:, -stream.shape[1] :] if receiver == where else stream

        layer = edge.receiver.node.layer
        with rewired(anatomy, read, layers=() if layer < 0 else (layer,), embedding=clean[INPUT]):
            return metric_fn(last_logits(model, ids[0]))

    untouched = metric_fn(last_logits(model, ids[0]))
    return torch.stack([untouched - measure(edge) for edge in edges])


@torch.no_grad()
def circuit_by_role(
    model: nn.Module, ids: tuple[Tensor, Tensor], live: Collection[Edge], *, roles: Tensor, names: Sequence[str]
) -> Tensor:
    """Run a circuit whose edges are kept at some roles and corrupted at others; logits at the last position."""
    anatomy, alive = anatomy_of(model), frozenset(live)
    base, current = sender_values(model, ids[1]), dict[Node, Tensor]()

    def read(receiver: Receiver, _: Tensor) -> Tensor:
        total = torch.zeros(())
        for place, name in enumerate(names):
            there = replace(receiver, role=name)
            found = anatomy.stream(receiver, lambda u, v=there: current[u] if Edge(u, v) in alive else base[u])
            total = torch.where((roles == place).unsqueeze(-1), found, total)
        return total

    def send(values: Mapping[Node, Tensor]) -> None:
        current.update(values)

    with rewired(anatomy, read, send):
        return last_logits(model, ids[0])
