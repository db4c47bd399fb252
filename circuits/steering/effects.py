"""What ablating or adding a direction changes: answers' first tokens, texts, and what should stay as it is.

Of every prompt the first token is predicted, and up to 20 tokens are generated where a text is to be judged; a text is
judged as soon as it is there and only the verdict is kept, so that nothing that was generated is stored or shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from circuits.ablation.answers import Openings, declines
from circuits.ablation.estimates import Quantity, mean_quantity, perplexity_quantity, share_quantity
from circuits.ablation.measuring import neutral_texts
from circuits.behaviours.behaviour import digest_of
from circuits.behaviours.pairs import TokenPair
from circuits.directions.stream_direction import StreamDirection
from circuits.errors import UsageError
from circuits.files.journal import NOWHERE, Journal, Shelf
from circuits.metrics import AnswerTokens, measure
from circuits.model import Model
from circuits.patching.protocol import StageProgress, no_stages
from circuits.scores import Floats
from circuits.steering.recording import random_like
from circuits.steering.steered_model import Action, SteeredModel
from circuits.tracing.requirements import require_one_device
from circuits.vocabulary import Metric

TOKENS, DRAWS = 20, 3
SIDES = ("clean", "corrupted")
Judge = Callable[[str], bool]
"""Says of the beginning of an answer whether it declines."""


@dataclass(frozen=True)
class Outcome:
    """What one version of the model does on some prompt pairs.

    Every array has one number per pair, by side: ``first`` whether the most likely first token is one of the answers,
    ``odds`` the answers' log-odds (nats), ``kl`` the divergence of the first token's distribution from that of the
    model as it is (nats), ``declined`` whether the text declines (None: not generated). ``losses`` and ``text_kl`` have
    one array per neutral sentence, over its tokens.
    """

    first: dict[str, Floats]
    odds: dict[str, Floats]
    kl: dict[str, Floats]
    declined: dict[str, Floats] | None
    losses: list[Floats]
    text_kl: list[Floats]

    def mean_kl(self, side: str) -> float:
        """The mean divergence on a side's prompts."""
        return float(self.kl[side].mean())

    @property
    def mean_text_kl(self) -> float:
        """The mean divergence over tokens of neutral text; NaN without any."""
        return float(np.concatenate(self.text_kl).mean()) if self.text_kl else float("nan")

    @property
    def perplexity(self) -> float:
        """Of the neutral text; NaN without any."""
        return float(np.exp(np.concatenate(self.losses).mean())) if self.losses else float("nan")


