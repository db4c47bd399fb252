"""What was found: which few neurons of the MLPs carry a behaviour, how well, and what each of them is worth."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from circuits.circuit import Circuit
from circuits.drawing.pictures import write_dot
from circuits.errors import FormatError, UsageError
from circuits.files.atomic import write
from circuits.files.documents import json_text, plain, read_json
from circuits.neurons.neuron_names import FoundNeuron, Neuron
from circuits.neurons.neuron_picture import neurons_dot
from circuits.records import CurvePoint
from circuits.report.curve_chart import curves_svg
from circuits.showing import html_table
from circuits.statistics import Likeness

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "circuits/neurons", 1
SHOWN = 20
"""How many neurons a notebook and the command line list."""


@dataclass(frozen=True)
class NeuronSplit:
    """Some MLPs split into the neurons that matter and the rest, judged on held-out pairs.

    All of the neurons as they are is the one end of every scale here, all of them replaced the other: ``metric_all``
    and ``metric_none``. ``likeness`` says how closely the ``neurons`` alone follow the first; ``against_model`` the
    same beside the whole model and its corrupted run, which tells it from what a circuit loses by itself.
    ``metric_rest`` is the metric with those neurons replaced and all others kept. ``curve`` are the sets that the
    search went through, ``by_score`` as many of the best by score alone; ``random`` the fidelity of sets with as many
    neurons of each layer, drawn from all others. ``circuit`` is the digest of the circuit inside which all is measured;
    empty for the whole model.
    """

    model: str
    behaviour: str
    metric: str
    unit: str
    ablation: str
    scorer: str
    circuit: str
    layers: tuple[int, ...]
    total: int
    fit: int
    choose: int
    heldout: int
    target: float
    reached: bool
    neurons: tuple[FoundNeuron, ...]
    metric_all: float
    metric_none: float
    metric_kept: float
    metric_rest: float
    likeness: Likeness
    against_model: Likeness
    curve: tuple[CurvePoint, ...]
    by_score: tuple[CurvePoint, ...]
    random: tuple[float, ...]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def names(self) -> tuple[Neuron, ...]:
        """The neurons, the largest exact effect first."""
        return tuple(Neuron(each.layer, each.index) for each in self.neurons)

    @property
    def inside(self) -> str:
        """Inside what they are measured, in words."""
        return "a circuit" if self.circuit else "the whole model"

    @property
    def verdict(self) -> str:
        """What may be claimed, in a sentence."""
        count, what = f"{len(self)} of {self.total:,} neurons", f"fidelity {self.likeness.fidelity.describe(2)}"
        if not self.reached:
            return (
                f"no set of neurons reaches a fidelity of {self.target:g} with a faithfulness within 0.1 of 1 on the "
                f"pairs it is chosen by; {count}: {what}"
            )
        return f"{count} in {len({each.layer for each in self.neurons})} layers carry {self.behaviour}: {what}"

    def smallest(self, target: float | None = None) -> int | None:
        """Return how many neurons the smallest set has whose fidelity on held-out pairs is at least this.

        By default the target's; None where there is none. It is the luckiest of several: ``neurons`` is the honest set.
        """
        least = self.target if target is None else target
        return min((p.edges for p in self.curve if p.fidelity is not None and p.fidelity >= least), default=None)

    def __repr__(self) -> str:
        return f"NeuronSplit({self.verdict}; inside {self.inside} {self.model}, {self.heldout} held-out pairs)"[:290]

    def _repr_html_(self) -> str:
        """Show the neurons of largest effect in a notebook."""
        rows = [
            [each.neuron, *(f"{value:.4g}" for value in (each.score, each.effect, each.effect_se))]
            for each in self.neurons[:SHOWN]
        ]
        return html_table(self.verdict, ["neuron", "score", f"exact effect ({self.unit})", "standard error"], rows)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the neurons as a data frame, one row each, the largest exact effect first."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.neurons]).set_index("neuron")

    def to_document(self) -> dict[str, Any]:
        """Return what ``neurons.json`` holds, as JSON has it."""
        return {"format": FORMAT, "version": VERSION, **plain(asdict(self), digits=6)}

    def to_json(self) -> str:
        """Return the text of ``neurons.json``."""
        return json_text(self.to_document(), sort_keys=True)

    def save(self, path: str | Path) -> None:
        """Write ``neurons.json``."""
        write(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``neurons.json``. Raises :class:`FormatError` that says what is wrong with the file."""
        from pydantic import TypeAdapter, ValidationError

        document: Any = read_json(path)
        if not isinstance(document, dict) or cast("dict[str, Any]", document).pop("format", None) != FORMAT:
            raise FormatError(f'{path} holds no neurons; expected a JSON object with "format": "{FORMAT}".')
        if (version := cast("dict[str, Any]", document).pop("version", None)) != VERSION:
            raise FormatError(f"{path} has version {version!r}; expected {VERSION}.")
        try:
            return TypeAdapter(cls).validate_python(document)
        except ValidationError as problem:
            first = problem.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FormatError(f"{path}: {place}: {first['msg']} (got {first.get('input')!r:.80}).") from problem

    def to_svg(self) -> str:
        """Return a picture: fidelity on held-out pairs over the number of neurons, pruned and by score alone."""
        return curves_svg({"pruned": self.curve, f"by {self.scorer}": self.by_score}, counted="neurons")

    def draw(self, path: str | Path, circuit: Circuit | None = None, *, title: str | None = None) -> None:
        """Draw the neurons beside their MLPs, in the diagram of the circuit, into a .svg, .pdf, .png or .dot file.

        Without the circuit the MLPs alone are drawn. Raises :class:`UsageError` for another circuit than that of the
        neurons, and errors as :meth:`circuits.Circuit.draw`.
        """
        if circuit is not None and circuit.digest != self.circuit:
            raise UsageError(
                "these neurons are not of this circuit; draw the one they were found in, or leave it out for the "
                "MLPs alone."
            )
        write_dot(neurons_dot(self.neurons, self.unit, title or self.verdict, circuit), path)
