"""Path patching the slow way: one forward pass per edge, no batching, no shortcuts.

Notation: ``a_u`` is what sender u adds to the residual stream, ``x_v`` is what receiver v reads before its norm. In a
layer with a norm after attention (Gemma 2 and 3, OLMo 2 and 3, GLM 4, EXAONE 4) the value of a head is raw,
``z_h W_O,h`` before that norm, and the layer adds the norm of the sum to the stream; see ``Anatomy.stream_change``.
Prompts are token ids of shape (pair, pos), all of one length and without padding; metrics take the logits at the last
position, shape (pair, d_vocab), and give one number per pair.

========================  ============================================================================================
``sender_values``         a_u of every sender in a plain run
``exact_edge_effects``    the definition of an edge's effect: a plain run in which one receiver sees another a_u
``live_run``              the one primitive: x_v = sum of a_u, current values on live edges, recorded ones elsewhere
``masked_run``            ``live_run`` of the clean prompts over the corrupted run: what a circuit computes
========================  ============================================================================================
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuits.graph import Edge, Node, NodeKind, Receiver
from tests.reference.anatomy import INPUT, Anatomy, Read, Send, anatomy_of, run_layer
from tests.reference.layers import Rest
from tests.reference.seams import replaced

LOGITS = Receiver(Node(NodeKind.LOGITS))
MetricFn = Callable[[Tensor], Tensor]
Direction = Literal["noising", "denoising"]
Ablation = Literal["corrupted", "zero", "mean", "mean-by-position", "mean-by-template"]


@contextmanager
def hooked() -> Iterator[list[RemovableHandle]]:
    """Give a list for hook handles and remove every hook in it at the end, whatever happens."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def start_from(anatomy: Anatomy, embedding: Tensor | None) -> list[RemovableHandle]:
    """Replace the input of block 0."""
    if embedding is None:
        return []
    return [anatomy.blocks[0].register_forward_pre_hook(lambda _, args: (embedding, *args[1:]))]


def last_logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits[:, -1]


def plain_read(_: Receiver, stream: Tensor) -> Tensor:
    """Read what the model would read."""
    return stream


@contextmanager
def rewired(
    anatomy: Anatomy,
    read: Read = plain_read,
    send: Send | None = None,
    *,
    layers: Collection[int] | None = None,
    embedding: Tensor | None = None,
) -> Iterator[None]:
    """Let receivers read through ``read`` and tell ``send`` what senders send, in some layers (``None``: in all).

    The other layers run untouched.
    """

    def forward(index: int) -> Callable[..., Any]:
        def run(x: Tensor, *args: Any, **options: Any) -> Tensor | tuple[Tensor, None]:
            after = run_layer(anatomy, index, x, Rest(args, options), read, send)
            return (after, None) if anatomy.layers[index].gives_tuple else after

        return run

    with ExitStack() as stack, hooked() as handles:
        handles.extend(start_from(anatomy, embedding))
        if send is not None:
            handles.append(anatomy.blocks[0].register_forward_pre_hook(lambda _, args: send({INPUT: args[0].clone()})))
        handles.append(anatomy.final_norm.register_forward_pre_hook(lambda _, args: (read(LOGITS, args[0]),)))
        for index in range(anatomy.shape.n_layers) if layers is None else layers:
            stack.enter_context(replaced(anatomy.blocks[index], "forward", forward(index)))
        yield


# ------------------------------------------------------------------------------------------------------ plain runs


@torch.no_grad()
def sender_values(model: nn.Module, ids: Tensor, *, embedding: Tensor | None = None) -> dict[Node, Tensor]:
    """Record the value of every sender, (pair, pos, d_model) each, in canonical order.

    What a sender adds to the stream, multipliers and norms after the MLP included; for a head under a norm after
    attention what it adds to the attention output, before that norm.
    """
    values: dict[Node, Tensor] = {}
    with rewired(anatomy_of(model), send=values.update, embedding=embedding):
        last_logits(model, ids)
    return values


@torch.no_grad()
def clean_run(model: nn.Module, ids: Tensor) -> Tensor:
    """The untouched model's logits at the last position."""
    return last_logits(model, ids)


# ----------------------------------------------------------------------------------------- single edges, one by one


