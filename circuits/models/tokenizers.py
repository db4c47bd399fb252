"""Tokenizers of any make: those of transformers, of ``tokenizers``, and objects that only encode and decode."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuits.behaviours.pairs import token_ids
from circuits.errors import PromptError, UsageError
from circuits.settings import displayed, whole_number

_UNKNOWN_LENGTH = 2**31 - 1
_PROTOCOL = ("__len__", "apply_chat_template", "special_tokens_map")


def usable_tokenizer(given: Any) -> Any:
    """Return a tokenizer that behaviours can use: the one given, or one around what it can do; None stays None.

    Raises :class:`UsageError` that says which methods are missing.
    """
    if given is None or isinstance(given, PreTrainedTokenizerBase | PlainTokenizer):
        return given
    if isinstance(given, RustTokenizer):
        return PreTrainedTokenizerFast(tokenizer_object=given)
    missing = [name for name in ("encode", "decode") if not callable(getattr(given, name, None))]
    if missing or isinstance(given, str | bytes):
        lacks = "" if isinstance(given, str | bytes) else f"; it has no {' '.join(missing)}"
        raise UsageError(
            f"the tokenizer is {displayed(given)}; expected one of transformers "
            "(AutoTokenizer.from_pretrained(folder)) or an object with the methods encode(text), which returns token "
            f"ids, and decode(ids), which returns the text{lacks}."
        )
    return given if all(hasattr(given, name) for name in _PROTOCOL) else PlainTokenizer(given)


@dataclass(frozen=True)
class PlainTokenizer:
    """A tokenizer around an object that has ``encode(text)`` and ``decode(ids)``; everything else is as it has it."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # not there yet while a copy is being made
            raise AttributeError(name)
        defaults: dict[str, Any] = {"chat_template": None, "bos_token": None, "special_tokens_map": {}}
        return getattr(self.inner, name, defaults[name]) if name in defaults else getattr(self.inner, name)

    def __len__(self) -> int:
        """Count the tokens, as far as the object says; otherwise no limit but the model's."""
        for name in ("__len__", "n_vocab", "vocab_size", "get_vocab_size"):
            found: Any = getattr(self.inner, name, None)
            size = whole_number(found() if callable(found) else found)
            if size is not None:
                return size
        return _UNKNOWN_LENGTH

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids; raises :class:`PromptError` for text that the object cannot encode."""
        encode = cast("Callable[..., Any]", self.inner.encode)
        options = {"add_special_tokens": add_special_tokens} if _takes(encode, "add_special_tokens") else {}
        try:
            found = encode(text, **options)
        except (LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise PromptError(f"the tokenizer cannot encode {text!r} ({reason}); use words that it has.") from error
        return list(token_ids(getattr(found, "ids", found), f"what the tokenizer makes of {text!r}"))

    def decode(self, tokens: list[int], **_: object) -> str:
        """Turn token ids into text; raises :class:`PromptError` for ids that the object does not have."""
        try:
            return str(self.inner.decode(list(tokens)))
        except (LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise PromptError(f"the tokenizer cannot decode {list(tokens)[:8]} ({reason}).") from error


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # written in another language, and silent about it
        return False
