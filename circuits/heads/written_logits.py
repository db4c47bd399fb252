"""What a head writes, read through the model's own final norm and unembedding; and what it would copy."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.adapters.anatomy import Anatomy
from circuits.graph import Node, Slot
from circuits.metrics import PADDING
from circuits.tracing.plan import LayerSite, Plan
from circuits.tracing.runs import Recorder, Run, sender_changes, unembed
from circuits.tracing.tracer import Tracer

TOP = 5
"""How many tokens count as those that a head writes, as in Wang et al. 2022 (arXiv:2211.00593)."""

Tokens = Int[Tensor, " token"]


def head_logits(tracer: Tracer, run: Run, sender: int) -> Float[Tensor, "pair d_vocab"]:
    """Return what a sender adds to the logits directly: logits minus those without its output in the final stream.

    The mean over tokens, which changes no probability, is taken away. Cost: the unembedding of one position, twice.
    """
    last = _last_position(run)
    away = replace(last, z=tuple(-value for value in last.z))
    without = last.stream[-1] + sender_changes(tracer.anatomy, last, away, [sender])[:, 0]
    added = run.logits.float() - unembed(tracer, run.ids, without).float()
    return added - added.mean(-1, keepdim=True)


def _last_position(run: Run) -> Run:
    """Return the last position of a run."""

    def last(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value[:, -1:] for value in values)

    return replace(
        run,
        ids=run.ids[:, -1:],
        stream=last(run.stream),
        middle=last(run.middle),
        z=last(run.z),
        attention=last(run.attention),
        mlp=last(run.mlp),
        projections=tuple({path: value[:, -1:] for path, value in paths.items()} for paths in run.projections),
    )


def among_top(
    logits: Float[Tensor, "row d_vocab"], tokens: Int[Tensor, "row k"], *, lowest: bool = False
) -> Bool[Tensor, " row"]:
    """Return for each row whether one of its tokens (-1: none) is among the five of the highest (or lowest) logits.

    At most five tokens, itself included, may be as high: of a head that writes nothing no token is among them.
    """
    signed = -logits if lowest else logits
    found = [(signed >= signed.gather(1, column.clamp(min=0)[:, None])).sum(1) <= TOP for column in tokens.T]
    present = tokens != PADDING
    return (torch.stack(found, 1) & present).any(1) if found else present.any(1)


@dataclass(frozen=True)
class Copier:
    """Lets heads read embeddings of tokens and nothing else.

    ``ids`` are rows of a first token and then tokens; a token stands where it does in these rows, for models with
    learned positions. From layer 1 on a head reads the embedding and what layer 0's MLP adds to it (Wang et al. 2022):
    the first MLP belongs to the embedding in many models.
    """

    tracer: Tracer
    ids: Int[Tensor, "row pos"]

    @property
    def tokens(self) -> Tokens:
        """The tokens that are read."""
        return self.ids[:, 1:].flatten()

    @cached_property
    def _streams(self) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        """The tokens' embeddings, without and with layer 0's MLP of them."""
        recorder = Recorder()
        at = (0, LayerSite.STREAM)
        self.tracer.run(self.ids, Plan(stop=at, visits={at: recorder.at(*at)}))
        embedded = recorder.values[at]
        if not self.tracer.anatomy.shape.mlps:
            return embedded[:, 1:].flatten(0, 1), embedded[:, 1:].flatten(0, 1)
        nothing = torch.zeros_like(embedded)
        visits = {(0, LayerSite.MLP_OUT): recorder.at(0, LayerSite.MLP_OUT)}
        plan = Plan(stop=(0, LayerSite.MLP_OUT), attention={0: nothing}, visits=visits)
        self.tracer.run(self.ids, plan)
        with_mlp = embedded + recorder.values[0, LayerSite.MLP_OUT]
        return embedded[:, 1:].flatten(0, 1), with_mlp[:, 1:].flatten(0, 1)

    def copied(self, head: Node) -> tuple[Bool[Tensor, " token"], Bool[Tensor, " token"]]:
        """Return which tokens are among the five that the head's output raises most, and which among the lowest five.

        Only that output reaches the final norm. Cost: the unembedding of every token.
        """
        stream = self._streams[0 if head.layer == 0 else 1]
        output = value_output(self.tracer.anatomy, head, stream)
        logits = unembed(self.tracer, self.tokens[:, None], output[:, None])
        own = self.tokens[:, None]
        return among_top(logits, own), among_top(logits, own, lowest=True)


def value_output(
    anatomy: Anatomy, head: Node, stream: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token d_model"]:
    """Return what a head adds to the stream when it attends to one position alone, from the stream there."""
    shape, group = anatomy.shape, head.index // anatomy.shape.heads_per_group
    value = anatomy.unit_outputs(head.layer, Slot.V, [group], stream[:, None])[:, 0]
    z = repeat(value, "t k -> t (h k)", h=shape.n_heads)
    return anatomy.written(head.layer, anatomy.head_outputs(head.layer, z, [head.index])[:, 0])