class Bench:
    """Prompt pairs and neutral text on which versions of one model are measured, the model as it is first.

    Cost of a version: one forward pass of both sides and of the neutral text, beside the tokens that are generated.
    """

    def __init__(
        self,
        model: Model,
        pairs: Sequence[TokenPair],
        *,
        tokens: int = 0,
        judge: Judge = declines,
        journal: Journal | None = None,
    ) -> None:
        if model.info.target is not None:
            raise UsageError(
                f"the model ends at {model.info.target}, so it has no answers; give the model as it was loaded."
            )
        self.model, self.pairs, self.tokens, self.judge = model, tuple(pairs), tokens, judge
        self.refusals = Openings.of(model.tokenizer, pairs).refusals
        self._texts = neutral_texts(model)
        self._answers = AnswerTokens.of(self.pairs, "cpu")
        self._shelf: Shelf = model.shelf(journal).under(pairs=digest_of(pairs))
        self._plain = SteeredModel(model)
        self._plain_logits: dict[str, Any] = {}
        self.plain = self.outcome(self._plain)

    def outcome(self, steered: SteeredModel, *, neutral: bool = True, judged: bool = True) -> Outcome:
        """Measure a version of the model, on ``neutral`` text and with texts ``judged`` only where that is wanted."""
        name = self._name(steered)
        sides = {side: self._shelf.document(f"first token, {side}", name, self._first(steered, side)) for side in SIDES}
        declined = None
        if self.tokens and self.refusals and judged:
            # What another judge than the shipped one says is not kept: it may be another one next time.
            shelf = self._shelf if self.judge is declines else NOWHERE
            what = [name, self.tokens]
            declined = {
                side: np.array(shelf.document(f"texts, {side}", what, self._text(steered, side))) for side in SIDES
            }
        texts = self._texts if neutral else ()
        compared = self._shelf.document("neutral text", [name, neutral], lambda: steered.compared(texts, self._plain))
        losses, divergences = ([np.array(each) for each in part] for part in compared)

        def column(key: str) -> dict[str, Floats]:
            return {side: np.array(sides[side][key], dtype=np.float64) for side in SIDES}

        return Outcome(column("first"), column("odds"), column("kl"), declined, losses, divergences)

    def _name(self, steered: SteeredModel) -> list[Any]:
        direction = steered.direction
        return [] if direction is None else [direction.digest, direction.size, steered.action, steered.scale]

    def _first(self, steered: SteeredModel, side: str) -> Callable[[], dict[str, list[float]]]:
        def make() -> dict[str, list[float]]:
            prompts = [getattr(pair, side) for pair in self.pairs]
            _, logits = steered.answers(prompts)
            if side not in self._plain_logits:
                plain = logits if steered.direction is None else self._plain.answers(prompts)[1]
                self._plain_logits[side] = plain
            best = [int(token) for token in logits.argmax(-1)]
            odds = measure(Metric.LOG_ODDS, logits, self._answers)
            kl = measure(Metric.KL, logits, self._answers, self._plain_logits[side])
            first = [float(token in pair.answers) for token, pair in zip(best, self.pairs, strict=True)]
            return {"first": first, "odds": [float(value) for value in odds], "kl": [float(value) for value in kl]}

        return make

    def _text(self, steered: SteeredModel, side: str) -> Callable[[], list[float]]:
        def make() -> list[float]:
            tokens, _ = steered.answers([getattr(pair, side) for pair in self.pairs], self.tokens)
            return [float(self.judge(str(self.model.tokenizer.decode(list(each))))) for each in tokens]

        return make


