"""What to call circuits that are compared: the shortest of behaviour and model that tells them apart."""

from collections.abc import Sequence

from circuits.circuit import Circuit


def names_of(circuits: Sequence[Circuit]) -> tuple[str, ...]:
    """Return distinct names: behaviours; of one behaviour models; else both, and at last numbers."""
    behaviours = [circuit.behaviour.name for circuit in circuits]
    models = [circuit.model.id.rstrip("/").rpartition("/")[2] or circuit.model.id for circuit in circuits]
    both = [f"{behaviour}@{model}" for behaviour, model in zip(behaviours, models, strict=True)]
    numbered = [f"{name}#{i + 1}" for i, name in enumerate(behaviours)]
    for names in (behaviours, models, both):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(numbered)
