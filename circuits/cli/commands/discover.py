"""``circuits discover``: from a behaviour to a folder with its circuit."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import RenderableType

from circuits.cli.arguments import DIRECTION, BehaviourArgument, DirectionOption, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import RunLog, default_folder, prepared_folder
from circuits.cli.resuming import ResumeOption, kept_in
from circuits.cli.searching import Search
from circuits.cli.session import Session, command_line, model_name
from circuits.cli.tables import (
    edge_table,
    evaluation_rows,
    facts,
    near_ties,
    needed_row,
    rival_table,
    size_rows,
    stability_rows,
    strongest,
)
from circuits.cli.verifying import Verifying
from circuits.errors import RenderError
from circuits.progress import Plan, discovery_plan
from circuits.statistics import FEW
from circuits.vocabulary import Direction, ScorerName

if TYPE_CHECKING:
    from circuits.behaviours.behaviour import Behaviour
    from circuits.cross_fitting import CrossFit
    from circuits.discovery import Discovery
    from circuits.discovery_settings import DiscoverySettings
    from circuits.results import DiscoveryFiles
    from circuits.rivals import Rivals

CIRCUIT, JOURNAL = "circuit.json", "journal"


@command
def discover(
    behaviour: BehaviourArgument,
    *,
    search: Search,
    direction: DirectionOption = Direction.NOISING,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the results (default: outputs/MODEL/BEHAVIOUR).", rich_help_panel="Output"
        ),
    ] = None,
    resume: ResumeOption = False,
    heads: Annotated[
        bool, typer.Option("--heads/--no-heads", help="Measure what the heads do.", rich_help_panel="Output")
    ] = True,
    verifying: Verifying,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Find the circuit of a behaviour: the edges that are enough to keep it when everything else is corrupted."""
    output = output_options.output()
    search.check()
    chosen = measurement.behaviour(behaviour)
    options = measurement.options(chosen, direction=direction or Direction.NOISING)
    resources = model_options.resources(ScorerName.parse(search.scorer))
    settings = search.settings(measurement, verifying, options, resources)
    folder = prepared_folder(out or default_folder(model_name(model_options), chosen.name))
    session = Session(model_options, settings.resources, measurement, output, folder)
    further = Further(heads, search.cross_fit, search.rivals)
    _report(_found(folder, session, chosen, settings, resume=resume, further=further), output)


class Further(NamedTuple):
    """What is done beside the search: evidence on heads, a second search on exchanged pairs, so many rivals."""

    heads: bool
    cross_fit: bool
    rivals: int

    def plan(self, settings: "DiscoverySettings") -> Plan:
        """Return the stages of the whole."""
        return discovery_plan(
            settings.pruner,
            self.rivals,
            scorer=settings.scorer,
            agreement=bool(settings.sample) and settings.scorer not in (ScorerName.EXACT, ScorerName.VERIFIED),
            heads=self.heads,
            rough=settings.rough,
            twice=self.cross_fit,
        )


class DiscoveryOutcome(NamedTuple):
    """All that was found and written."""

    found: "Discovery"
    drawn: "DiscoveryFiles"
    crossed: "CrossFit | None"
    rivals: "Rivals | None"


def _found(
    folder: Path,
    session: Session,
    behaviour: "Behaviour",
    settings: "DiscoverySettings",
    *,
    resume: bool,
    further: Further,
) -> DiscoveryOutcome:
    """Run the discovery, with journal and log in its folder, and write and draw the circuit."""
    from circuits.cross_fitting import cross_fit
    from circuits.discovery import discover as find
    from circuits.discovery_settings import model_for, prompts_for
    from circuits.results import draw_discovery, leave_evidence
    from circuits.rivals import find_rivals, leave_rivals

    output = session.output
    # What heads do is told from what they write to the logits.
    heads = further.heads and not settings.rough and session.measurement.to is None
    plan = further._replace(heads=heads).plan(settings)
    before = (folder / JOURNAL).is_file(), (folder / CIRCUIT).is_file()
    with (
        kept_in(folder / JOURNAL, output, resume=resume) as journal,
        RunLog(folder, command_line()) as log,
        output.progress(log, plan=plan) as progress,
    ):
        model = session.model_options.load(progress, output)
        model = session.measurement.led(model)
        behaviour = session.measurement.with_openings(behaviour, model, output)
        prompts = prompts_for(model, behaviour, settings)
        output.recorder.drew(prompts)
        session.measurement.list_unusable(prompts.unusable, folder, output)
        known = model_for(model, prompts, settings).kept(
            prompts.discovery, settings.options_for(prompts), reference=prompts.reference, journal=journal
        )
        for text in _remarks(folder, *before, resume=resume, resumed=known.filled, problem=journal.problem):
            output.say(text)
        found = find(
            model, behaviour, settings, folder=folder, journal=journal, progress=progress, command=command_line()
        )
        if (direction := session.measurement.read_along) is not None:
            direction.save(folder / DIRECTION)
        rivals, names = None, tuple[str, ...]()
        if further.rivals:
            rivals = find_rivals(model, found, settings, count=further.rivals, progress=progress, journal=journal)
            found, names = leave_rivals(found, rivals, folder)
        found = leave_evidence(found, folder, model, heads=heads, settings=settings, progress=progress, journal=journal)
        crossed = None
        if further.cross_fit:
            crossed = cross_fit(model, behaviour, settings, first=found, progress=progress, journal=journal)
        if log.problem:
            found = replace(found, warnings=(*found.warnings, log.problem))
        for warning in found.warnings:
            log.warning(warning)
        drawn = draw_discovery(found, folder, progress=progress)
        return DiscoveryOutcome(found, replace(drawn, files=(*drawn.files, *names)), crossed, rivals)


