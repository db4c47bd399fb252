"""What a model answers under attack: the same requests as they are, and with a system message or with answers begun.

Harmful and harmless requests are both asked with and without the attack. Of every answer the first token is predicted,
and a few tokens are generated and judged. An answer that begins already goes on from its beginning, and what is judged
is that beginning and what follows. A text is judged as soon as it is there and only the verdict is kept, so nothing
that was generated is stored or shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from circuits.ablation.answers import Openings, declines
from circuits.ablation.estimates import Quantity, mean_quantity, share_quantity
from circuits.behaviours.behaviour import Behaviour, PromptSet, digest_of
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.reading.unusable import refusal
from circuits.behaviours.tokens import Tokenizer, Tokens
from circuits.behaviours.variants import varied
from circuits.directions.stream_direction import StreamDirection
from circuits.errors import PromptError, UsageError
from circuits.files.documents import json_text
from circuits.files.journal import NOWHERE, Journal, Shelf
from circuits.model import Model
from circuits.openings import finds_openings, with_openings
from circuits.patching.protocol import StageProgress, no_stages
from circuits.records import Variant
from circuits.scores import Floats
from circuits.steering.effects import SIDES, TOKENS, Judge
from circuits.steering.recording import last_streams
from circuits.steering.steered_model import SteeredModel
from circuits.tracing.requirements import require_one_device, require_prompts

FORMAT, VERSION = "circuits/attacked-answers", 1
PAIRS = 48
REFUSED, DECLINED, AGREED = "first token refuses", "text declines", "first token and text agree"
ALONG = "length along the direction"
HARMFUL, HARMLESS = "harmful", "harmless"


@dataclass(frozen=True)
class AttackedAnswers:
    """What :func:`answers_under_attack` found: every quantity before the attack and (``after``) under it.

    ``before`` and ``attack`` say in words how the requests are asked, ``tokens`` how many of an answer were generated;
    ``layer`` is the direction's, None without one, and ``judge`` the judge's name.
    """

    model: str
    behaviour: str
    before: str
    attack: str
    tokens: int
    judge: str
    quantities: tuple[Quantity, ...]
    layer: int | None = None
    prompts: PromptSet | None = field(default=None, repr=False)

    def quantity(self, name: str) -> Quantity:
        """Find a quantity by its name, such as ``text declines on harmful prompts``."""
        return next(each for each in self.quantities if each.name == name)

    def describe(self) -> str:
        """Return in sentences what the attack changes, and whether first token and text say the same."""
        sentences = [self._changed(self.quantity(_on(DECLINED, side)), side == HARMFUL) for side in (HARMFUL, HARMLESS)]
        agreed = [self.quantity(_on(AGREED, side)) for side in (HARMFUL, HARMLESS)]
        shares = [f"{both.before.value:.2f} and {both.after.value:.2f}" for both in agreed]
        sentences.append(
            f"First token and text say the same of {shares[0]} of the harmful requests (before and under the attack), "
            f"and of {shares[1]} of the harmless ones."
        )
        return " ".join(sentences)

    def _changed(self, found: Quantity, first: bool) -> str:
        moved = found.change.low > 0 or found.change.high < 0
        who = f"Of {found.n} harmful requests the text declines" if first else "Of as many harmless ones it declines"
        return (
            f"{who} {found.before.describe()} before the attack and {found.after.describe()} under it, a change of "
            f"{found.change.describe()}" + ("." if moved else ", which chance may explain.")
        )

    def to_document(self) -> dict[str, Any]:
        """Return everything but the prompts as plain JSON values."""
        document = asdict(replace(self, prompts=None))
        del document["prompts"]
        return {"format": FORMAT, "version": VERSION, **document, "summary": self.describe()}

    def to_json(self) -> str:
        """Return the text of ``attack.json``."""
        return json_text(self.to_document())


def answers_under_attack(
    model: Model,
    behaviour: Behaviour,
    *,
    attack: str | None = None,
    attack_prefill: str | None = None,
    direction: StreamDirection | None = None,
    pairs: int = PAIRS,
    tokens: int = TOKENS,
    judge: Judge = declines,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> AttackedAnswers:
    """Measure how often a model refuses, on held-out requests as they are and under an attack.

    Args:
        model: The model; nothing is changed on it.
        behaviour: Chats whose clean prompts are harmful and corrupted ones harmless, as they are asked without the
            attack (``behaviour.varied(system=..., prefill=...)``), and the refusing first tokens; openings that belong
            to another model are found in this one first.
        attack: The system message under attack, in place of the requests' own.
        attack_prefill: How the answer begins already under attack; what follows is generated.
        direction: Also measure the length of the stream along it, at its layer and token, which under an
            ``attack_prefill`` is one of the beginning.
        pairs: How many held-out pairs of requests.
        tokens: How many tokens of every answer are generated and judged.
        judge: Says of a text whether it declines: by the patterns of :func:`circuits.ablation.answers.declines`, or a
            classifier of your own. It sees each text once, with the beginning that it was given; only what it says is
            kept.
        seed: Draws pairs and resamples.
        progress: Is told how many of the four groups of requests are answered.
        journal: Keeps what is measured.

    Intervals are over requests (of shares Wilson's), changes on the same requests. Raises :class:`UsageError` without
    an attack, for a behaviour that is attacked already, plain text, answers that are not refusals (with the shipped
    judge) and a direction of another model. Cost: of both sides, with and without the attack, a
    forward pass and ``tokens`` tokens of every answer.
    """
    require_one_device(model.tracer.anatomy, "answering under attack")
    _require(model, behaviour, attack, attack_prefill, direction, tokens)
    if finds_openings(model, behaviour):
        behaviour, _ = with_openings(model, behaviour)
    prompts = behaviour.prompts(model.tokenizer, discovery=0, heldout=pairs, seed=seed)
    plain, own = prompts.heldout, behaviour.variant
    if judge is declines and not Openings.of(model.tokenizer, plain).refusals:
        raise UsageError(
            f"the answers of {behaviour.name} are not the first tokens of refusals, and the patterns judge refusals; "
            "give the openings that refuse (--refuse), or in Python a judge of your own."
        )
    changed = replace(
        own,
        system=own.system if attack is None else attack,
        prefill=own.prefill if attack_prefill is None else attack_prefill,
    )
    asked = _Asked(model, tokens, judge, direction, model.shelf(journal))
    attacked = _again(behaviour, plain, changed, model.tokenizer)
    conditions = [(plain, own.prefill or ""), (attacked, changed.prefill or "")]
    found = list[dict[str, dict[str, Floats]]]()
    for given, beginning in conditions:
        sides = dict[str, dict[str, Floats]]()
        for side in SIDES:
            progress("answering requests: as they are, under attack", 2 * len(found) + len(sides), 4)
            sides[side] = asked.answers(given, side, beginning)
        found.append(sides)
    progress("answering requests: as they are, under attack", 4, 4)
    return AttackedAnswers(
        model=model.info.id,
        behaviour=behaviour.name,
        before=Variant(own.system, own.prefill).describe() or "as the behaviour asks",
        attack=Variant(attack=attack, attack_prefill=attack_prefill).describe(),
        tokens=tokens,
        judge=getattr(judge, "__name__", type(judge).__name__),
        quantities=_quantities(*found, seed=seed),
        layer=direction.layer if direction else None,
        prompts=prompts,
    )


def _require(
    model: Model,
    behaviour: Behaviour,
    attack: str | None,
    prefill: str | None,
    direction: StreamDirection | None,
    tokens: int,
) -> None:
    """Raise :class:`UsageError` for what cannot be asked."""
    if model.info.target is not None:
        raise UsageError(
            f"the model ends at {model.info.target}, so it has no answers; give the model as it was loaded."
        )
    if attack is None and prefill is None:
        raise UsageError(
            "there is no attack; give a system message (--attack TEXT) or the beginning of the answer "
            "(--attack-prefill TEXT)."
        )
    if behaviour.variant.attacked:
        raise UsageError(
            f"{behaviour.name} is attacked already ({behaviour.variant.describe()}), and its requests are to be asked "
            "without the attack too; give the behaviour as it is, and the attack by itself."
        )
    if prefill is not None and not prefill.strip():
        raise UsageError(f"the answer cannot begin with {prefill!r}; expected some text, or leave it out.")
    if not 1 <= tokens <= TOKENS:
        raise UsageError(
            f"expected 1 to {TOKENS} tokens, got {tokens}: only the beginning of an answer is ever generated."
        )
    if direction is not None:
        direction.require_model(model.info)


def _again(
    behaviour: Behaviour, plain: Sequence[TokenPair], changed: Variant, tokenizer: Tokenizer | None
) -> list[TokenPair]:
    """Return the pairs that were drawn, in order, as they are asked under attack."""
    assert tokenizer is not None  # pairs were drawn with it
    written = {
        (asked.clean, asked.corrupted): pair
        for pair in behaviour.pairs(tokenizer)
        for asked in [varied(pair, behaviour.variant)]
    }
    known = {(made.clean, made.corrupted): pair for pair, made in behaviour.usable(tokenizer).pairs}
    drawn = [known[made.clean, made.corrupted] for made in plain]
    originals = [written[pair.clean, pair.corrupted] for pair in drawn]
    attacked = replace(behaviour, pairs=partial(_given, originals), variant=changed, one_length=False)
    found = attacked.usable(tokenizer)
    if len(found.pairs) != len(plain):
        raise PromptError(refusal(list(found.unusable), len(plain)))
    return found.token_pairs


def _given(pairs: Sequence[Pair], tokenizer: Tokenizer) -> Sequence[Pair]:
    del tokenizer
    return pairs


@dataclass(frozen=True)
class _Asked:
    """Asks a model, and judges what it begins to answer."""

    model: Model
    tokens: int
    judge: Judge
    direction: StreamDirection | None
    shelf: Shelf

    def answers(self, pairs: Sequence[TokenPair], side: str, beginning: str) -> dict[str, Floats]:
        """Return of the requests of a side what the first token and the text say, and the length along the direction.

        An answer's ``beginning`` is judged with what follows it.
        """
        require_prompts(
            self.model.tracer.anatomy,
            {f"prompt {i}": getattr(pair, side) for i, pair in enumerate(pairs)},
            more=self.tokens - 1,
        )
        # What another judge than the shipped one says is not kept: it may be another one next time.
        kept = self.shelf if self.judge is declines else NOWHERE
        found = kept.document(
            f"answers, {side}", [digest_of(pairs), self.tokens, beginning], self._made(pairs, side, beginning)
        )
        if self.direction is not None:
            what = [digest_of(pairs), self.direction.digest]
            found |= self.shelf.document(f"along the direction, {side}", what, partial(self._along, pairs, side))
        return {name: np.array(values) for name, values in found.items()}

    def _made(self, pairs: Sequence[TokenPair], side: str, beginning: str) -> Callable[[], dict[str, list[float]]]:
        def make() -> dict[str, list[float]]:
            prompts = [getattr(pair, side) for pair in pairs]
            answers, logits = SteeredModel(self.model).answers(prompts, self.tokens)
            best = [int(token) for token in logits.argmax(-1)]
            texts = (beginning + self._after(*each) for each in zip(prompts, answers, strict=True))
            return {
                REFUSED: [float(token in pair.answers) for token, pair in zip(best, pairs, strict=True)],
                DECLINED: [float(self.judge(text)) for text in texts],
            }

        return make

    def _after(self, prompt: Tokens, answer: Tokens) -> str:
        """Return an answer's text as it follows the prompt: some tokenizers write no space in front of a text."""
        whole, before = (str(self.model.tokenizer.decode(list(each))) for each in ((*prompt, *answer), prompt))
        return whole[len(before) :]

    def _along(self, pairs: Sequence[TokenPair], side: str) -> dict[str, list[float]]:
        assert self.direction is not None
        layer, back = self.direction.layer, -self.direction.position
        streams = last_streams(self.model, [getattr(pair, side) for pair in pairs], back)[:, layer, 0]
        return {ALONG: [float(each) for each in streams.astype(np.float64) @ self.direction.vector]}


def _quantities(
    before: dict[str, dict[str, Floats]], under: dict[str, dict[str, Floats]], *, seed: int
) -> tuple[Quantity, ...]:
    shares, lengths = dict[str, list[Quantity]](), list[Quantity]()
    for side, word in zip(SIDES, (HARMFUL, HARMLESS), strict=True):
        ways = [dict(each[side]) for each in (before, under)]
        for each in ways:
            each[AGREED] = (each[REFUSED] == each[DECLINED]).astype(np.float64)
        for name in (REFUSED, DECLINED, AGREED):
            one, other = (each[name] > 0.5 for each in ways)
            shares.setdefault(name, []).append(share_quantity(_on(name, word), one, other, [], seed=seed))
        if ALONG in ways[0]:
            one, other = (each[ALONG] for each in ways)
            lengths.append(mean_quantity(_on(ALONG, word), "stream", one, other, [], seed=seed))
    return (*(each for found in shares.values() for each in found), *lengths)


def _on(name: str, word: str) -> str:
    return f"{name} on {word} prompts"
