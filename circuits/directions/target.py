"""A model whose circuits lead to one number that is read in the residual stream, instead of to the logits.

The number is the length along a direction, with a probe's constant; the activation of a neuron; or the length of a
head's query, key or value along the difference of its means. Each is a function of the stream at one token, at the
entrance of a layer or between its attention and its MLP, which is written by what comes before. So the model is cut off
there: second module objects around the same weights, with what reads the number in place of the final norm. Scorers,
pruners and evaluation see a smaller model with one number for its logits, and need nothing of their own. Runs stop
there because nothing comes after it; and prompts end at the token that is read (:mod:`circuits.behaviours.endings`).
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.architecture import Architecture
from circuits.adapters.linear import linear_map
from circuits.adapters.mlp_parts import mlp_parts, projects
from circuits.adapters.readings import LengthReading, NeuronReading, Nothing, Reading, SlotReading
from circuits.builder import build_graph
from circuits.directions.stream_direction import StreamDirection
from circuits.errors import GuardError, UnknownNameError, UsageError
from circuits.model import Model
from circuits.records import ModelInfo, Target
from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import Recorder
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer, tolerance_of, untraced

_TRIED = 6
"""Tokens of the prompt on which the cut model is held against the whole one."""


@in_own_state
def leading_to(model: Model, to: StreamDirection | Target | str, *, along: StreamDirection | None = None) -> Model:
    """Return a model whose graph ends where one number is read in the residual stream, at one token.

    Args:
        model: Nothing is changed on it; the new one shares its weights.
        to: A direction at its layer (or a linear probe, which is a direction with a bias): the number is the length
            along it, in the stream's own units. A neuron (``m14.n123``): its activation. A head's query, key or value
            (``a14.h5<q>``, ``a14.kv1<k>`` where heads share them), before positions are turned into it: its length
            along the unit vector from its mean on corrupted to that on clean reference pairs. What a head writes to the
            stream (``a14.h5``), itself alone: its length ``along`` a direction, or by default along that unit vector;
            where a norm stands behind the attention it is the head's share of what that norm reads. The stream that
            enters a layer (``resid:12:subject``): its length ``along`` a direction. The token is the last one unless
            the place names another: counted from the end (``a14.h5<q>:-5``), or a token role of the prompt pairs
            (``:subject``), of which the last counts. Experiments of the new model then cut prompts off behind it.
        along: The direction for a place in the stream or for a head's output; at which layer and token it was found
            does not count.

    It is measured by the metric ``projection``. Raises :class:`UsageError` for a direction of another model shape, and
    for a place that only the embedding writes to; ``UnknownNameError`` for a head,
    neuron or layer that is not there; ``UnsupportedModelError`` for neurons of a mixture of experts;
    :class:`GuardError` where the cut model does not compute what the whole one does. Cost: two forward passes of a few
    tokens.
    """
    to, target = _placed(to, along)
    if isinstance(to, StreamDirection):
        to.require_model(model.info)
    if model.info.target is not None:
        raise UsageError(f"the model's circuits lead to {model.info.target} already; give the model as it was loaded.")
    info = replace(model.info, target=target)
    _require_there(model, info, target)
    whole = model.tracer
    reading = _reading(whole, target, to)
    tracer = Tracer(_cut(whole.anatomy, info, reading))
    tracer = tracer if target.head is None else tracer.of_attention_alone()
    wide = torch.promote_types(whole.anatomy.dtype, torch.float32)
    first = [1.0] + [0.0] * (info.d_model - 1)
    read = to.vector.tolist() if isinstance(to, StreamDirection) and reading is None else first
    vector = torch.tensor(read, dtype=wide, device=whole.anatomy.device)
    _require_same(whole, tracer, target, reading)
    # Along which direction a head's query, key or value is read is found in reference pairs: Model.experiment.
    given = isinstance(to, StreamDirection) or target.receiver is None
    tracer = tracer.reading(vector[None]) if given else tracer
    return replace(model, info=info, tracer=tracer, graph=build_graph(info.shape))


def _placed(
    to: StreamDirection | Target | str, along: StreamDirection | None
) -> tuple[StreamDirection | Target, Target]:
    """Return what is read, and where; raises :class:`UsageError` where the two do not belong together."""
    if isinstance(to, StreamDirection) and along is None:
        return to, to.target
    target = to.target if isinstance(to, StreamDirection) else Target.parse(to) if isinstance(to, str) else to
    if along is None:
        return target, target
    if (target.site and target.head is None) or isinstance(to, StreamDirection):
        raise UsageError(
            f"{target} is read by itself, and a second direction was given (along); it is for a place in the residual "
            "stream, such as resid:12:subject, or a head's output, such as a14.h5."
        )
    direction = along.at(target)
    if target.digest not in ("", direction.digest):
        raise UsageError(f"{target} was read along another direction than this one; give the one it was found with.")
    return direction, replace(target, digest=direction.digest)


def _require_there(model: Model, info: ModelInfo, target: Target) -> None:
    """Raise for a place that the model does not have, or that nothing but the embedding writes to."""
    graph, last = build_graph(replace(info, target=None, roles=()).shape), info.n_layers - 1
    if not target.site and not target.digest:
        raise UsageError(f"{target} is a vector; give the direction that it is read along (a StreamDirection).")
    if target.layer == 0 and target.head is None and (target.neuron is None or info.parallel):
        raise UsageError("nothing but the embedding writes to the stream that enters layer 0; choose a later layer.")
    if target.site and target.layer > last:
        near = target.site.replace(str(target.layer), str(last), 1)
        hint = f"This model has {graph.shape.describe()}."
        raise UnknownNameError("place for a circuit to lead to", target.site, [near], hint=hint)
    if target.head is not None:
        graph.require_node(target.head)
    elif target.receiver is not None:
        graph.require_receiver(target.receiver)
    if target.neuron is not None:
        width = _neurons(model.tracer, target.layer)
        if target.neuron >= width:
            hint = f"Layer {target.layer} has the neurons 0-{width - 1}."
            raise UnknownNameError("neuron", target.site, [f"m{target.layer}.n{width - 1}"], hint=hint)


def _neurons(tracer: Tracer, layer: int) -> int:
    """Return how many neurons a layer's MLP has; raises ``UnsupportedModelError`` where they cannot be told."""
    path = tracer.down_projections[layer]
    module = list(cast(Any, tracer.anatomy.module.get_submodule(tracer.anatomy.architecture.layers)))[layer]
    return linear_map(module.get_submodule(path), path).weight.shape[1]


