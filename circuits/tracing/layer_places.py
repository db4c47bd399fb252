"""The places of a model's layers that plans can visit, while the model is traced.

Everything here is given modules as nnsight shows them, and knows nothing else of it.
"""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.forms import Form, rewrap, unwrap
from circuits.tracing.plan import LayerSite, Plan, Visit


@dataclass(frozen=True)
class TracedPlace:
    """Where a visit reads, and how what it returns is put back: by default at the same place.

    Values are seen, and put back, on the device of the weights there.
    """

    envoy: Any
    attribute: str
    device: torch.device
    scale: float = 1.0

    def visit(self, visit: Visit, rows: int) -> None:
        """Show the value to a visit, and replace it by what that returns."""
        found = getattr(self.envoy, self.attribute)
        value = unwrap(found, rows).to(self.device)
        replacement = visit(value if self.scale == 1.0 else value * self.scale)
        if replacement is not None:
            replacement = replacement.to(self.device)
            setattr(
                self.envoy,
                self.attribute,
                rewrap(replacement if self.scale == 1.0 else replacement / self.scale, found),
            )


@dataclass(frozen=True)
class ParallelRead:
    """What the MLP of a parallel block reads: the layer's own input, replaced behind the norm (which may be shared)."""

    mlp: Any
    norm: Callable[[Tensor], Tensor]
    stream: Tensor

    def visit(self, visit: Visit, rows: int) -> None:
        """Show the stream to a visit, and let the MLP read what that returns."""
        del rows
        replacement = visit(self.stream)
        if replacement is not None:
            self.mlp.input = self.norm(replacement)


@dataclass(frozen=True)
class Unembedding:
    """The model's last linear layer."""

    envoy: Any
    module: Any

    def unembed(self, columns: Tensor | None) -> None:
        """Compute the logits of the last position only, of all tokens or of some.

        As one matrix product: of a slice with gaps, torch makes one product per row, several times slower.
        """
        weight, bias = self.module.weight, self.module.bias
        if columns is not None:
            columns = columns.to(weight.device)
            weight, bias = weight[columns], None if bias is None else bias[columns]
        last = self.envoy.input[:, -1].contiguous().to(weight.device)
        self.envoy.skip(functional.linear(last, weight, bias).unsqueeze(1))


class LayerPlaces:
    """The places of one layer that plans can visit, in forward order."""

    def __init__(self, layer: Any, anatomy: Anatomy, forms: dict[str, Form], device: torch.device) -> None:
        names = anatomy.architecture
        self.device = device
        self.layer, self.anatomy, self.forms = layer, anatomy, forms
        self.attention = follow(layer, names.attention)
        if names.mlp is not None:
            self.mlp = follow(layer, names.mlp)
            self.mlp_end = follow(layer, names.mlp_output or names.mlp)
            self.mlp_read = self.mlp if names.mlp_norm is None else follow(layer, names.mlp_norm)
            self.mlp_written = self.mlp_end if names.mlp_post_norm is None else follow(layer, names.mlp_post_norm)
        self.output = follow(layer, names.output)
        self.projections = [(site, follow(layer, path)) for path, site in names.slot_sites.items()]

    def seen_through(self, anatomy: Anatomy) -> "LayerPlaces":
        """Return the same places with another anatomy of the same model."""
        other = copy(self)
        other.anatomy = anatomy
        return other

    def pass_over(self, stream: Tensor | None) -> None:
        """Skip the layer: it puts out a given stream."""
        self.layer.skip(None if stream is None else self.forms[""].wrap(stream))

    def play(self, number: int, plan: Plan, trace: Any, rows: int, down: str | None) -> None:
        """Visit the layer's places, and skip the blocks that the plan replaces; ``down`` reads its neurons."""
        if number == plan.start and plan.stream is not None and number == 0:
            self.layer.input = plan.stream
        for site, place in self._places(number, plan, rows, down):
            visit = plan.visits.get((number, site))
            if visit is not None:
                place.visit(visit, rows)
            if plan.stop == (number, site):
                trace.stop()

    def _places(
        self, number: int, plan: Plan, rows: int, down: str | None
    ) -> Iterator[tuple[LayerSite, TracedPlace | ParallelRead]]:
        names = self.anatomy.architecture
        yield LayerSite.STREAM, TracedPlace(self.layer, "input", self.device)
        stream = self._entering(rows) if names.parallel or names.attention_adds_stream else None
        if number in plan.attention:
            given = plan.attention[number].to(self.device)
            whole = given if stream is None or not names.attention_adds_stream else stream + given
            self.attention.skip(self.forms[names.attention].wrap(whole))
        else:
            for site, projection in self.projections:
                yield site, TracedPlace(projection, "output", self.device)
            yield LayerSite.Z, TracedPlace(self.output, "input", self.device)
            yield LayerSite.ATTENTION, TracedPlace(self.output, "output", self.device)
        if names.mlp is None:
            return
        if number in plan.mlp:
            self._skip_mlp(names.mlp, plan.mlp[number].to(self.device))
            return
        if stream is not None and names.parallel:
            yield LayerSite.MLP_IN, ParallelRead(self.mlp, partial(self.anatomy.mlp_norm, number), stream)
        else:
            yield LayerSite.MLP_IN, TracedPlace(self.mlp_read, "input", self.device)
        if down is not None:
            yield LayerSite.NEURONS, TracedPlace(follow(self.layer, down), "input", self.device)
        yield LayerSite.MLP_OUT, TracedPlace(self.mlp_written, "output", self.device, self.anatomy.residual_scale)

    def _entering(self, rows: int) -> Tensor:
        return unwrap(self.layer.input, rows).to(self.device)

    def _skip_mlp(self, path: str, value: Tensor) -> None:
        names = self.anatomy.architecture
        if names.mlp_output is not None:
            # What the first module puts out goes through activations only, and is then thrown away.
            self.mlp.skip(self.forms[path].wrap(value))
        self.mlp_end.skip(self.forms[names.mlp_output or path].wrap(value))


def follow(envoy: Any, path: str) -> Any:
    """Return the module at a path within another, as nnsight shows it."""
    for name in path.split("."):
        envoy = getattr(envoy, name)
    return envoy
