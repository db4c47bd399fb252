"""The pairs of a prompt file: read once, completed for a tokenizer, with remarks on what was read in another way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from circuits.behaviours.pairs import Pair
from circuits.behaviours.reading.hub_datasets import hub_rows, is_saved, saved_rows
from circuits.behaviours.reading.layouts import Completed, Layout, layout_of, occur
from circuits.behaviours.reading.prompt_files import pair_of
from circuits.behaviours.reading.rows import Row, read_rows
from circuits.behaviours.reading.unusable import Unusable, refusal
from circuits.behaviours.tokens import Tokenizer, token_texts
from circuits.errors import FormatError, PromptError

SHOWN = 3
"""How many answers a remark shows."""
RARELY = 0.1
"""The share of pairs with an answer in a prompt below which a remark on token ids says so."""


@dataclass(frozen=True)
class PairsOfFile:
    """What a :class:`~circuits.behaviours.behaviour.Behaviour` asks of a prompt file; call it with a tokenizer.

    ``left_out`` rows are those that the data set itself leaves out, ``unreadable`` ones those that cannot be read.
    Token ids are ``verified`` where this package wrote the file.
    """

    name: str
    pairs: tuple[Pair, ...]
    layout: Layout | None = None
    left_out: int = 0
    unreadable: tuple[Unusable, ...] = ()
    told: tuple[str, ...] = ()
    verified: bool = False

    def __call__(self, tokenizer: Tokenizer) -> tuple[Pair, ...]:
        """Return all pairs that a tokenizer can be asked; the file's order."""
        return tuple(pair for pair, _ in self._completed(tokenizer) if pair is not None)

    def unusable(self, tokenizer: Tokenizer) -> tuple[Unusable, ...]:
        """Return the rows that cannot be read, and those that this tokenizer cannot be asked."""
        found = zip(self.pairs, self._completed(tokenizer), strict=True)
        return (*self.unreadable, *(Unusable(pair.source, text) for pair, (made, text) in found if made is None))

    def remarks(self, tokenizer: Tokenizer, usable: int) -> tuple[str, ...]:
        """Return what a user should know of how the file was read; ``usable`` pairs passed all checks."""
        found = self._completed(tokenizer)
        told = [text for _, text in found if text]
        remarks = [*self.told]
        remarks += [f"{len(told)} of {len(found)} rows are not read as they are written. {told[0]}."] if told else []
        given = [] if self.verified else [pair for pair, text in found if pair and not text]
        remarks += _on_ids(self.name, given, tokenizer)
        remarks += _on_spaces(self.name, self.pairs)
        total = len(self.pairs) + self.left_out + len(self.unreadable)
        if usable < total:
            remarks.append(
                f"{self.name}: {usable} of {total} pairs can be used with this tokenizer; the rest is left out."
            )
        return tuple(remarks)

    def _completed(self, tokenizer: Tokenizer) -> list[Completed]:
        if self.layout is None or self.layout.complete is None:
            return [(pair, "") for pair in self.pairs]
        return self.layout.complete(self.pairs, tokenizer)


def read_file(path: Path | str, *, skip_unusable: bool = False) -> tuple[PairsOfFile, str]:
    """Return the pairs of a prompt file, of a layout of its own or another tool's, and the behaviour it says it is of.

    A folder may hold a saved data set; a text is the name of one of the hub (:mod:`.hub_datasets`).
    Raises :class:`FormatError` for a file that is missing, empty or malformed, and :class:`UnknownNameError` for a
    suffix that is no format. With ``skip_unusable`` rows that cannot be read are left out, as long as one can be.
    """
    rows = hub_rows(path) if isinstance(path, str) else saved_rows(path) if is_saved(path) else read_rows(path)
    name = path if isinstance(path, str) else path.name
    layout = layout_of([(row.source, row.record) for row in rows.rows if not row.problem])
    pairs: list[Pair] = []
    problems: list[Unusable] = []
    left_out = 0
    for row in rows.rows:
        try:
            pair = _read(row, layout)
        except (FormatError, PromptError) as error:
            problems.append(Unusable(row.source, str(error)))
            continue
        left_out += pair is None
        pairs += [] if pair is None else [pair]
    if problems and not (pairs and skip_unusable):
        raise FormatError(refusal(problems, len(rows.rows)))
    if not pairs:
        raise FormatError(f"{name} has no prompt pairs: every record lacks its counterfactual prompt.")
    own = bool(rows.behaviour)
    found = PairsOfFile(name, tuple(pairs), layout, left_out, tuple(problems), rows.remarks, own)
    return found, rows.behaviour


def _read(row: Row, layout: Layout | None) -> Pair | None:
    if row.problem:
        raise FormatError(row.problem)
    return layout.read(row.record, row.source) if layout else pair_of(row.record, row.source)


def _on_spaces(name: str, pairs: Sequence[Pair]) -> list[str]:
    """Warn of prompts that end in a space, after which a model that joins spaces to words writes no word."""
    ending = [pair.source for pair in pairs if isinstance(pair.clean, str) and pair.clean.endswith(" ")]
    if not ending:
        return []
    return [
        f"{name}: {len(ending)} of {len(pairs)} clean prompts end in a space (the first is {ending[0]}). Most "
        "tokenizers join a space to the word after it, so the model hardly expects a word there: move the space to the "
        "start of the answers (' Mary')."
    ]


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
