"""Behaviours: prompt pairs, answers and a metric; tokenized, checked and split into discovery and held-out prompts."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from circuits.behaviours.alignment import alignment_remarks
from circuits.behaviours.lint import inspect_pairs
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.reading.unusable import Unusable, in_order, refusal
from circuits.behaviours.split import DISCOVERY, HELDOUT, MINIMUM, draw, misplaced, split_pairs, undrawn
from circuits.behaviours.tokens import Message, Tokenizer, Tokens
from circuits.behaviours.variants import varied
from circuits.errors import PromptError, UsageError
from circuits.records import UNCHANGED, Variant
from circuits.settings import settle
from circuits.vocabulary import Align, Metric

REFERENCE = 64
"""How many pairs a direction, or a mean, is taken from at most."""

__all__ = ["Behaviour", "Message", "Pair", "PromptSet", "TokenPair", "Tokenizer"]


@dataclass(frozen=True)
class PromptSet:
    """The pairs of a behaviour that one model is measured on; no clean prompt is in both parts.

    ``digest`` is a SHA-256 over all tokens and answers of both parts, in order; ``variant`` says what is not as the
    behaviour has it by itself. ``reference`` pairs are discovery pairs by which nothing is judged: by the metric
    ``projection`` those that its direction is taken from, the same ones however many are drawn; by others those that
    means are taken over, none of which was drawn. ``remarks`` say what of a file was read in another
    way than it is written, ``unusable`` which rows or pairs were left out, and why.
    """

    behaviour: str
    metric: Metric
    discovery: tuple[TokenPair, ...]
    heldout: tuple[TokenPair, ...]
    digest: str
    variant: Variant = UNCHANGED
    reference: tuple[TokenPair, ...] = ()
    remarks: tuple[str, ...] = ()
    unusable: tuple[Unusable, ...] = ()

    @property
    def n_discovery(self) -> int:
        """How many pairs a circuit is searched on."""
        return len(self.discovery)

    @property
    def n_heldout(self) -> int:
        """How many pairs a circuit is judged on."""
        return len(self.heldout)


@dataclass(frozen=True)
class Behaviour:
    """Something a model does: prompt pairs and the metric that tells whether it does it.

    ``pairs`` gives all pairs for a tokenizer, always the same ones. With ``usable_only`` (built-in behaviours) those
    that this tokenizer cannot use are left out; otherwise an unusable pair is an error. ``one_length`` does so too, and
    cuts them to the most common token length. ``answers_for`` names the models whose openings the answers are; in any
    other model they have to be found (:mod:`circuits.openings`). Empty: they hold for every model. ``remarks`` tells,
    for a tokenizer and the number of usable pairs, what of a file is read in another way than it is written. ``roles``
    names the token positions of a pair that names none itself.

    Use ``dataclasses.replace(behaviour, metric=...)`` for another metric, and :meth:`varied` for a system prompt, the
    beginning of the answer or other answers.
    """

    name: str
    description: str
    pairs: Callable[[Tokenizer], Sequence[Pair]]
    metric: Metric = Metric.LOGIT_DIFFERENCE
    one_length: bool = False
    usable_only: bool = False
    variant: Variant = UNCHANGED
    answers_for: tuple[str, ...] = ()
    remarks: Callable[[Tokenizer, int], tuple[str, ...]] | None = None
    unread: Callable[[Tokenizer], Sequence[Unusable]] | None = None
    roles: Callable[[TokenPair], Mapping[str, Tokens]] | None = None

    def __post_init__(self) -> None:
        settle(self)

    def varied(
        self,
        *,
        system: str | None = None,
        prefill: str | None = None,
        attack: str | None = None,
        attack_prefill: str | None = None,
        answers: Sequence[str] = (),
        wrong_answers: Sequence[str] = (),
        align: Align | str | None = None,
    ) -> Self:
        """Return the behaviour with something changed about its prompts or answers; what is not given stays as it is.

        Args:
            system: The system message of every chat, in place of the one it has, if any; may be empty.
            prefill: How the assistant's answer begins already; what is measured comes after it.
            attack: The system message of the corrupted side, which then asks for what the clean side asks: what is
                measured is what this message does. It needs as many tokens as the clean side's.
            attack_prefill: How the answer of the corrupted side begins already, which then asks for what the clean side
                asks; ``prefill`` is the clean side's beginning then, of as many tokens.
            answers: First tokens of answers, in place of the behaviour's own.
            wrong_answers: The same of wrong answers.
            align: By what pairs are aligned whose sides differ in length (``suffix`` or ``roles``); without it they
                cannot be used. See :mod:`circuits.behaviours.alignment`.

        Raises :class:`UsageError` for an empty prefill, and for that of an attack alone; prompts that are plain text,
        not chats, are refused when pairs are made.
        """
        for beginning in (prefill, attack_prefill):
            if beginning is not None and not beginning.strip():
                raise UsageError(f"the answer cannot begin with {beginning!r}; expected some text, or leave it out.")
        own = self.variant
        if attack_prefill is not None and prefill is None and own.prefill is None:
            raise UsageError(
                f"the attacked answer begins with {attack_prefill!r}, and the other one has no beginning, so the two "
                "sides would be of different lengths; give it one that says nothing, of as many tokens (--prefill)."
            )
        variant = Variant(
            system=own.system if system is None else system,
            prefill=own.prefill if prefill is None else prefill,
            attack=own.attack if attack is None else attack,
            attack_prefill=own.attack_prefill if attack_prefill is None else attack_prefill,
            answers=tuple(answers) or own.answers,
            wrong_answers=tuple(wrong_answers) or own.wrong_answers,
            align=own.align if align is None else Align.parse(align),
        )
        return replace(self, variant=variant)

    def swapped(self, tokenizer: Tokenizer | None) -> Self:
        """Return the behaviour with its split exchanged: discovery pairs are held out, and held-out ones searched on.

        Errors as :meth:`usable`.
        """
        found = self.usable(tokenizer)
        discovery = {id(pair) for pair in split_pairs(found.token_pairs)[0]}
        sides = [HELDOUT if id(made) in discovery else DISCOVERY for _, made in found.pairs]
        pairs = [
            replace(pair, tags={**pair.tags, "split": side}, alignment=made.alignment)
            for (pair, made), side in zip(found.pairs, sides, strict=True)
        ]

        def exchanged(_: Tokenizer) -> Sequence[Pair]:
            return pairs

        return replace(self, pairs=exchanged, variant=UNCHANGED, remarks=None, unread=None)

    def prompts(
        self, tokenizer: Tokenizer | None, *, discovery: int = 32, heldout: int = 64, seed: int = 0
    ) -> PromptSet:
        """Draw discovery and held-out pairs for a tokenizer; the same arguments give the same pairs.

        Where fewer pairs exist than asked for, all there are. Raises :class:`PromptError` for pairs that cannot be used
        and when fewer than four (or what was asked for) remain in a part.
        """
        if discovery < 0 or heldout < 0:
            raise UsageError(f"the number of pairs must not be negative, got {discovery} and {heldout}.")
        found = self.usable(tokenizer)
        parts = split_pairs(found.token_pairs)
        drawn = [draw(part, count, seed) for part, count in zip(parts, (discovery, heldout), strict=True)]
        if len(drawn[0]) < min(MINIMUM, discovery) or len(drawn[1]) < min(MINIMUM, heldout):
            raise PromptError(
                f"{self.name} has {len(drawn[0])} discovery and {len(drawn[1])} held-out pairs with this tokenizer; "
                f"at least {MINIMUM} of each, with different clean prompts, are needed: add pairs, or another model."
            )
        return self._prompt_set(tokenizer, found, (drawn[0], drawn[1]), parts[0], seed)

    def sample(self, tokenizer: Tokenizer | None, count: int, *, seed: int = 0) -> PromptSet:
        """Draw pairs for a measurement that holds nothing out: one pair is enough, and no pair is kept back.

        Discovery pairs come first, so that held-out ones are used only where ``count`` asks for more than there are.
        All are in the set's ``discovery``. Raises :class:`PromptError` for pairs that cannot be used.
        """
        if count < 1:
            raise UsageError(f"the number of pairs must be at least 1, got {count}.")
        found = self.usable(tokenizer)
        parts = split_pairs(found.token_pairs)
        drawn = draw(parts[0], count, seed)
        drawn = (*drawn, *draw(parts[1], count - len(drawn), seed))
        return self._prompt_set(tokenizer, found, (drawn, ()), parts[0] or drawn, seed)

    def _prompt_set(
        self,
        tokenizer: Tokenizer | None,
        found: "Inspection",
        parts: tuple[tuple[TokenPair, ...], tuple[TokenPair, ...]],
        known: Sequence[TokenPair],
        seed: int,
    ) -> PromptSet:
        reference = draw(known, REFERENCE, 0) if self.metric.along_direction else undrawn(known, parts, REFERENCE, seed)
        remarks = self.remarks(tokenizer, len(found.pairs)) if self.remarks and tokenizer is not None else ()
        remarks = (*remarks, *alignment_remarks([pair for part in parts for pair in part]))
        digest = digest_of(*parts)
        return PromptSet(
            self.name, self.metric, *parts, digest, self.variant, reference, remarks, unusable=found.unusable
        )

    def checked(self, tokenizer: Tokenizer | None) -> list[TokenPair]:
        """Return every usable pair as tokens; errors as :meth:`usable`."""
        return self.usable(tokenizer).token_pairs

    def usable(self, tokenizer: Tokenizer | None) -> "Inspection":
        """Return every usable pair, as written and as tokens, with why the others cannot be used.

        Raises :class:`PromptError` for pairs that cannot be used, unless they are to be left out, and without a
        tokenizer (a model in memory may have been given none).
        """
        if tokenizer is None:
            raise PromptError(
                f"{self.name} is made of text, and this model has no tokenizer to turn it into tokens; give it one, "
                "`load_model(module, tokenizer=...)`, or measure pairs of token ids: "
                "`model.experiment([TokenPair(...)])`."
            )
        candidates = self.pairs(tokenizer)
        if not candidates:
            raise PromptError(
                f"{self.name} has no pairs with this tokenizer: it splits the words the prompts are made of; write a "
                "prompt file with words that are single tokens."
            )
        align = None if self.variant.align is None else Align.parse(self.variant.align)
        varying = [varied(pair, self.variant) for pair in candidates]
        pairs, problems = inspect_pairs(varying, tokenizer, self.metric, align)
        leaves_out = self.usable_only or self.one_length
        if leaves_out:
            pairs, more = _placed(pairs)
            problems += more
        if problems and not (pairs and leaves_out):
            raise PromptError(refusal(problems, len(candidates)))
        if self.one_length:
            pairs, more = _of_one_length(pairs)
            problems += more
        if self.roles is not None:
            pairs = [(pair, made if made.roles else replace(made, roles=self.roles(made))) for pair, made in pairs]
        unread = self.unread(tokenizer) if self.unread else ()
        return Inspection(tuple(pairs), in_order((*unread, *problems)))


@dataclass(frozen=True)
class Inspection:
    """The pairs that can be used, as written and as tokens, and what cannot."""

    pairs: tuple[tuple[Pair, TokenPair], ...]
    unusable: tuple[Unusable, ...]

    @property
    def token_pairs(self) -> list[TokenPair]:
        """The pairs as tokens."""
        return [pair for _, pair in self.pairs]


_Inspected = tuple[list[tuple[Pair, TokenPair]], list[Unusable]]


def _placed(pairs: list[tuple[Pair, TokenPair]]) -> _Inspected:
    """Leave out pairs that cannot be put into one of the two splits."""
    reasons = misplaced([pair for _, pair in pairs])
    kept = [both for place, both in enumerate(pairs) if place not in reasons]
    return kept, [_problem(pairs[place][0], reason) for place, reason in reasons.items()]


def _of_one_length(pairs: list[tuple[Pair, TokenPair]]) -> _Inspected:
    """Leave out pairs of another token length than the most common one."""
    lengths = Counter(pair.length for _, pair in pairs)
    most = max(sorted(lengths), key=lengths.__getitem__)
    why = f"tokens, and most pairs have {most}; positions of prompts of several lengths have nothing in common."
    return (
        [both for both in pairs if both[1].length == most],
        [_problem(pair, f"{made.length} {why}") for pair, made in pairs if made.length != most],
    )


def _problem(pair: Pair, reason: str) -> Unusable:
    return Unusable(pair.source, f"{pair.source}: {reason}")


def digest_of(*parts: Sequence[TokenPair]) -> str:
    """Hash tokens and answers of the pairs, in order; texts and tags do not count."""
    content = [[_content(pair) for pair in part] for part in parts]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _content(pair: TokenPair) -> list[object]:
    sequences = [pair.sequences, pair.wrong_sequences] if pair.sequences or pair.wrong_sequences else []
    alignment = [{"alignment": pair.alignment}] if pair.alignment else []
    return [pair.clean, pair.corrupted, pair.answers, pair.wrong_answers, *sequences, *alignment]
