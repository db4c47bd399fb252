r"""Attribution of all edges to first order: ``sum over positions of <change of sender u, gradient at receiver v>``.

Edge attribution patching (Syed et al. 2023, arXiv:2310.10348) and its integrated form (Hanna et al. 2024,
arXiv:2403.17806), computed leanly: gradients are taken at the outputs of the query, key and value projections, pulled
back through the projection's rows and once through the norm for all units of a layer together; the gradient at the
input of an MLP or of the logits comes from autograd directly. One batched matrix product per layer and block gives all
its edges. No parameter gradients, no split copies of the stream, sums over at least float32.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from circuits.adapters.anatomy import Anatomy
from circuits.graph import ComputationalGraph, Slot
from circuits.memory.needs import PULLED_BACK_AT_ONCE
from circuits.numbering import (
    edges_into,
    end_receiver,
    fan_in_of,
    head_senders,
    idle_edges,
    last_receiver,
    mlp_receiver,
    slot_receivers,
)
from circuits.passes.role_sums import RoleSums
from circuits.tracing.runs import Run, sender_values
from circuits.tracing.taps import Gradients
from circuits.tracing.tracer import Tracer


def attribute(
    tracer: Tracer,
    graph: ComputationalGraph,
    change: Run,
    gradients: Gradients,
    *,
    tile: int | None = None,
    roles: RoleSums | None = None,
    senders: range | None = None,
) -> Float[Tensor, "pair edge"]:
    """Return every edge's attribution for each pair, from gradients at one run; 0 into layers without gradients.

    ``change`` holds the senders' clean minus corrupted values, of which ``tile`` senders (None: all) are expanded to
    ``pos * d_model`` numbers per pair at a time. ``roles`` are those of the positions, for a graph with roles: every
    edge's sum is over its role's positions. Edges from others than some ``senders`` (None: all) get 0. Positions of
    long prompts are taken in turn, and added up: gradients that are pulled back take a number per position, receiver
    and ``d_model``. Cost: for every tile a product of the size of a third of a forward pass.
    """
    given, into = (tracer, graph, change, [gradients]), slice(0, graph.n_edges)
    return attribute_each(*given, into=into, tile=tile, roles=roles, senders=senders)[0]


def attribute_each(
    tracer: Tracer,
    graph: ComputationalGraph,
    change: Run,
    several: Sequence[Gradients],
    *,
    into: "slice[int, int]",
    tile: int | None = None,
    roles: RoleSums | None = None,
    senders: range | None = None,
) -> Float[Tensor, "gradient pair edge"]:
    """Return what :func:`attribute` makes of gradients of several backward passes of one run, changes expanded once.

    Only the edges of the slice ``into`` are returned; gradients at the receivers of others are not to be given.
    """
    length, size = change.ids.shape[1], PULLED_BACK_AT_ONCE
    spans = (slice(begin, begin + size) for begin in range(0, length, size))
    parts = (
        _attribute(
            tracer,
            graph,
            change.at(span),
            [gradients.at(span) for gradients in several],
            into=into,
            tile=tile,
            roles=None if roles is None else roles.at(span),
            senders=senders,
        )
        for span in spans
    )
    found = reduce(torch.add, parts)
    if (idle := idle_edges(graph)) is not None:
        found[..., torch.as_tensor(idle[into], device=found.device)] = 0
    return found


def _attribute(
    tracer: Tracer,
    graph: ComputationalGraph,
    change: Run,
    several: Sequence[Gradients],
    *,
    into: "slice[int, int]",
    tile: int | None,
    roles: RoleSums | None,
    senders: range | None,
) -> Float[Tensor, "gradient pair edge"]:
    shape = (len(several), len(change.ids), into.stop - into.start)
    scores = torch.zeros(shape, device=change.stream[0].device)
    chosen = senders or range(len(graph.senders))
    chosen = range(chosen.start, min(chosen.stop, _reach(graph, several[0])))
    size = tile or max(1, len(chosen))
    for begin in range(chosen.start, chosen.stop, size):
        within = range(begin, min(begin + size, chosen.stop))
        changes = _changes(tracer.anatomy, change, several[0], within).float()
        for row, gradients in enumerate(several):
            for place, read in _read(tracer, graph, gradients, begin):
                products = _products(changes, read, fan_in_of(graph, place) - begin, roles)
                _fill(scores[row], graph, place, products, begin, into.start)
    return scores


def _reach(graph: ComputationalGraph, gradients: Gradients) -> int:
    """Return how many senders, in their order, the receivers that have gradients can read."""
    if gradients.final.numel():
        return len(graph.senders)
    return fan_in_of(graph, last_receiver(graph.shape, max((*gradients.stream, *gradients.mlp))))


def _read(
    tracer: Tracer, graph: ComputationalGraph, gradients: Gradients, begin: int
) -> Iterator[tuple[int, Float[Tensor, "pair receiver pos d_model"]]]:
    """Return the gradients at what receivers read that senders from ``begin`` on reach, with the first one's place."""
    for layer in range(graph.shape.n_layers):
        first, mlp = slot_receivers(graph.shape, layer, Slot.Q).start, mlp_receiver(graph.shape, layer)
        if layer in gradients.stream and fan_in_of(graph, first) > begin:
            yield first, _pull_back(tracer, layer, gradients)
        if graph.shape.has_mlp(layer) and layer in gradients.mlp and fan_in_of(graph, mlp) > begin:
            yield mlp, gradients.mlp[layer].unsqueeze(1)
    if gradients.final.numel():
        yield end_receiver(graph), gradients.final.unsqueeze(1)


