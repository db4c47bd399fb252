"""Exact effects of single edges, many per forward pass.

Changing one edge into a receiver of layer ``l`` changes nothing before that layer, so a run starts there from the
recorded residual stream. Heads of one layer do not see each other inside the attention call, so one pass of that
attention serves all its query (key, value) receivers at once: row ``(sender, pair)`` reads a stream in which that
sender alone has its replacement value, in every head; the head outputs are then handed out to rows ``(edge, pair)``
for the rest of the network. Edges into the logits need the final norm and the unembedding of one position only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.graph import ComputationalGraph, EdgeIndices, Slot
from circuits.memory.batching import RowBudget, in_batches
from circuits.numbering import idle_edges
from circuits.passes.role_sums import RoleSums
from circuits.tracing.plan import LayerSite, Plan, Visit, put
from circuits.tracing.runs import Columns, Recorder, Run, difference, sender_changes, unembed
from circuits.tracing.tracer import Tracer

Logits = Float[Tensor, "edge pair d_vocab"]
Batch = tuple[EdgeIndices, Logits | None]


@dataclass(frozen=True)
class ReceiverGroup:
    """Edges into one layer through one kind of receiver."""

    layer: int
    slot: Slot | None
    edges: EdgeIndices


def patched_logits(
    tracer: Tracer,
    graph: ComputationalGraph,
    current: Run,
    other: Run,
    edges: EdgeIndices,
    budget: RowBudget,
    *,
    columns: Columns | None = None,
    roles: RoleSums | None = None,
) -> Iterator[Batch]:
    """Yield, batch by batch, the logits of ``current`` when one edge carries the sender's value from ``other``.

    See :func:`logits_by_change`.
    """
    change = difference(other, current)
    yield from logits_by_change(tracer, graph, current, change, edges, budget, columns=columns, roles=roles)


def logits_by_change(
    tracer: Tracer,
    graph: ComputationalGraph,
    current: Run,
    change: Run,
    edges: EdgeIndices,
    budget: RowBudget,
    *,
    columns: Columns | None = None,
    roles: RoleSums | None = None,
) -> Iterator[Batch]:
    """Yield, batch by batch, the logits of ``current`` when one edge carries the sender's value and its ``change``.

    Edges whose sender does not change come first, with ``None``: they change nothing and are not run. ``columns`` are
    the tokens of interest, ``roles`` those of the positions, for a graph with roles: there an edge changes at the
    positions of its role alone. Cost: of one edge into layer ``l``, a forward pass from that layer on, of which the
    last MLP and the unembedding are of one position only.
    """
    patcher = _Patcher(tracer, graph, current, change, columns, roles)
    silent = ~patcher.differs[patcher.sources(edges)]
    if (idle := idle_edges(graph)) is not None:
        silent |= idle[edges]
    if silent.any():
        yield edges[silent], None
    for group in receiver_groups(graph, edges[~silent]):
        yield from in_batches(group.edges, partial(patcher.logits, group), budget, rows_per_item=len(current.ids))


def receiver_groups(graph: ComputationalGraph, edges: EdgeIndices) -> Iterator[ReceiverGroup]:
    """Sort edges by the layer and slot of their receiver, and within these by sender, so that batches share senders."""
    keyed: dict[tuple[int, int], list[int]] = {}
    slots: list[Slot | None] = [*Slot, None]
    for edge in edges:
        receiver = graph.receivers[int(graph.edge_receivers[edge])]
        layer = graph.shape.n_layers if receiver.node.kind.is_end else receiver.node.layer
        keyed.setdefault((layer, slots.index(receiver.slot)), []).append(int(edge))
    for (layer, slot), members in sorted(keyed.items()):
        array = np.array(members, dtype=np.int64)
        yield ReceiverGroup(layer, slots[slot], array[np.argsort(graph.edge_senders[array], kind="stable")])


class _Patcher:
    """Patches senders' changes into single receivers of a recorded run."""

    def __init__(
        self,
        tracer: Tracer,
        graph: ComputationalGraph,
        current: Run,
        change: Run,
        columns: Columns | None,
        roles: RoleSums | None,
    ) -> None:
        self.tracer, self.graph, self.current, self.change, self.columns = tracer, graph, current, change, columns
        self.last, self.roles = graph.shape.n_layers - 1, roles
        self.differs = _differing_senders(graph, change, roles)

    def sources(self, edges: EdgeIndices) -> EdgeIndices:
        """Return where each edge's change comes from: its sender, in a graph with roles its sender at a role."""
        n = self.graph.shape.n_roles
        return self.graph.edge_senders[edges] * n + self.graph.edge_receivers[edges] % n

    def logits(self, group: ReceiverGroup, edges: EdgeIndices) -> Logits:
        """Return the logits of a batch of edges of one group."""
        if group.layer == self.graph.shape.n_layers:
            return self._into_logits(edges)
        if group.slot is None:
            return self._into_mlp(group.layer, edges)
        return self._into_attention(group.layer, group.slot, edges)

    def _changes(self, layer: int, sources: EdgeIndices) -> Float[Tensor, "source pair pos d_model"]:
        """Return the changes of sources where a layer reads them."""
        anatomy = self.tracer.anatomy
        senders, role = np.divmod(sources, self.graph.shape.n_roles)
        changes = sender_changes(anatomy, self.current, self.change, senders.tolist()).transpose(0, 1)
        return anatomy.at(layer, changes if self.roles is None else changes * self.roles.marks(role, changes.dtype))

    def _repeat(self, value: Tensor, times: int) -> Tensor:
        return value.repeat(times, *[1] * (value.ndim - 1))

    def _into_logits(self, edges: EdgeIndices) -> Logits:
        last = self.current.stream[-1][:, -1:]
        stream = last + self._changes(self.last + 1, self.sources(edges))[:, :, -1:]
        ids = self._repeat(self.current.ids, len(edges))
        return rearrange(
            unembed(self.tracer, ids, stream.flatten(0, 1), self.columns), "(e b) v -> e b v", e=len(edges)
        )

    def _into_mlp(self, layer: int, edges: EdgeIndices) -> Logits:
        positions = self._positions(layer)
        changes = self._changes(layer, self.sources(edges))[:, :, positions]
        read = self.current.middle[layer][:, positions] + changes
        attention = self._repeat(self.current.attention[layer][:, positions], len(edges))
        visits: dict[tuple[int, LayerSite], Visit] = {(layer, LayerSite.MLP_IN): partial(put, read.flatten(0, 1))}
        return self._finish(layer, len(edges), attention, visits)

    def _into_attention(self, layer: int, slot: Slot, edges: EdgeIndices) -> Logits:
        """Run the layer's attention once for all senders, then the rest of the network for every edge."""
        sources, inverse = np.unique(self.sources(edges), return_inverse=True)
        place: list[int] = inverse.tolist()
        positions = self._positions(layer)
        z = (self._patched_heads(layer, slot, sources) - self.current.z[layer])[:, :, positions]
        units = [self.graph.receivers[int(receiver)].node.index for receiver in self.graph.edge_receivers[edges]]
        changed = self.tracer.anatomy.grouped_head_outputs(layer, slot, z, place, units)
        attention = self.current.attention[layer][:, positions] + changed
        return self._finish(layer, len(edges), attention.flatten(0, 1), {})

    def _positions(self, layer: int) -> slice:
        """Return at which positions a change of a layer's attention or MLP matters: in the last layer only the last."""
        return slice(-1, None) if layer == self.last else slice(None)

    def _patched_heads(self, layer: int, slot: Slot, sources: EdgeIndices) -> Float[Tensor, "source pair pos width"]:
        """Return all head outputs of a layer when the slot of *every* head reads each source's replacement value."""
        anatomy = self.tracer.anatomy
        path = anatomy.architecture.slot_modules[slot]
        read = anatomy.attention_norm(layer, self.current.stream[layer] + self._changes(layer, sources))
        columns = anatomy.columns[slot].flatten()
        made = anatomy.project(layer, slot, read.flatten(0, 1))[..., columns]
        visits: dict[tuple[int, LayerSite], Visit] = {}
        for module, site in anatomy.architecture.slot_sites.items():
            output = self._repeat(self.current.projections[layer][module], len(sources))
            if module == path:
                output[..., columns] = made
            visits[layer, site] = partial(put, output)
        recorder = Recorder()
        visits[layer, LayerSite.Z] = recorder.at(layer, LayerSite.Z)
        stream = self._repeat(self.current.stream[layer], len(sources))
        plan = Plan(start=layer, stop=(layer, LayerSite.Z), stream=stream, visits=visits)
        self.tracer.run(self._repeat(self.current.ids, len(sources)), plan, prefix=self.current.prefix)
        return rearrange(recorder.values[layer, LayerSite.Z], "(s b) p w -> s b p w", s=len(sources))

    def _finish(self, layer: int, edges: int, attention: Tensor, visits: dict[tuple[int, LayerSite], Visit]) -> Logits:
        """Run from a layer's given attention output to the logits: to the last attention, and then one position."""
        stream, ids = self._repeat(self.current.stream[layer], edges), self._repeat(self.current.ids, edges)
        if layer < self.last:
            recorder = Recorder()
            kept = {(self.last, site): recorder.at(self.last, site) for site in (LayerSite.STREAM, LayerSite.Z)}
            stop = (self.last, LayerSite.Z)
            plan = Plan(start=layer, stop=stop, stream=stream, attention={layer: attention}, visits=visits | kept)
            self.tracer.run(ids, plan, prefix=self.current.prefix)
            z, stream = recorder.values[self.last, LayerSite.Z][:, -1:], recorder.values[self.last, LayerSite.STREAM]
            attention, visits = self.tracer.anatomy.attention_output(self.last, z), {}
        recorder = Recorder()
        plan = Plan(
            start=self.last,
            stream=stream[:, -1:],
            attention={self.last: attention},
            visits=visits,
            logits=recorder.keep_logits,
            columns=self.columns,
        )
        self.tracer.run(ids[:, -1:], plan)
        return rearrange(recorder.logits, "(e b) v -> e b v", e=edges)


def _differing_senders(graph: ComputationalGraph, change: Run, roles: RoleSums | None) -> NDArray[np.bool_]:
    """Return which senders differ at all between two runs; with roles, sender by sender at the positions of which."""
    differs = [_somewhere(change.stream[0].any(-1)[None], roles)]
    for z, mlp in zip(change.z, change.mlp, strict=True):
        by_head = rearrange(z, "b p (h k) -> h b p k", h=graph.shape.n_heads).any(-1)
        of_layer = (by_head, mlp.any(-1)[None]) if graph.shape.mlps else (by_head,)
        differs += [_somewhere(each.to(differs[0].device), roles) for each in of_layer]
    return torch.cat(differs).flatten().cpu().numpy()


def _somewhere(differs: Bool[Tensor, "sender pair pos"], roles: RoleSums | None) -> Bool[Tensor, "sender role"]:
    """Return whether a sender differs at some position of each role; of all positions where there are no roles."""
    if roles is None:
        return differs.flatten(1).any(1, keepdim=True)
    every = roles.marks(np.arange(roles.n), torch.bool)[..., 0]
    return (differs.unsqueeze(1) & every).flatten(2).any(-1)
