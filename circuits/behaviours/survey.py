"""What a prompt file holds for one tokenizer: its pairs as the model would read them, and whatever is wrong with it."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from circuits.behaviours.alignment import alignment_remarks
from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.reading.unusable import Unusable, listing
from circuits.behaviours.split import DISCOVERY, HELDOUT, split_pairs
from circuits.behaviours.tokens import Prompt, Tokenizer, Tokens
from circuits.files.atomic import write
from circuits.files.documents import plain


@dataclass(frozen=True)
class PromptRow:
    """A usable pair: where it is, its split, its tokens per side, at how many of them the sides differ, and its texts.

    ``length`` is that of the clean side. Answers are decoded from the tokens that are measured.
    """

    source: str
    split: str
    length: int
    differing: int
    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    corrupted_length: int


@dataclass(frozen=True)
class Prompts:
    """The pairs of a behaviour for one tokenizer (of ``model``), as :func:`survey` finds them.

    ``unusable`` rows are not among the ``pairs``: those that cannot be read or measured, or are in a wrong split (among
    them leaks: discovery pairs whose clean prompt is held out). ``duplicates`` are among them: the same tokens and
    answers as a pair before. ``remarks`` say what was read otherwise than it is written.
    """

    name: str
    model: str
    metric: str
    pairs: tuple[PromptRow, ...]
    unusable: tuple[Unusable, ...]
    duplicates: tuple[Unusable, ...]
    remarks: tuple[str, ...]
    written: tuple[Pair, ...]

    @property
    def lengths(self) -> dict[int, int]:
        """How many pairs there are of each length in tokens, shortest first."""
        return dict(sorted(Counter(row.length for row in self.pairs).items()))

    @property
    def splits(self) -> dict[str, int]:
        """How many pairs are for discovery and how many are held out."""
        counts = Counter(row.split for row in self.pairs)
        return {split: counts[split] for split in (DISCOVERY, HELDOUT) if counts[split]}

    def __repr__(self) -> str:
        splits = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        return (
            f"Prompts({self.name!r} for {self.model}: {len(self.pairs)} pairs ({splits}), {len(self.unusable)} "
            f"unusable, {len(self.duplicates)} duplicates)"
        )

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON holds it."""
        return {
            "name": self.name,
            "model": self.model,
            "metric": self.metric,
            "n": len(self.pairs),
            "splits": self.splits,
            "lengths": {str(length): count for length, count in self.lengths.items()},
            "pairs": [asdict(row) for row in self.pairs],
            "unusable": _listed(self.unusable),
            "duplicates": _listed(self.duplicates),
            "remarks": list(self.remarks),
        }

    def write(self, path: str | Path) -> tuple[Path, Path | None]:
        """Write the usable pairs without duplicates as JSON Lines, as they were written; beside it what is left out.

        Returns both places; None where nothing is left out. Raises :class:`OutputError`.
        """
        path, left_out = Path(path), (*self.unusable, *self.duplicates)
        doubled = {row.source for row in self.duplicates}
        kept = [pair for pair in self.written if pair.source not in doubled]
        write(path, "".join(json.dumps(plain(_record(pair)), ensure_ascii=False) + "\n" for pair in kept))
        if not left_out:
            return path, None
        beside = path.with_suffix(".unusable.csv")
        write(beside, listing(left_out))
        return path, beside


def survey(behaviour: Behaviour, tokenizer: Tokenizer, *, model: str = "") -> Prompts:
    """Return what a behaviour holds for a tokenizer; ``model`` is what to call the tokenizer's model.

    No weights are needed. Raises :class:`PromptError` where no pair at all can be used.
    """
    found = behaviour.usable(tokenizer)
    discovery, _ = split_pairs(found.token_pairs)
    for_discovery = {id(pair) for pair in discovery}
    rows = [
        _row(pair, made, DISCOVERY if id(made) in for_discovery else HELDOUT, tokenizer) for pair, made in found.pairs
    ]
    remarks = behaviour.remarks(tokenizer, len(rows)) if behaviour.remarks else ()
    return Prompts(
        behaviour.name,
        model,
        behaviour.metric,
        tuple(rows),
        found.unusable,
        tuple(_duplicates(found.pairs)),
        (*remarks, *alignment_remarks(found.token_pairs)),
        tuple(replace(pair, alignment=made.alignment) for pair, made in found.pairs),
    )


def _row(pair: Pair, made: TokenPair, split: str, tokenizer: Tokenizer) -> PromptRow:
    def texts(tokens: Tokens, sequences: Sequence[Tokens]) -> tuple[str, ...]:
        return tuple(str(tokenizer.decode(list(each))) for each in sequences or [(token,) for token in tokens])

    return PromptRow(
        pair.source,
        split,
        made.length,
        sum(one != other for one, other in zip(made.clean, made.opposite, strict=True)),
        made.clean_text,
        made.corrupted_text,
        texts(made.answers, made.sequences),
        texts(made.wrong_answers, made.wrong_sequences),
        len(made.corrupted),
    )


def _duplicates(pairs: Sequence[tuple[Pair, TokenPair]]) -> Iterator[Unusable]:
    seen: dict[object, str] = {}
    for pair, made in pairs:
        content = made.clean, made.corrupted, made.answers, made.wrong_answers, made.sequences, made.wrong_sequences
        first = seen.setdefault(content, pair.source)
        if first != pair.source:
            yield Unusable(pair.source, f"{pair.source}: the same prompts and answers as {first}")


def _listed(rows: Sequence[Unusable]) -> list[dict[str, str]]:
    return [{"row": row.source, "reason": row.reason} for row in rows]


def _record(pair: Pair) -> dict[str, object]:
    """Return a pair as a prompt file holds it."""
    answers = list(pair.answer_ids or pair.answers), list(pair.wrong_ids or pair.wrong_answers)
    prompts = {"clean": _prompt(pair.clean), "corrupted": _prompt(pair.corrupted)}
    positions = {"roles": pair.roles, "corrupted_roles": pair.corrupted_roles, "alignment": pair.alignment}
    given = {key: value for key, value in positions.items() if value}
    return {**prompts, "answers": answers[0], "wrong_answers": answers[1], **given, **pair.tags}


def _prompt(prompt: Prompt) -> object:
    return prompt if isinstance(prompt, str) else [asdict(message) for message in prompt]
