"""A recorded run in the words of a methods section, with the papers it stands on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from circuits.recording.literature import (
    BEHAVIOURS,
    COMMANDS,
    MODELS,
    NNSIGHT,
    REFUSAL,
    SCORERS,
    Paper,
    software_bibtex,
)
from circuits.recording.run_record import RunRecord, UsedModel, UsedPrompts
from circuits.vocabulary import PrunerName


@dataclass(frozen=True)
class Citation:
    """A paragraph for a methods section, and the BibTeX of what it names."""

    paragraph: str
    bibtex: str

    def __str__(self) -> str:
        return f"{self.paragraph}\n\n{self.bibtex}\n"


def cite(record: str | Path | RunRecord) -> Citation:
    """Return a methods paragraph and BibTeX for a recorded run (``run.json``, its folder, or the record itself).

    It says what the record holds and nothing else: models and behaviours that are not built in are named without a
    reference, which is for you to add.
    """
    run = record if isinstance(record, RunRecord) else RunRecord.load(record)
    done, methods = COMMANDS.get(run.command, (run.command, ()))
    papers = dict.fromkeys([*methods, *_scorer(run), *_of_prompts(run), *_of_models(run), NNSIGHT])
    sentences = [
        f"With circuits {run.version} we {done}{_cited(*methods)}{_where(run)}.",
        *(_pairs(each) for each in run.prompts),
        *_search(run),
        *_outcome(run),
        _machine(run),
    ]
    entries = [software_bibtex(run.version), *(paper.bibtex() for paper in papers)]
    return Citation(" ".join(sentences), "\n\n".join(entries))


def _cited(*papers: Paper) -> str:
    return f" ({'; '.join(paper.said for paper in papers)})" if papers else ""


def _where(run: RunRecord) -> str:
    """Name the models, or nothing where none was loaded."""
    named = [f"{model.id}{_cited(*_of_model(model))}{_size(model)}" for model in run.models]
    return f" in {' and '.join(named)}" if named else ""


def _size(model: UsedModel) -> str:
    return f", {model.parameters / 1e6:,.0f} million parameters, weights with the SHA-256 {model.digest[:16]}…"


def _pairs(used: UsedPrompts) -> str:
    counts = ((used.n_discovery, "prompt pairs"), (used.n_heldout, "held-out prompt pairs"))
    told = " and ".join(f"{count} {what}" for count, what in counts if count)
    cited = _cited(BEHAVIOURS[used.behaviour]) if used.behaviour in BEHAVIOURS else ""
    return f"We used {told} of {used.behaviour}{cited} and measured {used.metric}."


def _search(run: RunRecord) -> list[str]:
    """Tell how edges were scored and chosen, where that is what was done."""
    # What a circuit says of itself goes before what was typed: a quick search chooses otherwise.
    circuit: object = run.results.get("circuit")
    method: dict[str, Any] = cast("Any", circuit).get("method", {}) if isinstance(circuit, dict) else {}
    settings: dict[str, Any] = {**run.settings, **method}
    scorer = settings.get("scorer")
    if scorer is None:
        return []
    cited = _cited(SCORERS[scorer]) if scorer in SCORERS else ""
    chosen = _chosen(settings) if "pruner" in settings else ""
    ablation = settings.get("ablation") or "corrupted"
    return [
        f"Edges were scored by {scorer}{cited}{chosen}, with {ablation} ablation "
        f"({settings.get('direction') or 'noising'}) and seed {settings.get('seed') or 0}."
    ]


def _chosen(settings: Mapping[str, Any]) -> str:
    pruner = PrunerName.parse(settings["pruner"])
    bound = f"{settings['size']} edges" if pruner.sized else f"target {settings.get('target') or 0:g}"
    if pruner.by_threshold:
        bound = f"threshold {settings['threshold']:g}"
    return f" and chosen by the pruner {settings['pruner']} ({bound})"


def _outcome(run: RunRecord) -> list[str]:
    """Tell what a circuit was judged to be on held-out pairs, with its doubts."""
    results = run.results
    circuit = _object(results.get("circuit"))
    evaluation = _object(circuit.get("evaluation") or results.get("evaluation"))
    if "faithfulness" not in evaluation:
        return []
    edges = circuit["edges"] if circuit else results.get("edges", 0)
    count = len(cast("list[Any]", edges)) if isinstance(edges, list) else int(edges)
    likeness = _object(evaluation.get("likeness"))
    fidelity = _object(likeness.get("fidelity"))
    alike = f"a fidelity of {fidelity['value']:.2f} and " if fidelity.get("value") is not None else ""
    told = f"The circuit has {count:,} edges, {alike}a faithfulness of {evaluation['faithfulness']:.2f} on "
    search = _object(circuit.get("search"))
    doubts = [str(text) for text in cast("list[Any]", search.get("doubts") or [])]
    return [f"{told}{evaluation['n']} held-out pairs.", *(f"Note that {text[0].lower()}{text[1:]}" for text in doubts)]


def _machine(run: RunRecord) -> str:
    devices = " and ".join(dict.fromkeys(f"{model.dtype} on {model.device}" for model in run.models))
    packages = run.environment.packages if run.environment else {}
    told = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "nnsight") if name in packages)
    ran = f"It ran in {devices} with {told}" if devices else f"It ran with {told}"
    return f"{ran}{_cited(NNSIGHT)} and took {run.seconds:,.0f} s."


def _scorer(run: RunRecord) -> list[Paper]:
    scorer = run.settings.get("scorer")
    return [SCORERS[scorer]] if scorer in SCORERS else []


def _of_prompts(run: RunRecord) -> list[Paper]:
    return [BEHAVIOURS[used.behaviour] for used in run.prompts if used.behaviour in BEHAVIOURS]


def _of_models(run: RunRecord) -> list[Paper]:
    directed = [REFUSAL] if str(run.settings.get("to")).endswith(".safetensors") else []
    return [*(paper for model in run.models for paper in _of_model(model)), *directed]


def _of_model(model: UsedModel) -> list[Paper]:
    return [paper for name, paper in MODELS.items() if name in model.id.lower()]


def _object(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