def _fill(
    scores: Float[Tensor, "pair edge"],
    graph: ComputationalGraph,
    place: int,
    products: Float[Tensor, "pair receiver *role sender"],
    begin: int,
    first_edge: int,
) -> None:
    """Write the scores of a tile of senders, from ``begin`` on, into receivers of one fan-in, from ``place`` on."""
    own = edges_into(graph, place, products.shape[1])
    block = scores[:, own.start - first_edge : own.stop - first_edge]
    block = block.view(*products.shape[:-1], fan_in_of(graph, place))
    block[..., begin : begin + products.shape[-1]] = products.to(scores.device)


def _changes(
    anatomy: Anatomy, change: Run, gradients: Gradients, senders: range
) -> Float[Tensor, "pair sender pos d_model"]:
    """Return what some senders' changes do to the stream, to first order where a norm follows the heads' sum."""
    changes = sender_values(anatomy, change, senders)
    for layer, attention in gradients.attention.items():
        own = [sender - senders.start for sender in head_senders(anatomy.shape, layer) if sender in senders]
        if own:
            heads = changes[:, own[0] : own[-1] + 1]
            given = anatomy.at(layer, heads.transpose(0, 1))
            made = _pushed_forward(partial(anatomy.written, layer), attention, given)
            heads[:] = made.transpose(0, 1).to(heads.device)
    return changes


def _pushed_forward(
    function: Callable[[Tensor], Tensor], at: Float[Tensor, "*any"], changes: Float[Tensor, "change *any"]
) -> Float[Tensor, "change *any"]:
    """Return the product of a function's Jacobian with each change: the derivative of its transpose (linear)."""
    with torch.enable_grad():
        point = at.detach().requires_grad_(True)
        made = function(point)
        cotangent = torch.zeros_like(made, requires_grad=True)
        (transposed,) = torch.autograd.grad(made, point, cotangent, create_graph=True)
    return torch.autograd.grad(transposed, cotangent, changes, is_grads_batched=True)[0]


def _products(
    changes: Float[Tensor, "pair sender pos d_model"],
    gradients: Float[Tensor, "pair receiver pos d_model"],
    count: int,
    roles: RoleSums | None,
) -> Float[Tensor, "pair receiver *role _"]:
    """Multiply the changes of the first ``count`` senders, or of as many as there are, with gradients.

    Where the changes are: those of all senders take more memory than a layer's gradients.
    """
    changes, gradients = changes[:, :count], gradients.float().to(changes.device)
    return gradients.flatten(2) @ changes.flatten(2).mT if roles is None else roles.worth(gradients, changes)


def _pull_back(tracer: Tracer, layer: int, gradients: Gradients) -> Float[Tensor, "pair receiver pos d_model"]:
    """Return the gradient at what each query, key and value receiver of a layer reads, in graph order."""
    anatomy, stream = tracer.anatomy, gradients.stream[layer]
    parts: list[Tensor] = []
    for slot in Slot:
        gradient = gradients.projections[layer, anatomy.architecture.slot_modules[slot]]
        if slot in anatomy.architecture.projection_norms:
            parts.append(_pull_back_through_norm(anatomy, layer, slot, stream, gradient))
            continue
        columns = anatomy.columns[slot]
        weight, _ = anatomy.slot_weights(layer, slot, list(range(len(columns))))
        parts.append(torch.einsum("bpuk,ukd->ubpd", gradient[..., columns], weight))
    if anatomy.architecture.attention_norm is None:
        return torch.cat(parts).transpose(0, 1)
    with torch.enable_grad():
        read = stream.detach().requires_grad_(True)
        normed = anatomy.attention_norm(layer, read)
    (pulled,) = torch.autograd.grad(normed, read, torch.cat(parts), is_grads_batched=True)
    return pulled.transpose(0, 1)


def _pull_back_through_norm(
    anatomy: Anatomy, layer: int, slot: Slot, stream: Float[Tensor, "pair pos d_model"], gradient: Tensor
) -> Float[Tensor, "unit pair pos d_model"]:
    """Return the gradient at the normed stream of each unit's outputs, behind a norm over all units of the slot."""
    columns = anatomy.columns[slot]
    own = torch.zeros(len(columns), *gradient.shape, dtype=gradient.dtype, device=gradient.device)
    for unit, place in enumerate(columns):
        own[unit][..., place] = gradient[..., place]
    weight, bias = anatomy.layers[layer].projections[anatomy.architecture.projections[slot]]
    with torch.enable_grad():
        made = functional.linear(anatomy.attention_norm(layer, stream), weight, bias).detach().requires_grad_(True)
        normed = anatomy.projection_norm(layer, slot, made)
    (pulled,) = torch.autograd.grad(normed, made, own, is_grads_batched=True)
    return pulled @ weight
