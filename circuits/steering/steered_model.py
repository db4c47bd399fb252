"""A model that runs without a direction of its residual stream, or with more of it.

With ``d`` the unit vector and ``x`` the stream at a token, *ablating* lets whatever reads the stream, at every layer,
read ``x - (x . d) d``; that is the same as taking ``d`` out of all that is written to it. *Adding* puts
``scale * size * d`` to the stream that enters the direction's layer, with ``size`` the distance between the two means.
Both act at every token, those of the answer included (Arditi et al. 2024, arXiv:2406.11717, sections 2.3 and 2.4).
Nothing is changed on the model itself.

Prompts that begin alike share that beginning: it is run once, and an answer goes on from cached keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from circuits.ablation.generation import end_tokens
from circuits.ablation.intervention import batches
from circuits.behaviours.tokens import Tokens
from circuits.directions.stream_direction import StreamDirection
from circuits.model import Model
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.runs import Recorder, unembed
from circuits.tracing.state import in_own_state

Action = Literal["ablate", "add"]
CHUNK = 64
"""Tokens of a text that are unembedded at once."""


@dataclass(frozen=True)
class _Change:
    """A visit that takes a direction out of what it sees (``added`` 0), or adds a multiple of it."""

    vector: Float[Tensor, " d_model"]
    added: float

    def __call__(self, value: Tensor) -> Tensor:
        """Return the changed stream."""
        vector = self.vector.to(value.dtype)
        if self.added:
            return value + self.added * vector
        along: Tensor = cast(Any, value) @ vector
        return value - along[..., None] * vector


@dataclass(frozen=True)
class SteeredModel:
    """A model with a direction ablated or added while it runs; without a direction, the model as it is."""

    model: Model
    direction: StreamDirection | None = None
    action: Action = "ablate"
    scale: float = 1.0

    @cached_property
    def visits(self) -> dict[tuple[int, LayerSite], Visit]:
        """What is done within the layers."""
        if self.direction is None or (self.action == "add" and self.direction.layer == self._layers):
            return {}
        if self.action == "add":
            return {(self.direction.layer, LayerSite.STREAM): self._change}
        sites = (LayerSite.STREAM, LayerSite.MLP_IN) if self.model.info.shape.mlps else (LayerSite.STREAM,)
        return {(layer, site): self._change for layer in range(self._layers) for site in sites}

    @property
    def final(self) -> Visit | None:
        """What is done to the stream that the logits follow from."""
        if self.direction is None or (self.action == "add" and self.direction.layer < self._layers):
            return None
        return self._change

    @property
    def _layers(self) -> int:
        return self.model.info.n_layers

    @cached_property
    def _change(self) -> _Change:
        assert self.direction is not None
        anatomy = self.model.tracer.anatomy
        wide = torch.promote_types(anatomy.dtype, torch.float32)
        vector = torch.tensor(self.direction.vector.tolist(), dtype=wide, device=anatomy.device)
        return _Change(vector, self.scale * self.direction.size if self.action == "add" else 0.0)

    @in_own_state
    def answers(
        self, prompts: Sequence[Tokens], count: int = 1
    ) -> tuple[list[Tokens], Float[Tensor, "prompt d_vocab"]]:
        """Return up to ``count`` greedy tokens after every prompt, and the first one's logits (float32, on the CPU).

        Cost: one forward pass of what prompts of one length do not share, and one token for every further one.
        """
        found: dict[int, tuple[Tokens, Tensor]] = {}
        ends = end_tokens(self.model)
        for members, ids in batches(prompts, self.model.tracer.anatomy.device):
            new, first = self._continued(ids, count, ends)
            for row, member in enumerate(members):
                found[member] = _until(new[row], ends), first[row]
        ordered = [found[member] for member in range(len(prompts))]
        return [tokens for tokens, _ in ordered], torch.stack([first for _, first in ordered])

    def _continued(self, ids: Tensor, count: int, ends: frozenset[int]) -> tuple[Tensor, Tensor]:
        tracer, logits = self.model.tracer, list[Tensor]()
        plan = Plan(visits=self.visits, final=self.final, logits=logits.append)
        cache, fed = self._started(ids)
        new = ids[:, :0]
        first = torch.empty(0)
        for step in range(count):
            if cache is None:
                tracer.run(torch.cat([ids, new], dim=1), plan)
            else:
                tracer.run_on(fed, plan, cache)
            last = logits.pop()
            if step == 0:
                first = last.detach().float().cpu()
            fed = last.argmax(-1, keepdim=True)
            new = torch.cat([new, fed], dim=1)
            if all(not ends.isdisjoint(_ids(row)) for row in new):
                break
        return new, first

    def _started(self, ids: Int[Tensor, "row pos"]) -> tuple[DynamicCache | None, Tensor]:
        """Return a cache with what the prompts begin with in common, and what comes after it; None: no cache."""
        tracer = self.model.tracer
        if not tracer.prefix_cache.on:
            return None, ids
        shared = shared_beginning(ids)
        if shared == 0:
            return DynamicCache(), ids
        return tracer.prefix_of(ids[:, :shared], self.visits).cache(len(ids), 0), ids[:, shared:]

    @in_own_state
    def compared(self, texts: Sequence[Tokens], plain: "SteeredModel") -> tuple[list[list[float]], list[list[float]]]:
        """Return every text's losses (nats, all tokens but the first), and the KL divergence from the plain model's.

        The divergence is of the next-token distributions after every token but the last. Cost: one forward pass of
        this model and of the plain one.
        """
        losses, divergences = dict[int, list[float]](), dict[int, list[float]]()
        for members, ids in batches(texts, self.model.tracer.anatomy.device):
            here, there = (each._streams(ids)[:, :-1] for each in (self, plain))
            for row, member in enumerate(members):
                losses[member], divergences[member] = self._against(ids[row], here[row], there[row])
        order = range(len(texts))
        return [losses[place] for place in order], [divergences[place] for place in order]

    def _streams(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
        """Return what the final norm reads."""
        recorder, change = Recorder(), self.final

        def keep(value: Tensor) -> Tensor | None:
            changed = None if change is None else change(value)
            recorder.keep_final(value if changed is None else changed)
            return changed

        self.model.tracer.run(ids, Plan(visits=self.visits, final=keep))
        return recorder.final

    def _against(self, ids: Tensor, here: Tensor, there: Tensor) -> tuple[list[float], list[float]]:
        losses, divergences = list[float](), list[float]()
        for begin in range(0, len(here), CHUNK):
            part = slice(begin, begin + CHUNK)
            mine, plain = (self._log_probabilities(ids[:-1][part], each[part]) for each in (here, there))
            wanted = ids[1:][part].cpu()[:, None]
            losses += _list(-mine.gather(-1, wanted)[:, 0])
            divergences += _list((plain.exp() * (plain - mine)).sum(-1))
        return losses, divergences

    def _log_probabilities(self, ids: Tensor, streams: Tensor) -> Float[Tensor, "token d_vocab"]:
        return unembed(self.model.tracer, ids[:, None], streams[:, None]).float().cpu().log_softmax(-1)


def shared_beginning(ids: Int[Tensor, "row pos"], *, leave: int = 1) -> int:
    """Return how many tokens all rows begin with in common, at least ``leave`` of every row not counted."""
    equal: list[bool] = cast(Any, (ids == ids[:1]).all(0)).tolist()
    first = next((place for place, same in enumerate(equal) if not same), len(equal))
    return max(0, min(first, ids.shape[1] - leave))


def _ids(tokens: Tensor) -> list[int]:
    return [int(token) for token in tokens]


def _until(tokens: Tensor, ends: frozenset[int]) -> Tokens:
    found = _ids(tokens)
    return tuple(found[: next((place for place, token in enumerate(found) if token in ends), len(found))])


def _list(values: Tensor) -> list[float]:
    return [float(value) for value in values]
