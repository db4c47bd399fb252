"""How a model itself begins its answers: which first tokens refuse, and which comply.

A first token refuses if it is more likely on the harmful prompts (clean) than on the harmless ones (corrupted), and
complies if it is less likely, both on average over pairs. A token that does both, as ``I`` in many chat models, thus
goes where it makes more of a difference. Tokens that are likely on fewer than a quarter of the prompts are left out:
they begin with the verb of one request (``Cross`` after *cross a river*), which tells nothing about refusing.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.lint import single_token
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.tokens import Tokenizer, Tokens, answer_tokens, prompt_tokens
from circuits.errors import BehaviourNotShownError, PromptError
from circuits.memory.batching import by_length
from circuits.model import Model
from circuits.tracing.plan import Plan
from circuits.tracing.requirements import require_pairs
from circuits.tracing.runs import Recorder
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Metric

PAIRS = 40
"""How many discovery pairs openings are chosen on."""
KEPT = 20
"""On at least so many of them the openings must tell harmful from harmless."""
SHARE = 0.02
"""An opening's mean probability differs by at least this much between harmful and harmless prompts."""
SPREAD = 0.25
"""On at least so many of the prompts it has at least that probability."""
MOST = 8
"""The most openings of a kind."""
ROWS = 16
ADVICE = (
    "A circuit explains a difference in behaviour: use a model that refuses (an instruction-tuned one), other prompts, "
    "or name the openings (--refuse Sorry,I --comply To,Sure)."
)


@dataclass(frozen=True)
class Opening:
    """A first token of answers, with its mean probability over harmful and over harmless prompts."""

    token: int
    text: str
    harmful: float
    harmless: float

    @property
    def difference(self) -> float:
        """How much more likely it is on harmful prompts."""
        return self.harmful - self.harmless


@dataclass(frozen=True)
class ChosenOpenings:
    """What a model opens with, strongest first; ``kept`` of ``pairs`` pairs are told apart by them."""

    refusing: tuple[Opening, ...]
    complying: tuple[Opening, ...]
    pairs: int
    kept: int

    def describe(self) -> str:
        """Return in words which they are, with the mean probability on the prompts that they are of."""
        refusing = ", ".join(f"{each.text!r} {each.harmful:.2f}" for each in self.refusing)
        complying = ", ".join(f"{each.text!r} {each.harmless:.2f}" for each in self.complying)
        return (
            f"refuses with {refusing}; complies with {complying} (mean probability as first token; on {self.kept} of "
            f"{self.pairs} pairs they tell harmful from harmless). Give your own with --refuse and --comply."
        )


def finds_openings(model: Model, behaviour: Behaviour) -> bool:
    """Return whether a behaviour's openings have to be found: its own are of other models, and none are given."""
    known, variant = behaviour.answers_for, behaviour.variant
    if model.info.target is not None:
        return False  # its circuits do not lead to the answer
    return bool(known) and model.info.id not in known and not (variant.answers and variant.wrong_answers)


def with_openings(model: Model, behaviour: Behaviour) -> tuple[Behaviour, ChosenOpenings]:
    """Return a behaviour with openings found in the model, except those that it was given, and say which they are.

    Cost: one forward pass of both sides of 40 discovery pairs. Raises as :func:`choose_openings`.
    """
    given = behaviour.variant
    asked = replace(
        behaviour,
        pairs=partial(_without_answers, behaviour),
        metric=Metric.KL,  # the only one that needs no answers
        variant=replace(given, answers=(), wrong_answers=(), attack=None, attack_prefill=None),
    )
    pairs = asked.prompts(model.tokenizer, discovery=PAIRS, heldout=0).discovery
    chosen = choose_openings(model, pairs, refusing=given.answers, complying=given.wrong_answers)
    refusing, complying = ([each.text for each in side] for side in (chosen.refusing, chosen.complying))
    return behaviour.varied(answers=refusing, wrong_answers=complying), chosen


def _without_answers(behaviour: Behaviour, tokenizer: Tokenizer) -> list[Pair]:
    nothing: dict[str, tuple[()]] = {"answers": (), "wrong_answers": (), "answer_ids": (), "wrong_ids": ()}
    return [replace(pair, **nothing) for pair in behaviour.pairs(tokenizer)]


