"""The direction in which clean and corrupted prompts differ, such as harmful and harmless requests.

Difference of means (Arditi et al. 2024, arXiv:2406.11717) of what the unembedding reads: the final residual stream at
the last position, after the final norm; unit length, from corrupted to clean. The paper chooses a layer and position;
here it is the end of the model, to which every edge leads. Where circuits lead to a head's query, key or value, it is
the difference of the means of that.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens
from circuits.errors import UsageError
from circuits.memory.batching import by_length
from circuits.tracing.plan import Plan
from circuits.tracing.requirements import require_pairs
from circuits.tracing.runs import Recorder
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer

ROWS = 16
SAME = 1e-5
"""Means that differ by a smaller share than this differ by rounding."""


@in_own_state
def direction_of(tracer: Tracer, pairs: Sequence[TokenPair]) -> Float[Tensor, " d_model"]:
    """Return the unit vector from the mean of corrupted to the mean of clean prompts, in float32 or wider.

    Cost: one forward pass of both sides. Raises :class:`UsageError` without pairs, or where the means are the same.
    """
    if not pairs:
        raise UsageError(
            "a direction is the difference of means over reference pairs, and there are none; give discovery pairs."
        )
    anatomy = tracer.anatomy
    require_pairs(anatomy, pairs)
    wide = torch.promote_types(anatomy.dtype, torch.float32)
    everything = torch.eye(anatomy.shape.d_model, dtype=wide, device=anatomy.device)
    reading = tracer.reading(everything)
    clean, corrupted = (_mean(reading, [getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted"))
    difference = clean - corrupted
    length = (difference @ difference).sqrt()
    if float(length) <= SAME * float((clean @ clean).sqrt()):
        raise UsageError(
            "the clean and the corrupted reference prompts have the same mean, so no direction leads from one to the "
            "other; use prompts on which the model differs, or another metric."
        )
    return difference / length


def _mean(tracer: Tracer, prompts: Sequence[Tokens]) -> Float[Tensor, " d_model"]:
    """Return the mean of what the unembedding reads after prompts of any lengths, which are never padded."""
    found: list[Tensor] = []
    for members in by_length(map(len, prompts), lambda _: ROWS):
        recorder = Recorder()
        ids = torch.tensor([prompts[place] for place in members], device=tracer.anatomy.device)
        tracer.run(ids, Plan(logits=recorder.keep_logits))
        found.append(recorder.logits)
    return torch.cat(found).mean(0)
