"""A prompt pair as written, and as tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from circuits.behaviours.tokens import Prompt, Tokens


def no_tags() -> dict[str, str]:
    """Give a pair without tags."""
    return {}


@dataclass(frozen=True)
class Pair:
    """A clean prompt, the corrupted prompt that replaces it, and what should and should not follow the clean one.

    Answers are texts; files that store token ids instead fill ``answer_ids`` and ``wrong_ids``. ``source`` says where
    the pair comes from, for messages (``pairs.jsonl, line 3``). A tag ``split`` of ``discovery`` or ``heldout`` fixes
    what the pair is used for.
    """

    clean: Prompt
    corrupted: Prompt
    answers: tuple[str, ...] = ()
    wrong_answers: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=no_tags)
    answer_ids: tuple[int, ...] = ()
    wrong_ids: tuple[int, ...] = ()
    source: str = "this pair"


@dataclass(frozen=True)
class TokenPair:
    """A checked pair as token ids: two prompts of one length that differ, and answers of one token each.

    Where answers are measured as ``sequences`` of tokens, ``answers`` are the first tokens by which alone they differ
    from the wrong ones. ``weight`` is the factor of a pair that stands for one token of a sequence.
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

    @property
    def length(self) -> int:
        """How many tokens each side has."""
        return len(self.clean)
