"""Optimal constants, each fitted once: kept in memory for the weights of a model, and in the journal of a run."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from circuits.behaviours.behaviour import digest_of
from circuits.behaviours.pairs import TokenPair
from circuits.files.journal import NOWHERE, Arrays, Shelf
from circuits.patching.keeping import as_numpy
from circuits.tracing.optimal_constants import PROMPTS, ROUNDS, ConstantFit, optimal_constants
from circuits.tracing.replacements import SenderMeans, sender_means
from circuits.tracing.tracer import Tracer

_MOST = 16
"""Constants of so many sets of reference pairs are kept for a model; then the oldest go."""
_Fits = dict[tuple[object, ...], Arrays]
_FITTED: WeakKeyDictionary[nn.Module, _Fits] = WeakKeyDictionary()


def fitted_once(
    tracer: Tracer, what: Sequence[object], shelf: Shelf, fit: Callable[[], Mapping[str, Tensor]]
) -> Arrays:
    """Return what ``fit`` makes of ``what`` (JSON values) and the model's weights, in float64: made once for both.

    What was fitted before is given back, from memory or from the ``shelf``, which is one of this model.
    """
    module = tracer.anatomy.module
    fits = _FITTED.setdefault(module, {})
    key = (json.dumps(what), *_weights(module))
    if key not in fits:
        while len(fits) >= _MOST:
            del fits[next(iter(fits))]
        fits[key] = shelf.arrays("fitted constants", what, lambda: {name: as_numpy(v) for name, v in fit().items()})
    return fits[key]


def fitted_constants(tracer: Tracer, reference: Sequence[TokenPair], shelf: Shelf = NOWHERE) -> SenderMeans:
    """Return the optimal constants of reference pairs: the clean prompts' fit, begun at the corrupted prompts' means.

    Cost: that of :func:`~circuits.tracing.optimal_constants.optimal_constants`, once.
    """

    def fit() -> dict[str, Tensor]:
        start = sender_means(tracer, [pair.corrupted for pair in reference], by_position=False)
        found = optimal_constants(ConstantFit.of(tracer, [pair.clean for pair in reference]), start)
        parts = {f"z{layer}": value for layer, value in enumerate(found.z)}
        return {"stream": found.stream, **parts, **{f"mlp{layer}": value for layer, value in enumerate(found.mlp)}}

    made = fitted_once(tracer, ["senders", digest_of(reference), PROMPTS, ROUNDS], shelf, fit)
    layers, device = range(tracer.anatomy.shape.n_layers), tracer.anatomy.device
    z, mlp = (tuple(torch.as_tensor(made[f"{name}{at}"], device=device) for at in layers) for name in ("z", "mlp"))
    return SenderMeans(torch.as_tensor(made["stream"], device=device), z, mlp)


def _weights(module: nn.Module) -> list[tuple[object, ...]]:
    """Return what changes with a model's weights: where they lie, and how often they were written to."""
    held: list[Any] = [*module.parameters(), *module.buffers()]
    return [(value.data_ptr(), value._version, value.dtype, value.device) for value in held]
