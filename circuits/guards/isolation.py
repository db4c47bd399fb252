"""Whether heads are where an adapter says: what changing one head's query, key or value does to all heads."""

from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuits.adapters.anatomy import Anatomy
from circuits.graph import ModelShape, Slot
from circuits.guards.distance import distances
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.runs import Recorder, Run
from circuits.tracing.tracer import Tracer

_KEY, _QUERY, _AFTER_KEY = slice(0, 1), slice(1, 2), slice(1, None)
"""Positions at which a key or a query is changed, and those that see the changed key and others."""
_SIZES = (1.0, 1e2, 1e4)
"""How large changed slots are: 1 of the order of their own values, the others where that is too little to be seen."""
_RANDOM = 1e2
"""How large random values are, put at all positions where one position alone shows nothing."""


def isolation(tracer: Tracer, run: Run, layer: int) -> tuple[float, list[Slot]]:
    """Change one unit's query, key or value: return the largest relative change of heads where there must be none.

    Infinity, if no unit of a slot acts where it must, but the slot acts elsewhere. A slot that changes nothing whatever
    its values are (uniform attention, an empty layer) is returned too, as one that could not be tested; where
    attention is saturated, only larger changes show where it acts, and where the positions that a query sees hold the
    same, only changes at all positions.
    """
    largest, waiting = 0.0, list(Slot)
    for size in (*_SIZES, None):
        error, acting = _isolation_error(tracer, run, layer, size)
        largest = float(np.max([largest, error]))
        waiting = [slot for slot in waiting if slot not in acting]
        if not waiting:
            break
    wrong = [slot for slot in waiting if _acts(tracer, run, layer, slot)]
    return (float("inf") if wrong else largest), waiting


def _isolation_error(tracer: Tracer, run: Run, layer: int, size: float | None) -> tuple[float, set[Slot]]:
    """Return the largest relative change of heads where there must be none, and the slots that act where they must.

    A query is changed at one position and acts there only, a key at the first position and acts later; values of zero
    (of size 1), at all positions, must give an output of zero, so that a slot that is taken for another is noticed too.
    Without a size all positions of a unit get random values. Rows of the run are ``(slot and unit, pair)``.
    """
    anatomy, shape = tracer.anatomy, tracer.anatomy.shape
    changed = [(slot, unit) for slot in Slot for unit in range(len(anatomy.columns[slot]))]
    visits: dict[tuple[int, LayerSite], Visit] = {}
    for path, site in anatomy.architecture.slot_sites.items():
        own = [(row, *each) for row, each in enumerate(changed) if anatomy.architecture.slot_modules[each[0]] == path]
        visits[layer, site] = partial(_changed_slots, anatomy, len(changed), own, size)
    after = _heads_after(tracer, run, layer, visits, len(changed))
    before = rearrange(run.z[layer], "b p (h k) -> 1 b h p k", h=shape.n_heads).expand_as(after)
    may, must, silenced = _reach(changed, shape, after, everywhere=size is None)
    acted = ((after != before).any(-1) & must).flatten(1).any(1)
    acting = {slot for slot in Slot if bool(acted[[each[0] is slot for each in changed]].any())}
    error = distances(after, before).masked_fill(may, 0).amax()
    if size == 1:
        error = torch.maximum(error, distances(before - after, before).masked_fill(~silenced, 0).amax())
    return float(error), acting


def _acts(tracer: Tracer, run: Run, layer: int, slot: Slot) -> bool:
    """Return whether large random values in a slot, of all units at all positions, change any head's output."""
    path = tracer.anatomy.architecture.slot_modules[slot]
    site = tracer.anatomy.architecture.slot_sites[path]
    columns = tracer.anatomy.columns[slot].flatten()
    after = _heads_after(tracer, run, layer, {(layer, site): partial(_random_slot, columns)}, 1)
    return not torch.equal(rearrange(after, "1 b h p k -> b p (h k)"), run.z[layer])


def _heads_after(
    tracer: Tracer, run: Run, layer: int, visits: dict[tuple[int, LayerSite], Visit], count: int
) -> Float[Tensor, "change pair head pos d_head"]:
    """Return the heads' outputs of one layer in ``count`` copies of a run, with these visits before them."""
    recorder = Recorder()
    stream, ids = run.stream[layer].repeat(count, 1, 1), run.ids.repeat(count, 1)
    visits = {**visits, (layer, LayerSite.Z): recorder.at(layer, LayerSite.Z)}
    tracer.run(ids, Plan(start=layer, stop=(layer, LayerSite.Z), stream=stream, visits=visits))
    heads = tracer.anatomy.shape.n_heads
    return rearrange(recorder.values[layer, LayerSite.Z], "(u b) p (h k) -> u b h p k", u=count, h=heads)


def _reach(
    changed: list[tuple[Slot, int]], shape: ModelShape, outputs: Tensor, *, everywhere: bool
) -> tuple[Tensor, ...]:
    """Return where each change may act, where one of its slot must, and where it must silence the output.

    All have the shape ``(change, 1, head, pos)``.
    """
    size = (3, len(changed), 1, shape.n_heads, outputs.shape[3])
    may, must, silenced = torch.zeros(size, dtype=torch.bool, device=outputs.device)
    for row, (slot, unit) in enumerate(changed):
        own = 1 if slot is Slot.Q else shape.heads_per_group
        heads = slice(unit * own, (unit + 1) * own)
        one = slot is Slot.Q and not everywhere
        may[row, :, heads, _QUERY if one else slice(None)] = True
        must[row, :, heads, _QUERY if one else _AFTER_KEY] = True
        silenced[row, :, heads] = slot is Slot.V
    return may, must, silenced


def _changed_slots(
    anatomy: Anatomy,
    count: int,
    own: list[tuple[int, Slot, int]],
    size: float | None,
    outputs: Float[Tensor, "row pos width"],
) -> Tensor:
    """Change one unit's columns in one block of rows for each entry ``(block, slot, unit)``."""
    changed = rearrange(outputs.clone(), "(u b) p w -> u b p w", u=count)
    for block, slot, unit in own:
        columns = anatomy.columns[slot][unit]
        if size is None:
            changed[block] = _random_slot(columns, changed[block])
            continue
        position = slice(None) if slot is Slot.V else _QUERY if slot is Slot.Q else _KEY
        if slot is Slot.V:
            changed[block, :, position, columns] = 0 if size == 1 else size
        else:
            changed[block, :, position, columns] = size * (1 - 2 * changed[block, :, position, columns])
    return changed.flatten(0, 1)


def _random_slot(columns: Int[Tensor, " column"], outputs: Float[Tensor, "row pos width"]) -> Tensor:
    """Put large random values into some columns."""
    generator = torch.Generator().manual_seed(0)
    changed = outputs.clone()
    drawn = _RANDOM * torch.randn(*outputs.shape[:2], len(columns), generator=generator)
    changed[..., columns] = drawn.to(outputs)
    return changed