@in_own_state
def choose_openings(
    model: Model, pairs: Sequence[TokenPair], *, refusing: Sequence[str] = (), complying: Sequence[str] = ()
) -> ChosenOpenings:
    """Choose the first tokens by which a model's answers to harmful (clean) and harmless (corrupted) prompts differ.

    Args:
        model: The model; what it would answer is not generated, only the first token's probabilities are read.
        pairs: At least 20, better 40; their answers are not looked at.
        refusing: Openings that refuse, if they are known; then only those that comply are chosen.
        complying: The same of openings that comply.

    Raises :class:`BehaviourNotShownError` where no opening is more likely on one side, or where they tell the sides of
    fewer than 20 pairs apart, and :class:`PromptError` for a given opening that is not one token. Cost: one forward
    pass of both sides.
    """
    if len(pairs) < KEPT:
        raise PromptError(
            f"openings are chosen on at least {KEPT} pairs, and there are {len(pairs)}; give more pairs, or the "
            "openings (--refuse, --comply)."
        )
    require_pairs(model.tracer.anatomy, pairs)
    logits = [_first_token_logits(model, [getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted")]
    candidates = _Candidates.of(model.tokenizer, pairs[0], *(side.softmax(-1) for side in logits))
    known = [[candidates.named(text) for text in texts] for texts in (refusing, complying)]
    taken = {opening.token for side in known for opening in side}
    sides = [
        tuple(openings or candidates.strongest(sign, taken)) for openings, sign in zip(known, (1, -1), strict=True)
    ]
    if not all(sides):
        raise BehaviourNotShownError(
            f"{model.info.id} does not begin its answers to the clean (harmful) prompts otherwise than to the "
            f"corrupted (harmless) ones: {candidates.describe()}, and {SHARE} either way is expected. {ADVICE}"
        )
    kept = _kept(logits, sides)
    if kept < KEPT:
        shown = "; ".join(", ".join(repr(each.text) for each in side) for side in sides)
        raise BehaviourNotShownError(
            f"{model.info.id} does not refuse by its first token: with the openings {shown}, only {kept} of "
            f"{len(pairs)} pairs have the sign harmful > 0 > harmless; expected at least {KEPT}. {ADVICE}"
        )
    return ChosenOpenings(*sides, pairs=len(pairs), kept=kept)


@dataclass(frozen=True)
class _Candidates:
    """The mean probabilities of all first tokens, and their texts after the prompt of a pair.

    ``harmful_spread`` and ``harmless_spread`` are the shares of prompts on which a token is likely at all. A token of
    one request's own verb is likely on few.
    """

    tokenizer: Tokenizer
    pair: TokenPair
    harmful: Float[Tensor, " d_vocab"]
    harmless: Float[Tensor, " d_vocab"]
    harmful_spread: Float[Tensor, " d_vocab"]
    harmless_spread: Float[Tensor, " d_vocab"]

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        pair: TokenPair,
        harmful: Float[Tensor, "pair d_vocab"],
        harmless: Float[Tensor, "pair d_vocab"],
    ) -> Self:
        """Sum up the probabilities on all pairs."""
        spreads = ((side >= SHARE).float().mean(0) for side in (harmful, harmless))
        return cls(tokenizer, pair, harmful.mean(0), harmless.mean(0), *spreads)

    def strongest(self, sign: int, taken: Container[int]) -> list[Opening]:
        """Return the openings that refuse (sign 1) or comply (-1) most, the strongest first."""
        difference = (self.harmful - self.harmless) * sign
        spread = self.harmful_spread if sign > 0 else self.harmless_spread
        likely = ((difference >= SHARE) & (spread >= SPREAD)).nonzero().flatten()
        ordered: list[int] = cast(Any, likely[difference[likely].argsort(descending=True, stable=True)]).tolist()
        openings = (self._opening(token) for token in ordered if token not in taken)
        return list(islice((opening for opening in openings if opening is not None), MOST))

    def named(self, text: str) -> Opening:
        """Return an opening by its text; raises :class:`PromptError` unless it is one token."""
        token = single_token(self.tokenizer, self.pair.clean_text, self.pair.clean, text, rendered=self._rendered)
        return Opening(token, text, float(self.harmful[token]), float(self.harmless[token]))

    def describe(self) -> str:
        """Return in words which token's probability differs most."""
        token = int((self.harmful - self.harmless).abs().argmax())
        here, there = float(self.harmful[token]), float(self.harmless[token])
        return f"the largest difference is that of {self.tokenizer.decode([token])!r}, {here:.3f} to {there:.3f}"

    def _opening(self, token: int) -> Opening | None:
        """Return a token as an opening; None where no text after the prompt is this one token."""
        bare = str(self.tokenizer.decode([token]))
        for text in (bare, f" {bare}"):  # some tokenizers leave out a leading space when they decode
            found = answer_tokens(self.tokenizer, self.pair.clean_text, self.pair.clean, text, rendered=self._rendered)
            if found == (token,):
                return Opening(token, text, float(self.harmful[token]), float(self.harmless[token]))
        return None

    @property
    def _rendered(self) -> bool:
        return prompt_tokens(self.tokenizer, self.pair.clean_text, rendered=True) == self.pair.clean


def _kept(logits: Sequence[Float[Tensor, "pair d_vocab"]], sides: Sequence[Sequence[Opening]]) -> int:
    """Count the pairs whose logit difference is above 0 on the harmful and below 0 on the harmless prompt."""
    harmful, harmless = (
        torch.stack([side[:, [opening.token for opening in openings]].logsumexp(-1) for openings in sides])
        for side in logits
    )
    return int(((harmful[0] > harmful[1]) & (harmless[0] < harmless[1])).sum())


def _first_token_logits(model: Model, prompts: Sequence[Tokens]) -> Float[Tensor, "pair d_vocab"]:
    """Predict the first token after prompts of any lengths, which are never padded."""
    found: dict[int, Tensor] = {}
    for members in by_length(map(len, prompts), lambda _: ROWS):
        recorder = Recorder()
        ids = torch.tensor([prompts[place] for place in members], device=model.tracer.anatomy.device)
        model.tracer.run(ids, Plan(logits=recorder.keep_logits))
        found |= dict(zip(members, recorder.logits.float().cpu(), strict=True))
    return torch.stack([found[place] for place in range(len(prompts))])
