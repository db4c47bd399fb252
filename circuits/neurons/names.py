"""What a neuron is called: ``m14.n1203`` is unit 1203 of the MLP of layer 14, just before its down projection."""

import re
from dataclasses import dataclass
from typing import Self

from circuits.errors import FormatError

_NAME = re.compile(r"m(\d+)\.n(\d+)")


@dataclass(frozen=True, order=True)
class Neuron:
    """One hidden unit of the MLP of a layer."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"m{self.layer}.n{self.index}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a neuron's name. Raises :class:`FormatError` for any other text."""
        found = _NAME.fullmatch(text)
        if found is None:
            raise FormatError(f"'{text}' is not the name of a neuron; expected one like m14.n1203.")
        return cls(int(found[1]), int(found[2]))
