"""Guards: measurements on one tiny batch that show whether a model is measured at the right places.

Each has an error, a tolerance that follows the dtype, and a meaning; :func:`require` refuses a model that fails one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.errors import GuardError
from circuits.graph import ComputationalGraph, Slot
from circuits.tracing.anatomy import Anatomy, call
from circuits.tracing.masked import run_masked
from circuits.tracing.plan import Plan, Site
from circuits.tracing.runs import Recorder, Run, record, sender_values
from circuits.tracing.tracer import Tracer

_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Relative errors; float64 models still normalise in float32."""
_POSITIONS = 6


@dataclass(frozen=True)
class GuardResult:
    """One guard's measured error against its tolerance, and what a failure means."""

    name: str
    error: float
    tolerance: float
    meaning: str

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (an error that is not a number is not)."""
        return self.error <= self.tolerance


def check(tracer: Tracer, graph: ComputationalGraph, tokenizer: Any) -> tuple[GuardResult, ...]:
    """Run all guards. Cost: about ten forward passes of two prompts of six tokens."""
    tolerance = _TOLERANCES.get(tracer.anatomy.dtype, 6e-2)
    clean, corrupted = (record(tracer, ids) for ids in _prompts(tracer.anatomy))
    return (*_results(tracer, graph, clean, corrupted, tolerance), _tokenizer(tracer.anatomy, tokenizer))


def require(results: tuple[GuardResult, ...], model: str) -> None:
    """Raise :class:`GuardError` for the first guard that failed."""
    for result in results:
        if not result.passed:
            raise GuardError(
                f"{model} fails the guard '{result.name}': error {result.error:.2g}, tolerance {result.tolerance:.2g}. "
                f"{result.meaning} Its scores would be wrong, so it is refused; the adapter in "
                "circuits/tracing/architectures.py does not fit this model."
            )


def _results(
    tracer: Tracer, graph: ComputationalGraph, clean: Run, corrupted: Run, tolerance: float
) -> Iterator[GuardResult]:
    streams = _derived_streams(tracer.anatomy, clean)
    yield GuardResult(
        "additivity",
        _distance(streams[-1][0], clean.stream[-1]),
        tolerance,
        "What the nodes write does not add up to the residual stream that the logits read.",
    )
    yield GuardResult(
        "wiring",
        _wiring_error(tracer.anatomy, clean, streams),
        tolerance,
        "A receiver does not read what the graph says: a block order, a norm or a projection is declared wrongly.",
    )
    changes = {0: clean.stream[0] - corrupted.stream[0]}
    for name, live, expected in (("nothing live", False, corrupted), ("everything live", True, clean)):
        masks = np.full((1, graph.n_edges), live)
        logits = run_masked(tracer, graph, corrupted, changes, masks)[0]
        meaning = f"With {name} a run must equal the {'clean' if live else 'corrupted'} run."
        yield GuardResult(name, _distance(logits, expected.logits), tolerance, meaning)
    ends = (0, graph.shape.n_layers - 1)
    yield GuardResult(
        "head isolation",
        float(np.max([_isolation_error(tracer, clean, layer, slot) for layer in ends for slot in Slot])),
        tolerance,
        "Changing one head's query, key or value changes other heads or positions than it should: heads or slots are "
        "sliced wrongly.",
    )


def _prompts(anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Give two batches of two random prompts that start with the same token."""
    generator = torch.Generator().manual_seed(0)
    size = anatomy.vocabulary
    ids = torch.randint(0, size, (4, _POSITIONS), generator=generator)
    ids[:, 0] = ids[0, 0]
    return ids[:2].to(anatomy.device), ids[2:].to(anatomy.device)


def _derived_streams(anatomy: Anatomy, run: Run) -> list[tuple[Tensor, Tensor]]:
    """Give what the attention and the MLP of every layer read (and last, the logits), as sums of what nodes wrote."""
    shape = anatomy.shape
    stream, streams = run.stream[0], list[tuple[Tensor, Tensor]]()
    for layer in range(shape.n_layers):
        first = 1 + layer * (shape.n_heads + 1)
        written = sender_values(anatomy, run, range(first, first + shape.n_heads + 1))
        bias = anatomy.output_bias(layer)
        after = stream + written[:, :-1].sum(1) + (0 if bias is None else bias)
        streams.append((stream, stream if shape.parallel else after))
        stream = after + written[:, -1]
    return [*streams, (stream, stream)]


