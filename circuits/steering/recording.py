"""The residual stream at the last tokens of prompts, in front of every layer, from one pass; and how it separates."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from torch import Tensor

from circuits.ablation.intervention import batches
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens
from circuits.model import Model
from circuits.scores import Floats
from circuits.statistics import central
from circuits.steering.steered_model import shared_beginning
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.state import in_own_state

RESAMPLES = 1000


def common_ending(pairs: Sequence[TokenPair], most: int) -> int:
    """Return how many tokens all prompts of both sides end with in common (after the request: the template); 1 up."""
    prompts = [getattr(pair, side) for pair in pairs for side in ("clean", "corrupted")]
    count = 0
    while count < most and len({prompt[-count - 1 :][:1] for prompt in prompts if len(prompt) > count}) == 1:
        count += 1
    return max(1, min(count, *map(len, prompts)))


@in_own_state
def last_streams(model: Model, prompts: Sequence[Tokens], last: int) -> Floats:
    """Return the stream in front of every layer, and of the final norm, at the ``last`` tokens of every prompt.

    Shape ``(prompt, layer, token, d_model)``, float32; the last token comes last. Cost: one forward pass.
    """
    shape, tracer = model.info.shape, model.tracer
    found = np.empty((len(prompts), shape.n_layers + 1, last, shape.d_model), dtype=np.float32)

    def keep(members: list[int], layer: int, value: Tensor) -> None:
        found[members, layer] = value[:, -last:].detach().float().cpu().numpy()

    for members, ids in batches(prompts, tracer.anatomy.device):
        shared = shared_beginning(ids, leave=last) if tracer.prefix_cache.on else 0
        visits: dict[tuple[int, LayerSite], Visit] = {
            (layer, LayerSite.STREAM): partial(keep, members, layer) for layer in range(shape.n_layers)
        }
        plan = Plan(visits=visits, final=partial(keep, members, shape.n_layers))
        tracer.run(ids[:, shared:], plan, prefix=tracer.prefix_of(ids[:, :shared]) if shared else None)
    return cast(Any, found)


def auc(clean: Floats, corrupted: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Return how often a clean prompt lies above a corrupted one (ties count half), with its 95 % bootstrap interval.

    The area under the ROC curve of telling them apart; pairs are resampled.
    """
    above = (clean[:, None] > corrupted[None]) + 0.5 * (clean[:, None] == corrupted[None])
    n = len(clean)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    drawn = ((weights @ above) * weights).sum(1) / n**2
    low, high = central(drawn)
    return float(above.mean()), float(low), float(high)


def random_like(vector: Floats, seed: int) -> Floats:
    """Return a random direction of unit length in as many dimensions."""
    drawn = np.random.default_rng(seed).normal(size=len(vector))
    return drawn / np.linalg.norm(drawn)
