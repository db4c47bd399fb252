"""What a model cannot run, said before it runs: the one check of prompts and answers where they meet a model.

Files, built-in behaviours and pairs made in Python come through here alike. What one pair alone can show is checked as
it is made (:class:`~circuits.behaviours.pairs.TokenPair`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.forms import keywords_of, logits_of
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens
from circuits.errors import DeviceError, PromptError, UnsupportedModelError
from circuits.settings import require_kind
from circuits.vocabulary import Metric


def require_one_device(anatomy: Anatomy, what: str) -> None:
    """Raise :class:`DeviceError` for a model over several devices, where something is not made for that."""
    if not anatomy.one_device:
        found = dict.fromkeys(str(weight.device) for weight in anatomy.module.parameters())
        raise DeviceError(
            f"{what} needs a model on one device, and this one is on {', '.join(found)}. Load it without a device map; "
            "attribution, exact effects, circuits and ablation take several."
        )


def require_pairs(anatomy: Anatomy, pairs: Sequence[TokenPair], metric: Metric | None = None) -> None:
    """Raise :class:`PromptError` unless a model can run these pairs and, where one is given, a metric measure them.

    Cost: nothing, but a pass of one token for a decoder that is not of transformers, and one of the longest prompt.
    """
    if not len(pairs):
        raise PromptError("there are no pairs to measure; expected at least one TokenPair.")
    for number, pair in enumerate(pairs):
        require_kind(pair, TokenPair, f"pair {number}", "of text, `behaviour.prompts(model.tokenizer)` makes them.")
    names = {f"pair {number}": pair for number, pair in enumerate(pairs)}
    for side in ("clean", "corrupted"):
        require_prompts(anatomy, {f"{name}, {side}": getattr(pair, side) for name, pair in names.items()})
    if metric is not None and metric.needs_answers:
        _require_answers(names, metric, _n_logits(anatomy))


def require_prompts(anatomy: Anatomy, prompts: dict[str, Tokens], *, more: int = 0) -> None:
    """Raise :class:`PromptError` for an empty prompt, one with tokens that the embedding does not have, or too many.

    ``more`` is how many tokens are to be added to each.
    """
    size = anatomy.vocabulary
    for name, prompt in prompts.items():
        if not len(prompt):
            raise PromptError(f"{name} is empty; expected at least one token.")
        outside = next((token for token in prompt if not 0 <= token < size), None)
        if outside is not None:
            raise PromptError(
                f"{name} has the token id {outside}, and the model's embedding has {size} tokens, numbered from 0. "
                "Tokenize with the model's own tokenizer, or resize the embedding to the tokenizer's length."
            )
    _require_length(anatomy, {name: len(prompt) + more for name, prompt in prompts.items()})


def _require_answers(names: dict[str, TokenPair], metric: Metric, n_logits: int) -> None:
    for name, pair in names.items():
        if not pair.answers and not pair.sequences:
            raise PromptError(f"{name} has no answer, which the metric {metric} needs (only kl and projection do not).")
        if metric.compares and not (pair.wrong_answers or pair.wrong_sequences):
            raise PromptError(
                f"{name} has no wrong answer, and the metric {metric} compares answers with wrong answers: add one, "
                f"or choose the metric {Metric.LOG_ODDS} or {Metric.KL}."
            )
        sequences = (token for several in (*pair.sequences, *pair.wrong_sequences) for token in several)
        outside = next((t for t in (*pair.answers, *pair.wrong_answers, *sequences) if t >= n_logits), None)
        if outside is not None:
            raise PromptError(
                f"{name} has the token id {outside} as an answer, and the model has logits for {n_logits} tokens, "
                "numbered from 0. Tokenize with the model's own tokenizer, or choose another answer."
            )


def _require_length(anatomy: Anatomy, lengths: dict[str, int]) -> None:
    name = max(lengths, key=lengths.__getitem__, default="")
    if not lengths or (lengths[name] <= 1):
        return
    if not isinstance(anatomy.module, PreTrainedModel):
        _require_run(anatomy, name, lengths[name])
        return
    limit = positions_of(anatomy.module)
    if limit is not None and lengths[name] > limit:
        raise PromptError(
            f"{name} has {lengths[name]} tokens, and the model has {limit} positions: a prompt may have at most "
            f"{limit} tokens (with its answer's earlier ones). Shorten the prompts, or use a model of longer context."
        )


def positions_of(module: PreTrainedModel) -> int | None:
    """Return how many positions a model has a table for; None where positions are computed (rotary, linear biases)."""
    config: Any = module.config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not isinstance(limit, int):
        return None
    tokens = module.get_input_embeddings()
    parts = [part for part in module.modules() if part is not tokens]
    # OPT's table has two rows more than positions; GPT-J's is no parameter; MPT's biases are cut to a length.
    table = any(isinstance(part, nn.Embedding) and 0 <= part.num_embeddings - limit <= 2 for part in parts)
    kept = any(name.endswith("embed_positions") and len(value) == limit for name, value in module.named_buffers())
    return limit if table or kept or getattr(config, "model_type", "") == "mpt" else None


def trial_length(anatomy: Anatomy, wanted: int, fewest: int) -> int:
    """Return how many tokens a model is tried on at load: as many as wanted, fewer where it has no more positions.

    Cost: nothing, but a pass of one prompt for each length tried on a decoder that is not of transformers.
    """
    module = anatomy.module
    for length in range(wanted, fewest - 1, -1):
        known = isinstance(module, PreTrainedModel)
        if length <= (positions_of(module) or length) if known else _unable(anatomy, length) is None:
            return length
    raise UnsupportedModelError(
        f"{type(module).__name__} cannot run prompts of {fewest} tokens ({_unable(anatomy, fewest) or 'too few'}), "
        "which it takes to see that later tokens do not change earlier ones. Give it a longer context."
    )


def _require_run(anatomy: Anatomy, name: str, length: int) -> None:
    """Try a length on a decoder whose positions nobody describes."""
    problem = _unable(anatomy, length)
    if problem is not None:
        raise PromptError(
            f"{name} has {length} tokens, which the model cannot run ({problem}); expected no more than it has "
            "positions. Shorten the prompts."
        )


@torch.no_grad()
def _unable(anatomy: Anatomy, length: int) -> str | None:
    """Return why a model cannot run as many tokens; None where it can."""
    try:
        _plain(anatomy, length)
    except (IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return str(error).strip().splitlines()[0]
    return None


def _n_logits(anatomy: Anatomy) -> int:
    if anatomy.linear_unembedding is not None:
        return len(anatomy.linear_unembedding.weight)
    return _plain(anatomy, 1).shape[-1]


@torch.no_grad()
def _plain(anatomy: Anatomy, length: int) -> Tensor:
    ids = torch.zeros(1, length, dtype=torch.long, device=anatomy.device)
    return logits_of(anatomy.module(ids, **keywords_of(anatomy.module)))
