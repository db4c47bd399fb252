"""Finding the direction that a behaviour hangs on: difference of means, by layer and token, chosen by what it does.

Arditi et al. 2024 (arXiv:2406.11717), section 2.3 and appendix C: the difference of the mean residual streams of clean
(harmful) and corrupted (harmless) prompts, for every layer and every token after the request; of these the one is
chosen whose ablation takes most of the behaviour away, among those that, ablated, leave corrupted prompts as they are
(KL divergence of the first token below a bound), bring the behaviour about when they are added, and lie not in the last
fifth of the layers. Measuring a candidate takes whole runs, and there are hundreds; so only the few are measured that
tell prompts of *other* pairs apart best (AUC), one of each layer.

Three sets of pairs: directions are taken from ``pairs``, chosen by ``choose`` others, and should be judged on held-out
ones (:func:`circuits.steering.effects.measure_direction`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from circuits.behaviours.behaviour import Behaviour, digest_of
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.split import MINIMUM, parted
from circuits.directions.stream_direction import Origin, StreamDirection
from circuits.equality import by_content
from circuits.errors import PromptError, UsageError
from circuits.files.atomic import write
from circuits.files.documents import json_text
from circuits.files.journal import Journal
from circuits.model import Model
from circuits.openings import finds_openings, with_openings
from circuits.patching.protocol import StageProgress, no_stages
from circuits.scores import Floats
from circuits.steering.direction_maps import draw_areas, draw_cosines
from circuits.steering.effects import Bench, Outcome
from circuits.steering.recording import auc, common_ending, last_streams, random_like
from circuits.steering.steered_model import SteeredModel
from circuits.tracing.requirements import require_one_device

FILE, CANDIDATES, TABLE = "direction.safetensors", "candidates.safetensors", "directions.json"
"""The files that a search writes into its folder."""
FORMAT, VERSION = "circuits/directions", 1


@dataclass(frozen=True)
class SearchSettings:
    """How a direction is searched.

    Attributes:
        pairs: Pairs that directions are taken from.
        choose: Other pairs that they are chosen by.
        positions: So many tokens at the end, of those that all prompts end with in common.
        candidates: How many layers' best directions are measured by what they do.
        kl: Bound on the divergence that ablating may cause on corrupted prompts, in nats.
        latest: Share of the layers after which directions are not chosen.
        layer: Take the direction of this layer, wherever it is; None: choose one.
        draws: Random directions that the chosen one is held against.
        seed: Draws pairs and random directions.
    """

    pairs: int = 64
    choose: int = 32
    positions: int = 5
    candidates: int = 6
    kl: float = 0.1
    latest: float = 0.8
    layer: int | None = None
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        least = min(self.pairs, self.choose, self.positions, self.candidates)
        if least < 1 or self.draws < 0 or not self.kl > 0 or not 0 < self.latest <= 1:
            raise UsageError(
                f"expected numbers from 1 up, a bound above 0 and a share of the layers up to 1; got {self}."
            )


@dataclass(frozen=True)
class Effect:
    """What a direction does on the pairs it is chosen by.

    ``rate`` is the share of prompts whose first token is an answer, ``odds`` the answers' mean log-odds (nats): on
    clean prompts when it is ablated, on corrupted ones when it is added. ``kl`` (corrupted prompts) and ``text_kl``
    (neutral text, per token) are the mean divergence from the model as it is when it is ablated, ``perplexity`` then
    that of the text.
    """

    ablated_rate: float
    ablated_odds: float
    added_rate: float
    added_odds: float
    kl: float
    text_kl: float
    perplexity: float

    @classmethod
    def of(cls, ablated: Outcome, added: Outcome) -> "Effect":
        """Sum up two versions of the model."""
        return cls(
            ablated_rate=float(ablated.first["clean"].mean()),
            ablated_odds=float(ablated.odds["clean"].mean()),
            added_rate=float(added.first["corrupted"].mean()),
            added_odds=float(added.odds["corrupted"].mean()),
            kl=ablated.mean_kl("corrupted"),
            text_kl=ablated.mean_text_kl,
            perplexity=ablated.perplexity,
        )


@dataclass(frozen=True)
class DirectionCandidate:
    """A layer's direction at one token: how it separates other pairs, and what it does where that was measured.

    ``auc`` is how often a clean prompt's projection lies above a corrupted one's, with its 95 % interval; ``gap`` the
    difference of the mean projections, ``size`` that of the pairs it was taken from. ``passes`` says whether it may be
    chosen (None: not measured).
    """

    layer: int
    position: int
    auc: float
    auc_interval: tuple[float, float]
    gap: float
    size: float
    effect: Effect | None = None
    passes: bool | None = None


@by_content
@dataclass(frozen=True, eq=False)
class DirectionSearch:
    """All directions of a behaviour, and the one chosen.

    ``means`` are the differences of means, ``(layer, token, d_model)``, the last token last; layer ``l`` is the stream
    that enters it. ``before`` is the model as it is in the terms of :class:`Effect` (nothing ablated, nothing added),
    ``random`` what random directions of the chosen one's length do in its place. ``remark`` says why the choice is
    doubtful; empty if it is not.
    """

    direction: StreamDirection
    candidates: tuple[DirectionCandidate, ...]
    means: Floats
    before: Effect
    random: tuple[Effect, ...]
    settings: SearchSettings
    remark: str = ""

    @property
    def chosen(self) -> DirectionCandidate:
        """The candidate that was chosen."""
        place = self.direction.layer, self.direction.position
        return next(each for each in self.candidates if (each.layer, each.position) == place)

    @property
    def measured(self) -> tuple[DirectionCandidate, ...]:
        """The candidates whose effects were measured."""
        return tuple(each for each in self.candidates if each.effect is not None)

    def at(self, layer: int, position: int = -1) -> StreamDirection:
        """Return the direction of a layer and token."""
        vector = self.means[layer, position]
        return replace(
            self.direction, vector=vector, layer=layer, position=position, size=float(np.linalg.norm(vector))
        )

    def cosines(self, position: int | None = None) -> Floats:
        """Return the cosine between every two layers' directions at a token (the chosen one's), ``(layer, layer)``."""
        found = self.means[:, self.direction.position if position is None else position]
        unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)
        return unit @ unit.T

    def describe(self) -> str:
        """Return in a sentence which was chosen and what it does."""
        effect = self.chosen.effect
        assert effect is not None
        text = (
            f"layer {self.direction.layer}, token {self.direction.position}: ablated, the first token is an answer on "
            f"{effect.ablated_rate:.2f} of the clean prompts (before {self.before.ablated_rate:.2f}); added, on "
            f"{effect.added_rate:.2f} of the corrupted ones (before {self.before.added_rate:.2f}); KL {effect.kl:.3f} "
            f"on corrupted prompts and {effect.text_kl:.3f} per token of neutral text"
        )
        if self.random:
            rates = [each.ablated_rate for each in self.random], [each.added_rate for each in self.random]
            text += (
                f". {len(self.random)} random directions of the same length: {min(rates[0]):.2f} to "
                f"{max(rates[0]):.2f} ablated, {min(rates[1]):.2f} to {max(rates[1]):.2f} added"
            )
        return f"{text}." + (f" {self.remark}" if self.remark else "")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the vectors as plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "direction": self.direction.facts(),
            "before": asdict(self.before),
            "candidates": [asdict(each) for each in self.candidates],
            "random": [asdict(each) for each in self.random],
            "cosines": self.cosines().tolist(),
            "settings": asdict(self.settings),
            "summary": self.describe(),
        }

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the chosen direction, all differences of means, the table, and pictures of it, into a folder.

        Returns the files that hold figures.
        """
        place = Path(folder)
        self.direction.save(place / FILE)
        write(place / CANDIDATES, save({"means": self.means.astype(np.float32)}, {"axes": "layer, token, d_model"}))
        write(place / TABLE, json_text(self.to_dict()))
        what = f"{self.direction.origin.behaviour} in {self.direction.origin.model}"
        areas = np.array([each.auc for each in self.candidates]).reshape(len(self.means) - 1, -1)
        draw_areas(areas, place, what=what)
        draw_cosines(self.cosines()[1:, 1:], place, what=f"{what}: directions of token {self.direction.position}")
        return tuple(place / name for name in (FILE, CANDIDATES, TABLE))


