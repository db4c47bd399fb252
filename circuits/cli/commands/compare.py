"""``circuits compare``: what circuits share, whether one does another's work, and what changed between models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.behaviours import BUILT_IN, load_behaviour
from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.reading.unusable import Unusable
from circuits.circuit import Circuit
from circuits.cli.arguments import ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import default_folder, prepared_folder
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import circuit_behaviour_name, command_line, fitted, imported
from circuits.cli.skipping import SkipOptions
from circuits.cli.tables import table
from circuits.comparison import Comparison
from circuits.comparison import compare as compare_circuits
from circuits.comparison.by_depth import TENTHS, compare_by_depth, of_other_shapes
from circuits.comparison.names import names_of
from circuits.errors import ModelUnavailableError, RenderError, UsageError
from circuits.files.atomic import write
from circuits.interchange.sidecars import beside, scores_beside
from circuits.patching.protocol import StageProgress, no_stages
from circuits.report.comparison_files import NUMBERS, ComparisonFiles, save_comparison
from circuits.report.comparison_tables import short_names, tables_of

if TYPE_CHECKING:
    from circuits.comparison.comparing import Crossing
    from circuits.model import Model

HELDOUT, RANDOM = 32, 10
CircuitFiles = Annotated[
    list[Path],
    typer.Argument(metavar="A.json B.json ...", help="Circuits of models of one shape; two may be of other shapes."),
]
BehaviourFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--behaviour",
        "-b",
        metavar="[NAME=]FILE",
        help="The prompt file of a behaviour that is not built in; may be given several times.",
        show_default=False,
    ),
]


@command
def compare(
    circuits: CircuitFiles,
    *,
    against_model: Annotated[
        str | None,
        typer.Option(
            "--against-model",
            metavar="MODEL",
            help="Measure the circuits' edges in this model too, on the same prompts: for behaviours that it does not "
            "show, of which there is no circuit to compare with.",
            show_default=False,
        ),
    ] = None,
    transfer: Annotated[
        bool,
        typer.Option(
            "--transfer/--no-transfer",
            help="Also run each circuit on the others' held-out prompts, alone and knocked out.",
        ),
    ] = True,
    behaviour: BehaviourFiles = None,
    skipping: SkipOptions,
    pairs: Annotated[int, typer.Option(help="Held-out pairs of each behaviour.", min=4)] = HELDOUT,
    random: Annotated[int, typer.Option(help="Random circuits for each circuit.", min=0)] = RANDOM,
    live: Annotated[
        bool,
        typer.Option("--live", help="Write core and differences without edges that are on no path through them."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder (default: outputs/MODEL/A-and-B).", rich_help_panel="Output", show_default=False
        ),
    ] = None,
    resume: ResumeOption = False,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Compare circuits: overlap against chance, transfer, knocking out, core and differences, a diagram, and words.

    Of behaviours of one model, or of models of one shape (before and after tuning or an edit); every circuit runs on
    its own model. Circuits of one behaviour in two models are also compared edge by edge, measured in both. Of two
    circuits of models of different shapes, only where in the depth of the models their effect is can be compared.
    """
    output = output_options.output()
    found = _loaded(circuits, against_model, output)
    if against_model is None and of_other_shapes(found):
        _show_depths(found, circuits, out, output)
        return
    comparison = _without_runs(found, circuits)
    run = transfer or against_model is not None
    behaviours = _behaviours(found if run else [], behaviour or [], skip_unusable=skipping.skip_unusable)
    _require_one_model(model_options, found)
    folder = prepared_folder(out or _default_folder(found, against_model))
    with kept_until_done(folder / NUMBERS, output, resume=resume) as journal:
        if run:
            from circuits.comparison.comparing import Crossing

            settings = Crossing(pairs, random, behaviours, model_options.resources(), journal)
            runs = _Runs(model_options, settings, output)
            comparison = runs.measured(comparison, against_model, transfer=transfer)
            skipping.list_unusable(runs.unusable, folder, output)
        files = save_comparison(comparison.live() if live else comparison, folder, command=command_line())
    _show(comparison, circuits, files, output)


def _show_depths(found: list[Circuit], files: list[Path], out: Path | None, output: Output) -> None:
    """Compare two circuits of models of different shapes by depth and roles, which runs no model."""
    evidence = [beside(file, circuit) for circuit, file in zip(found, files, strict=True)]
    for remark in (remark for each in evidence for remark in each.remarks):
        output.warn(remark)
    compared = compare_by_depth(found[0], found[1], roles=[each.roles for each in evidence])
    folder = prepared_folder(out or _default_folder(found, None))
    write(folder / NUMBERS, compared.to_json())
    a, b = compared.a.name, compared.b.name
    headings = ["sent by", a, f"all edges of {compared.a.model}", b, f"all edges of {compared.b.model}"]
    title = f"share of the sum of |score|, by tenth of depth (1/{TENTHS} is the beginning)"
    output.show(table(title, headings, compared.rows(), numbers=range(1, 5)))
    if rows := compared.role_rows():
        output.show(table("the same by role", ["", a, b], rows, numbers=(1, 2)))
    output.show(compared.describe(), "", f"The numbers are in {folder / NUMBERS}")
    output.leave(compared.to_document() | {"file": str(folder / NUMBERS)}, folder, [folder / NUMBERS])


