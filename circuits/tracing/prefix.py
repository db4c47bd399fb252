"""Positions that clean and corrupted prompts share: run once, and then read as cached keys and values.

What stands before the first differing token is the same in every run of a pair, whatever is patched later, because
attention looks back only. So runs need only the positions from there on.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

_KEYWORDS = ("cache", "past_key_values")
"""What models call their cached keys and values: transformers renamed the second to the first in 5.24."""


@dataclass(frozen=True)
class PrefixCache:
    """Whether positions that clean and corrupted prompts share are run once; if they are not, why not."""

    why_off: str = ""

    @property
    def on(self) -> bool:
        """Whether they are."""
        return not self.why_off

    def __str__(self) -> str:
        return "on" if self.on else f"off: {self.why_off}"


def cache_keyword(module: nn.Module) -> str | None:
    """Return the name under which a model's forward pass takes cached keys and values; None where it takes none."""
    accepted = inspect.signature(module.forward).parameters
    return next((name for name in _KEYWORDS if name in accepted), None)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first positions of some prompts: one tensor per layer, and ``of`` says whose row is whose.

    Prompts that begin alike have them once.
    """

    keys: tuple[Float[Tensor, "distinct kv_head pos d_head"], ...]
    values: tuple[Float[Tensor, "distinct kv_head pos d_head"], ...]
    of: Int[Tensor, " pair"]

    @property
    def length(self) -> int:
        """How many positions there are."""
        return self.keys[0].shape[2]

    def rows(self, chosen: slice) -> "Prefix":
        """Return the prefix of some of its prompts."""
        return replace(self, of=self.of[chosen])

    def cache(self, rows: int, start: int) -> DynamicCache:
        """Return what a forward pass of ``rows`` prompts from layer ``start`` on needs: a copy for every prompt's rows.

        Rows are ``(anything, pair)``. A cache is used up by one pass, which adds to it.
        """
        cache: Any = DynamicCache()
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            chosen = self.of.repeat(rows // len(self.of) if layer >= start else 1)
            chosen = chosen.to(keys.device)
            cache.update(keys[chosen], values[chosen], layer)
        return cache


def prefix_in(cache: DynamicCache, of: Int[Tensor, " pair"]) -> Prefix:
    """Return what a pass over the distinct beginnings of prompts left in its cache."""
    layers: list[Any] = list(cache.layers)
    return Prefix(tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers), of)
