"""Read a prompt file as a model would, without its weights: the door to :mod:`circuits.behaviours.survey`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from circuits.behaviours import load_behaviour
from circuits.behaviours.survey import Prompts, survey
from circuits.models.fetching.builtin import FetchProgress, no_fetch_progress
from circuits.models.loading import load_tokenizer
from circuits.models.tokenizers import usable_tokenizer
from circuits.vocabulary import Metric


def read_prompts(
    file: str | Path,
    model: str = "smollm2-135m",
    *,
    tokenizer: Any = None,
    metric: str | Metric | None = None,
    progress: FetchProgress = no_fetch_progress,
) -> Prompts:
    """Read a prompt file and tokenize it: what is usable, what is not and why, splits, lengths, duplicates, leaks.

    Args:
        file: The prompt file (or the name of a built-in behaviour).
        model: Whose tokenizer reads it: a built-in name, a folder or a Hugging Face id. Its weights are not read.
        tokenizer: In place of the model's own; then no model is looked for.
        metric: What the pairs are to be measured by (``sequence`` takes answers of several tokens).
        progress: Is told while a built-in model is fetched, which happens once.

    Raises as :func:`circuits.load_behaviour` does for a file that is missing or has nothing to use, and
    ``UnknownNameError`` or ``ModelUnavailableError`` for a model without a tokenizer.
    """
    behaviour = load_behaviour(file, skip_unusable=True)
    if metric is not None:
        behaviour = replace(behaviour, metric=Metric.parse(metric))
    if tokenizer is None:
        return survey(behaviour, load_tokenizer(model, progress=progress), model=model)
    return survey(behaviour, usable_tokenizer(tokenizer), model=str(getattr(tokenizer, "name_or_path", "")))
