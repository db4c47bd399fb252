"""The only module that knows nnsight: carries out a :class:`~circuits.tracing.plan.Plan` in one trace."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from nnsight import TransformersModel
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from circuits.errors import GuardError
from circuits.tracing.anatomy import Anatomy
from circuits.tracing.plan import Plan, Site, Visit


class Tracer:
    """Runs plans on one model. Nothing stays on the model after a run, whether it ends, stops early or raises."""

    def __init__(self, anatomy: Anatomy, tokenizer: Any) -> None:
        self.anatomy = anatomy
        self._model: Any = TransformersModel(anatomy.module, tokenizer=tokenizer, task="text-generation")
        names = anatomy.architecture
        self._layers = [_LayerEnvoys(layer, anatomy) for layer in _follow(self._model, names.layers)]
        self._final_norm = _follow(self._model, names.final_norm)

    def run(self, ids: Int[Tensor, "row pos"], plan: Plan, *, gradients: bool = False) -> None:
        """Run token ids through the model as the plan says; results leave through the plan's visits.

        Logits are computed at the last position only. Cost: the layers that are neither before ``plan.start`` nor idle.
        """
        try:
            with torch.set_grad_enabled(gradients), self._model.trace(ids, use_cache=False, logits_to_keep=1) as trace:
                self._play(plan, trace)
        except OutOfOrderError as error:
            adapter = self.anatomy.architecture.name
            raise GuardError(
                f"the model does not reach its modules in the order that the adapter '{adapter}' "
                f"declares: {error}. A norm or projection is declared wrongly in circuits/tracing/architectures.py."
            ) from error

    def _play(self, plan: Plan, trace: Any) -> None:
        for number, layer in enumerate(self._layers):
            if number < plan.start:
                layer.layer.skip(plan.stream)
            elif number in plan.idle:
                layer.layer.skip(plan.idle[number])
            else:
                layer.play(number, plan, trace)
        if plan.final is not None:
            _visit(self._final_norm, "input", plan.final)
        if plan.logits is not None:
            plan.logits(self._model.output.logits[:, -1])


class _LayerEnvoys:
    """The places of one layer that plans can visit, in forward order."""

    def __init__(self, layer: Any, anatomy: Anatomy) -> None:
        names = anatomy.architecture
        self.layer = layer
        self.attention = _follow(layer, names.attention)
        self.mlp = _follow(layer, names.mlp)
        self.mlp_norm = _follow(layer, names.mlp_norm)
        self.output = _follow(layer, names.output)
        self.projections = [(site, _follow(layer, path)) for path, site in names.projection_sites.items()]

    def play(self, number: int, plan: Plan, trace: Any) -> None:
        if number == plan.start and plan.stream is not None and number == 0:
            self.layer.input = plan.stream
        for site, envoy, attribute in self._places(number, plan):
            visit = plan.visits.get((number, site))
            if visit is not None:
                _visit(envoy, attribute, visit)
            if plan.stop == (number, site):
                trace.stop()

    def _places(self, number: int, plan: Plan) -> Iterator[tuple[Site, Any, str]]:
        """Walk over the places of this layer that run, skipping blocks that the plan replaces."""
        yield Site.STREAM, self.layer, "input"
        if number in plan.attention:
            self.attention.skip((plan.attention[number], None))
        else:
            for site, projection in self.projections:
                yield site, projection, "output"
            yield Site.Z, self.output, "input"
            yield Site.ATTENTION, self.output, "output"
        if number in plan.mlp:
            self.mlp.skip(plan.mlp[number])
        else:
            yield Site.MLP_IN, self.mlp_norm, "input"
            yield Site.MLP_OUT, self.mlp, "output"


def _visit(envoy: Any, attribute: str, visit: Visit) -> None:
    replacement = visit(getattr(envoy, attribute))
    if replacement is not None:
        setattr(envoy, attribute, replacement)


def _follow(envoy: Any, path: str) -> Any:
    for name in path.split("."):
        envoy = getattr(envoy, name)
    return envoy
