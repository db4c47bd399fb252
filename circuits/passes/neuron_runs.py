"""Runs in which some neurons of MLPs carry the values of another run; everything else is as the run makes it.

A neuron is a hidden unit just before the down projection of an MLP (:mod:`circuits.adapters.mlp_parts`). With a weight
``w`` it carries ``base + w (current - base)``, at all positions; many sets of weights go through one forward pass along
the batch axis, and one backward pass gives the slope of each pair's metric along every weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuits.behaviours.tokens import Tokens
from circuits.memory.batching import by_length
from circuits.tracing.plan import LayerSite, Plan, Visit, put
from circuits.tracing.prefix import Prefix
from circuits.tracing.runs import Columns, Recorder, Run
from circuits.tracing.taps import Loss, Taps
from circuits.tracing.tracer import Tracer

_ROWS = 16
Neurons = Mapping[int, Float[Tensor, "pair pos neuron"]]
"""Values of the neurons of some layers."""


@dataclass(frozen=True)
class WeightedNeurons:
    """Which neurons carry current values, by layer; ``weights`` have shape ``(set, pair or 1, 1, neuron)``."""

    base: Neurons
    weights: Mapping[int, Float[Tensor, "set _ 1 neuron"]]

    def visits(self) -> dict[tuple[int, LayerSite], Visit]:
        """Return the visits that weigh the neurons of a run of ``set x pair`` rows."""
        return {
            (layer, LayerSite.NEURONS): partial(_weighed, self.base[layer], weights)
            for layer, weights in self.weights.items()
        }


def _weighed(base: Tensor, weights: Tensor, value: Tensor) -> Tensor:
    rows = rearrange(value, "(s b) p n -> s b p n", s=len(weights))
    return torch.lerp(base.expand_as(rows), rows, weights.to(rows.device).expand_as(rows)).flatten(0, 1)


def record_neurons(tracer: Tracer, run: Run, layers: Sequence[int]) -> dict[int, Float[Tensor, "pair pos neuron"]]:
    """Return the neurons of some layers in a run of the same prompts as ``run``. Cost: one forward pass."""
    return _recorded(tracer, run.ids, run.prefix, layers)


def neuron_means(
    tracer: Tracer, prompts: Sequence[Tokens], layers: Sequence[int], *, by_position: bool = False
) -> dict[int, Float[Tensor, "pos neuron"]]:
    """Return the mean of each neuron over all tokens of prompts, which are never padded; sums are taken in float64.

    With ``by_position`` one for each position, counted from the beginning, over the prompts that have it; else one for
    all. Cost: one forward pass of the prompts.
    """
    longest = max(map(len, prompts))
    counts, sums = torch.zeros(longest, 1, dtype=torch.float64), dict[int, Tensor]()
    for members in by_length(map(len, prompts), lambda _: _ROWS):
        ids = torch.tensor([prompts[place] for place in members], device=tracer.anatomy.device)
        counts[: ids.shape[1]] += len(members)
        for layer, values in _recorded(tracer, ids, None, layers).items():
            if layer not in sums:
                sums[layer] = torch.zeros(longest, values.shape[-1], dtype=torch.float64)
            sums[layer][: ids.shape[1]] += values.sum(0, dtype=torch.float64).cpu()
    if not by_position:
        counts, sums = counts.sum(0, keepdim=True), {at: each.sum(0, keepdim=True) for at, each in sums.items()}
    return {layer: (total / counts).to(tracer.anatomy.device, tracer.anatomy.dtype) for layer, total in sums.items()}


def _recorded(
    tracer: Tracer, ids: Int[Tensor, "pair pos"], prefix: Prefix | None, layers: Sequence[int]
) -> dict[int, Float[Tensor, "pair pos neuron"]]:
    recorder, site = Recorder(), LayerSite.NEURONS
    visits: dict[tuple[int, LayerSite], Visit] = {(layer, site): recorder.at(layer, site) for layer in layers}
    tracer.run(ids, Plan(stop=(max(layers), site), visits=visits), prefix=prefix)
    return {layer: recorder.values[layer, site] for layer in layers}


def run_neurons(
    tracer: Tracer, clean: Run, neurons: WeightedNeurons, columns: Columns | None = None
) -> Float[Tensor, "set_pair d_vocab"]:
    """Return the logits of the clean prompts with weighted neurons, for rows ``(set, pair)``.

    Cost: for each set one forward pass from the first of the layers on.
    """
    recorder, first = Recorder(), min(neurons.weights)
    sets = len(neurons.weights[first])
    stream = clean.stream[first].repeat(sets, 1, 1)
    plan = Plan(start=first, stream=stream, visits=neurons.visits(), logits=recorder.keep_logits, columns=columns)
    tracer.run(clean.ids.repeat(sets, 1), plan, prefix=clean.prefix)
    return recorder.logits


def neuron_gradient(
    tracer: Tracer,
    clean: Run,
    neurons: WeightedNeurons,
    loss: Loss,
    columns: Columns | None = None,
) -> tuple[Float[Tensor, " pair"], dict[int, Float[Tensor, "pair neuron"]]]:
    """Return the loss of one set of weights for each pair, and its gradient along the weights of each layer.

    The weights are leaves of shape ``(1, pair, 1, neuron)``. Cost: one forward and one backward pass.
    """
    taps = Taps()
    plan = Plan(stream=clean.stream[0].clone(), visits=neurons.visits(), columns=columns)
    tracer.run(clean.ids, taps.added_to(plan, tracer.anatomy), prefix=clean.prefix, gradients=True)
    values = loss(taps.logits[0])
    found = torch.autograd.grad(values.sum(), list(neurons.weights.values()), materialize_grads=True)
    return values.detach(), {layer: each[0, :, 0] for layer, each in zip(neurons.weights, found, strict=True)}


def without_neurons(
    tracer: Tracer,
    clean: Run,
    layer: int,
    ends: tuple[Float[Tensor, "pair pos neuron"], Float[Tensor, "pair pos neuron"]],
    neurons: Sequence[int],
    columns: Columns | None = None,
) -> Float[Tensor, "neuron_pair d_vocab"]:
    """Return the logits of the clean prompts when one neuron of a layer alone carries its base value.

    ``ends`` are the layer's neurons in the clean run, and their base values. Rows are ``(neuron, pair)``. Cost: for
    each neuron the layer's MLP and the layers after it.
    """
    recorder, count, (current, base) = Recorder(), len(neurons), ends
    rows = current.repeat(count, 1, 1, 1)
    for row, neuron in enumerate(neurons):
        rows[row, ..., neuron] = base[..., neuron]
    plan = Plan(
        start=layer,
        stream=clean.stream[layer].repeat(count, 1, 1),
        attention={layer: clean.attention[layer].repeat(count, 1, 1)},
        visits={(layer, LayerSite.NEURONS): partial(put, rows.flatten(0, 1))},
        logits=recorder.keep_logits,
        columns=columns,
    )
    tracer.run(clean.ids.repeat(count, 1), plan, prefix=clean.prefix)
    return recorder.logits