def _remarks(folder: Path, journal: bool, circuit: bool, *, resume: bool, resumed: bool, problem: str) -> list[str]:
    """Return in sentences what becomes of an earlier run in the same folder."""
    if resumed:
        return [f"continuing the run in {folder}."]
    if resume:
        why = (problem or "is of other settings, prompts or weights") if journal else "does not exist"
        return [f"nothing to continue: the journal in {folder} {why}. Starting afresh."]
    if circuit:
        return [f"{folder} holds an earlier circuit, which will be overwritten."]
    if journal:
        return [f"{folder} holds an interrupted run, which is started afresh (--resume would have continued it)."]
    return []


def _report(outcome: DiscoveryOutcome, output: Output) -> None:
    """Print what was found; raises :class:`RenderError` at the end if something could not be drawn."""
    found, drawn, crossed, rivals = outcome
    folder = drawn.folder
    files = [*drawn.files, JOURNAL, "run.log"]
    for warning in (*found.warnings, *found.doubts):
        output.warn(warning)
    if crossed is None and found.circuit.behaviour.n_heldout < FEW:
        output.say("pairs are few: --cross-fit judges the search by all of them, not by the held-out ones alone.")
    tables = _tables(found)
    if crossed is not None:
        tables.append(f"Cross-fitted: {crossed.describe()}.")
    if rivals is not None:
        tables += [rival_table(rivals), f"Rivals: {rivals.describe()}"]
    output.show(*tables, "", f"The diagram, a report, scores, a log and a record of this run are in {folder}/")
    document = _document(found, {name: str(folder / name) for name in sorted(files)})
    if crossed is not None:
        document["cross_fit"] = crossed.document()
    if rivals is not None:
        document["rivals"] = rivals.document()
    output.leave(document, folder, [folder / name for name in drawn.files])
    if drawn.undrawn:
        raise RenderError(f"{drawn.undrawn} The circuit itself is in {folder / CIRCUIT}.")


def _tables(found: "Discovery") -> list[RenderableType]:
    circuit, selection = found.circuit, found.selection
    rows = size_rows(circuit)
    if changed := circuit.behaviour.variant.describe():
        rows.append(("prompts", changed))
    if circuit.evaluation:
        rows += evaluation_rows(circuit.evaluation, metric=circuit.behaviour.metric, unit=circuit.behaviour.unit)
    minimal = "; locally minimal: no single edge can go" if selection.locally_minimal else "; not locally minimal"
    fidelity = "" if selection.error is None else f"fidelity {1 - selection.error**2:.3f}, "
    pairs = f"on {selection.pairs or circuit.behaviour.n_discovery} pairs"
    rows.append(("while searching", f"{fidelity}faithfulness {selection.faithfulness:.3f} {pairs}{minimal}"))
    rows += needed_row(circuit) + stability_rows(circuit)
    if found.scores.verification:
        rows.append(("scores", found.scores.verification.describe()))
    if found.agreement:
        rows.append(("scores", found.agreement.describe(circuit.method.scorer)))
    rows.append(("time", f"{circuit.provenance.wall_seconds:.0f} s on {circuit.provenance.device}"))
    tables: list[RenderableType] = [
        facts(f"{circuit.behaviour.name} in {circuit.model.id}", rows),
        edge_table(circuit, strongest(circuit), "strongest edges"),
    ]
    if circuit.removal is not None:
        tables.append(edge_table(circuit, near_ties(circuit), "near-ties: edges whose removal changes least"))
    return tables


def _document(found: "Discovery", files: dict[str, str]) -> dict[str, Any]:
    circuit = found.circuit
    return {
        "circuit": json.loads(circuit.to_json()),
        "agreement": asdict(found.agreement) if found.agreement else None,
        "verification": asdict(found.scores.verification) if found.scores.verification else None,
        "search": {
            "faithfulness": found.selection.faithfulness,
            "error": found.selection.error,
            "reached": found.selection.reached,
            "proposed": found.selection.proposed,
            "locally_minimal": found.selection.locally_minimal,
        },
        "near_ties": [str(circuit.edge_list[place]) for place in map(int, near_ties(circuit))],
        "warnings": [*found.warnings, *found.doubts],
        "files": files,
    }
