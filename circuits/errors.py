"""Every error this package raises on purpose.

::

    CircuitsError
    ├── UnknownNameError (ValueError)        a name that does not exist: model, behaviour, node, edge, scorer, metric …
    ├── UsageError (ValueError)              options that contradict each other or are out of range
    ├── FormatError (ValueError)             a file that is not what it should be (scores, circuit.json, edge list)
    │   └── MissingFileError                 there is no file or folder of that name
    ├── PromptError (ValueError)             prompt pairs that cannot be used, alone or together
    ├── BehaviourNotShownError (ValueError)  the model does not do what the prompt pairs ask for
    ├── UnsupportedModelError (TypeError)    no adapter describes this architecture
    │   └── GuardError                       an adapter exists but a measurement on this model would be wrong
    ├── ModelUnavailableError (OSError)      weights that could not be fetched or read
    │   └── MissingModelError                there is no model folder of that name
    ├── DeviceError (RuntimeError)           a device that is absent, or memory that does not suffice
    ├── OutputError (OSError)                a place that cannot be written to
    └── RenderError (RuntimeError)           Graphviz failed or is missing

A message says what is wrong with the value, what was expected, and what to do.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Self, TypeVar

Said = TypeVar("Said", bound=Exception)


class CircuitsError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(CircuitsError, ValueError):
    """Options contradict each other or are out of range."""


class FormatError(CircuitsError, ValueError):
    """A file is not what it should be."""


class MissingFileError(FormatError):
    """There is no file or folder of the name that was given."""


class PromptError(CircuitsError, ValueError):
    """Prompt pairs cannot be used, alone or together."""


class BehaviourNotShownError(CircuitsError, ValueError):
    """The model does not do what the prompt pairs ask for."""


class UnsupportedModelError(CircuitsError, TypeError):
    """No adapter describes this architecture."""


class GuardError(UnsupportedModelError):
    """An adapter exists, but measurements on this model would be wrong."""


class ModelUnavailableError(CircuitsError, OSError):
    """Weights could not be fetched or read."""


class MissingModelError(ModelUnavailableError):
    """There is no model folder of the name that was given."""


class DeviceError(CircuitsError, RuntimeError):
    """A device is absent, or its memory does not suffice."""


class OutputError(CircuitsError, OSError):
    """A place cannot be written to."""


class RenderError(CircuitsError, RuntimeError):
    """Graphviz failed or is missing."""


class UnknownNameError(CircuitsError, ValueError):
    """A name does not exist; the message offers the closest one and lists the rest."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        names = list(known)
        lowered = {candidate.lower(): candidate for candidate in names}
        close = list(lowered) if len(lowered) == 1 else get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
        parts = [f"there is no {kind} '{name}'."]
        if close:
            parts.append(f"Closest: '{lowered[close[0]]}'.")
        if 1 < len(names) <= 40:
            parts.append(f"Known: {', '.join(names)}.")
        if hint:
            parts.append(hint)
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[Callable[[type[Self], str], Self], tuple[type[Self], str]]:
        """Return what another process makes the same error of: its class and its message."""
        return _said_elsewhere, (type(self), str(self))


def _said_elsewhere(kind: type[Said], message: str) -> Said:
    error = kind.__new__(kind, message)
    Exception.__init__(error, message)
    return error


@contextmanager
def border(kind: type[CircuitsError], message: Callable[[str], str]) -> Generator[None]:
    """Turn whatever another package raises inside the block into an error of this one; only its call belongs there.

    What a parser raises on a file of unknown origin cannot be listed: ``tokenizers`` raises bare ``Exception`` and,
    where its Rust panics, a ``BaseException``; ``transformers`` raises whatever a value of the wrong type leads to.
    This is the only place where all of it is caught; nothing is swallowed, the cause stays attached (``--debug`` shows
    it). ``message`` makes the text from the first line of what was raised.
    """
    try:
        yield
    except CircuitsError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(message(_first_line(error))) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else ""
    name = type(error).__name__
    known = text and not isinstance(error, KeyError | RecursionError | AttributeError | TypeError)
    return text[:300] if known else f"{name}: {text[:300]}".removesuffix(": ")
