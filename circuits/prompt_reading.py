"""Read a prompt file, or pair requests, as a model would, without its weights.

The door to :mod:`circuits.behaviours.survey` and :mod:`circuits.behaviours.request_pairs`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from circuits.behaviours import load_behaviour
from circuits.behaviours.request_pairs import RequestPairs, paired
from circuits.behaviours.survey import Prompts, survey
from circuits.models.fetching.builtin import FetchProgress, no_fetch_progress
from circuits.models.loading import load_tokenizer
from circuits.models.tokenizers import usable_tokenizer
from circuits.vocabulary import Align, Metric


def read_prompts(
    file: str | Path,
    model: str = "smollm2-135m",
    *,
    tokenizer: Any = None,
    metric: str | Metric | None = None,
    align: str | Align | None = None,
    progress: FetchProgress = no_fetch_progress,
) -> Prompts:
    """Read a prompt file and tokenize it: what is usable, what is not and why, splits, lengths, duplicates, leaks.

    Args:
        file: The prompt file (or the name of a built-in behaviour).
        model: Whose tokenizer reads it: a built-in name, a folder or a Hugging Face id. Its weights are not read.
        tokenizer: In place of the model's own; then no model is looked for.
        metric: What the pairs are to be measured by (``sequence`` takes answers of several tokens).
        align: By what pairs are aligned whose sides differ in length (``suffix`` or ``roles``); else they are unusable.
        progress: Is told while a built-in model is fetched, which happens once.

    Raises as :func:`circuits.load_behaviour` does for a file that is missing or has nothing to use, and
    ``UnknownNameError`` or ``ModelUnavailableError`` for a model without a tokenizer.
    """
    behaviour = load_behaviour(file, skip_unusable=True)
    if metric is not None:
        behaviour = replace(behaviour, metric=Metric.parse(metric))
    if align is not None:
        behaviour = behaviour.varied(align=align)
    if tokenizer is None:
        return survey(behaviour, load_tokenizer(model, progress=progress), model=model)
    return survey(behaviour, usable_tokenizer(tokenizer), model=str(getattr(tokenizer, "name_or_path", "")))


def pair_requests(
    harmful: str | Path,
    harmless: str | Path,
    model: str = "smollm2-135m",
    *,
    tokenizer: Any = None,
    progress: FetchProgress = no_fetch_progress,
) -> RequestPairs:
    """Pair the requests of two collections: each harmful one with a harmless one of as many tokens, as alike as can be.

    Args:
        harmful: A file of harmful requests: HarmBench, AdvBench, JailbreakBench, StrongREJECT, XSTest, OR-Bench, the
            splits of refusal_direction, or any file with a column ``prompt``. Rows marked as harmless are left out.
        harmless: A file of harmless ones; the same file where it marks both (XSTest).
        model: Whose tokenizer counts tokens, with its chat template around the request; its weights are not read.
        tokenizer: In place of the model's own; then no model is looked for.
        progress: Is told while a built-in model is fetched, which happens once.

    Raises :class:`FormatError` for a file of no known collection, :class:`UsageError` where a file has no request of
    its kind, :class:`PromptError` where no two have as many tokens or the tokenizer has no chat template.
    """
    return paired(harmful, harmless, usable_tokenizer(tokenizer) or load_tokenizer(model, progress=progress))
