"""Behaviours: what a model does, as prompt pairs and a metric. Built-in ones, and prompt files of your own.

>>> from circuits.behaviours import load_behaviour
>>> load_behaviour("ioi").metric
<Metric.LOGIT_DIFFERENCE: 'logit-difference'>
"""

import os
from dataclasses import replace
from pathlib import Path

from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.behaviours.built_in.agreement import AGREEMENT, AGREEMENT_SENTENCES
from circuits.behaviours.built_in.capital import CAPITAL, CAPITAL_SENTENCES
from circuits.behaviours.built_in.greater_than import GREATER_THAN, GREATER_THAN_SENTENCES
from circuits.behaviours.built_in.harm import HARM
from circuits.behaviours.built_in.induction import INDUCTION
from circuits.behaviours.built_in.ioi import IOI, IOI_SENTENCES
from circuits.behaviours.built_in.pronoun import PRONOUN, PRONOUN_SENTENCES
from circuits.behaviours.built_in.refusal import REFUSAL, REFUSAL_OF
from circuits.behaviours.pairs import Pair, TokenPair, clusters_of
from circuits.behaviours.reading.batches import pairs_of_batches
from circuits.behaviours.reading.datasets import read_file
from circuits.behaviours.reading.hub_datasets import PREFIX, HubName, is_saved
from circuits.behaviours.reading.rows import SUFFIXES
from circuits.behaviours.reading.slots import SUFFIX as TEMPLATE
from circuits.behaviours.reading.slots import read_template
from circuits.behaviours.tokens import Message, Tokenizer
from circuits.errors import UnknownNameError
from circuits.files.documents import exists
from circuits.records import BehaviourInfo

__all__ = [
    "BUILT_IN",
    "Behaviour",
    "Message",
    "Pair",
    "PromptSet",
    "TokenPair",
    "Tokenizer",
    "clusters_of",
    "load_behaviour",
    "pairs_of_batches",
]

BUILT_IN: dict[str, Behaviour] = {
    behaviour.name: behaviour
    for behaviour in (
        IOI,
        IOI_SENTENCES,
        GREATER_THAN,
        GREATER_THAN_SENTENCES,
        CAPITAL,
        CAPITAL_SENTENCES,
        AGREEMENT,
        AGREEMENT_SENTENCES,
        INDUCTION,
        PRONOUN,
        PRONOUN_SENTENCES,
        HARM,
        REFUSAL,
        *REFUSAL_OF,
    )
}
"""The behaviours that come with the package, by name."""


def load_behaviour(
    name_or_path: str | Path, *, recorded: BehaviourInfo | None = None, skip_unusable: bool = False
) -> Behaviour:
    """Return a built-in behaviour by its name, or read one from a prompt file or a template (``.toml``).

    A text with a folder separator or a suffix is a path; ``hf:OWNER/NAME:SPLIT`` is a data set of the Hugging Face hub,
    a folder one that its library saved. ``recorded`` is what a circuit says of its behaviour
    (``circuit.behaviour``): if that is this one, it is given with the circuit's system message, beginning of the answer
    and openings. With ``skip_unusable`` rows and pairs of a file that cannot be used are left out
    (``behaviour.prompts(...).unusable`` says which, and why) instead of refusing the file. Raises
    :class:`UnknownNameError` for an unknown name or file format, :class:`MissingFileError` for a file that is missing
    and :class:`FormatError` for one that is empty or malformed.
    """
    behaviour = _loaded(name_or_path, skip_unusable=skip_unusable)
    written_out = Path(name_or_path).name == "prompts.json"  # beside a circuit: its texts are what the model reads
    if recorded is None or recorded.name != behaviour.name or written_out:
        return behaviour
    return replace(behaviour, variant=recorded.variant)


def _loaded(name_or_path: str | Path, *, skip_unusable: bool) -> Behaviour:
    if isinstance(name_or_path, str) and name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    if isinstance(name_or_path, str) and name_or_path.startswith(PREFIX):
        return _of_file(name_or_path, HubName.parse(name_or_path).name.rpartition("/")[2], skip_unusable=skip_unusable)
    path = Path(name_or_path)
    looks_like_path = isinstance(name_or_path, Path) or "/" in name_or_path or os.sep in name_or_path or path.suffix
    if not looks_like_path and not exists(path, file=True) and not is_saved(path):
        hint = f"A prompt file of your own is given by its path ({', '.join((*SUFFIXES, TEMPLATE))})."
        raise UnknownNameError("behaviour", str(name_or_path), BUILT_IN, hint=hint)
    if path.suffix.lower() == TEMPLATE:
        template = read_template(path)
        about = f"pairs of the template {path.name}"
        return Behaviour(path.stem, about, template, usable_only=True, remarks=template.remarks)
    return _of_file(path, Path(path.name.removesuffix(".gz")).stem, skip_unusable=skip_unusable)


def _of_file(file: Path | str, called: str, *, skip_unusable: bool) -> Behaviour:
    pairs, name = read_file(file, skip_unusable=skip_unusable)
    usable_only = skip_unusable or pairs.layout is not None
    return Behaviour(
        name or called,
        f"the prompt pairs of {pairs.name}",
        pairs,
        usable_only=usable_only,
        remarks=pairs.remarks,
        unread=pairs.unusable,
    )