def find_direction(
    model: Model,
    behaviour: Behaviour,
    settings: SearchSettings | None = None,
    *,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> DirectionSearch:
    """Find the direction of the residual stream that a behaviour hangs on; see the module.

    Answers that belong to another model are found in this one first, as :func:`circuits.choose_openings` does. Cost:
    one forward pass of both sides of all pairs; of every candidate and random direction, two of the ``choose`` pairs
    and of neutral text. Raises what :meth:`Behaviour.prompts` does, and :class:`UsageError` where clean and corrupted
    prompts have the same mean.
    """
    require_one_device(model.tracer.anatomy, "a direction")
    settings = settings or SearchSettings()
    if finds_openings(model, behaviour):
        behaviour, _ = with_openings(model, behaviour)
    count = settings.pairs + settings.choose
    drawn = behaviour.prompts(model.tokenizer, discovery=count, heldout=0, seed=settings.seed).discovery
    try:
        fit, choose = parted(drawn, settings.pairs / count)
    except PromptError as error:
        raise PromptError(
            f"directions are taken from some discovery pairs and chosen by others, at least {MINIMUM} of each with "
            f"clean prompts of their own; {behaviour.name} has {len(drawn)} discovery pairs. Add pairs."
        ) from error
    progress("recording the residual stream", 0, 0)
    last = common_ending(drawn, settings.positions)
    shelf = model.shelf(journal).under(fit=digest_of(fit), choose=digest_of(choose))
    found = shelf.arrays("streams", [last], lambda: _statistics(model, fit, choose, last))
    means, candidates = found["means"], _candidates(found)
    origin = Origin(model.info.id, model.info.digest, behaviour.name, digest_of(fit), len(fit))
    start = StreamDirection(means[1, -1], 1, -1, float(np.linalg.norm(means[1, -1])), origin)
    search = DirectionSearch(start, candidates, means, _NOTHING, (), settings)
    return _chosen(model, search, choose, progress, journal)


_NOTHING = Effect(*[float("nan")] * 7)


def _statistics(model: Model, fit: Sequence[TokenPair], choose: Sequence[TokenPair], last: int) -> dict[str, Floats]:
    """Return the differences of means, and the projections of the choosing pairs on them, by layer and token."""

    def streams(pairs: Sequence[TokenPair], side: str) -> Floats:
        return last_streams(model, [getattr(pair, side) for pair in pairs], last)

    means = streams(fit, "clean").mean(0, dtype=np.float64) - streams(fit, "corrupted").mean(0, dtype=np.float64)
    sizes = np.linalg.norm(means, axis=-1, keepdims=True)
    if not np.all(sizes[1:, -1] > 0):
        raise UsageError(
            "the clean and the corrupted prompts have the same mean in the residual stream, so no direction leads from "
            "one to the other; use prompts that differ."
        )
    unit = means / np.maximum(sizes, 1e-30)
    sides = {side: np.einsum("nltd,ltd->nlt", streams(choose, side), unit) for side in ("clean", "corrupted")}
    return {"means": means, **sides}


def _candidates(found: dict[str, Floats]) -> tuple[DirectionCandidate, ...]:
    """Return a candidate for every layer but the embeddings' and every token, in this order."""
    means, rows = found["means"], list[DirectionCandidate]()
    for layer in range(1, means.shape[0]):
        for token in range(means.shape[1]):
            clean, corrupted = (found[side][:, layer, token].astype(np.float64) for side in ("clean", "corrupted"))
            area, low, high = auc(clean, corrupted)
            gap, size = float((clean - corrupted).mean()), float(np.linalg.norm(means[layer, token]))
            rows.append(DirectionCandidate(layer, token - means.shape[1], area, (low, high), gap, size))
    return tuple(rows)


def _to_measure(search: DirectionSearch, layers: int) -> list[DirectionCandidate]:
    """Return the best candidate of each of the layers that separate best, not in the last part of the model."""
    wanted, latest = search.settings.layer, search.settings.latest * layers
    early = [
        each
        for each in search.candidates
        if each.size > 0 and (each.layer < latest if wanted is None else each.layer == wanted)
    ]
    order = sorted(early, key=lambda each: (-each.auc, -each.gap / each.size, each.layer))
    best = {each.layer: each for each in reversed(order)}
    return sorted(best.values(), key=order.index)[: search.settings.candidates]


def _chosen(
    model: Model,
    search: DirectionSearch,
    choose: Sequence[TokenPair],
    progress: StageProgress,
    journal: Journal | None,
) -> DirectionSearch:
    """Measure the candidates, choose one, and hold it against random directions."""
    settings, wanted = search.settings, _to_measure(search, model.info.n_layers)
    if not wanted:
        if settings.layer is not None:
            raise UsageError(
                f"there is no direction of layer {settings.layer}; {model.info.id} has layers 1 to "
                f"{model.info.n_layers} (the last is the stream that the final norm reads)."
            )
        raise UsageError(f"no layer lies in the first {settings.latest:.0%} of the model; choose a larger share.")
    stage, total = "ablating and adding directions", 1 + len(wanted) + settings.draws
    progress(stage, 0, total)
    bench = Bench(model, choose, journal=journal)

    before, measured = Effect.of(bench.plain, bench.plain), dict[tuple[int, int], DirectionCandidate]()
    for done, each in enumerate(wanted, start=1):
        progress(stage, done, total)
        effect = _effect(bench, search.at(each.layer, each.position))
        passes = effect.kl <= settings.kl and effect.added_odds > before.added_odds
        measured[each.layer, each.position] = replace(each, effect=effect, passes=passes)
    passing = [each for each in measured.values() if each.passes]
    best = min(passing or measured.values(), key=lambda each: each.effect.ablated_odds if each.effect else 0.0)
    remark = (
        ""
        if passing
        else (
            f"No candidate keeps the KL divergence on corrupted prompts below {settings.kl:g} and brings the behaviour "
            "about when it is added; this is the one whose ablation takes most of the behaviour away."
        )
    )
    direction, random = search.at(best.layer, best.position), list[Effect]()
    for draw in range(settings.draws):
        progress(stage, 1 + len(wanted) + draw, total)
        random.append(_effect(bench, replace(direction, vector=random_like(direction.vector, settings.seed + draw))))
    progress(stage, total, total)
    candidates = tuple(measured.get((each.layer, each.position), each) for each in search.candidates)
    return replace(
        search, direction=direction, candidates=candidates, before=before, random=tuple(random), remark=remark
    )


def _effect(bench: Bench, direction: StreamDirection) -> Effect:
    ablated = bench.outcome(SteeredModel(bench.model, direction))
    return Effect.of(ablated, bench.outcome(SteeredModel(bench.model, direction, "add"), neutral=False))
