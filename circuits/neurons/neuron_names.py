"""Neurons and their names: ``m14.n1203`` is unit 1203 of the MLP of layer 14, just before its down projection."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from circuits.errors import FormatError
from circuits.statistics import Number

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


@dataclass(frozen=True)
class FoundNeuron:
    """One neuron: its estimated ``score``, and its exact ``effect`` on held-out pairs with the standard error.

    The effect is what the behaviour loses when this neuron alone carries its replacement value, in the metric's unit.
    """

    neuron: str
    layer: int
    index: int
    score: Number
    effect: Number
    effect_se: Number


def strongest(neurons: Sequence[FoundNeuron], count: int) -> tuple[FoundNeuron, ...]:
    """Return the neurons of largest exact |effect|; those that have none last."""
    return tuple(sorted(neurons, key=lambda each: -abs(each.effect) if math.isfinite(each.effect) else 0.0)[:count])
