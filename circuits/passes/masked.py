"""The one primitive: run prompts while some edges are live and all others carry recorded values.

``input(v) = base_v + sum over live u of (current_u - base_u)`` for every receiver ``v``, where ``base_v`` is what
``v`` read in the base run. Many circuits go through one forward pass along the batch axis: row ``(circuit, pair)``. A
sender is computed only if a live path leads to it from where values differ and from it to the logits; layers without
such a sender do not run, and layers before the first difference between circuits run once for all of them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.graph import ComputationalGraph, Slot
from circuits.numbering import (
    blocks_of_senders,
    edges_into,
    end_receiver,
    fan_in_of,
    first_sender,
    head_senders,
    idle_edges,
    mlp_receiver,
    mlp_sender,
    reads_of_senders,
    slot_receivers,
)
from circuits.passes.role_sums import RoleSums
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.runs import Columns, Run, unembed
from circuits.tracing.tracer import Tracer

Changes = Mapping[int, Float[Tensor, "pair pos d_model"]]
"""Where values differ from the base: senders, by their place in the graph's order, with current minus base value."""

Visits = Mapping[tuple[int, LayerSite], Visit]
NOTHING_WITHIN: Visits = {}


def run_masked(
    tracer: Tracer,
    graph: ComputationalGraph,
    base: Run,
    changes: Changes,
    masks: NDArray[np.bool_],
    columns: Columns | None = None,
    *,
    within: Visits = NOTHING_WITHIN,
    roles: RoleSums | None = None,
) -> Float[Tensor, "circuit pair d_vocab"]:
    """Return the logits of circuits: base values but along live edges, beginning where ``changes`` says.

    ``masks`` has one row of booleans per circuit over the graph's edges; ``columns`` are the tokens of interest.
    ``within`` visits layers' neurons (rows ``(circuit, pair)``), where the MLP is run at all. ``roles`` are those of
    the positions, for a graph with roles: there an edge is live at its role's positions.
    """
    if (idle := idle_edges(graph)) is not None:
        masks = masks & ~idle
    needed = needed_senders(graph, np.any(masks, axis=0), tuple(changes), recorded=base.recorded)
    shared = first_difference(graph, masks)
    prefix = None
    if shared > 0 and len(masks) > 1:
        prefix = MaskedPass(tracer, graph, base, changes, masks[:1], needed, within=within, roles=roles)
        prefix.run(0, shared)
    whole = MaskedPass(tracer, graph, base, changes, masks, needed, within=within, roles=roles)
    if prefix is not None:
        whole.continue_from(prefix, shared)
    whole.run(shared if prefix is not None else 0, graph.shape.n_layers)
    return whole.logits(columns)


def needed_senders(
    graph: ComputationalGraph, live: NDArray[np.bool_], origins: tuple[int, ...], *, recorded: bool = True
) -> list[int]:
    """Return the senders on a live path from an origin to the logits, in graph order; all others keep base values.

    With roles a path may lead through edges of any. Where the base was not recorded from a run, every sender differs
    from it even with base inputs, so all are origins.
    """
    reads = reads_of_senders(graph.shape)
    reached = np.full(len(graph.senders), not recorded)
    reached[list(origins)] = True
    end, roles = end_receiver(graph), graph.shape.n_roles
    rows = [np.any(live[edges_into(graph, r)].reshape(roles, -1), axis=0) for r in range(end + 1)]
    for sender in range(1, len(graph.senders)):
        if not reached[sender]:
            reached[sender] = any(np.any(rows[r] & reached[: len(rows[r])]) for r in reads[sender])
    useful = np.zeros(len(graph.senders), dtype=np.bool_)
    useful[: len(rows[-1])] |= rows[-1]
    for sender in range(len(graph.senders) - 1, 0, -1):
        if useful[sender] and reached[sender] and sender not in origins:
            for r in reads[sender]:
                useful[: len(rows[r])] |= rows[r]
    return [int(sender) for sender in np.flatnonzero(reached & useful)]


def first_difference(graph: ComputationalGraph, masks: NDArray[np.bool_]) -> int:
    """Return the first layer at which some receiver has different live edges in different circuits."""
    differing = np.flatnonzero((masks != masks[:1]).any(axis=0))
    if not len(differing):
        return 0
    receiver = graph.receivers[int(graph.edge_receivers[differing[0]])].node
    return graph.shape.n_layers if receiver.kind.is_end else receiver.layer


@runtime_checkable
class Tape(Protocol):
    """What a pass reads and writes through instead where gradients are wanted (``circuits.passes.mask_gradients``)."""

    def read(
        self, masked: "MaskedPass", receivers: list[int], base: Float[Tensor, "pair pos d_model"], positions: slice
    ) -> Float[Tensor, "1 receiver pair pos d_model"]:
        """Return what some receivers of equal fan-in read."""
        ...

    def write(self, masked: "MaskedPass", places: list[int], made: Float[Tensor, "1 sender pair pos d_model"]) -> None:
        """Put the changes of some senders in their places."""
        ...


