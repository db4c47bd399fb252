"""``circuits neurons``: which few neurons of the MLPs carry a behaviour."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from circuits.cli.arguments import BehaviourArgument, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import fitted, imported, model_name
from circuits.cli.tables import facts, table
from circuits.errors import RenderError
from circuits.progress import PLANS
from circuits.vocabulary import ScorerName

if TYPE_CHECKING:
    from circuits.circuit import Circuit
    from circuits.neurons.neuron_split import NeuronSplit

FILE = "neurons.json"
_POINTS = 16
"""How many sizes of the curve are listed."""


@dataclass(frozen=True)
class Splitting:
    """How many neurons are kept, and how they are looked for."""

    count: Annotated[
        int | None,
        typer.Option("--neurons", "-n", min=1, help="How many neurons to keep (default: as few as reach --target)."),
    ] = None
    target: Annotated[float, typer.Option(help="The fidelity looked for.")] = 0.9
    scorer: Annotated[
        str, typer.Option(metavar="eap-ig|eap|relp|gim", help="Proposes the neurons that the search begins with.")
    ] = ScorerName.EAP_IG
    heldout: Annotated[
        int | None, typer.Option(help="Held-out pairs (default: 64).", min=4, rich_help_panel="Measurement")
    ] = None


@command
def neurons(
    behaviour: BehaviourArgument,
    circuit: Annotated[
        Path | None,
        typer.Argument(metavar="[CIRCUIT.json]", help="Split the MLPs of this circuit, inside it; else the model's."),
    ] = None,
    *,
    splitting: Splitting,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Default: {FILE} beside the circuit, else in outputs/MODEL/BEHAVIOUR; pictures lie beside it.",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: ResumeOption = False,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Split MLPs into the few neurons that carry a behaviour and the rest, and judge them on held-out prompts."""
    output = output_options.output()
    read = None if circuit is None else imported(circuit, output)
    chosen = measurement.behaviour(behaviour, recorded=None if read is None else read.circuit.behaviour)
    ablation = None if read is None else read.circuit.method.ablation
    options, name = measurement.options(chosen, ablation=ablation), ScorerName.parse(splitting.scorer)
    folder = default_folder(model_name(model_options), chosen.name) if circuit is None else circuit.parent
    file = prepared_file(out or folder / FILE, (".json",), FILE)

    from circuits.neurons.neuron_finding import PAIRS, find_neurons

    line = output.progress(plan=PLANS["neurons"])
    with kept_until_done(file, output, resume=resume) as journal, line as progress:
        default = {} if read is None else {"default": read.circuit.model.id}
        model = measurement.led(model_options.load(progress, output, **default))
        own = None if read is None else fitted(read, model.info, output).circuit
        found = find_neurons(
            model,
            measurement.with_openings(chosen, model, output),
            own,
            neurons=splitting.count,
            target=splitting.target,
            scorer=name,
            options=options,
            resources=model_options.resources(),
            pairs=measurement.pairs or PAIRS,
            heldout=splitting.heldout or PAIRS,
            seed=measurement.seed or 0,
            progress=progress,
            journal=journal,
        )
        progress("drawing", 0, 0)
        files = _written(found, own, file)
    for remark in found.remarks:
        output.warn(remark)
    output.show(*_tables(found, files))
    named = {kind: str(each) for kind, each in files.items()}
    output.leave({**found.to_document(), "files": named}, file.parent, files.values())


def _written(found: "NeuronSplit", circuit: "Circuit | None", file: Path) -> dict[str, Path]:
    """Write everything, the curve and the diagram; without Graphviz the diagram as text alone."""
    from circuits.files.atomic import write

    found.save(file)
    curve, diagram = file.with_suffix(".curve.svg"), file.with_suffix(".svg")
    write(curve, found.to_svg())
    try:
        found.draw(diagram, circuit)
    except RenderError:
        found.draw(diagram := file.with_suffix(".dot"), circuit)
    return {"neurons": file, "curve": curve, "diagram": diagram}


def _tables(found: "NeuronSplit", files: dict[str, Path]) -> list[RenderableType]:
    from circuits.neurons.neuron_split import SHOWN

    least, random = found.smallest(), ", ".join(f"{each:.2f}" for each in found.random)
    rows = [
        ("verdict", found.verdict),
        ("faithful to", f"{found.inside}; to the model: fidelity {found.against_model.fidelity.describe(2)}"),
        (
            "metric",
            f"{found.metric_all:.3f} all neurons, {found.metric_kept:.3f} these, {found.metric_rest:.3f} the rest, "
            f"{found.metric_none:.3f} none ({found.metric}, {found.unit})",
        ),
        ("random neurons", f"fidelity {random} (as many of each layer)"),
        (f"smallest at {found.target:g}", "none" if least is None else f"{least:,} neurons, the luckiest of the curve"),
        ("prompt pairs", f"{found.fit} to fit, {found.choose} to choose, {found.heldout} held out"),
        *((name, str(path)) for name, path in files.items()),
    ]
    step = max(1, -(-len(found.curve) // _POINTS))
    points = list(zip(found.curve, found.by_score, strict=True))[::-1][::step]
    return [
        facts(f"neurons of {found.behaviour} in {found.model}", rows),
        table(
            f"neurons kept, on held-out pairs: fidelity, faithfulness; and of as many of the best by {found.scorer}",
            ["neurons", "fidelity", "faithfulness", "by score"],
            [
                [f"{here.edges:,}", f"{here.fidelity:.3f}", f"{here.faithfulness:.3f}", f"{there.fidelity:.3f}"]
                for here, there in points
            ],
            numbers=range(4),
        ),
        table(
            f"the neurons of largest exact effect: what replacing one alone costs ({found.unit})",
            ["neuron", "effect", "standard error", "score"],
            [
                [each.neuron, f"{each.effect:+.4f}", f"{each.effect_se:.4f}", f"{each.score:+.4f}"]
                for each in found.neurons[:SHOWN]
            ],
            numbers=(1, 2, 3),
        ),
    ]
