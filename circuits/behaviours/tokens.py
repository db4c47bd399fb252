"""What behaviours ask of a tokenizer: prompts, chat prompts, and answers as single tokens of the model's vocabulary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

from circuits.behaviours.template_trial import LIMITS, comes_to_an_end
from circuits.errors import PromptError, border

Tokens = tuple[int, ...]
SYSTEM, ASSISTANT = "system", "assistant"
"""Roles of chat messages that are treated in a way of their own."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def chat_template(self) -> Any:
        """The chat template, or None."""
        ...

    @property
    def bos_token(self) -> Any:
        """The text of the token that starts a prompt, or None."""
        ...

    def __len__(self) -> int:
        """Count the tokens of the vocabulary."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids."""
        ...

    def decode(self, token_ids: list[int]) -> Any:
        """Turn token ids into text."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool, **options: bool) -> Any:
        """Render chat messages as text."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text, or chat messages that the tokenizer's chat template renders."""


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """Return the text the model reads: the prompt itself, or its messages rendered up to where the answer starts.

    Where the last message is the assistant's, it is the beginning of the answer, which the model goes on with. Raises
    :class:`PromptError` for messages when the tokenizer has no chat template, or one that cannot render them.
    """
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise PromptError(
            "these prompts are chat messages, but the tokenizer has no chat template; use an instruction-tuned model "
            "(for example smollm2-135m), or write the prompts as plain text."
        )
    messages = [asdict(message) for message in prompt]
    begun = prompt[-1].content if prompt[-1].role == ASSISTANT else None
    how = "add_generation_prompt" if begun is None else "continue_final_message"
    roles = ", ".join(message.role for message in prompt)
    _require_end(tokenizer, messages, how)
    try:
        with border(
            PromptError,
            lambda problem: (
                f"the tokenizer's chat template refuses messages of the roles {roles} ({problem}); write the messages "
                "as the model expects them, for example with the system message at the start of the user's."
            ),
        ):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, **{how: True}))
    except PromptError as error:
        if begun is not None and type(error.__cause__) is ValueError:
            raise _not_continued(begun, "does not write it as it is") from error.__cause__
        raise
    if begun is not None and not text.endswith(begun):
        raise _not_continued(begun, "changes its end (spaces there are often cut)")
    return text


def _require_end(tokenizer: Tokenizer, messages: list[dict[str, str]], how: str) -> None:
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, of which the default is used
        template = cast("dict[str, Any]", template).get("default")
    tokens = cast("dict[str, Any]", getattr(tokenizer, "special_tokens_map", None) or {})
    if isinstance(template, str) and not comes_to_an_end(template, messages, how, tokens):
        raise PromptError(
            f"the tokenizer's chat template does not come to an end within {LIMITS}. Give the tokenizer another one "
            "(`tokenizer.chat_template = ...`), or write the prompts as plain text."
        )


def _not_continued(begun: str, why: str) -> PromptError:
    return PromptError(
        f"the answer cannot begin with {begun!r}: the tokenizer's chat template {why}; expected a template that keeps "
        "the assistant's last message. Change the beginning, or use plain text prompts that hold it."
    )


def encoded(tokenizer: Tokenizer, text: str, *, special: bool = False) -> Tokens:
    """Turn text into tokens: the one place where that is done.

    Raises :class:`PromptError` for text that is not Unicode (half an emoji, as a cut JSON escape leaves it).
    """
    half = next((place for place, mark in enumerate(text) if "\ud800" <= mark <= "\udfff"), None)
    if half is not None:
        around = ascii(text[max(0, half - 10) : half + 10])
        raise PromptError(
            f"character {half} is half of a surrogate pair, such as half an emoji ({around}), which is no text; write "
            "the whole character, or leave it out."
        )
    return tuple(tokenizer.encode(text, add_special_tokens=special))


def unknown_place(tokenizer: Tokenizer, text: str, tokens: Sequence[int]) -> int | None:
    """Return the first place at which a tokenizer put its token for unknown words; None where there is none.

    Tokenizers that can spell anything often call their end-of-text token the unknown one: that one never counts, nor
    does one that the text itself has.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    marks = [getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")]
    if unknown is None or unknown in marks or str(getattr(tokenizer, "unk_token", "")) in text:
        return None
    return next((place for place, token in enumerate(tokens) if token == unknown), None)


def prompt_tokens(tokenizer: Tokenizer, text: str, *, rendered: bool) -> Tokens:
    """Tokenize a prompt as the model reads it when it is about to answer.

    What a tokenizer puts before every text (often a token that says so, BOS) is kept, once: text ``rendered`` by a chat
    template holds its special tokens already, and so may plain text that was written for another tool. What a tokenizer
    puts after every text (EOS) is left out: the answer would come after the end.
    """
    bare = encoded(tokenizer, text)
    bos = tokenizer.bos_token
    if rendered or not bare or (bos and text.startswith(bos)):
        return bare
    whole = encoded(tokenizer, text, special=True)
    start = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None)
    return whole if start is None else whole[: start + len(bare)]


def answer_tokens(tokenizer: Tokenizer, prompt: str, prompt_ids: Tokens, answer: str, *, rendered: bool) -> Tokens:
    """Tokenize an answer as the model would write it after the prompt.

    The tokens that the answer adds to the prompt; where prompt and answer merge at their boundary (`17` + `45`), the
    tokens of the answer alone.
    """
    together = prompt_tokens(tokenizer, prompt + answer, rendered=rendered)
    if together[: len(prompt_ids)] == prompt_ids:
        return together[len(prompt_ids) :]
    return encoded(tokenizer, answer)


def token_texts(tokenizer: Tokenizer, tokens: Iterable[int]) -> tuple[str, ...]:
    """Return each token's text."""
    return tuple(str(tokenizer.decode([token])) for token in tokens)


def single_tokens(tokenizer: Tokenizer, words: str) -> list[str]:
    """Keep, of words separated by spaces, those that are one token when a space is before them, in their order."""
    before = tokenizer.encode("the", add_special_tokens=False)
    kept: list[str] = []
    for word in words.split():
        tokens = tokenizer.encode(f"the {word}", add_special_tokens=False)
        if tokens[:-1] == before:
            kept.append(word)
    return kept


def single_token_pairs(tokenizer: Tokenizer, pairs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Keep the pairs both of whose words are single tokens, in their order."""
    kept = set(single_tokens(tokenizer, " ".join([*pairs, *pairs.values()])))
    return [(left, right) for left, right in pairs.items() if left in kept and right in kept]
