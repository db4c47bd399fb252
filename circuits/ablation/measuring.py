"""What acting on a circuit changes: measured before and after, against random ablations of the same size.

On held-out pairs: the metric; the log-odds of the answers on either side; which answers the model begins to give on
either side (of refusal: the refusal rate on harmful and the over-refusal on harmless requests); and the perplexity on
neutral sentences, which tells whether the model was broken in general. Of every answer the first few tokens are
generated, and kept with their class.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.resources import files
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from circuits.ablation.answers import AnswerKind, Openings
from circuits.ablation.estimates import Quantity, mean_quantity, perplexity_quantity, share_quantity
from circuits.ablation.generation import AblatedModel, ablated
from circuits.ablation.intervention import Intervention, Reference, portions, reference_of
from circuits.ablation.nodes import control_nodes
from circuits.behaviours.behaviour import digest_of
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens, prompt_tokens
from circuits.errors import UsageError
from circuits.files.journal import Journal, Shelf
from circuits.graph import Node
from circuits.metrics import AnswerTokens, measure
from circuits.model import Model
from circuits.models.digests import tensors_digest
from circuits.patching.protocol import StageProgress, no_stages
from circuits.scores import Floats
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Metric

DRAWS, NEW_TOKENS = 5, 5
BROKEN = 2.0
"""A perplexity this many times that of the model as it is means that more than one behaviour was lost."""


@dataclass(frozen=True)
class Answered:
    """How the model as it is and the ablated one begin their answers to one prompt."""

    side: str
    prompt: str
    before: str
    before_class: str
    after: str
    after_class: str


@dataclass(frozen=True)
class AblationReport:
    """What changed. ``overlap`` is the mean share of the acted-on nodes that the random ablations act on as well."""

    nodes: tuple[Node, ...]
    intervention: Intervention
    refusals: bool
    quantities: tuple[Quantity, ...]
    openings: tuple[Answered, ...]
    draws: int
    overlap: float

    def quantity(self, name: str) -> Quantity:
        """Find a quantity by its name."""
        return next(quantity for quantity in self.quantities if quantity.name == name)

    def describe(self) -> str:
        """Return in sentences what the numbers do and do not support."""
        names = rate_names(refusals=self.refusals)[: 2 if self.refusals else 1]
        sentences = [sentence for name in names for sentence in self._changed(self.quantity(name))]
        if self.overlap > 0:
            sentences.append(
                f"The random ablations share {self.overlap:.0%} of the nodes acted on: the model has too few others of "
                "the same depth."
            )
        perplexity = next((quantity for quantity in self.quantities if quantity.unit == "perplexity"), None)
        if perplexity is not None and perplexity.change.value > BROKEN:
            sentences.append(
                f"The perplexity on neutral text is {perplexity.change.value:.3g} times as high: the model is broken "
                "in general, so this does not show that the nodes serve this behaviour in particular. Act on fewer "
                "nodes, or with a scale nearer to 1."
            )
        return " ".join(sentences)

    def _changed(self, quantity: Quantity) -> list[str]:
        moved = quantity.change.low > 0 or quantity.change.high < 0
        sentences = [
            f"'{quantity.name}' went from {quantity.before.value:.2f} to {quantity.after.value:.2f}, a change of "
            f"{quantity.change.describe()}" + ("." if moved else ", which chance may explain.")
        ]
        if quantity.beyond_random is not None:
            verdict = (
                "all changed it less" if quantity.beyond_random else "not all changed it less, so size alone may do it"
            )
            sentences.append(
                f"Of {self.draws} random ablations of as many other heads and MLPs of the same depth {verdict}: they "
                f"left {quantity.describe_random()}."
            )
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "nodes": [str(node) for node in self.nodes],
            "intervention": asdict(self.intervention),
            "quantities": [asdict(quantity) for quantity in self.quantities],
            "openings": [asdict(answered) for answered in self.openings],
            "random_draws": self.draws,
            "random_overlap": self.overlap,
        }


def rate_names(*, refusals: bool) -> tuple[str, str, str]:
    """Name the shares of openings: answers on either side, and wrong answers on the clean side."""
    if refusals:
        return "refusal rate on harmful prompts", "over-refusal on harmless prompts", "compliance on harmful prompts"
    return (
        "opens with an answer on clean prompts",
        "opens with an answer on corrupted prompts",
        "opens with a wrong answer on clean prompts",
    )


@dataclass(frozen=True)
class _Prompts:
    """What every version of the model is run on."""

    pairs: tuple[TokenPair, ...]
    texts: tuple[Tokens, ...]
    metric: Metric
    new_tokens: int
    openings: Openings

    def side(self, name: str) -> list[Tokens]:
        return [getattr(pair, name) for pair in self.pairs]


class _Outcome:
    """What one version of the model does on the prompts, from the journal as far as that holds it."""

    def __init__(self, model: AblatedModel, prompts: _Prompts, shelf: Shelf, plain: "_Outcome | None" = None) -> None:
        self._model, self._prompts, self._plain = model, prompts, plain or self
        self._answers = AnswerTokens.of(prompts.pairs, model.model.tracer.anatomy.device)
        self.tokens: dict[str, list[Tokens]] = {}
        self.odds: dict[str, Floats] = {}
        for side in ("clean", "corrupted"):
            found = self._on_side(side, shelf)
            self.tokens[side] = [tuple(row["tokens"]) for row in found]
            if self._answers.answers.numel():
                self.odds[side] = np.array([row["odds"] for row in found])
            if side == "clean":
                self.metric: Floats = np.array([row["metric"] for row in found])
        self.losses: list[Floats] = [np.empty(0)] * len(prompts.texts)
        for members in portions(prompts.texts):
            texts = [prompts.texts[member] for member in members]
            found = shelf.document("losses", texts, lambda texts=texts: [_list(each) for each in model.losses(texts)])
            for member, losses in zip(members, found, strict=True):
                self.losses[member] = np.array(losses)

    def _on_side(self, side: str, shelf: Shelf) -> list[dict[str, Any]]:
        """Return of every prompt of a side its ``tokens``, ``odds`` and ``metric``."""
        prompts, rows = self._prompts.side(side), dict[int, dict[str, Any]]()
        for members in portions(prompts):
            found = shelf.document("answers", [side, members], partial(self._answered, side, members))
            rows |= dict(zip(members, found, strict=True))
        return [rows[place] for place in range(len(prompts))]

    def _answered(self, side: str, members: list[int]) -> list[dict[str, Any]]:
        tokens, logits = self._continued(side, members, self._prompts.new_tokens)
        answers = self._answers.rows(torch.tensor(members, device=logits.device))
        rows: list[dict[str, Any]] = [{"tokens": each} for each in tokens]
        if answers.answers.numel():
            for row, value in zip(rows, _list(measure(Metric.LOG_ODDS, logits, answers)), strict=True):
                row["odds"] = value
        if side == "clean":
            kept = None
            if self._prompts.metric.against_clean:
                kept = logits if self._plain is self else self._plain._continued(side, members, 1)[1]
            for row, value in zip(rows, _list(measure(self._prompts.metric, logits, answers, kept)), strict=True):
                row["metric"] = value
        return rows

    def _continued(self, side: str, members: list[int], count: int) -> tuple[list[Tokens], torch.Tensor]:
        prompts = self._prompts.side(side)
        return self._model.continuations([prompts[member] for member in members], count)

    @cached_property
    def kinds(self) -> dict[str, list[AnswerKind]]:
        """The class of every answer's opening, by side."""
        kind = self._prompts.openings.kind
        return {
            side: [kind(tokens, pair) for tokens, pair in zip(found, self._prompts.pairs, strict=True)]
            for side, found in self.tokens.items()
        }

    def share(self, side: str, opening: AnswerKind) -> NDArray[np.bool_]:
        """Return for every prompt of a side whether its answer has an opening of a class."""
        return np.array([kind is opening for kind in self.kinds[side]])


