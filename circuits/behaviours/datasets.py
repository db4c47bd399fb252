"""The pairs of a prompt file: read once, completed for a tokenizer, with remarks on what was read in another way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from circuits.behaviours.files import pair_of, read_records
from circuits.behaviours.layouts import Completed, Layout, layout_of, occur
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Tokenizer, token_texts
from circuits.errors import FormatError

SHOWN = 3
"""How many answers a remark shows."""
RARELY = 0.1
"""The share of pairs with an answer in a prompt below which a remark on token ids says so."""


@dataclass(frozen=True)
class PairsOfFile:
    """What a :class:`~circuits.behaviours.behaviour.Behaviour` asks of a prompt file; call it with a tokenizer."""

    name: str
    pairs: tuple[Pair, ...]
    layout: Layout | None = None
    left_out: int = 0

    def __call__(self, tokenizer: Tokenizer) -> tuple[Pair, ...]:
        """Return all pairs that a tokenizer can be asked; the file's order."""
        return tuple(pair for pair, _ in self._completed(tokenizer) if pair is not None)

    def remarks(self, tokenizer: Tokenizer, usable: int) -> tuple[str, ...]:
        """Return what a user should know of how the file was read; ``usable`` pairs passed all checks."""
        found = self._completed(tokenizer)
        told = [text for _, text in found if text]
        remarks = [f"{len(told)} of {len(found)} rows are not read as they are written. {told[0]}."] if told else []
        remarks += _on_ids(self.name, [pair for pair, text in found if pair and not text], tokenizer)
        total = len(self.pairs) + self.left_out
        if usable < total:
            remarks.append(
                f"{self.name}: {usable} of {total} pairs can be used with this tokenizer; the rest is left out."
            )
        return tuple(remarks)

    def _completed(self, tokenizer: Tokenizer) -> list[Completed]:
        if self.layout is None or self.layout.complete is None:
            return [(pair, "") for pair in self.pairs]
        return self.layout.complete(self.pairs, tokenizer)


def read_file(path: Path) -> PairsOfFile:
    """Return the pairs of a prompt file, of a layout of its own or another tool's.

    Raises :class:`FormatError` for a file that is missing, empty or malformed, and :class:`UnknownNameError` for a
    suffix that is no format.
    """
    records = read_records(path)
    layout = layout_of(records)
    read = layout.read if layout else pair_of
    pairs = [read(record, source) for source, record in records]
    kept = tuple(pair for pair in pairs if pair is not None)
    if not kept:
        raise FormatError(f"{path.name} has no prompt pairs: every record lacks its counterfactual prompt.")
    return PairsOfFile(path.name, kept, layout, len(pairs) - len(kept))


def _on_ids(name: str, pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[str]:
    """Show what answers given as token ids are in this tokenizer, which nothing else can check."""
    given = [pair for pair in pairs if pair.answer_ids]
    decoded = [token_texts(tokenizer, [i for i in pair.answer_ids if 0 <= i < len(tokenizer)]) for pair in given]
    if not given:
        return []
    shown = ", ".join(
        f"{texts[0]!r} ({pair.source})" for pair, texts in zip(given[:SHOWN], decoded[:SHOWN], strict=True) if texts
    )
    remark = f"{name} gives answers as token ids; in this tokenizer they are {shown or 'no tokens'}."
    present = sum(occur(pair, texts) for pair, texts in zip(given, decoded, strict=True))
    if present < RARELY * len(given):
        remark += (
            f" Only {present} of {len(given)} are a word of their prompts: if these are not the answers that are "
            "meant, the ids are another tokenizer's; use its model, or columns with text (correct, incorrect)."
        )
    return [remark]
