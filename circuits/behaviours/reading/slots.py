"""Template files: prompts with slots, and the words that fill them, from which as many pairs are made as are wanted.

::

    clean = "When {A} and {B} went to the {place}, {B} gave a drink to"
    corrupted = "When {A} and {B} went to the {place}, {C} gave a drink to"
    answer = " {A}"
    wrong_answer = " {B}"
    pairs = 100                                                    # 200 unless said otherwise

    [slots]
    "A B C" = ["Mary", "John", "Paul", "Anna"]                     # slots that share a list hold different words
    place = ["store", "park"]

Words that belong together are rows: ``"land capital other other_capital" = [["France", "Paris"], ["Italy", "Rome"]]``
fills the first two slots from one row, the next two from another. Beside ``clean`` and ``corrupted`` a template has the
fields of a prompt file (chat messages, answers, tags).
"""

import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from circuits.behaviours.pairs import Pair
from circuits.behaviours.reading.columns import Record, known_column
from circuits.behaviours.reading.prompt_files import pair_of
from circuits.behaviours.tokens import Tokenizer
from circuits.errors import FormatError, PromptError
from circuits.files.documents import read_text

SUFFIX = ".toml"
PAIRS, ATTEMPTS = 200, 50
"""How many pairs are made unless a template says otherwise; how often each is drawn before none is left to find."""
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Slots:
    """Slots that are filled from one list: each row fills as many of the names as it has words."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def draws(self) -> int:
        """How many different rows fill the slots."""
        return len(self.names) // len(self.rows[0])

    def filled(self, generator: random.Random) -> dict[str, str]:
        """Return a word for every slot."""
        words = [word for row in generator.sample(self.rows, self.draws) for word in row]
        return dict(zip(self.names, words, strict=True))


@dataclass(frozen=True)
class Template:
    """What a :class:`~circuits.behaviours.behaviour.Behaviour` asks of a template file; call it with a tokenizer.

    ``fields`` are those of a prompt file, with slots in braces. With ``single_tokens``, words that the tokenizer
    splits are left out, so that all prompts have one length.
    """

    name: str
    fields: Record
    slots: tuple[Slots, ...]
    pairs: int = PAIRS
    seed: int = 0
    single_tokens: bool = True

    def __call__(self, tokenizer: Tokenizer) -> tuple[Pair, ...]:
        """Return distinct pairs, the same ones for the same tokenizer; a tag for every slot holds its word.

        Raises :class:`PromptError` where a tokenizer splits too many words of a slot.
        """
        groups = [self._fitting(group, tokenizer) for group in self.slots]
        generator = random.Random(self.seed)
        found: dict[object, Pair] = {}
        for _ in range(ATTEMPTS * self.pairs):
            words = {slot: word for group in groups for slot, word in group.filled(generator).items()}
            pair = pair_of({**words, **_filled(self.fields, words)}, f"{self.name}, pair {len(found) + 1}")
            found.setdefault((pair.clean, pair.corrupted, pair.answers, pair.wrong_answers), pair)
            if len(found) == self.pairs:
                break
        return tuple(found.values())

    def remarks(self, tokenizer: Tokenizer, usable: int) -> tuple[str, ...]:
        """Return which words were left out, and whether there are fewer pairs than were asked for."""
        split = [" ".join(row) for group in self.slots for row in group.rows if not self._single(group, row, tokenizer)]
        remarks: list[str] = []
        if self.single_tokens and split:
            remarks.append(
                f"{self.name}: {len(split)} words are left out, of which this tokenizer makes several tokens: "
                f"{', '.join(split[:10])}{' …' if len(split) > 10 else ''}."
            )
        if usable < self.pairs:
            remarks.append(f"{self.name}: {usable} of {self.pairs} pairs were made; there are no more. Add words.")
        return tuple(remarks)

    def _fitting(self, group: Slots, tokenizer: Tokenizer) -> Slots:
        """Leave out the words that a tokenizer splits."""
        if not self.single_tokens:
            return group
        rows = tuple(row for row in group.rows if self._single(group, row, tokenizer))
        if len(rows) < group.draws:
            raise PromptError(
                f"{self.name}: of the {len(group.rows)} words for {' '.join(group.names)} this tokenizer has "
                f"{len(rows)} as single tokens, and {group.draws} are needed at once; add words, or set "
                "single_tokens = false."
            )
        return Slots(group.names, rows)

    def _single(self, group: Slots, row: Sequence[str], tokenizer: Tokenizer) -> bool:
        places = {(name, text[:1] == " ") for text, name in _places(self.fields) if name in group.names}
        return all(
            _tokens(tokenizer, row[group.names.index(name) % len(row)], spaced=spaced) == 1 for name, spaced in places
        )


def read_template(path: Path) -> Template:
    """Return the template in a file; raises :class:`FormatError` that says what is wrong with it."""
    name = path.name
    try:
        document = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{name}: not valid TOML: {error}.") from error
    slots = document.pop("slots", None)
    if not isinstance(slots, dict) or not slots:
        raise FormatError(f'{name} has no [slots]; expected lists of words, such as "A B" = ["Mary", "John"].')
    groups = tuple(_slots(str(key), value, name) for key, value in cast("dict[str, object]", slots).items())
    numbers = {key: document.pop(key, default) for key, default in (("pairs", PAIRS), ("seed", 0))}
    for key, number in numbers.items():
        if type(number) is not int or number < (key == "pairs"):
            raise FormatError(f"{name}: '{key}' is {number!r}; expected a whole number from {int(key == 'pairs')} up.")
    single = document.pop("single_tokens", True)
    if not isinstance(single, bool):
        raise FormatError(f"{name}: 'single_tokens' is {single!r}; expected true or false.")
    fields = {known_column(key): value for key, value in document.items()}
    _require_slots(name, fields, [slot for group in groups for slot in group.names])
    pair_of(_filled(fields, {slot: "x" for group in groups for slot in group.names}), name)
    return Template(name, fields, groups, **numbers, single_tokens=single)


def _slots(key: str, value: object, name: str) -> Slots:
    names = tuple(key.split())
    given = cast("list[object]", value) if isinstance(value, list) else []
    rows: list[list[Any]] = [cast("list[Any]", row) if isinstance(row, list) else [row] for row in given]
    words = [word for row in rows for word in row]
    widths = {len(row) for row in rows}
    if not words or not all(isinstance(word, str) and word for word in words) or len(widths) != 1:
        raise FormatError(f"{name}, slots, {key!r}: expected a list of words, or of rows of words of one length.")
    width = widths.pop()
    distinct = tuple(dict.fromkeys(tuple(row) for row in rows))
    if len(names) % width or len(distinct) < len(names) // width:
        raise FormatError(
            f"{name}, slots, {key!r}: {len(distinct)} different rows of {width} words cannot fill {len(names)} slots; "
            "slots that share a list hold different words, and a row fills as many slots as it has words."
        )
    return Slots(names, distinct)


def _require_slots(name: str, fields: Record, slots: Sequence[str]) -> None:
    used = list(dict.fromkeys(slot for _, slot in _places(fields)))
    for slot in used:
        if slot not in slots:
            raise FormatError(f"{name}: there are no words for {{{slot}}}; the slots are {', '.join(slots)}.")
    for slot in slots:
        if slot not in used or slots.count(slot) > 1:
            raise FormatError(f"{name}: the slot {slot!r} {'is there twice' if slot in used else 'is in no text'}.")


def _places(value: object) -> Iterator[tuple[str, str]]:
    """Return every slot in the texts of a value, after the character before it (empty at the start)."""
    if isinstance(value, str):
        yield from ((value[max(0, found.start() - 1) : found.start()], found[1]) for found in _SLOT.finditer(value))
    elif isinstance(value, Mapping | list):
        parts = (
            cast("Mapping[str, object]", value).values() if isinstance(value, Mapping) else cast("list[object]", value)
        )
        for part in parts:
            yield from _places(part)


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _SLOT.sub(lambda found: words[found[1]], value)
    if isinstance(value, Mapping):
        return {key: _filled(part, words) for key, part in cast("Mapping[str, object]", value).items()}
    return [_filled(part, words) for part in cast("list[object]", value)] if isinstance(value, list) else value


def _tokens(tokenizer: Tokenizer, word: str, *, spaced: bool) -> int:
    """Return of how many tokens a word is, after a space or without one."""
    before = tokenizer.encode("the" if spaced else "", add_special_tokens=False)
    whole = tokenizer.encode(f"the {word}" if spaced else word, add_special_tokens=False)
    return len(whole) - len(before) if whole[: len(before)] == before else 0