@dataclass(frozen=True)
class SteeringReport:
    """What acting on a direction changes, on pairs that it was not taken from.

    ``agreement`` is the share of prompts of both sides, before and after, on which the first token and the text say the
    same about refusing; None where no texts were judged.
    """

    direction: StreamDirection
    action: Action
    scale: float
    quantities: tuple[Quantity, ...]
    draws: int
    refusals: bool
    agreement: float | None

    def quantity(self, name: str) -> Quantity:
        """Find a quantity by its name."""
        return next(each for each in self.quantities if each.name == name)

    def describe(self) -> str:
        """Return in sentences what changed on the prompts that the action is meant for."""
        first = self.quantities[0 if self.action == "ablate" else 1]
        text = f"'{first.name}' went from {first.before.describe()} to {first.after.describe()}"
        if first.random:
            text += f"; {self.draws} random directions of the same length left {first.describe_random()}"
        return f"{text}."

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the vector as plain JSON values."""
        return {
            "direction": self.direction.facts(),
            "action": self.action,
            "scale": self.scale,
            "quantities": [asdict(each) for each in self.quantities],
            "random_draws": self.draws,
            "agreement": self.agreement,
        }


def measure_direction(
    model: Model,
    direction: StreamDirection,
    pairs: Sequence[TokenPair],
    action: Action = "ablate",
    *,
    scale: float = 1.0,
    tokens: int = TOKENS,
    judge: Judge = declines,
    draws: int = DRAWS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> SteeringReport:
    """Measure what ablating a direction everywhere, or adding it at its layer, changes on prompt pairs.

    Args:
        model: The model; nothing is changed on it.
        direction: What is acted on.
        pairs: Held-out pairs with answers: of refusal, harmful and harmless requests and the refusing first tokens.
        action: ``ablate`` or ``add``.
        scale: How many times the distance between the means is added.
        tokens: How many tokens of every answer are generated and judged (refusals only; not with random directions);
            0: none.
        judge: Says of such a text whether it declines: by the patterns of :func:`circuits.ablation.answers.declines`,
            or a classifier of your own. It sees each text once; only what it says is kept.
        draws: How many random directions of the same length are acted on in the same way.
        seed: Draws them.
        progress: Is told how many versions of the model are measured.
        journal: Keeps what is measured.

    Cost: of the model as it is, acted on and of every draw, a forward pass of both sides and of neutral text, and
    ``tokens`` tokens of every answer of the first two. Raises :class:`UsageError` for pairs without answers, an unknown
    action and a direction of another model.
    """
    require_one_device(model.tracer.anatomy, "steering")
    direction.require_model(model.info)
    if action not in ("ablate", "add") or not pairs or draws < 0 or not 0 <= tokens <= TOKENS:
        raise UsageError(
            f"expected pairs, an action (ablate or add), 0 to {TOKENS} tokens and draws from 0 up; got {len(pairs)} "
            f"pairs, {action!r}, {tokens} tokens and {draws} draws. Only the beginning of an answer is ever generated."
        )
    if not all(pair.answers for pair in pairs):
        raise UsageError("whether the model answers is told by answers, which some pairs lack; use pairs with answers.")
    stage = "measuring: as it is, acted on, random directions"
    progress(stage, 0, draws + 2)
    bench = Bench(model, pairs, tokens=tokens, judge=judge, journal=journal)
    outcomes = [bench.plain]
    for done in range(draws + 1):
        progress(stage, done + 1, draws + 2)
        acted_on = direction if done == 0 else replace(direction, vector=random_like(direction.vector, seed + done - 1))
        outcomes.append(bench.outcome(SteeredModel(model, acted_on, action, scale), judged=done == 0))
    progress(stage, draws + 2, draws + 2)
    return SteeringReport(
        direction, action, scale, _quantities(bench, outcomes, seed), draws, bench.refusals, _agreement(outcomes[:2])
    )


def _quantities(bench: Bench, outcomes: list[Outcome], seed: int) -> tuple[Quantity, ...]:
    before = outcomes[0]
    refuses = "refuses" if bench.refusals else "is an answer"
    words = dict(zip(SIDES, ("harmful", "harmless") if bench.refusals else SIDES, strict=True))
    found: list[Quantity] = []

    def shares(of: Callable[[Outcome], dict[str, Floats] | None], name: str) -> None:
        for side, word in words.items():
            values = [part[side] > 0.5 for each in outcomes if (part := of(each)) is not None]
            found.append(share_quantity(f"{name} on {word} prompts", values[0], values[1], values[2:], seed=seed))

    shares(lambda outcome: outcome.first, f"first token {refuses}")
    if before.declined is not None:
        shares(lambda outcome: outcome.declined, "text declines")
    for side, word in words.items():
        name = f"log-odds of answers on {word} prompts"
        odds = [each.odds[side] for each in outcomes]
        found.append(mean_quantity(name, "nats", odds[0], odds[1], odds[2:], seed=seed))
    for side, word in words.items():
        name = f"KL of the first token on {word} prompts"
        kl = [each.kl[side] for each in outcomes]
        found.append(mean_quantity(name, "nats", kl[0], kl[1], kl[2:], seed=seed))
    if before.losses:
        by_text = [np.array([tokens.mean() for tokens in each.text_kl]) for each in outcomes]
        name = "KL per token on neutral text"
        found.append(mean_quantity(name, "nats", by_text[0], by_text[1], by_text[2:], seed=seed))
        losses = [each.losses for each in outcomes]
        name = "perplexity on neutral text"
        found.append(perplexity_quantity(name, losses[0], losses[1], losses[2:], seed=seed))
    return tuple(found)


def _agreement(outcomes: list[Outcome]) -> float | None:
    same = [
        float(((each.first[side] > 0.5) == (each.declined[side] > 0.5)).mean())
        for each in outcomes
        if each.declined is not None
        for side in SIDES
    ]
    return float(np.mean(same)) if same else None
