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
    yield GuardResult(
        "head isolation",
        max(_isolation_error(tracer, clean, layer) for layer in {0, graph.shape.n_layers - 1}),
        tolerance,
        "Changing one head's query changes another head, or not its own: heads are sliced wrongly.",
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
    return max(errors)


def _isolation_error(tracer: Tracer, run: Run, layer: int) -> float:
    """Change one head's query: give the relative change of all other heads, or infinity if its own does not change."""
    anatomy, recorder = tracer.anatomy, Recorder()
    columns = anatomy.columns[Slot.Q][0]
    path = anatomy.architecture.projections[Slot.Q]
    site = anatomy.architecture.projection_sites[path]
    change = partial(_flipped, columns)
    visits = {(layer, site): change, (layer, Site.Z): recorder.at(layer, Site.Z)}
    tracer.run(run.ids, Plan(start=layer, stop=(layer, Site.Z), stream=run.stream[layer], visits=visits))
    pattern = "b p (h k) -> h b p k"
    before, after = (
        rearrange(z, pattern, h=anatomy.shape.n_heads) for z in (run.z[layer], recorder.values[layer, Site.Z])
    )
    if torch.equal(before[0], after[0]):
        return float("inf")
    return _distance(after[1:], before[1:]) if anatomy.shape.n_heads > 1 else 0.0


def _flipped(columns: Tensor, queries: Float[Tensor, "row pos width"]) -> Tensor:
    changed = queries.clone()
    changed[..., columns] = 1 - 2 * changed[..., columns]
    return changed


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
    error = (value.float() - expected.float()).square().sum(-1).sqrt()
    size = expected.float().square().sum(-1).sqrt()
    floor = 1e-6 + 1e-3 * float(size.amax())
    return float((error / size.clamp_min(floor)).amax())
