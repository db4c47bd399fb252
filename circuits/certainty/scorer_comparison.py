"""Scorers side by side on one behaviour: how far each agrees with exact effects, and what its circuits are worth.

Every scorer scores all edges on the discovery pairs. A sample of edges, in geometric steps down the scorers' mean
ranking, is measured exactly on the same pairs; the circuits of each ranking are measured on held-out pairs.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from circuits.behaviours.behaviour import Behaviour
from circuits.errors import UnsupportedModelError, UsageError
from circuits.evaluation.curve import curve
from circuits.files.documents import json_text
from circuits.files.journal import Journal
from circuits.memory.batching import by_length
from circuits.model import Model
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import Experiment, StageProgress, no_stages, of_stage
from circuits.records import CurvePoint
from circuits.report.curve_chart import curves_svg
from circuits.scores import EdgeScores
from circuits.scoring import score
from circuits.scoring.sampled_agreement import Agreement, compare_scores, stratified_sample
from circuits.scoring.scorers import Settings
from circuits.vocabulary import BY_CIRCUITS, ScorerName, Universe

COMPARED = tuple(name for name in ScorerName if not name.costly)
"""The scorers that are compared unless others are named: all that estimate every edge in a few dozen passes."""
ENSEMBLE = "ensemble"
SIZES = (0.001, 0.005, 0.02, 0.1, 0.5)
"""The shares of all edges whose circuits are shown in tables; the curve has more."""
PAIRS = 32
_PARTS = 4
_HALVES = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
_TWO = (((0,), (1,)),)


@dataclass(frozen=True)
class ScorerRow:
    """One scorer: ``agreement`` with exact effects, the ``curve`` of its ranking by |score|, and ``cmd`` by MIB's rule.

    ``jaccard`` is the overlap of its best edges on one half of the pairs with those on the other, the mean of three
    ways to halve them (of one way for scorers that go by whole circuits). ``forwards`` is what scoring took, in plain
    forward passes of the same pairs: processor time on a CPU, else time. None where it was not measured.
    """

    scorer: str
    agreement: Agreement
    curve: tuple[CurvePoint, ...]
    cmd: float | None
    jaccard: float | None
    forwards: float | None

    def at(self, share: float) -> CurvePoint:
        """Return the point of the curve at a share of all edges."""
        return next(point for point in self.curve if point.requested == share)


@dataclass(frozen=True)
class ScorerComparison:
    """What :func:`compare_scorers` found; ``top`` is of how many best edges ``jaccard`` is.

    ``left_out`` says which scorers could not be measured, and why.
    """

    model: str
    behaviour: str
    metric: str
    ablation: str
    discovery: int
    heldout: int
    top: int
    rows: tuple[ScorerRow, ...]
    left_out: dict[str, str]
    remarks: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return what ``scorers.json`` holds."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the text of ``scorers.json``."""
        return json_text(self.to_document())

    def to_svg(self) -> str:
        """Return a picture: the fidelity of each ranking's circuits over their number of edges, on held-out pairs."""
        return curves_svg({row.scorer: row.curve for row in self.rows})


