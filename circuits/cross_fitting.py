"""Cross-fitting: where prompts are few, every pair judges the circuit that was found without it.

Of 12 pairs a search holds out 6, and 6 judge little. So the circuit is searched a second time with the two halves
exchanged, and both circuits are judged together, each on the pairs that the other was found on (Chernozhukov et al.
2018, arXiv:1608.00060, section 3). What is judged is therefore the way of searching rather than one circuit.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour
from circuits.circuit import Circuit
from circuits.discovery import Discovery, discover
from circuits.discovery_settings import DiscoverySettings
from circuits.files.journal import Journal
from circuits.model import Model
from circuits.patching.protocol import StageProgress, no_stages
from circuits.scores import Floats
from circuits.statistics import Estimate, Likeness, likeness, share_of


@dataclass(frozen=True)
class CrossFit:
    """Two circuits of one behaviour, each found on one half of its pairs and judged on the other.

    ``likeness`` and ``faithfulness`` are over all pairs: of every pair, by the circuit that was found without it.
    """

    circuits: tuple[Circuit, Circuit]
    likeness: Likeness
    faithfulness: Estimate

    @property
    def shared(self) -> int:
        """How many edges are in both circuits."""
        return len(np.intersect1d(self.circuits[0].edges, self.circuits[1].edges))

    def document(self) -> dict[str, object]:
        """Return what JSON holds of it: the estimates, and the edges of both circuits."""
        edges = [[str(edge) for edge in circuit] for circuit in self.circuits]
        numbers = {"likeness": asdict(self.likeness), "faithfulness": asdict(self.faithfulness)}
        return {**numbers, "shared": self.shared, "edges": edges}

    def describe(self) -> str:
        """Return in a sentence what was found."""
        sizes = " and ".join(f"{len(circuit):,}" for circuit in self.circuits)
        return (
            f"fidelity {self.likeness.fidelity.describe(2)}, faithfulness {self.faithfulness.describe(2)} over all "
            f"{self.likeness.n} pairs, each judged by the circuit found without it ({sizes} edges, {self.shared:,} in "
            "both)"
        )


class _Measured(NamedTuple):
    clean: Floats
    corrupted: Floats
    values: Floats


def cross_fit(
    model: Model,
    behaviour: Behaviour,
    settings: DiscoverySettings | None = None,
    *,
    first: Discovery | None = None,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> CrossFit:
    """Search a circuit on either half of the pairs, and judge both circuits on the pairs they were not found on.

    ``first`` is what :func:`circuits.discover` has found already with the same model, behaviour and settings. Errors as
    there. Cost: that of two searches (of one, with ``first``).
    """
    settings = settings or DiscoverySettings()
    found = first or discover(model, behaviour, settings, progress=progress, journal=journal)
    other = discover(model, behaviour.swapped(model.tokenizer), settings, progress=progress, journal=journal)
    pairs = (*found.prompts.heldout, *other.prompts.heldout)
    parts = [_measured(model, each, settings) for each in (found, other)]
    whole = _Measured(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    clusters = clusters_of(pairs)
    gap = whole.clean - whole.corrupted
    return CrossFit(
        (found.circuit, other.circuit),
        likeness(whole, whole.values, clusters=clusters, seed=settings.seed),
        share_of(whole.values - whole.corrupted, gap, clusters=clusters, seed=settings.seed),
    )


def _measured(model: Model, found: Discovery, settings: DiscoverySettings) -> _Measured:
    """Return the metric of each held-out pair: of the model, of the empty circuit, and of the circuit found."""
    prompts, options = found.prompts, settings.options_for(found.prompts)
    model = model.with_roles_of(found.circuit.model)
    experiment = model.experiment(prompts.heldout, options, resources=settings.resources, reference=prompts.reference)
    values = experiment.circuits([found.circuit.mask()])[0]
    return _Measured(experiment.clean, experiment.corrupted, values)
