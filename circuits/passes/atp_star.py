r"""AtP\* (Kramar et al. 2024, arXiv:2403.00745): attribution patching with two of its errors mended.

*QK correction.* A softmax that is saturated, or that would be after patching, hides what a query or key does to the
pattern. So the pattern is computed exactly with the patched queries, and with each patched key alone, and only what
follows it is taken to first order. That gives the effect of a query or key at every position. Edges need a gradient
there: of all those by which patching the whole query or key has its corrected effect, it is the nearest to the plain
gradient, ``g + d (c - <d, g>) / <d, d>``, with ``d`` the query's change and ``c`` its corrected effect.

*GradDrop.* Effects of opposite sign that reach the metric on several ways cancel in a gradient. So the size of an
estimate is averaged over as many backward passes as there are layers, each without what passes through one layer: all
but the one without the receiver's own layer, in which nothing is left.

Layers are gone through from the last to the first, with one cotangent for each layer that was left out above, so that
of all these passes only the parts that differ are made: half of them.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.numbering import edges_into_layer
from circuits.passes.attribution import attribute_each
from circuits.passes.estimate import Given
from circuits.passes.exact_patterns import PatternChanges, pattern_changes
from circuits.passes.gradients import gradients_with_drops
from circuits.tracing.runs import difference
from circuits.tracing.taps import Gradients


@dataclass(frozen=True)
class AtpStar:
    """Estimates with corrected queries and keys; with ``drops`` their sizes by GradDrop, which are never negative.

    A size is taken for each pair, and of answers of several tokens for each token, before they are summed. ``correct``
    False leaves the correction out. Cost, for ``n`` layers: two forward and one backward pass, and one more of the
    attention for three times as many rows; with ``drops`` about ``n / 2`` backward passes, each with the products of
    attribution, for which a layer's senders are expanded once. No more than one layer's activations are held at a time.
    """

    drops: bool = True
    correct: bool = True
    of_metric: ClassVar[bool] = True
    whole_prompts: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What it is and what it was told."""
        return f"atp-star, drops {self.drops}, corrected {self.correct}"

    def __call__(self, given: Given) -> Float[Tensor, "pair edge"]:
        """Return the estimate of every edge for each pair."""
        here = given.ends[0]
        graph, layers = given.graph, given.graph.shape.n_layers
        change = difference(given.clean, given.base)
        correct = self.correct and given.tracer.anatomy.rules.queries_and_keys != 0
        total = torch.zeros(len(here.ids), graph.n_edges, device=here.stream[0].device)
        for found in gradients_with_drops(given.tracer, here, given.loss, drops=self.drops):
            into = edges_into_layer(graph, found.layer)
            changes = pattern_changes(given, found.layer) if correct and found.layer < layers else None
            mended = [_corrected(given, changes, gradients) for gradients in (found.plain, *found.dropped)]
            seen = given.tracer, graph, change, mended
            values = attribute_each(*seen, into=into, tile=given.tile, roles=given.roles)
            total[:, into] = self._of_layer(found.layer, layers, values)
        return total

    def _of_layer(
        self, layer: int, layers: int, values: Float[Tensor, "gradient pair edge"]
    ) -> Float[Tensor, "pair edge"]:
        """Return the estimates of edges into one layer, or into the logits, through which no layer is on the way.

        The first of the ``values`` is of the plain pass, the others are of those that one of the layers above is left
        out of. Below a layer its own pass is the plain one.
        """
        if not self.drops:
            return values[0]
        sizes = values.abs()
        if layers in (1, layer):
            return sizes[0]
        return (layer * sizes[0] + sizes[1:].sum(0)) / (layers - 1)


def _corrected(given: Given, changes: PatternChanges | None, gradients: Gradients) -> Gradients:
    """Return a layer's gradients, at queries and keys those that give the corrected effects of whole ones."""
    if changes is None:
        return gradients
    anatomy, layer = given.tracer.anatomy, changes.layer
    projections = dict(gradients.projections)
    for slot, effect in changes.effects(gradients.z[layer]).items():
        path = anatomy.architecture.slot_modules[slot]
        columns = anatomy.columns[slot]
        clean, base = (run.projections[layer][path] for run in (given.clean, given.base))
        moved = (clean - base)[..., columns].double()
        plain = projections[layer, path][..., columns].double()
        sizes = moved.square().sum(-1)
        missing = (-effect if not given.denoising else effect) - (moved * plain).sum(-1)
        step = torch.where(sizes > 0, missing / sizes.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        mended = projections[layer, path].clone()
        mended[..., columns] = (plain + step.unsqueeze(-1) * moved).to(mended.dtype)
        projections[layer, path] = mended
    return replace(gradients, projections=projections)
