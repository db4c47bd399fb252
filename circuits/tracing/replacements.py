"""Replacement values that no run ever had, in the form of one: zeros, or means of what senders write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.behaviours.tokens import Tokens
from circuits.errors import PromptError
from circuits.memory.batching import by_length
from circuits.tracing.runs import Run, record, unembed
from circuits.tracing.tracer import Tracer

_ROWS = 16


@dataclass(frozen=True)
class SenderMeans:
    """Means of what senders write, over prompts: for every position, or the same for all.

    ``stream`` is what the first layer reads, ``z`` the concatenated head outputs of each layer, ``mlp`` what each MLP
    adds to the stream, the last dimension each; ``positions`` is how many there are, None where one serves for all.
    """

    stream: Float[Tensor, "pos d_model"]
    z: tuple[Float[Tensor, "pos heads_times_d_head"], ...]
    mlp: tuple[Float[Tensor, "pos d_model"], ...]
    positions: int | None = None

    def require(self, length: int) -> None:
        """Raise :class:`PromptError` for a prompt of more positions than there are means for."""
        if self.positions is not None and length > self.positions:
            raise PromptError(
                f"a prompt has {length} tokens, and the reference prompts that means by position are taken over have "
                f"{self.positions} at most. Use --ablation mean, which takes one mean for all positions."
            )


def sender_means(tracer: Tracer, prompts: Sequence[Tokens], *, by_position: bool) -> SenderMeans:
    """Return the means of what senders write over all tokens of prompts, which are never padded.

    Positions are counted from the beginning; the mean at one is over the prompts that have it. Sums are taken in
    float64. Cost: one forward pass of the prompts.
    """
    longest = max(map(len, prompts))
    counts = torch.zeros(longest, 1, dtype=torch.float64)
    sums: list[Tensor] = []
    for members in by_length(map(len, prompts), lambda _: _ROWS):
        ids = torch.tensor([prompts[place] for place in members], device=tracer.anatomy.device)
        run = record(tracer, ids)
        counts[: ids.shape[1]] += len(members)
        for place, value in enumerate((run.stream[0], *run.z, *run.mlp)):
            if place == len(sums):
                sums.append(torch.zeros(longest, value.shape[-1], dtype=torch.float64))
            sums[place][: ids.shape[1]] += value.sum(0, dtype=torch.float64).cpu()
    if not by_position:
        counts = counts.sum(0, keepdim=True)
        sums = [total.sum(0, keepdim=True) for total in sums]
    means = [(total / counts).to(tracer.anatomy.device) for total in sums]
    layers = tracer.anatomy.shape.n_layers
    return SenderMeans(
        means[0], tuple(means[1 : 1 + layers]), tuple(means[1 + layers :]), longest if by_position else None
    )


def mean_run(tracer: Tracer, like: Run, means: Sequence[SenderMeans]) -> Run:
    """Return the replacement values of mean ablation for the prompts of a run; see :func:`replacement_run`.

    ``means`` are those of each prompt; where all have the same, they are held once.
    """
    of = means[:1] if all(each is means[0] for each in means) else means
    for each in of:
        each.require(like.length)

    def filled(parts: Sequence[Tensor], value: Tensor) -> Tensor:
        cut = [mean if each.positions is None else mean[: value.shape[1]] for each, mean in zip(of, parts, strict=True)]
        return torch.stack(cut).to(value).expand_as(value)

    return replacement_run(
        tracer,
        like,
        stream=filled([each.stream for each in of], like.stream[0]),
        z=[filled([each.z[layer] for each in of], value) for layer, value in enumerate(like.z)],
        mlp=[filled([each.mlp[layer] for each in of], value) for layer, value in enumerate(like.mlp)],
    )


def zero_run(tracer: Tracer, like: Run) -> Run:
    """Return the replacement values of zero ablation: every sender writes zero; see :func:`replacement_run`."""
    nothing: Callable[[Tensor], Tensor] = torch.zeros_like
    return replacement_run(
        tracer, like, stream=nothing(like.stream[0]), z=[nothing(z) for z in like.z], mlp=[nothing(m) for m in like.mlp]
    )


def replacement_run(tracer: Tracer, like: Run, *, stream: Tensor, z: Sequence[Tensor], mlp: Sequence[Tensor]) -> Run:
    """Return given values of all senders in the form of a run of the same prompts.

    What receivers read is their sum with the constants that belong to no sender: the attention's output biases.
    """
    anatomy = tracer.anatomy
    streams, middle, attention = [stream], list[Tensor](), list[Tensor]()
    for layer in range(anatomy.shape.n_layers):
        attention.append(anatomy.attention_output(layer, z[layer]))
        after = streams[-1] + anatomy.written(layer, attention[-1])
        middle.append(streams[-1] if anatomy.shape.parallel else after)
        streams.append(anatomy.at(layer + 1, after + mlp[layer]))
    slots = {path: slot for slot, path in anatomy.architecture.slot_modules.items()}
    projections = tuple(
        {path: anatomy.project(layer, slots[path], anatomy.attention_norm(layer, streams[layer])) for path in paths}
        for layer, paths in enumerate(like.projections)
    )
    made = replace(
        like,
        stream=tuple(streams),
        middle=tuple(middle),
        z=tuple(z),
        attention=tuple(attention),
        mlp=tuple(mlp),
        projections=projections,
        recorded=False,
    )
    return replace(made, logits=unembed(tracer, like.ids, streams[-1][:, -1:]))
