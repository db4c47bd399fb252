"""The folder of a discovery: its circuit and scores, prompts, evidence on heads, diagrams and a report."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from circuits.behaviours.behaviour import PromptSet, Tokenizer, TokenPair
from circuits.behaviours.tokens import token_texts
from circuits.discovery import CIRCUIT, SCORES, Discovery
from circuits.discovery_settings import DiscoverySettings
from circuits.drawing.pictures import draw
from circuits.errors import CircuitsError, RenderError
from circuits.files.atomic import make_folder, write
from circuits.files.journal import Journal
from circuits.heads import head_roles
from circuits.interchange.score_files import scores_of, write_scores
from circuits.interchange.sidecars import HEADS, PROMPTS, beside, prompts_json
from circuits.model import Model
from circuits.patching.protocol import StageProgress, no_stages, of_stage
from circuits.records import Example

EVIDENCE_PAIRS = 16
"""On how many held-out pairs heads are measured, to add little to the time; ``circuits heads`` takes more."""
DRAWN = ("circuit.dot", "circuit.svg", "report.html")


@dataclass(frozen=True)
class DiscoveryFiles:
    """What was written into a folder; ``undrawn`` says why diagrams are missing, if so."""

    folder: Path
    files: tuple[str, ...]
    undrawn: str = ""


def save_discovery(
    found: Discovery,
    folder: str | Path,
    model: Model,
    *,
    heads: bool = True,
    settings: DiscoverySettings | None = None,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> tuple[Discovery, DiscoveryFiles]:
    """Write all that ``circuits discover`` leaves; return the discovery with remarks on it, and the files.

    Args:
        found: What was found.
        folder: Where to; it is made if need be.
        model: The model that it was found in.
        heads: Whether to measure what its heads do, for the report: some 40 forward passes of 16 held-out pairs.
        settings: How it was found, for what is measured of the heads.
        progress: Is told about the stages.
        journal: Keeps what is measured.

    Raises :class:`OutputError` for a folder that cannot be written to. Where Graphviz is missing, everything else is
    written and ``undrawn`` says so.
    """
    folder = Path(folder)
    make_folder(folder)
    write_scores(found.scores, folder / SCORES, of=scores_of(model.info.digest, found.prompts.digest))
    write(folder / CIRCUIT, found.circuit.to_json())
    found = leave_evidence(found, folder, model, heads=heads, settings=settings, progress=progress, journal=journal)
    return found, draw_discovery(found, folder, progress=progress)


def leave_evidence(
    found: Discovery,
    folder: Path,
    model: Model,
    *,
    heads: bool = True,
    settings: DiscoverySettings | None = None,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> Discovery:
    """Write ``prompts.json``, and measure the heads for ``heads.json``; what cannot be measured is remarked on."""
    if model.tokenizer is not None:
        write(folder / PROMPTS, prompts_json(found.circuit, examples(found.prompts, model.tokenizer)), make_folder=True)
    if not heads:
        return found
    settings = settings or DiscoverySettings()
    prompts = found.prompts.heldout[:EVIDENCE_PAIRS]
    try:
        roles = head_roles(
            model,
            found.circuit,
            prompts,
            options=settings.options_for(found.prompts),
            resources=settings.resources,
            seed=settings.seed,
            progress=of_stage(progress, f"measuring what the heads do, on {len(prompts)} held-out pairs"),
            journal=journal,
        )
    except CircuitsError as problem:
        return replace(found, warnings=(*found.warnings, f"the report has no evidence on heads: {problem}"))
    write(folder / HEADS, roles.to_json(), make_folder=True)
    return found


def draw_discovery(
    found: Discovery, folder: Path, *, progress: StageProgress = no_stages, drawn: Iterable[str] = DRAWN
) -> DiscoveryFiles:
    """Draw the diagrams and the report of a folder that holds the circuit, with what lies beside it."""
    undrawn, files = "", [CIRCUIT, SCORES]
    known = beside(folder / CIRCUIT, found.circuit)
    files += [name for name, there in ((HEADS, known.evidence), (PROMPTS, known.prompts)) if there]
    for name in drawn:
        progress("drawing", 0, 0)
        try:
            draw(
                found.circuit,
                folder / name,
                evidence=known.evidence,
                prompts=known.prompts,
                intervals=found.scores.intervals(found.circuit.edges),
            )
            files.append(name)
        except RenderError as problem:
            undrawn = str(problem)
    return DiscoveryFiles(folder, tuple(files), undrawn)


def examples(prompts: PromptSet, tokenizer: Tokenizer) -> list[Example]:
    """Return prompt pairs as text, discovery first."""
    parts = (("discovery", prompts.discovery), ("heldout", prompts.heldout))
    return [_example(pair, split, tokenizer) for split, pairs in parts for pair in pairs]


def _example(pair: TokenPair, split: str, tokenizer: Tokenizer) -> Example:
    answers, wrong = (token_texts(tokenizer, tokens) for tokens in (pair.answers, pair.wrong_answers))
    ids = pair.answers, pair.wrong_answers
    return Example(pair.clean_text, pair.corrupted_text, answers, wrong, split, *ids, dict(pair.roles), pair.alignment)