def compare_scorers(
    model: Model,
    behaviour: Behaviour,
    *,
    scorers: Sequence[ScorerName | str] = COMPARED,
    options: Options | None = None,
    resources: Resources | None = None,
    sample: int = 128,
    top: int = 200,
    steps: int = 5,
    pairs: int = PAIRS,
    heldout: int = PAIRS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> ScorerComparison:
    """Compare scorers with exact effects of a sample of edges, and the circuits that their rankings select.

    Args:
        model: The model.
        behaviour: The behaviour.
        scorers: Which ones. Where there are several by gradients, their ``ensemble`` (mean rank) is compared too.
        options: What is measured. Default: the behaviour's own metric.
        resources: What measuring may use.
        sample: How many edges are measured exactly, for all scorers the same.
        top: Of how many best edges the overlap between halves of the pairs is taken.
        steps: Steps of eap-ig and conductance.
        pairs: How many discovery pairs edges are scored on.
        heldout: How many held-out pairs circuits are measured on.
        seed: Draws pairs, the sample and random scores.
        progress: Is told about the stages.
        journal: Keeps what is measured.

    A scorer that the model or the metric does not allow is left out, with the reason. Raises :class:`UsageError` for
    fewer than 4 pairs, and where no scorer is left. Cost: each scorer's own; a third of a forward pass of the discovery
    pairs per edge of the sample; up to 30 forward passes of the held-out pairs for each scorer.
    """
    options = options or Options(behaviour.metric)
    if pairs < _PARTS:
        raise UsageError(f"scorers are compared on at least {_PARTS} pairs, got {pairs}.")
    prompts = behaviour.prompts(model.tokenizer, discovery=pairs, heldout=heldout, seed=seed)
    progress("recording the prompts", 0, 0)
    here, there = (
        model.experiment(each, options, resources=resources, reference=prompts.reference, journal=journal)
        for each in (prompts.discovery, prompts.heldout)
    )
    forward = _forward_seconds(model, [pair.clean for pair in prompts.discovery])
    found, left_out = dict[str, _Scored](), dict[str, str]()
    for done, name in enumerate(map(ScorerName.parse, scorers)):
        progress("scoring", done, len(scorers))
        try:
            found[name] = _scored(here, name, Settings(steps=steps, seed=seed), forward, model.device)
        except (UnsupportedModelError, UsageError) as problem:
            left_out[name] = str(problem)
    if not found:
        raise UsageError(f"none of the scorers could be measured: {'; '.join(left_out.values())}")
    _add_ensemble(found)
    estimates = [each.whole for name, each in found.items() if name != ENSEMBLE and ScorerName.parse(name).by_gradients]
    edges = stratified_sample(ensemble(estimates or [each.whole for each in found.values()]), sample, seed)
    exact = here.edge_effects(edges, progress=of_stage(progress, "measuring edges")).mean(axis=1)
    rows: list[ScorerRow] = []
    for name, each in found.items():
        stage = of_stage(progress, f"measuring circuits ({name})")
        points, areas = curve(there, each.whole, by_magnitude=True, universes=(Universe.QUERY_HEAD,), progress=stage)
        agreed = compare_scores(each.whole.values[edges], exact)
        rows.append(ScorerRow(name, agreed, points, areas[0].cmd, each.jaccard(top), each.forwards))
    return ScorerComparison(
        model=model.info.id,
        behaviour=prompts.behaviour,
        metric=options.metric.value,
        ablation=options.ablation.value,
        discovery=here.n_pairs,
        heldout=there.n_pairs,
        top=top,
        rows=tuple(rows),
        left_out=left_out,
        remarks=prompts.remarks,
    )


def ensemble(scores: Sequence[EdgeScores]) -> EdgeScores:
    """Return edges by the mean of scorers' ranks by |score|; an edge's sign is that of most of them.

    An edge's size is what the scorers give the edge of that rank in the mean, each as a share of its largest: where
    sizes are divided (among the heads of a group, by MIB's rule) ranks alone would put all such edges last.
    """
    from scipy import stats

    rank: Any = stats.rankdata
    graph = scores[0].graph
    ranks: NDArray[np.float64] = rank(np.mean([rank(np.abs(each.values)) for each in scores], axis=0))
    shares = [np.sort(np.abs(each.values)) / max(float(np.abs(each.values).max()), 1e-30) for each in scores]
    sizes: NDArray[np.float64] = np.mean(shares, axis=0)
    signs = np.sign(np.sum([np.sign(each.values) for each in scores], axis=0))
    values: NDArray[np.float64] = np.interp(ranks, np.arange(1.0, len(sizes) + 1), sizes) * np.where(
        signs == 0, 1.0, signs
    )
    return EdgeScores(graph, values, ENSEMBLE, measured=False, n=scores[0].n)


@dataclass(frozen=True)
class _Scored:
    """The scores of all edges by one scorer, on all pairs and on parts of them, and how parts make two halves."""

    whole: EdgeScores
    parts: tuple[EdgeScores, ...]
    sizes: tuple[int, ...]
    forwards: float | None
    ways: Sequence[tuple[Sequence[int], Sequence[int]]] = _HALVES

    def jaccard(self, top: int) -> float | None:
        """Return the mean overlap of the best edges of one half of the pairs with those of the other."""
        return float(np.mean([_jaccard(*(self._best(half, top) for half in way)) for way in self.ways]))

    def _best(self, half: Sequence[int], top: int) -> NDArray[np.int64]:
        """Return the best edges by the mean over some parts; of an ensemble, by its mean there."""
        weights = [self.sizes[part] for part in half]
        values = np.average([self.parts[part].values for part in half], axis=0, weights=weights)
        return EdgeScores(self.whole.graph, values, self.whole.scorer, measured=False).ranked(by_magnitude=True)[:top]


def _jaccard(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    return len(np.intersect1d(first, second)) / len(np.union1d(first, second))


def _scored(experiment: Experiment, name: ScorerName, settings: Settings, forward: float, device: str) -> _Scored:
    """Score quarters of the pairs apart; the mean over all pairs is that of the quarters, weighted by their size.

    Scorers that go by whole circuits score all pairs together, and each half of them: their scores are no means.
    """
    together = name in BY_CIRCUITS
    bounds = np.linspace(0, experiment.n_pairs, 1 + (2 if together else _PARTS)).round().astype(int).tolist()
    sizes = tuple(np.diff(bounds).tolist())
    clock = time.process_time if device == "cpu" else time.perf_counter
    begun = clock()
    if together:
        whole = score(experiment, name, settings)
        forwards = (clock() - begun) / forward
        return _Scored(whole, _in_parts(experiment, bounds, name, settings), sizes, forwards, _TWO)
    parts = _in_parts(experiment, bounds, name, settings)
    forwards = (clock() - begun) / forward if name is not ScorerName.RANDOM else None
    values = np.average([part.values for part in parts], axis=0, weights=sizes)
    whole = EdgeScores(experiment.graph, values, name, measured=parts[0].measured, n=experiment.n_pairs)
    return _Scored(whole, parts, sizes, forwards)


def _in_parts(
    experiment: Experiment, bounds: Sequence[int], name: ScorerName, settings: Settings
) -> tuple[EdgeScores, ...]:
    """Score the pairs between neighbouring bounds, each with a seed of its own."""
    return tuple(
        score(experiment.part(*ends), name, replace(settings, seed=settings.seed + place))
        for place, ends in enumerate(pairwise(bounds))
    )


def _add_ensemble(found: dict[str, _Scored]) -> None:
    """Add the mean rank of the scorers by gradients, where there are several; it costs what they cost together."""
    members = [each for name, each in found.items() if ScorerName.parse(name).by_gradients]
    if len(members) < 2:
        return
    costs = [each.forwards for each in members if each.forwards is not None]
    parts = tuple(ensemble([each.parts[place] for each in members]) for place in range(_PARTS))
    whole = ensemble([each.whole for each in members])
    found[ENSEMBLE] = _Scored(whole, parts, members[0].sizes, sum(costs) if costs else None)


def _forward_seconds(model: Model, prompts: Sequence[Sequence[int]]) -> float:
    """Return the time of one plain forward pass of prompts, after one to warm up: the smaller of two."""
    clock = time.process_time if model.device == "cpu" else time.perf_counter
    batches = [
        torch.tensor([prompts[place] for place in members], device=model.tracer.anatomy.device)
        for members in by_length(map(len, prompts), lambda _: 16)
    ]
    taken: list[float] = []
    for _ in range(3):
        begun = clock()
        for ids in batches:
            float(model.tracer.plain_logits(ids).sum())  # waits for the device
        taken.append(clock() - begun)
    return max(min(taken[1:]), 1e-9)
