"""Harmful and harmless requests of any collections as prompt pairs: twins of as many tokens, as alike as there are.

Patching replaces activations position by position, so both sides of a pair need as many tokens. Among requests of one
length (with the model's chat template around them), twins are chosen so that over all pairs as few tokens as possible
differ: an assignment problem, solved exactly.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits.behaviours.built_in.refusal import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS
from circuits.behaviours.reading.request_files import SAME, Request, Requests, read_requests
from circuits.behaviours.reading.unusable import Unusable, listing
from circuits.behaviours.tokens import Message, Tokenizer, Tokens, prompt_text, prompt_tokens
from circuits.errors import PromptError, UsageError
from circuits.files.atomic import write

HARMFUL, HARMLESS = "harmful", "harmless"
_LEFT = "no {} request of as many tokens was left for it"


@dataclass(frozen=True)
class Twins:
    """A harmful request, a harmless one of as many ``tokens``, and at how many of them they ``differ``."""

    harmful: Request
    harmless: Request
    tokens: int
    differ: int


@dataclass
class Side:
    """One kind of requests (``harmful`` or ``harmless``), the file they are of, and what was dropped of it and why."""

    kind: str
    file: Requests
    requests: list[Request]
    dropped: list[Unusable]

    @classmethod
    def of(cls, file: Requests, kind: str, dropped: Sequence[Unusable]) -> "Side":
        """Take the requests of a kind; raises :class:`UsageError` where there are none."""
        harmful = kind == HARMFUL
        found = [each for each in file.requests if each.harmful in (None, harmful)]
        if not found:
            raise UsageError(
                f"{file.name} ({file.collection}) has no {kind} requests among its {len(file.requests)}; give one file "
                "of each kind: circuits prompts HARMFUL --harmless HARMLESS."
            )
        return cls(kind, file, found, list(dropped))

    def drop(self, request: Request, reason: str) -> None:
        """Note that a request is not used."""
        self.dropped.append(Unusable(request.source, f"{request.source}: {reason}"))


@dataclass(frozen=True)
class RequestPairs:
    """The pairs that two kinds of requests give, and what was dropped of each, with reasons."""

    pairs: tuple[Twins, ...]
    sides: tuple[Side, Side]

    @property
    def table(self) -> list[tuple[str, str, str, int, int, str]]:
        """What became of each side: file, collection, kind, requests of it, pairs, what was dropped and why."""
        rows: list[tuple[str, str, str, int, int, str]] = []
        for side in self.sides:
            reasons = Counter(_in_general(each.reason) for each in side.dropped)
            why = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
            rows.append((side.file.name, side.file.collection, side.kind, len(side.requests), len(self.pairs), why))
        return rows

    def write(self, path: str | Path) -> tuple[Path, Path | None]:
        """Write the pairs as a prompt file (JSON Lines); beside it what was dropped, if anything.

        The answers are those of the built-in ``refusal``; a model's own take their place with ``--openings auto``.
        """
        path = Path(path)
        write(path, "".join(json.dumps(_record(twins), ensure_ascii=False) + "\n" for twins in self.pairs))
        dropped = [each for side in self.sides for each in side.dropped]
        if not dropped:
            return path, None
        beside = path.with_suffix(".unusable.csv")
        write(beside, listing(dropped))
        return path, beside


def paired(harmful: str | Path, harmless: str | Path, tokenizer: Tokenizer) -> RequestPairs:
    """Read harmful and harmless requests and pair each harmful one with a harmless one of as many tokens.

    See :func:`circuits.pair_requests`.
    """
    first, alone = read_requests(harmful), Path(harmful) == Path(harmless)
    second = first if alone else read_requests(harmless)
    sides = (
        Side.of(first, HARMFUL, first.dropped),
        Side.of(second, HARMLESS, () if alone else second.dropped),
    )
    if not alone:
        _drop_other_kinds(sides)
    both = {each.text for each in sides[0].requests}
    for each in [each for each in sides[1].requests if each.text in both]:
        sides[1].requests.remove(each)
        sides[1].drop(each, "it is among the harmful requests too")
    bad, good = (_by_length(side, tokenizer) for side in sides)
    pairs = [twins for length in sorted(bad) for twins in _matched(length, bad[length], good[length])]
    if not pairs:
        raise PromptError(
            f"no harmful request of {first.name} has as many tokens as a harmless one of {second.name}, so there are "
            "no pairs; give a larger file of harmless requests."
        )
    taken = {twins.harmful.source for twins in pairs}, {twins.harmless.source for twins in pairs}
    for side, lengths, used, missing in zip(sides, (bad, good), taken, (HARMLESS, HARMFUL), strict=True):
        for length, members in sorted(lengths.items()):
            for each in [each for each, _ in members if each.source not in used]:
                side.drop(each, f"{_LEFT.format(missing)} ({length})")
    return RequestPairs(tuple(pairs), sides)


def _drop_other_kinds(sides: Sequence[Side]) -> None:
    for side in sides:
        for each in side.file.requests:
            if each.harmful is (side.kind == HARMLESS):
                side.drop(each, f"it is marked as {HARMFUL if each.harmful else HARMLESS}")


def _by_length(side: Side, tokenizer: Tokenizer) -> defaultdict[int, list[tuple[Request, Tokens]]]:
    found: defaultdict[int, list[tuple[Request, Tokens]]] = defaultdict(list)
    for each in side.requests:
        text = prompt_text(tokenizer, (Message("user", each.text),))
        try:
            tokens = prompt_tokens(tokenizer, text, rendered=True)
        except PromptError as error:
            side.drop(each, str(error))
        else:
            found[len(tokens)].append((each, tokens))
    return found


def _matched(length: int, bad: Sequence[tuple[Request, Tokens]], good: Sequence[tuple[Request, Tokens]]) -> list[Twins]:
    from scipy.optimize import linear_sum_assignment

    if not good:
        return []
    others = np.array([tokens for _, tokens in good])
    differ = np.array([(others != np.array(tokens)).sum(axis=1) for _, tokens in bad])
    places: list[list[int]] = np.stack(linear_sum_assignment(differ), axis=1).tolist()
    return [Twins(bad[one][0], good[other][0], length, int(differ[one, other])) for one, other in places]


def _in_general(reason: str) -> str:
    """Return a reason without what is particular to the row."""
    if reason.startswith(SAME):
        return "duplicates"
    return re.sub(r" \(\d+\)$", "", reason)


def _record(twins: Twins) -> dict[str, object]:
    """Return twins as a row of a prompt file."""
    sides = {"clean": twins.harmful, "corrupted": twins.harmless}
    row: dict[str, object] = {side: [{"role": "user", "content": each.text}] for side, each in sides.items()}
    row |= {"answers": list(REFUSAL_OPENINGS), "wrong_answers": list(COMPLIANCE_OPENINGS)}
    return row | {
        "harmful_row": twins.harmful.source,
        "harmless_row": twins.harmless.source,
        "category": twins.harmful.category,
        "differ": str(twins.differ),
    }
