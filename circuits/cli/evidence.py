"""What ``discover`` leaves beside a circuit for its diagrams: its prompts, and the evidence on its heads."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.behaviours.behaviour import PromptSet, Tokenizer, TokenPair
from circuits.behaviours.tokens import token_texts
from circuits.circuit import Circuit
from circuits.cli.output import Told
from circuits.cli.session import scores_beside
from circuits.errors import CircuitsError
from circuits.files.atomic import write
from circuits.interchange.sidecars import HEADS, PROMPTS, Example, prompts_json

if TYPE_CHECKING:
    from circuits.discovery import Discovery, DiscoverySettings
    from circuits.files.journal import Journal
    from circuits.model import Model
    from circuits.scores import Floats

EVIDENCE_PAIRS = 16
"""On how many held-out pairs ``discover`` measures heads, to add little to its time; ``circuits heads`` takes more."""


def leave_prompts(folder: Path, found: "Discovery", model: "Model") -> None:
    """Write ``prompts.json``: the texts and answers of both parts."""
    if model.tokenizer is not None:
        write(folder / PROMPTS, prompts_json(found.circuit, examples(found.prompts, model.tokenizer)), make_folder=True)


def examples(prompts: PromptSet, tokenizer: Tokenizer) -> list[Example]:
    """Give prompt pairs as text, discovery first."""
    parts = (("discovery", prompts.discovery), ("heldout", prompts.heldout))
    return [_example(pair, split, tokenizer) for split, pairs in parts for pair in pairs]


def _example(pair: TokenPair, split: str, tokenizer: Tokenizer) -> Example:
    answers, wrong = (token_texts(tokenizer, tokens) for tokens in (pair.answers, pair.wrong_answers))
    return Example(pair.clean_text, pair.corrupted_text, answers, wrong, split)


def leave_evidence(
    folder: Path,
    found: "Discovery",
    model: "Model",
    settings: "DiscoverySettings",
    progress: Told,
    journal: "Journal",
) -> list[str]:
    """Measure the heads and write ``heads.json``; where that cannot be done, give the reason as a remark."""
    from circuits.heads import head_roles

    prompts = found.prompts.heldout[:EVIDENCE_PAIRS]
    told = partial(progress, f"measuring what the heads do, on {len(prompts)} held-out pairs")
    try:
        roles = head_roles(
            model,
            found.circuit,
            prompts,
            options=settings.options_for(found.prompts),
            seed=settings.seed,
            progress=told,
            journal=journal,
        )
    except CircuitsError as problem:
        return [f"the report has no evidence on heads: {problem}"]
    write(folder / HEADS, roles.to_json(), make_folder=True)
    return []


def known_intervals(circuit: Circuit, path: Path) -> "Floats | None":
    """Give the intervals of the edges' scores from the scores beside a circuit, where they are known per pair."""
    scores = scores_beside(circuit, path)
    return None if scores is None else scores.intervals(circuit.edges)