def _wiring_error(anatomy: Anatomy, run: Run, streams: list[tuple[Tensor, Tensor]]) -> float:
    """Recompute every projection and MLP from what its receivers should read."""
    errors: list[float] = []
    for layer, (read, mlp_read) in enumerate(streams[:-1]):
        normed = anatomy.attention_norm(layer, read)
        for slot in Slot:
            path, columns = anatomy.architecture.projections[slot], anatomy.columns[slot]
            weight, bias = anatomy.slot_weights(layer, slot, list(range(len(columns))))
            made = torch.einsum("bpd,ukd->bpuk", normed, weight) + (0 if bias is None else bias)
            errors.append(_distance(made, run.projections[layer][path][..., columns]))
        modules = anatomy.layers[layer]
        errors.append(_distance(call(modules.mlp, call(modules.mlp_norm, mlp_read)), run.mlp[layer]))
    return float(np.max(errors))  # unlike max(), not blind to NaN


def _isolation_error(tracer: Tracer, run: Run, layer: int, slot: Slot) -> float:
    """Change one unit's query, key or value at one position: give the largest relative change where there must be none.

    A query acts at its own position only; the first key changes later positions only, because the first position reads
    nothing else; the first value changes the first position itself. So a slot that is taken for another is noticed too.
    Infinity, if no unit has its effect. Rows of the run are ``(unit, pair)``.
    """
    anatomy, recorder = tracer.anatomy, Recorder()
    columns, shape = anatomy.columns[slot], anatomy.shape
    site = anatomy.architecture.projection_sites[anatomy.architecture.projections[slot]]
    position, units = (1 if slot is Slot.Q else 0), len(columns)
    visits = {(layer, site): partial(_flipped, columns, position), (layer, Site.Z): recorder.at(layer, Site.Z)}
    stream = run.stream[layer].repeat(units, 1, 1)
    tracer.run(run.ids.repeat(units, 1), Plan(start=layer, stop=(layer, Site.Z), stream=stream, visits=visits))
    after = rearrange(recorder.values[layer, Site.Z], "(u b) p (h k) -> u b h p k", u=units, h=shape.n_heads)
    before = rearrange(run.z[layer], "b p (h k) -> 1 b h p k", h=shape.n_heads).expand_as(after)
    positions = torch.arange(after.shape[3], device=after.device)
    heads = torch.arange(shape.n_heads, device=after.device) // (shape.n_heads // units)
    own = (heads == torch.arange(units, device=after.device)[:, None])[:, None, :, None]
    may, must = {
        Slot.Q: (positions == 1, positions == 1),
        Slot.K: (positions > 0, positions > 0),
        Slot.V: (positions >= 0, positions == 0),
    }[slot]
    changed = (after != before).any(-1)
    if not bool((changed & own & must).any()):
        return float("inf")
    return float(_distances(after, before).masked_fill(own & may, 0).amax())


def _flipped(columns: Tensor, position: int, outputs: Float[Tensor, "row pos width"]) -> Tensor:
    """Change the columns of unit ``u`` at one position in the u-th block of rows."""
    changed = rearrange(outputs.clone(), "(u b) p w -> u b p w", u=len(columns))
    for unit, own in enumerate(columns):
        changed[unit, :, position, own] = 1 - 2 * changed[unit, :, position, own]
    return changed.flatten(0, 1)


def _tokenizer(anatomy: Anatomy, tokenizer: Any) -> GuardResult:
    """Check that a sentence becomes tokens that the embedding has and that decode to the sentence again."""
    text = "The keys to the cabinet are on the table."
    ids: list[int] = tokenizer(text).input_ids
    size = anatomy.vocabulary
    fits = bool(ids) and max(ids) < size
    same = fits and "".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(text.split())
    meaning = (
        "The tokenizer does not belong to this model: tokens are outside the embedding, or do not decode to the text."
    )
    return GuardResult("tokenizer", 0.0 if same else 1.0, 0.0, meaning)


def _distance(value: Tensor, expected: Tensor) -> float:
    """Give the largest relative distance of vectors along the last axis."""
    return float(_distances(value, expected).amax())


def _distances(value: Float[Tensor, "*any width"], expected: Float[Tensor, "*any width"]) -> Float[Tensor, "*any"]:
    error = (value.float() - expected.float()).square().sum(-1).sqrt()
    size = expected.float().square().sum(-1).sqrt()
    floor = 1e-6 + 1e-3 * float(size.amax())
    return error / size.clamp_min(floor)