def _reading(whole: Tracer, target: Target, to: StreamDirection | Target) -> Reading | None:
    """Return what reads the number, around the model's own weights; None: the stream itself is read."""
    anatomy, names = whole.anatomy, whole.anatomy.architecture
    if isinstance(to, StreamDirection):
        wide = torch.promote_types(anatomy.dtype, torch.float32)
        vector = torch.tensor(to.vector.tolist(), dtype=wide, device=anatomy.device)
        return LengthReading(vector, to.bias) if to.bias else None
    layer = untraced(list(cast(Any, anatomy.module.get_submodule(names.layers)))[target.layer])
    receiver = target.receiver
    if target.head is not None:
        return None
    if receiver is not None and receiver.slot is not None:
        path = names.projections[receiver.slot]
        norms = names.attention_norm, names.projection_norms.get(receiver.slot)
        norm, made_norm = (None if each is None else layer.get_submodule(each) for each in norms)
        columns: list[int] = cast(Any, anatomy.columns[receiver.slot][receiver.node.index]).tolist()
        return SlotReading(norm, anatomy.layers[target.layer].projections[path], made_norm, columns)
    norm = None if names.mlp_norm is None else layer.get_submodule(names.mlp_norm)
    return NeuronReading(norm, _parts(names, layer, whole.down_projections[target.layer]), target.neuron or 0)


def _parts(names: Architecture, layer: nn.Module, down: str) -> list[nn.Module]:
    """Return what makes an MLP's neurons: the MLP without its last projection, or its first part and activation."""
    path, parts = mlp_parts(names, layer)
    if names.mlp_output is not None:
        return [layer.get_submodule(str(names.mlp)), next(part for part in parts.values() if not projects(part))]
    _replace(layer, down, nn.Identity())
    return [layer.get_submodule(path)]


