"""A model whose circuits lead to a direction of the residual stream instead of to the logits.

The stream that enters layer ``l`` is written by the layers before it alone. So the model is cut off there: second
module objects around the same weights, of which only the first ``l`` layers run, without final norm. What is measured,
at the last token, is the length along the direction; scorers, pruners and evaluation see a smaller model with one
number for its logits, and need nothing of their own. Runs stop at that layer because nothing comes after it.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from circuits.adapters.anatomy import Anatomy
from circuits.builder import build_graph
from circuits.directions.stream_direction import StreamDirection
from circuits.errors import GuardError, UsageError
from circuits.model import Model
from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import Recorder
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer, tolerance_of, untraced

_TRIED = 6
"""Tokens of the prompt on which the cut model is held against the whole one."""


@in_own_state
def leading_to(model: Model, direction: StreamDirection) -> Model:
    """Return a model whose graph ends in the stream at a direction's layer, at the last token, read along it.

    It is measured by the metric ``projection``: the length along the direction, in the stream's own units. Nothing is
    changed on ``model``, whose weights it shares. Raises :class:`UsageError` for a direction of another model shape, of
    layer 0 (which nothing but the embedding writes) or of another token than the last; :class:`GuardError` where the
    cut model does not compute the stream that the whole one has. Cost: two forward passes of a few tokens.
    """
    direction.require_model(model.info)
    target = direction.target
    if model.info.target is not None:
        raise UsageError(f"the model's circuits lead to {model.info.target} already; give the model as it was loaded.")
    if target.layer == 0:
        raise UsageError("nothing but the embedding writes to the stream that enters layer 0; choose a later layer.")
    whole = model.tracer
    cut = _cut(whole.anatomy, target.layer)
    info = replace(model.info, target=target)
    wide = torch.promote_types(whole.anatomy.dtype, torch.float32)
    vector = torch.tensor(direction.vector.tolist(), dtype=wide, device=whole.anatomy.device)
    tracer = Tracer(Anatomy(cut, whole.anatomy.architecture)).reading(vector[None])
    found = replace(model, info=info, tracer=tracer, graph=build_graph(info.shape))
    _require_same(whole, tracer, target.layer, vector)
    return found


def _cut(anatomy: Anatomy, layer: int) -> nn.Module:
    """Return second module objects around the same weights, with the first layers only and nothing after them."""
    module, names = untraced(anatomy.module), anatomy.architecture
    path = anatomy.unembedding
    above, _, name = names.layers.rpartition(".")
    layers = cast(Any, module.get_submodule(names.layers))
    setattr(module.get_submodule(above), name, type(layers)(*_arguments(layers, layer)))
    if names.final_norm is not None:
        _replace(module, names.final_norm, nn.Identity())
    if path is not None:
        # Its output is never read; the smallest one costs nothing.
        like = next(module.get_submodule(path).parameters())
        stand_in = nn.Linear(like.shape[1], 1, bias=False, device=like.device, dtype=like.dtype)
        _replace(module, path, stand_in.requires_grad_(False))
    return module.eval()


def _arguments(layers: Any, count: int) -> tuple[Any, ...]:
    kept = list(layers)[:count]
    return tuple(kept) if isinstance(layers, nn.Sequential) else (kept,)


def _replace(module: nn.Module, path: str, part: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(module.get_submodule(above), name, part)


def _require_same(whole: Tracer, cut: Tracer, layer: int, vector: Tensor) -> None:
    """Raise :class:`GuardError` unless the cut model's last stream is the whole model's at that layer."""
    ids = (torch.arange(_TRIED, device=whole.anatomy.device) % whole.anatomy.vocabulary)[None]
    recorder = Recorder()
    if layer < whole.anatomy.shape.n_layers:
        place = (layer, LayerSite.STREAM)
        whole.run(ids, Plan(stop=place, visits={place: recorder.at(*place)}))
        stream = recorder.values[place]
    else:
        whole.run(ids, Plan(final=recorder.keep_final))
        stream = recorder.final
    last = cast(Any, stream[:, -1].to(vector.dtype))
    error = float((last @ vector - cut.plain_logits(ids)[:, 0]).abs().max() / last.norm())
    if not error <= tolerance_of(whole.anatomy.dtype):
        raise GuardError(
            f"the model's first {layer} layers alone make another stream than they do within the whole model (the "
            f"difference is {error:.2g} of its length), so circuits cannot lead there. Choose the logits."
        )
