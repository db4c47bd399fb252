"""Runs for gradients: kept whole for the backward pass, or run again layer by layer when its turn comes.

The second way is gradient checkpointing: a forward pass more, and the memory of one layer instead of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    streams = _streams(tracer, run, embedding)
    last = len(streams) - 1
    whole, cotangent = _through_last(tracer, run, streams.pop(), loss)
    for layer in range(last - 1, -1, -1):
        part, cotangent = _through_layer(tracer, run, layer, streams.pop(), cotangent)
        whole.stream.update(part.stream)
        whole.attention.update(part.attention)
        whole.projections.update(part.projections)
        whole.mlp.update(part.mlp)
    return whole


def _streams(tracer: Tracer, run: Run, embedding: Stream) -> list[Stream]:
    """Return the stream entering every layer."""
    streams: list[Tensor] = []
    last = tracer.anatomy.shape.n_layers - 1
    plan = Plan(
        stop=(last, LayerSite.STREAM),
        stream=embedding.detach().clone(),
        visits={(layer, LayerSite.STREAM): streams.append for layer in range(last + 1)},
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
    whole, cotangent = _through_last(tracer, run, run.stream[last].detach().clone(), loss, heads=True)
    yield GradientsOfLayer(last + 1, Gradients({}, attention, {}, {}, whole.final))
    yield GradientsOfLayer(last, replace(whole, attention=attention, final=torch.empty(0)))
    cotangents = [cotangent, *([whole.final] if drops else [])]
    for layer in range(last - 1, -1, -1):
        taps, after = _of_layer(tracer, run, layer, run.stream[layer].detach().clone(), heads=True)
        passes = [taps.through(after, each, again=True) for each in cotangents]
        plain, *dropped = (replace(each, attention=attention) for each, _ in passes)
        yield GradientsOfLayer(layer, plain, tuple(dropped))
        cotangents = [*(before for _, before in passes), *(cotangents[:1] if drops else [])]


def _through_last(
    tracer: Tracer, run: Run, stream: Stream, loss: Loss, *, heads: bool = False
) -> tuple[Gradients, Stream]:
    """Run from the last layer to the loss and back."""
    taps, last = Taps(heads=heads), tracer.anatomy.shape.n_layers - 1
    plan = Plan(
        start=last,
        stream=stream.requires_grad_(True),
        visits=taps.visits(tracer.anatomy, [last]),
        final=taps.keep_final,
        logits=taps.logits.append,
    )
    tracer.run(run.ids, plan, prefix=run.prefix, gradients=True)
    return taps.through(loss(taps.logits[0]).sum())


def _through_layer(tracer: Tracer, run: Run, layer: int, stream: Stream, cotangent: Stream) -> tuple[Gradients, Stream]:
    """Run one layer forward, and back from the gradient at the stream that it leaves."""
    taps, after = _of_layer(tracer, run, layer, stream)
    return taps.through(after, cotangent)


def _of_layer(tracer: Tracer, run: Run, layer: int, stream: Stream, *, heads: bool = False) -> tuple[Taps, Stream]:
    """Run one layer forward; return its taps, and the stream that it leaves."""
    taps, after, following = Taps(heads=heads), list[Tensor](), (layer + 1, LayerSite.STREAM)
    plan = Plan(
        start=layer,
        stop=following,
        stream=stream.requires_grad_(True),
        visits={**taps.visits(tracer.anatomy, [layer]), following: after.append},
    )
    tracer.run(run.ids, plan, prefix=run.prefix, gradients=True)
    return taps, after[0]
