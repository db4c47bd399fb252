"""A prompt pair as written, and as tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours.tokens import Message, Prompt, Tokens
from circuits.elements import require_role
from circuits.errors import PromptError
from circuits.settings import displayed, settled, whole_number
from circuits.statistics import numbered


def no_tags() -> dict[str, str]:
    """Return a pair without tags."""
    return {}


def no_roles() -> dict[str, tuple[int, ...]]:
    """Return a pair that names no roles."""
    return {}


@dataclass(frozen=True)
class Pair:
    """A clean prompt, the corrupted prompt that replaces it, and what should and should not follow the clean one.

    Answers are texts; files that store token ids instead fill ``answer_ids`` and ``wrong_ids``. ``source`` says where
    the pair comes from, for messages (``pairs.jsonl, line 3``). A tag ``split`` of ``discovery`` or ``heldout`` fixes
    what the pair is used for. ``roles`` names token positions of the clean prompt, counted from 0
    (:mod:`circuits.behaviours.roles`), ``corrupted_roles`` the same of the corrupted one, by which sides of different
    lengths can be aligned. ``alignment`` is that of :class:`TokenPair`, where it is known already.
    """

    clean: Prompt
    corrupted: Prompt
    answers: tuple[str, ...] = ()
    wrong_answers: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=no_tags)
    answer_ids: tuple[int, ...] = ()
    wrong_ids: tuple[int, ...] = ()
    source: str = "this pair"
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=no_roles)
    corrupted_roles: Mapping[str, tuple[int, ...]] = field(default_factory=no_roles)
    alignment: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("answers", "wrong_answers"):
            object.__setattr__(self, name, _texts(getattr(self, name), name, self.source))
        for name in ("answer_ids", "wrong_ids"):
            object.__setattr__(self, name, token_ids(getattr(self, name), f"{name} of {self.source}"))
        for name in ("clean", "corrupted"):
            object.__setattr__(self, name, _prompt(getattr(self, name), name, self.source))
        for name in ("roles", "corrupted_roles"):
            object.__setattr__(self, name, _roles(getattr(self, name), self.source))
        object.__setattr__(self, "alignment", token_ids(self.alignment, f"alignment of {self.source}", "position"))


@dataclass(frozen=True)
class TokenPair:
    """A checked pair as token ids: two prompts that differ, and answers of one token each.

    Where answers are measured as ``sequences`` of tokens, ``answers`` are the first tokens by which alone they differ
    from the wrong ones. ``weight`` is the factor of a pair that stands for one token of a sequence. ``roles`` names
    positions, each in one role at most. The prompts are of one length, or aligned: ``alignment`` then has for
    each position of the clean prompt its counterpart in the corrupted one (:mod:`circuits.behaviours.alignment`), in
    ascending order, that of the last position the last; empty: each position is its own.
    """

    clean: Tokens
    corrupted: Tokens
    answers: Tokens
    wrong_answers: Tokens
    clean_text: str
    corrupted_text: str
    tags: Mapping[str, str] = field(default_factory=no_tags)
    sequences: tuple[Tokens, ...] = ()
    wrong_sequences: tuple[Tokens, ...] = ()
    weight: float = 1.0
    roles: Mapping[str, Tokens] = field(default_factory=no_roles)
    alignment: Tokens = ()

    def __post_init__(self) -> None:
        """Take ids of any make, and refuse what no model can be measured on; raises :class:`PromptError`."""
        for name in ("clean", "corrupted", "answers", "wrong_answers"):
            object.__setattr__(self, name, token_ids(getattr(self, name), f"{name} of a TokenPair"))
        for name in ("sequences", "wrong_sequences"):
            several = tuple(token_ids(each, f"{name} of a TokenPair") for each in getattr(self, name))
            object.__setattr__(self, name, several)
        if not self.clean or not self.corrupted:
            raise PromptError("a prompt of a TokenPair is empty; both sides need at least one token.")
        object.__setattr__(self, "alignment", token_ids(self.alignment, "alignment of a TokenPair", "position"))
        self._check_lengths()
        both = [token for token in self.answers if token in self.wrong_answers]
        if both:
            raise PromptError(f"a TokenPair has the token {both[0]} as answer and as wrong answer; remove one of them.")
        object.__setattr__(self, "weight", settled(self.weight, float, "'weight' of a TokenPair"))
        object.__setattr__(self, "roles", _roles(self.roles, "a TokenPair"))
        beyond = [(role, place) for role, places in self.roles.items() for place in places if place >= self.length]
        if beyond:
            raise PromptError(
                f"the role '{beyond[0][0]}' is at position {beyond[0][1]} of a prompt of {self.length} tokens; "
                f"positions are counted from 0, so the last is {self.length - 1}."
            )

    def _check_lengths(self) -> None:
        clean, corrupted, places = len(self.clean), len(self.corrupted), self.alignment
        if not places and clean != corrupted:
            raise PromptError(
                f"a TokenPair has {clean} clean and {corrupted} corrupted tokens; patching replaces activations "
                "position by position, so both sides need the same length. Choose words of the same number of tokens, "
                "or give the alignment."
            )
        if places and (len(places) != clean or places[-1] != corrupted - 1 or list(places) != sorted(places)):
            raise PromptError(
                f"an alignment has {len(places)} positions, the last {places[-1]}, for {clean} clean and {corrupted} "
                "corrupted tokens; expected for each clean position its counterpart in the corrupted prompt, in "
                f"ascending order, the last {corrupted - 1}. It holds for the tokenizer that it was made with only."
            )

    @property
    def length(self) -> int:
        """How many tokens the clean side has: the positions that are run."""
        return len(self.clean)

    @property
    def counterparts(self) -> Tokens:
        """The position of the corrupted prompt for each position of the clean one."""
        return self.alignment or tuple(range(len(self.clean)))

    @property
    def opposite(self) -> Tokens:
        """The token of the corrupted prompt for each position of the clean one."""
        return tuple(self.corrupted[place] for place in self.counterparts)


def clusters_of(pairs: Sequence[TokenPair]) -> NDArray[np.int64]:
    """Return a number for each pair: the same for pairs that are no independent evidence.

    Those are pairs that share a clean prompt, or a tag ``cluster`` (a template, a source) where they have one.
    """
    return numbered(pair.tags.get("cluster", pair.clean_text) for pair in pairs)


def template_of(pair: TokenPair) -> str:
    """Return the template that a pair is made from: its tag ``template``, else ``cluster``; empty where it has none."""
    return pair.tags.get("template", pair.tags.get("cluster", ""))


def token_ids(given: Any, what: str, kind: str = "token id") -> Tokens:
    """Return token ids of any make (lists, arrays, tensors; one id alone) as a tuple of Python's numbers.

    Raises :class:`PromptError`, which names ``what`` they are, for what is no whole number from 0 up. So it does for
    whole numbers of another ``kind``.
    """
    if isinstance(given, str | bytes) or given is None:
        raise PromptError(f"{what} is {displayed(given)}; expected {kind}s, such as (42, 43).")
    alone = whole_number(given)
    several: Iterable[object] = [alone] if alone is not None else given if hasattr(given, "__iter__") else [given]
    ids = [(whole_number(token), token) for token in several]
    wrong = next((token for number, token in ids if number is None or number < 0), None)
    if any(number is None or number < 0 for number, _ in ids):
        raise PromptError(f"{what} has {displayed(wrong)}; a {kind} is a whole number from 0 up.")
    return tuple(cast(int, number) for number, _ in ids)


def _roles(given: Any, source: str) -> dict[str, Tokens]:
    """Return the positions of roles, sorted and without repetition; raises :class:`PromptError`."""
    if not isinstance(given, Mapping):
        raise PromptError(
            f'the roles of {source} are {displayed(given)}; expected positions by name, such as {{"subject": [3, 4]}}.'
        )
    roles, taken = dict[str, Tokens](), dict[int, str]()
    for role, places in cast("Mapping[object, object]", given).items():
        name = require_role(role)
        roles[name] = tuple(sorted(set(token_ids(places, f"the role '{name}' of {source}", "position"))))
        both = next((place for place in roles[name] if place in taken), None)
        if both is not None:
            raise PromptError(
                f"position {both} of {source} is in two roles, '{taken[both]}' and '{name}'; keep it in one."
            )
        taken |= dict.fromkeys(roles[name], name)
    return roles


def _texts(given: object, name: str, source: str) -> tuple[str, ...]:
    """Return answers, of which one alone may be given as text."""
    several = (given,) if isinstance(given, str) or not hasattr(given, "__iter__") else tuple(cast(Any, given))
    for text in several:
        if not isinstance(text, str):
            raise PromptError(f"{name} of {source} has {displayed(text)}; expected text, such as ' Mary'.")
    return cast("tuple[str, ...]", several)


def _prompt(given: object, name: str, source: str) -> Prompt:
    if isinstance(given, str):
        return given
    messages = tuple(cast(Any, given)) if isinstance(given, list | tuple) else ()
    if not messages or not all(isinstance(message, Message) for message in messages):
        raise PromptError(
            f"the {name} prompt of {source} is {displayed(cast(Any, given))}; expected a text, or Messages."
        )
    return cast("tuple[Message, ...]", messages)
