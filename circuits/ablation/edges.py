"""Ablating a circuit's edges, where that is exact: at the first token of the answer, with corrupted values.

An edge carries what its sender writes to one receiver alone. While a text is generated there is no other value for it
to carry; for a pair of prompts of one length there is, the sender's value on the corrupted prompt. So the circuit's
edges carry corrupted values, all others clean ones, everything downstream is recomputed, and only the first token of
the answer is predicted. The control is random circuits with as many edges and the same wiring on other nodes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from circuits.ablation.estimates import Quantity, mean_quantity, share_quantity
from circuits.behaviours.pairs import TokenPair
from circuits.equality import by_content
from circuits.evaluation.random_circuits import random_circuits
from circuits.files.journal import Journal
from circuits.graph import EdgeIndices, Edges
from circuits.metrics import require_logits
from circuits.model import Model
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import StageProgress, no_stages, of_stage
from circuits.patching.sequences import of_one_token
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Metric

HALF = 0.5


@by_content
@dataclass(frozen=True, eq=False)
class EdgeAblationReport:
    """What ablating edges changes at the first token of the answer."""

    edges: EdgeIndices
    quantities: tuple[Quantity, ...]
    draws: int

    def describe(self) -> str:
        """Return in a sentence what the first quantity does and does not support."""
        first = self.quantities[0]
        text = (
            f"'{first.name}' went from {first.before.value:.2f} to {first.after.value:.2f}, a change of "
            f"{first.change.describe()}"
        )
        if first.beyond_random is None or first.after.value == first.before.value:
            return f"{text}."
        share = (float(np.median(first.random)) - first.before.value) / (first.after.value - first.before.value)
        verdict = ", so most of it is not particular to this circuit" if share > HALF else ""
        return (
            f"{text}. {self.draws} random circuits with other heads of the same layers make {share:.0%} of this "
            f"change (median){verdict}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the edges as plain JSON values."""
        return {
            "edges": len(self.edges),
            "quantities": [asdict(quantity) for quantity in self.quantities],
            "random_draws": self.draws,
        }


@in_own_state
def measure_edge_ablation(
    model: Model,
    edges: Edges,
    pairs: Sequence[TokenPair],
    *,
    metric: Metric | str = Metric.LOGIT_DIFFERENCE,
    draws: int = 5,
    seed: int = 0,
    resources: Resources | None = None,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> EdgeAblationReport:
    """Measure clean prompts with the edges corrupted, and keep that in a journal if one is given.

    Cost: about three forward passes of the pairs per circuit.
    """
    edges = model.graph.indices(edges)
    mask = model.graph.mask(edges)
    controls = random_circuits(model.graph, edges, draws, seed)
    ablated = np.stack([~mask, *~controls])
    quantities: list[Quantity] = []
    options = Options(Metric.parse(metric))
    require_logits(options.metric, "what ablated edges change at the first token")
    first = of_one_token(model.experiment(pairs, options, resources=resources, journal=journal), "ablating edges")
    for wanted in dict.fromkeys((first.metric, Metric.LOG_ODDS)):
        experiment = first if wanted is first.metric else first.with_metric(wanted)
        values = experiment.circuits(ablated, progress=of_stage(progress, "ablating edges, and random ones"))
        before, after, random = experiment.clean, values[0], list(values[1:])
        quantities.append(mean_quantity(f"{wanted} on clean prompts", wanted.unit, before, after, random, seed=seed))
        if wanted.compares:
            others = [value > 0 for value in random]
            quantities.append(share_quantity("answer above wrong answer", before > 0, after > 0, others, seed=seed))
    return EdgeAblationReport(edges, tuple(quantities), len(controls))