def zeros(values: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
    return {node: torch.zeros_like(value) for node, value in values.items()}


def replacements(corrupted: Mapping[Node, Tensor], ablation: Ablation) -> dict[Node, Tensor]:
    """Give what dead edges carry; means are taken over the corrupted prompts themselves."""
    if ablation == "zero":
        return zeros(corrupted)
    over = {"corrupted": (), "mean": (0, 1), "mean-by-position": (0,), "mean-by-template": (0,)}[ablation]
    return {
        node: value.mean(over, keepdim=True).expand_as(value) if over else value for node, value in corrupted.items()
    }


@torch.no_grad()
def exact_edge_effects(
    model: nn.Module,
    clean_ids: Tensor,
    corrupted_ids: Tensor,
    edges: Sequence[Edge],
    metric_fn: MetricFn,
    *,
    direction: Direction = "noising",
    ablation: Ablation = "corrupted",
    lower_is_better: bool = False,
) -> Tensor:
    """Measure single edges, (edge, pair); positive: corrupting the edge hurts the behaviour.

    Noising: a plain clean run in which the receiver reads a_u* instead of a_u, subtracted from the clean run.
    Denoising: a plain corrupted run in which the receiver reads the clean a_u, minus that corrupted run. Zero ablation
    replaces a_u* by 0; the "corrupted run" of denoising is then the run whose block-0 input is 0.
    """
    anatomy = anatomy_of(model)
    clean, corrupted = sender_values(model, clean_ids), sender_values(model, corrupted_ids)
    replaced_by = replacements(corrupted, ablation)
    if direction == "noising":
        ids, start, sign = clean_ids, clean[INPUT], 1.0
        here, there = clean, replaced_by
    else:
        ids, start, sign = corrupted_ids, replaced_by[INPUT], -1.0
        here, there = sender_values(model, ids, embedding=start), clean
    if lower_is_better:
        sign = -sign

    def measure(edge: Edge) -> Tensor:
        change = anatomy.stream_change(here, edge.sender, there[edge.sender])

        def read(receiver: Receiver, stream: Tensor) -> Tensor:
            return stream + change if receiver == edge.receiver else stream

        layer = edge.receiver.node.layer
        with rewired(anatomy, read, layers=() if layer < 0 else (layer,), embedding=start):
            return metric_fn(last_logits(model, ids))

    with rewired(anatomy, layers=(), embedding=start):
        untouched = metric_fn(last_logits(model, ids))
    return torch.stack([sign * (untouched - measure(edge)) for edge in edges])


def exact_edge_effect(
    model: nn.Module,
    clean_ids: Tensor,
    corrupted_ids: Tensor,
    edge: Edge,
    metric_fn: MetricFn,
    *,
    direction: Direction = "noising",
    ablation: Ablation = "corrupted",
) -> Tensor:
    """Measure one edge, (pair,); see :func:`exact_edge_effects`."""
    return exact_edge_effects(
        model, clean_ids, corrupted_ids, [edge], metric_fn, direction=direction, ablation=ablation
    )[0]


# ------------------------------------------------------------------------------------------------ the one primitive


@torch.no_grad()
def live_run(
    model: nn.Module,
    ids: Tensor,
    *,
    base: Mapping[Node, Tensor],
    live: Collection[Edge],
    override: Mapping[Node, Tensor] | None = None,
) -> Tensor:
    """Run with live edges carrying this run's values and all others ``base``; logits at the last position.

    ``override`` forces what senders send (on their live edges) in this run. The model's own residual stream is computed
    but nothing reads it: every reader gets an x_v that is added up here, sender by sender.
    """
    anatomy = anatomy_of(model)
    forced, alive = dict(override or {}), frozenset(live)
    current: dict[Node, Tensor] = {}

    def send(values: Mapping[Node, Tensor]) -> None:
        current.update({node: forced.get(node, value) for node, value in values.items()})

    def read(receiver: Receiver, _: Tensor) -> Tensor:
        return anatomy.stream(receiver, lambda u: current[u] if Edge(u, receiver) in alive else base[u])

    with rewired(anatomy, read, send):
        return last_logits(model, ids)


def masked_run(
    model: nn.Module,
    clean_ids: Tensor,
    corrupted_ids: Tensor,
    live_edges: Collection[Edge],
    *,
    ablation: Ablation = "corrupted",
) -> Tensor:
    """Run a circuit: the clean prompts over its edges, what replaces the others' over all others."""
    base = replacements(sender_values(model, corrupted_ids), ablation)
    return live_run(model, clean_ids, base=base, live=live_edges)
