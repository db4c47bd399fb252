"""Runs for gradients: kept whole for the backward pass, or run again layer by layer when its turn comes.

The second way is gradient checkpointing: a forward pass more, and the memory of one layer instead of all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import Run
from circuits.tracing.taps import Gradients, Loss, Stream, Taps
from circuits.tracing.tracer import Tracer


def gradients_at(tracer: Tracer, run: Run, embedding: Stream, loss: Loss) -> Gradients:
    """Return the gradients of ``loss`` at the run with this input embedding of the prompts of ``run``.

    Cost: one forward and one backward pass, which keep the activations of all layers.
    """
    taps = Taps()
    plan = taps.added_to(Plan(stream=embedding.detach().clone()), tracer.anatomy)
    tracer.run(run.ids, plan, prefix=run.prefix, gradients=True)
    return taps.of_loss(loss)


def gradients_by_layer(tracer: Tracer, run: Run, embedding: Stream, loss: Loss) -> Gradients:
    """Return what :func:`gradients_at` returns, with the activations of one layer at a time.

    Cost: two forward passes and one backward pass.
    """
    return gradients_from(tracer, run, 0, embedding, loss, checkpointing=True)


def gradients_from(
    tracer: Tracer,
    run: Run,
    start: int,
    stream: Stream,
    loss: Loss,
    *,
    attention: Stream | None = None,
    checkpointing: bool = False,
) -> Gradients:
    """Return the gradients of ``loss`` where the prompts of ``run`` go on from a layer with this stream.

    ``attention`` takes the place of that layer's attention output, before a norm or factor. Cost: one forward and one
    backward pass of these layers, which keep their activations; with ``checkpointing`` those of one at a time, for a
    forward pass more.
    """
    given, last = {} if attention is None else {start: attention}, tracer.anatomy.shape.n_layers - 1
    stream = stream.detach().clone()
    if not checkpointing or start >= last:
        return _through_rest(tracer, run, start, stream, loss, attention=given)[0]
    streams = _streams(tracer, run, start, stream, given)
    whole, cotangent = _through_rest(tracer, run, last, streams.pop(), loss)
    for layer in range(last - 1, start - 1, -1):
        taps, after = _of_layer(tracer, run, layer, streams.pop(), attention=given)
        part, cotangent = taps.through(after, cotangent)
        whole.stream.update(part.stream)
        whole.attention.update(part.attention)
        whole.projections.update(part.projections)
        whole.mlp.update(part.mlp)
    return whole


def _streams(tracer: Tracer, run: Run, start: int, stream: Stream, attention: Mapping[int, Tensor]) -> list[Stream]:
    """Return the stream entering every layer from ``start`` on."""
    streams: list[Tensor] = []
    last = tracer.anatomy.shape.n_layers - 1
    plan = Plan(
        start=start,
        stop=(last, LayerSite.STREAM),
        stream=stream.clone(),
        attention=attention,
        visits={(layer, LayerSite.STREAM): streams.append for layer in range(start, last + 1)},
    )
    tracer.run(run.ids, plan, prefix=run.prefix)
    return streams


@dataclass(frozen=True)
class GradientsOfLayer:
    """Gradients at what one layer reads (the number of layers: the logits), and the same without single layers above.

    Those are in the order of the layers left out, from the last one.
    """

    layer: int
    plain: Gradients
    dropped: tuple[Gradients, ...] = ()


def gradients_with_drops(tracer: Tracer, run: Run, loss: Loss, *, drops: bool = True) -> Iterator[GradientsOfLayer]:
    """Return the gradients of ``loss`` at a recorded run from the logits to the first layer, heads' outputs included.

    With ``drops`` also those of backward passes that leave out what one later layer adds to the stream, one by one.
    Cost: a forward and a backward pass; with ``drops`` half as many more backward passes as there are layers.
    """
    last = tracer.anatomy.shape.n_layers - 1
    attention = {} if tracer.anatomy.additive else dict(enumerate(run.attention))
    whole, cotangent = _through_rest(tracer, run, last, run.stream[last].detach().clone(), loss, heads=True)
    yield GradientsOfLayer(last + 1, Gradients({}, attention, {}, {}, whole.final))
    yield GradientsOfLayer(last, replace(whole, attention=attention, final=torch.empty(0)))
    cotangents = [cotangent, *([whole.final] if drops else [])]
    for layer in range(last - 1, -1, -1):
        taps, after = _of_layer(tracer, run, layer, run.stream[layer].detach().clone(), heads=True)
        passes = [taps.through(after, each, again=True) for each in cotangents]
        plain, *dropped = (replace(each, attention=attention) for each, _ in passes)
        yield GradientsOfLayer(layer, plain, tuple(dropped))
        cotangents = [*(before for _, before in passes), *(cotangents[:1] if drops else [])]


def _through_rest(
    tracer: Tracer,
    run: Run,
    start: int,
    stream: Stream,
    loss: Loss,
    *,
    heads: bool = False,
    attention: Mapping[int, Tensor] = MappingProxyType({}),
) -> tuple[Gradients, Stream]:
    """Run from a layer to the loss and back."""
    taps = Taps(heads=heads)
    plan = Plan(
        start=start,
        stream=stream.requires_grad_(True),
        attention=attention,
        visits=taps.visits(tracer.anatomy, range(start, tracer.anatomy.shape.n_layers)),
        final=taps.keep_final,
        logits=taps.logits.append,
    )
    tracer.run(run.ids, plan, prefix=run.prefix, gradients=True)
    return taps.through(loss(taps.logits[0]).sum(), begin=stream)


def _of_layer(
    tracer: Tracer,
    run: Run,
    layer: int,
    stream: Stream,
    *,
    heads: bool = False,
    attention: Mapping[int, Tensor] = MappingProxyType({}),
) -> tuple[Taps, Stream]:
    """Run one layer forward; return its taps, and the stream that it leaves."""
    taps, after, following = Taps(heads=heads), list[Tensor](), (layer + 1, LayerSite.STREAM)
    plan = Plan(
        start=layer,
        stop=following,
        stream=stream.requires_grad_(True),
        attention=attention,
        visits={**taps.visits(tracer.anatomy, [layer]), following: after.append},
    )
    tracer.run(run.ids, plan, prefix=run.prefix, gradients=True)
    return taps, after[0]