def _cut(anatomy: Anatomy, info: ModelInfo, reading: Reading | None) -> Anatomy:
    """Return second module objects around the same weights, with the first layers only and a reading after them."""
    module, names, path = untraced(anatomy.module), anatomy.architecture, anatomy.unembedding
    above, _, name = names.layers.rpartition(".")
    layers = cast(Any, module.get_submodule(names.layers))
    if info.shape.half:
        last = list(layers)[info.shape.n_layers - 1]
        _replace(last, str(names.mlp_output or names.mlp), Nothing(info.d_model))
        if names.mlp_post_norm is not None:
            _replace(last, names.mlp_post_norm, nn.Identity())
        if info.shape.only is not None:
            _keep_one_head(last, names, anatomy, info.shape.only)
    setattr(module.get_submodule(above), name, type(layers)(*_arguments(layers, info.shape.n_layers)))
    if reading is not None:
        if path is not None:
            _replace(module, path, nn.Identity())
        names = names if names.final_norm is not None else replace(names, final_norm=path)
        _replace(module, str(names.final_norm), reading)
        return Anatomy(module.eval(), names)
    if names.final_norm is not None:
        _replace(module, names.final_norm, nn.Identity())
    if path is not None:
        # Its output is never read; the smallest one costs nothing.
        like = next(module.get_submodule(path).parameters())
        stand_in = nn.Linear(like.shape[1], 1, bias=False, device=like.device, dtype=like.dtype)
        _replace(module, path, stand_in.requires_grad_(False))
    return Anatomy(module.eval(), names)


def _keep_one_head(layer: nn.Module, names: Architecture, anatomy: Anatomy, head: int) -> None:
    """Let a layer's attention write what one head does, alone: no bias, and no norm behind it."""
    weight, _ = linear_map(layer.get_submodule(names.output), names.output)
    one = torch.zeros_like(weight)
    own = slice(head * anatomy.shape.d_head, (head + 1) * anatomy.shape.d_head)
    one[:, own] = weight[:, own].detach()
    module = nn.Linear(one.shape[1], one.shape[0], bias=False, device=one.device, dtype=one.dtype)
    module.weight = nn.Parameter(one, requires_grad=False)
    _replace(layer, names.output, module)
    if names.attention_post_norm is not None:
        _replace(layer, names.attention_post_norm, nn.Identity())


def _arguments(layers: Any, count: int) -> tuple[Any, ...]:
    kept = list(layers)[:count]
    return tuple(kept) if isinstance(layers, nn.Sequential) else (kept,)


def _replace(module: nn.Module, path: str, part: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(module.get_submodule(above), name, part)


def _require_same(whole: Tracer, cut: Tracer, target: Target, reading: Reading | None) -> None:
    """Raise :class:`GuardError` unless what the cut model reads is what the whole model has there."""
    anatomy = whole.anatomy
    ids = (torch.arange(_TRIED, device=anatomy.device) % anatomy.vocabulary)[None]
    there = _whole(whole, ids, target)[:, -1]
    wide = torch.promote_types(there.dtype, torch.float32)
    everything = torch.eye(anatomy.shape.d_model, dtype=wide, device=there.device)
    read: Any = cut.reading(everything).plain_logits(ids)
    expected: Any = there.to(wide)
    size: Any = expected.norm()
    if isinstance(reading, LengthReading):
        expected = reading.read(there)
    elif target.head is not None:
        made = anatomy.head_outputs(target.layer, there, [target.head.index])[:, 0]
        expected = made.to(wide) * anatomy.residual_scale
    elif target.receiver is not None and target.receiver.slot is not None:
        expected = expected[:, anatomy.columns[target.receiver.slot][target.receiver.node.index]]
    elif target.neuron is not None:
        expected = expected[:, [target.neuron]]
    error = float((read[:, : expected.shape[-1]] - expected).norm() / size)
    if not error <= tolerance_of(anatomy.dtype):
        raise GuardError(
            f"the model's first {target.layer} layers alone make something else at {target} than they do within the "
            f"whole model (the difference is {error:.2g} of its length), so circuits cannot lead there. Choose the "
            "logits."
        )


def _whole(whole: Tracer, ids: Tensor, target: Target) -> Tensor:
    """Return what the whole model has where the target is read: the stream, a slot's projection, or all neurons."""
    recorder, site = Recorder(), LayerSite.STREAM
    if target.neuron is not None:
        site = LayerSite.NEURONS
    elif target.head is not None:
        site = LayerSite.Z
    elif target.receiver is not None and target.receiver.slot is not None:
        names = whole.anatomy.architecture
        site = names.slot_sites[names.slot_modules[target.receiver.slot]]
    elif target.layer == whole.anatomy.shape.n_layers:
        whole.run(ids, Plan(final=recorder.keep_final))
        return recorder.final
    place = target.layer, site
    whole.run(ids, Plan(stop=place, visits={place: recorder.at(*place)}))
    return recorder.values[place]
