"""Path patching the slow way: plain forward hooks, one forward pass per edge, no batching, no shortcuts.

Notation: ``a_u`` is what sender u adds to the residual stream, ``x_v`` is what receiver v reads before its norm.
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
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuits.graph import Edge, Node, NodeKind, Receiver
from tests.reference.anatomy import INPUT, Anatomy, anatomy_of

MetricFn = Callable[[Tensor], Tensor]
Direction = Literal["noising", "denoising"]
Ablation = Literal["corrupted", "zero"]


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


# ------------------------------------------------------------------------------------------------------ plain runs


@torch.no_grad()
def sender_values(model: nn.Module, ids: Tensor, *, embedding: Tensor | None = None) -> dict[Node, Tensor]:
    """Record what every sender adds to the stream, (pair, pos, d_model) each, in canonical order."""
    anatomy = anatomy_of(model)
    values: dict[Node, Tensor] = {}

    def record_input(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        values[INPUT] = args[0].clone()

    def record_heads(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: values.update(anatomy.head_outputs(layer, args[0]))

    def record_mlp(layer: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: values.update({Node(NodeKind.MLP, layer): output.clone()})

    with hooked() as handles:
        handles.extend(start_from(anatomy, embedding))
        handles.append(anatomy.blocks[0].register_forward_pre_hook(record_input))
        for layer in range(anatomy.shape.n_layers):
            handles.append(anatomy.output_projections[layer].register_forward_pre_hook(record_heads(layer)))
            handles.append(anatomy.mlps[layer].register_forward_hook(record_mlp(layer)))
        last_logits(model, ids)
    return values


@torch.no_grad()
def clean_run(model: nn.Module, ids: Tensor) -> Tensor:
    """The untouched model's logits at the last position."""
    return last_logits(model, ids)


# ----------------------------------------------------------------------------------------- single edges, one by one


def _change_what_is_read(anatomy: Anatomy, receiver: Receiver, change: Tensor) -> list[RemovableHandle]:
    """Let one receiver, and nothing else, read ``x + change`` instead of ``x``."""
    norm = anatomy.norm(receiver)
    if receiver.slot is None:  # the norm of an MLP or of the logits has no other reader
        return [norm.register_forward_pre_hook(lambda _, args: (args[0] + change,))]
    projection, columns = anatomy.projection(receiver)
    seen: dict[str, Tensor] = {}

    def remember(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["x"] = args[0]

    def overwrite(_: nn.Module, __: object, output: Tensor) -> Tensor:
        output = output.clone()
        # .forward() computes without running hooks, so this does not come back here
        output[..., columns] = projection.forward(norm.forward(seen["x"] + change))[..., columns]
        return output

    return [norm.register_forward_pre_hook(remember), projection.register_forward_hook(overwrite)]


def zeros(values: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
    return {node: torch.zeros_like(value) for node, value in values.items()}


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
    replaced = corrupted if ablation == "corrupted" else zeros(corrupted)
    if direction == "noising":
        ids, start, sign = clean_ids, clean[INPUT], 1.0
        here, there = clean, replaced
    else:
        ids, start, sign = corrupted_ids, replaced[INPUT], -1.0
        here, there = sender_values(model, ids, embedding=start), clean
    if lower_is_better:
        sign = -sign

    def measure(edge: Edge | None) -> Tensor:
        with hooked() as handles:
            handles.extend(start_from(anatomy, start))
            if edge is not None:
                change = there[edge.sender] - here[edge.sender]
                handles.extend(_change_what_is_read(anatomy, edge.receiver, change))
            return metric_fn(last_logits(model, ids))

    untouched = measure(None)
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


def _stream(anatomy: Anatomy, receiver: Receiver, value: Callable[[Node], Tensor]) -> Tensor:
    """Add up x_v: what every sender before the receiver carries, and the attention biases, which have no sender."""
    earlier = anatomy.graph.senders[: anatomy.graph.fan_in[anatomy.graph.receiver_index[receiver]]]
    biases = [anatomy.attention_bias(node.layer) for node in earlier if node.kind is NodeKind.HEAD and node.index == 0]
    total = torch.zeros_like(value(INPUT))
    for part in [*(value(sender) for sender in earlier), *biases]:
        total = total + part
    return total


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

    def read(receiver: Receiver) -> Tensor:
        return _stream(anatomy, receiver, lambda u: current[u] if Edge(u, receiver) in alive else base[u])

    def send_input(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        send({INPUT: args[0]})

    def send_heads(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: send(anatomy.head_outputs(layer, args[0]))

    def send_mlp(layer: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: send({Node(NodeKind.MLP, layer): output})

    def give_to_norm(receiver: Receiver) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return lambda _, __: (read(receiver),)

    def give_to_projection(receiver: Receiver) -> Callable[[nn.Module, object, Tensor], Tensor]:
        projection, columns = anatomy.projection(receiver)

        def overwrite(_: nn.Module, __: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[..., columns] = projection.forward(anatomy.norm(receiver).forward(read(receiver)))[..., columns]
            return output

        return overwrite

    with hooked() as handles:
        handles.append(anatomy.blocks[0].register_forward_pre_hook(send_input))
        for layer in range(anatomy.shape.n_layers):
            handles.append(anatomy.output_projections[layer].register_forward_pre_hook(send_heads(layer)))
            handles.append(anatomy.mlps[layer].register_forward_hook(send_mlp(layer)))
        for receiver in anatomy.graph.receivers:
            if receiver.slot is None:
                handles.append(anatomy.norm(receiver).register_forward_pre_hook(give_to_norm(receiver)))
            else:
                handles.append(anatomy.projection(receiver)[0].register_forward_hook(give_to_projection(receiver)))
        return last_logits(model, ids)


def masked_run(
    model: nn.Module,
    clean_ids: Tensor,
    corrupted_ids: Tensor,
    live_edges: Collection[Edge],
    *,
    ablation: Ablation = "corrupted",
) -> Tensor:
    """Run a circuit: the clean prompts over its edges, the corrupted run (or zeros) over all others."""
    base = sender_values(model, corrupted_ids)
    if ablation == "zero":
        base = zeros(base)
    return live_run(model, clean_ids, base=base, live=live_edges)
