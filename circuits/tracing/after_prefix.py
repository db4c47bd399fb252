"""Attention of positions that follow a prefix, in memory that grows with their number and not with its square."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from circuits.memory.needs import LONG_MASK

_AT_ONCE = 256
"""Rows of a mask that are looked at together."""


class AttentionAfterPrefix(TorchFunctionMode):
    """Runs torch's attention of queries that are fewer than the keys without the mask that models pass along.

    Of such a mask torch makes numbers, in every layer and for every row, and a backward pass keeps them all. One that
    hides from every position what comes after it, and nothing else, says as much as: the queries are the last of as
    many as there are keys. Zeros take the place of the first ones, and what they give is left out, where they are no
    more than the others: attention that looks back only then computes no more than under a mask. Where they are more,
    all layers and rows of a run share one mask of numbers. Any other mask is left as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._judged: list[tuple[Tensor, bool]] = []
        self._numbers: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or attention without a mask."""
        del types
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            return self.attend(*args, **given)
        return func(*args, **given)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **given: Any
    ) -> Tensor:
        """Return torch's attention, without the mask where it says nothing but that queries look back."""
        missing = key.shape[-2] - query.shape[-2]
        if attn_mask is None or missing <= 0 or not self._looks_back_only(attn_mask, missing):
            return functional.scaled_dot_product_attention(query, key, value, attn_mask, **given)
        if missing > query.shape[-2]:
            return functional.scaled_dot_product_attention(
                query, key, value, self._as_numbers(attn_mask, query), **given
            )
        padded = functional.pad(query, (0, 0, missing, 0))
        given["is_causal"] = True
        return functional.scaled_dot_product_attention(padded, key, value, **given)[..., missing:, :]

    def _looks_back_only(self, mask: Tensor, missing: int) -> bool:
        """Return whether a mask hides from every position what comes after it, and nothing else."""
        for known, judged in self._judged:
            if known is mask:
                return judged
        judged = mask.dtype == torch.bool and _is_triangle(mask, missing)
        self._judged.append((mask, judged))
        return judged

    def _as_numbers(self, mask: Tensor, like: Tensor) -> Tensor:
        """Return what is added to the scores, 0 or minus infinity, once for all rows."""
        if self._numbers is None or self._numbers.device != like.device:
            once = mask.flatten(0, -3)[0]
            self._numbers = torch.zeros_like(once, dtype=like.dtype).masked_fill_(~once, -torch.inf)
        return self._numbers.expand(mask.shape)


def has_long_mask(ids: Int[Tensor, "row pos"], cache: DynamicCache | None) -> bool:
    """Return whether a mask over cached positions and those that follow takes memory to speak of."""
    return cache is not None and ids.shape[1] * (ids.shape[1] + cache.get_seq_length()) >= LONG_MASK


def _is_triangle(mask: Tensor, missing: int) -> bool:
    """Return whether query ``i`` of every row sees the keys up to the ``missing + i``-th."""
    # Rows and heads that share memory are alike.
    own = mask[tuple(slice(0, 1 if step == 0 else None) for step in mask.stride()[:-2])]
    keys = torch.arange(mask.shape[-1], device=mask.device)
    for begin in range(0, mask.shape[-2], _AT_ONCE):
        rows = own[..., begin : begin + _AT_ONCE, :]
        last = torch.arange(begin, begin + rows.shape[-2], device=mask.device) + missing
        if not bool((rows == (keys <= last[:, None])).all()):
            return False
    return True