@in_own_state
def measure_ablation(
    model: Model,
    nodes: Sequence[Node],
    pairs: Sequence[TokenPair],
    intervention: Intervention | None = None,
    *,
    reference: Reference | Sequence[TokenPair] = (),
    metric: Metric | str = Metric.LOGIT_DIFFERENCE,
    draws: int = DRAWS,
    new_tokens: int = NEW_TOKENS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> AblationReport:
    """Measure what acting on nodes changes, on pairs that the reference prompts are not among.

    ``draws`` random ablations act on as many other heads and MLPs of the same depth, in the same way. Cost: for the
    model as it is, ablated, and each random ablation, ``new_tokens`` forward passes of both sides of the pairs and one
    of the neutral sentences. A journal keeps the answers, a few prompts at a time, and gives back an earlier run's.
    """
    if not nodes or not pairs or draws < 0:
        raise UsageError(
            f"expected nodes to act on, pairs and a number of draws from 0 up; got {len(nodes)} nodes, {len(pairs)} "
            f"pairs and {draws} draws."
        )
    intervention = intervention or Intervention()
    shelf = model.shelf(journal).under(
        pairs=digest_of(pairs), reference=_digest(reference), metric=Metric.parse(metric), new_tokens=new_tokens
    )
    if not isinstance(reference, Reference):
        reference = reference_of(model.tracer, reference) if intervention.needs_reference else Reference({}, {}, {})
    generator = np.random.default_rng(seed)
    controls = [control_nodes(model.graph, nodes, generator) for _ in range(draws)]
    openings = Openings.of(model.tokenizer, pairs)
    prompts = _Prompts(tuple(pairs), neutral_texts(model), Metric.parse(metric), new_tokens, openings)
    outcomes: list[_Outcome] = []
    for done, chosen in enumerate([(), tuple(nodes), *controls]):
        progress("generating: as it is, ablated, random ablations", done, draws + 2)
        version = ablated(model, chosen, intervention, reference=reference)
        own = shelf.under(nodes=[str(node) for node in chosen], intervention=asdict(intervention))
        outcomes.append(_Outcome(version, prompts, own, outcomes[0] if outcomes else None))
    taken = frozenset(nodes)
    shared = [len(taken.intersection(chosen)) / len(taken) for chosen in controls]
    return AblationReport(
        nodes=tuple(nodes),
        intervention=intervention,
        refusals=prompts.openings.refusals,
        quantities=_quantities(prompts, outcomes, seed),
        openings=_answered(prompts, *outcomes[:2]),
        draws=draws,
        overlap=float(np.mean(shared)) if shared else 0.0,
    )


def _quantities(prompts: _Prompts, outcomes: list[_Outcome], seed: int) -> tuple[Quantity, ...]:
    before, after, *random = outcomes
    metric, refusals = prompts.metric, prompts.openings.refusals
    words = rate_names(refusals=refusals)
    wanted = (("clean", AnswerKind.ANSWER), ("corrupted", AnswerKind.ANSWER), ("clean", AnswerKind.WRONG_ANSWER))
    found = [
        share_quantity(
            word, before.share(*which), after.share(*which), [each.share(*which) for each in random], seed=seed
        )
        for word, which in zip(words, wanted, strict=True)
    ]
    values = [each.metric for each in outcomes]
    name = f"{metric} on {'harmful' if refusals else 'clean'} prompts"
    found.append(mean_quantity(name, metric.unit, values[0], values[1], values[2:], seed=seed))
    if metric.compares:
        above = [value > 0 for value in values]
        found.append(share_quantity("answer above wrong answer", above[0], above[1], above[2:], seed=seed))
    for side, word in (("clean", "harmful"), ("corrupted", "harmless")):
        if side in before.odds and not (metric is Metric.LOG_ODDS and side == "clean"):
            odds = [each.odds[side] for each in outcomes]
            name = f"{'refusal ' if refusals else ''}log-odds on {word if refusals else side} prompts"
            found.append(mean_quantity(name, "nats", odds[0], odds[1], odds[2:], seed=seed))
    if prompts.texts:
        losses = [each.losses for each in outcomes]
        found.append(perplexity_quantity("perplexity on neutral text", losses[0], losses[1], losses[2:], seed=seed))
    return tuple(found)


def _answered(prompts: _Prompts, before: _Outcome, after: _Outcome) -> tuple[Answered, ...]:
    text = prompts.openings.text
    return tuple(
        Answered(
            side=side,
            prompt=getattr(pair, f"{side}_text"),
            before=text(before.tokens[side][i]),
            before_class=before.kinds[side][i],
            after=text(after.tokens[side][i]),
            after_class=after.kinds[side][i],
        )
        for side in ("clean", "corrupted")
        for i, pair in enumerate(prompts.pairs)
    )


def neutral_texts(model: Model) -> tuple[Tokens, ...]:
    """Tokenize the neutral sentences that ship with the package; none for a model without tokenizer."""
    if model.tokenizer is None:
        return ()
    sentences = files("circuits.ablation").joinpath("data/neutral.txt").read_text(encoding="utf-8").splitlines()
    return tuple(prompt_tokens(model.tokenizer, sentence, rendered=False) for sentence in sentences if sentence)


def _digest(reference: Reference | Sequence[TokenPair]) -> str:
    if not isinstance(reference, Reference):
        return digest_of(reference)
    kinds = ("mean", "last_mean", "direction")
    return tensors_digest(
        {f"{kind} {place}": value for kind in kinds for place, value in getattr(reference, kind).items()}
    )


def _list(values: torch.Tensor) -> list[float]:
    return cast(Any, values.detach().double().cpu()).tolist()