class MaskedPass:
    """One forward pass of ``circuit x pair`` rows; ``changes[:, i]`` is ``current - base`` of the i-th needed sender.

    Senders come before pairs in ``changes``, so that what receivers read is one batched matrix product without a copy;
    it is kept and summed in at least float32. Where a norm stands between the heads of a layer and the stream, their
    changes are those of the sum before the norm, and a reader sees the norm of the sum that is live for it. Changes are
    kept, and summed, on the first layer's device; the sums are moved to the layer that reads them.
    """

    def __init__(
        self,
        tracer: Tracer,
        graph: ComputationalGraph,
        base: Run,
        changes: Changes,
        masks: NDArray[np.bool_],
        needed: list[int],
        *,
        tape: Tape | None = None,
        within: Visits = NOTHING_WITHIN,
        roles: RoleSums | None = None,
    ) -> None:
        self.tape, self.within, self.roles = tape, within, roles
        self.tracer, self.graph, self.base, self.masks = tracer, graph, base, masks
        self.given, self.needed = changes, needed
        self.place = {sender: i for i, sender in enumerate(needed)}
        pairs, positions, width = base.stream[0].shape
        self.circuits, self.pairs = len(masks), pairs
        like = base.stream[0]
        self.wide = torch.promote_types(like.dtype, torch.float32)
        self.changes = torch.zeros(
            len(masks), len(needed), pairs, positions, width, dtype=self.wide, device=like.device
        )
        for sender, change in changes.items():
            if sender in self.place:
                self.changes[:, self.place[sender]] = change.to(self.changes.device)

    def continue_from(self, prefix: "MaskedPass", layer: int) -> None:
        """Take over the changes of senders before a layer from a pass with one circuit."""
        count = self._count_before(layer)
        self.changes[:, :count] = prefix.changes[:, :count]

    def _count_before(self, layer: int) -> int:
        return int(np.searchsorted(self.needed, first_sender(self.graph.shape, layer)))

    def run(self, first: int, last: int) -> None:
        """Run the layers ``first .. last - 1``, as far as a sender there is needed."""
        visits: dict[tuple[int, LayerSite], Visit] = {}
        attention: dict[int, Tensor] = {}
        mlp: dict[int, Tensor] = {}
        idle: dict[int, Tensor] = {}
        blank = torch.zeros_like(self.base.stream[0]).repeat(self.circuits, 1, 1)
        for layer in range(first, last):
            heads, has_mlp = self._computed(layer)
            if not heads and not has_mlp:
                idle[layer] = blank
                continue
            if heads:
                visits |= self._attention_visits(layer, heads)
            else:
                attention[layer] = blank
            if has_mlp:
                visits[layer, LayerSite.MLP_IN] = partial(self._mlp_input, layer)
                visits[layer, LayerSite.MLP_OUT] = partial(self._mlp_output, layer)
                visits |= {key: visit for key, visit in self.within.items() if key[0] == layer}
            else:
                mlp[layer] = blank
        busy = [layer for layer in range(first, last) if layer not in idle]
        if busy:
            end = (busy[-1], LayerSite.MLP_OUT if busy[-1] not in mlp else LayerSite.Z)
            plan = Plan(start=busy[0], stop=end, stream=blank, attention=attention, mlp=mlp, idle=idle, visits=visits)
            ids, gradients = self.base.ids.repeat(self.circuits, 1), self.tape is not None
            self.tracer.run(ids, plan, prefix=self.base.prefix, gradients=gradients)

    def logits(self, columns: Columns | None) -> Float[Tensor, "circuit pair d_vocab"]:
        """Return the logits that follow from all changes."""
        final = self.final()
        logits = unembed(self.tracer, self.base.ids.repeat(self.circuits, 1), final.flatten(0, 2), columns)
        return rearrange(logits, "(c b) v -> c b v", c=self.circuits)

    def final(self) -> Float[Tensor, "circuit 1 pair 1 d_model"]:
        """Return what the logits read at the last position."""
        return self._input([end_receiver(self.graph)], self.base.stream[-1][:, -1:], slice(-1, None))

    def _computed(self, layer: int) -> tuple[list[int], bool]:
        """Return which heads of a layer, and whether its MLP, must be computed."""
        shape, computable = self.graph.shape, self._computable()
        heads = head_senders(shape, layer)
        computed = [sender - heads.start for sender in computable if sender in heads]
        return computed, shape.has_mlp(layer) and mlp_sender(shape, layer) in computable

    def _computable(self) -> list[int]:
        return [sender for sender in self.needed if sender not in self.given]

    def _input(
        self, receivers: list[int], base: Float[Tensor, "pair pos d_model"], positions: slice = slice(None)
    ) -> Float[Tensor, "circuit receiver pair pos d_model"]:
        """Return what some receivers of equal fan-in read."""
        if self.tape is not None:
            return self.tape.read(self, receivers, base, positions)
        block = np.stack([self._live(receiver) for receiver in receivers], axis=1)
        used = np.flatnonzero(block.any(axis=tuple(range(block.ndim - 1))))
        total = base.to(self.changes.device, self.wide).expand(self.circuits, len(receivers), *base.shape)
        summed, normed = self.how_read(used)
        roles = None if self.roles is None else self.roles.at(positions)
        if len(summed):
            live, changes = self._chosen(block, summed, positions)
            if roles is None:
                total = torch.baddbmm(total.flatten(2), live, changes.flatten(2)).reshape(total.shape)
            else:
                total = total + roles.carried(live, changes)
        for layer, heads in normed.items():
            live, changes = self._chosen(block, heads, positions)
            before = self.base.attention[layer][:, positions]
            carry = partial(torch.einsum, "crs,csbpd->crbpd") if roles is None else roles.carried
            after = before.to(self.wide) + carry(live, changes).to(before.device)
            written = self.tracer.anatomy.written
            total = total + (written(layer, after.to(before.dtype)) - written(layer, before)).to(total.device)
        return total.to(base.dtype)

    def how_read(self, used: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[int, NDArray[np.int64]]]:
        """Part needed senders into those that add to the stream, and heads of layers with a norm behind their sum."""
        if self.tracer.anatomy.additive:
            return used, {}
        layer, head = blocks_of_senders(self.graph.shape, np.asarray(self.needed)[used])
        heads = head >= 0
        return used[~heads], {int(each): used[heads & (layer == each)] for each in np.unique(layer[heads])}

    def _chosen(
        self, block: Bool[np.ndarray, "circuit receiver *role sender"], senders: NDArray[np.int64], positions: slice
    ) -> tuple[Float[Tensor, "circuit receiver *role chosen"], Float[Tensor, "circuit chosen pair pos d_model"]]:
        """Return which of some senders each receiver sees (at each role's positions), and their changes."""
        changes = self.changes[:, : senders[-1] + 1, :, positions]
        if len(senders) < changes.shape[1]:
            changes = changes[:, torch.as_tensor(senders, device=changes.device)]
        return torch.as_tensor(block[..., senders], dtype=changes.dtype, device=changes.device), changes

    def _live(self, receiver: int) -> Bool[np.ndarray, "circuit *role sender"]:
        """Return which needed senders a receiver can see, in each circuit (and at each role's positions)."""
        needed = self.needed[: np.searchsorted(self.needed, fan_in_of(self.graph, receiver))]
        live = self.masks[:, edges_into(self.graph, receiver)]
        return live[:, needed] if self.roles is None else live.reshape(len(live), self.roles.n, -1)[..., needed]

    def _attention_visits(self, layer: int, heads: list[int]) -> dict[tuple[int, LayerSite], Visit]:
        """Plan the projections (queries of computed heads, keys and values of their groups) and the reading of z."""
        shape = self.graph.shape
        groups = sorted({head // shape.heads_per_group for head in heads})
        slots = {Slot.Q: heads, Slot.K: groups, Slot.V: groups}
        paths = self.tracer.anatomy.architecture.slot_modules
        visits: dict[tuple[int, LayerSite], Visit] = {(layer, LayerSite.Z): partial(self._heads_output, layer, heads)}
        for path, site in self.tracer.anatomy.architecture.slot_sites.items():
            served = {slot: slots[slot] for slot in Slot if paths[slot] == path}
            visits[layer, site] = partial(self._projection, layer, path, served)
        return visits

    def _projection(self, layer: int, path: str, served: dict[Slot, list[int]], _: Tensor) -> Tensor:
        anatomy = self.tracer.anatomy
        output = self.base.projections[layer][path].repeat(self.circuits, 1, 1)
        for slot, units in served.items():
            receivers = slot_receivers(self.graph.shape, layer, slot)
            live = [unit for unit in units if self._live(receivers[unit]).any()]
            if not live:
                continue
            read = self._input([receivers[unit] for unit in live], self.base.stream[layer])
            made = anatomy.unit_outputs(layer, slot, live, read)
            output[..., anatomy.columns[slot][live].flatten()] = rearrange(made, "c b p u k -> (c b) p (u k)")
        return output

    def _heads_output(self, layer: int, heads: list[int], z: Tensor) -> None:
        rows = rearrange(z, "(c b) p w -> c b p w", c=self.circuits) - self.base.z[layer]
        senders = head_senders(self.graph.shape, layer)
        places = [self.place[senders[head]] for head in heads]
        anatomy = self.tracer.anatomy
        made = anatomy.head_outputs(layer, rows, heads) * (anatomy.residual_scale if anatomy.additive else 1.0)
        self._write(places, rearrange(made, "c b p h d -> c h b p d"))

    def _mlp_input(self, layer: int, _: Tensor) -> Tensor:
        return self._input([mlp_receiver(self.graph.shape, layer)], self.base.middle[layer]).flatten(0, 2)

    def _mlp_output(self, layer: int, value: Tensor) -> None:
        made = rearrange(value, "(c b) p d -> c 1 b p d", c=self.circuits).to(self.wide) - self.base.mlp[layer]
        self._write([self.place[mlp_sender(self.graph.shape, layer)]], made)

    def _write(self, places: list[int], made: Float[Tensor, "circuit sender pair pos d_model"]) -> None:
        if self.tape is not None:
            self.tape.write(self, places, made.to(self.changes.device, self.wide))
        else:
            self.changes[:, places] = made.to(self.changes.device, self.wide)
