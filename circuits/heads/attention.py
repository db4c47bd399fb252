"""Attention weights of any decoder with any attention kernel, measured instead of asked for.

What a head puts out is a sum of values weighted by its attention, whatever makes the weights: rotary positions, ALiBi,
a window, a cap on scores, a sink. So the values are replaced: the value at position ``j`` becomes the unit vector
``e_j``, queries and keys stay, and the head's output *is* its row of weights. Kernels that never make the weights
(sdpa, flash) are measured as well as eager ones. That the output is such a sum is tested with random values.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.errors import GuardError
from circuits.graph import Slot
from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import Recorder, Run
from circuits.tracing.tracer import Tracer

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest error of the weighted sum of random values between -1 and 1; 0.03 in half precision."""
_COARSE = 0.03

Weights = Float[Tensor, "pair head query key"]


def attention_weights(tracer: Tracer, run: Run, layer: int, heads: list[int]) -> Weights:
    """Measure where some heads of a layer attended in a recorded run (one without a prefix).

    A row sums to 1, or to less in a model whose attention may rest on no token. In float32 or wider. Cost: the
    layer's attention, once for every ``d_head`` positions.
    """
    length, size = run.ids.shape[1], tracer.anatomy.shape.d_head
    identity = torch.eye(length, dtype=run.z[layer].dtype, device=run.ids.device)
    parts = list[Tensor]()
    for first in range(0, length, size):
        part = identity[:, first : first + size]
        values = torch.nn.functional.pad(part, (0, size - part.shape[1]))
        made = _output(tracer, run, layer, values.expand(len(run.ids), tracer.anatomy.shape.n_kv_heads, -1, -1))
        parts.append(made[:, heads, :, : part.shape[1]])
    weights = torch.cat(parts, -1)
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


def require_weighted_sum(tracer: Tracer, run: Run, layer: int, heads: list[int], weights: Weights) -> None:
    """Raise :class:`GuardError` where heads do not put out their values weighted by ``weights``.

    So it is with attention whose values are normed, clipped below 1 or gated after their projection.
    """
    shape, generator = tracer.anatomy.shape, torch.Generator().manual_seed(0)
    values = torch.rand(len(run.ids), shape.n_kv_heads, run.ids.shape[1], shape.d_head, generator=generator) * 2 - 1
    values = values.to(run.z[layer])
    made = _output(tracer, run, layer, values)[:, heads].to(weights.dtype)
    read = values[:, [head // shape.heads_per_group for head in heads]].to(weights.dtype)
    error = float((made - weights @ read).abs().max())
    limit = _TOLERANCE.get(run.z[layer].dtype, _COARSE)
    if not error <= limit:
        raise GuardError(
            f"the heads of layer {layer} do not put out their values weighted by attention: of random values the "
            f"difference is {error:.2g}, at most {limit:g} is expected. Attention cannot be told from the outputs of "
            "such heads (their values are changed after the projection, or their outputs gated), so their roles are "
            "not measured."
        )


def _output(
    tracer: Tracer, run: Run, layer: int, values: Float[Tensor, "pair group pos d_head"]
) -> Float[Tensor, "pair head pos d_head"]:
    """Run one layer's attention with other values; queries and keys stay those of the run."""
    anatomy = tracer.anatomy
    path = anatomy.architecture.slot_modules[Slot.V]
    columns = anatomy.columns[Slot.V].flatten()
    given = rearrange(values, "b g p k -> b p (g k)")

    def put_values(projected: Tensor) -> Tensor:
        changed = projected.clone()
        changed[..., columns] = given.to(projected)
        return changed

    recorder, site = Recorder(), anatomy.architecture.slot_sites[path]
    visits = {(layer, site): put_values, (layer, LayerSite.Z): recorder.at(layer, LayerSite.Z)}
    tracer.run(run.ids, Plan(start=layer, stop=(layer, LayerSite.Z), stream=run.stream[layer], visits=visits))
    return rearrange(recorder.values[layer, LayerSite.Z], "b p (h k) -> b h p k", h=anatomy.shape.n_heads)