def _loaded(files: list[Path], against_model: str | None, output: Output) -> list[Circuit]:
    """Return the circuits; those of other tools, which do not know their model, as of the model of one that does."""
    if len(files) == 1 and against_model is None:
        raise UsageError(
            f"one circuit was given, {files[0]}; give another to compare it with, or a model with --against-model."
        )
    places = [file.resolve() for file in files]
    for file, place in zip(files, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{file} was given twice; a circuit compared with itself is the same in every number.")
    found = [imported(file, output) for file in files]
    known = next((each.circuit.model for each in found if not each.anonymous), None)
    return [each.circuit if known is None else fitted(each, known, output).circuit for each in found]


def _without_runs(found: list[Circuit], files: list[Path]) -> Comparison:
    scores = [scores_beside(circuit, file) for circuit, file in zip(found, files, strict=True)]
    if len(found) == 1:
        return Comparison((found[0],), names_of(found), (), ())
    return compare_circuits(*found, scores=scores)


def _behaviours(found: list[Circuit], given: list[str], *, skip_unusable: bool) -> dict[str, Behaviour]:
    """Load the behaviours of the circuits, by name, with what each circuit recorded about its prompts."""
    files: dict[str, Behaviour] = {}
    for text in given:
        name, equals, path = text.partition("=")
        behaviour = load_behaviour(path if equals else text, skip_unusable=skip_unusable)
        files[name if equals else behaviour.name] = behaviour
    names = [circuit.behaviour.name for circuit in found]
    for name in files:
        if found and name not in names:
            raise UsageError(
                f"no circuit is of the behaviour '{name}' that --behaviour gives; they are of {', '.join(names)}. "
                f"Write --behaviour NAME=FILE if the file has another name than the behaviour."
            )
    for circuit in found:
        if circuit.behaviour.name not in files and circuit.behaviour.name not in BUILT_IN:
            circuit_behaviour_name(circuit, None, "--behaviour")
    return files


def _require_one_model(model_options: ModelOptions, found: list[Circuit]) -> None:
    models = list(dict.fromkeys(circuit.model.digest or circuit.model.id for circuit in found))
    if model_options.model is not None and len(models) > 1:
        ids = ", ".join(dict.fromkeys(circuit.model.id for circuit in found))
        raise UsageError(f"the circuits are of several models ({ids}), so --model cannot stand for all; leave it out.")


def _default_folder(found: list[Circuit], against_model: str | None) -> Path:
    names = names_of(found)
    if len(found) == 1:
        return default_folder(found[0].model.id, f"{names[0]}-against-{Path(against_model or '').name}")
    return default_folder(found[0].model.id, "-and-".join(names))


class _Runs:
    """Loads models one after the other, and measures with them."""

    def __init__(self, model_options: ModelOptions, settings: "Crossing", output: Output) -> None:
        self._model_options, self._settings, self._output = model_options, settings, output
        self._progress: StageProgress = no_stages
        self._unusable: dict[str, tuple[Unusable, ...]] = {}

    @property
    def unusable(self) -> tuple[Unusable, ...]:
        """The rows of prompt files that were left out."""
        return tuple(row for rows in self._unusable.values() for row in rows)

    def measured(self, comparison: Comparison, against_model: str | None, *, transfer: bool) -> Comparison:
        """Measure transfer and knocking out, and the edges in another model."""
        with self._output.progress() as self._progress:
            return self._measured(comparison, against_model, transfer=transfer)

    def _measured(self, comparison: Comparison, against_model: str | None, *, transfer: bool) -> Comparison:
        from circuits.comparison.comparing import compare_models, measure_comparison

        if transfer and len(comparison.circuits) > 1:
            comparison = measure_comparison(comparison, self.own, self._settings, progress=self._progress)
        if against_model is None:
            return comparison
        other = against_model
        changes = [
            compare_models(circuit, self.own, lambda _: self._load(other), self._settings, progress=self._progress)
            for circuit in comparison.circuits
        ]
        return comparison.with_changes([*comparison.changes, *changes])

    def own(self, circuit: Circuit) -> "Model":
        """Load a circuit's own model, or what stands for it."""
        try:
            model = self._load(self._model_options.model or circuit.model.id)
        except ModelUnavailableError as error:
            raise ModelUnavailableError(f"{error} To compare without running the model, add --no-transfer.") from error
        name = circuit.behaviour.name
        if name in self._settings.behaviours:
            self._unusable[name] = self._settings.behaviours[name].usable(model.tokenizer).unusable
        if model.info.digest != circuit.model.digest:
            self._output.warn(
                f"{circuit.behaviour.name}'s circuit was found on other weights ({circuit.model.id}, "
                f"{circuit.model.digest[:12] or 'unknown'}) than those of {model.info.id} ({model.info.digest[:12]})."
            )
        return model

    def _load(self, name: str) -> "Model":
        return replace(self._model_options, model=name).load(self._progress, self._output)


def _show(comparison: Comparison, circuits: list[Path], written: ComparisonFiles, output: Output) -> None:
    short = short_names(comparison)
    named = ((name, short[name], file) for name, file in zip(comparison.names, circuits, strict=True))
    output.show("\n".join(f"{f'{a} = ' if a != name else ''}{name}: {file}" for name, a, file in named), "")
    for each in tables_of(comparison):
        output.show(table(each.title, each.columns, each.rows, numbers=range(1, len(each.columns))))
        if each.note:
            output.show(each.note, "")
    output.show(comparison.describe(), "", f"The diagrams, a report and the parts as circuits are in {written.folder}/")
    document: dict[str, Any] = json.loads(written.text)
    files = {name: written.folder / name for name in written.files}
    output.leave(
        document | {"files": {name: str(file) for name, file in files.items()}}, written.folder, files.values()
    )
    if written.undrawn:
        raise RenderError(f"{written.undrawn} The numbers are in {written.folder / NUMBERS}.")
