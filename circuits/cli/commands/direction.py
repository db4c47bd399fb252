"""``circuits direction``: the direction that a behaviour hangs on; and what ``circuits ablate --direction`` does."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from circuits.behaviours import load_behaviour
from circuits.cli.acting import Acting
from circuits.cli.arguments import DEFAULT_MODEL, DIRECTION, BehaviourArgument, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import RunLog, default_folder, prepared_file, prepared_folder
from circuits.cli.prompting import Prompting
from circuits.cli.resuming import ResumeOption, kept_in, kept_until_done
from circuits.cli.session import command_line, model_name
from circuits.cli.skipping import SkipOptions
from circuits.cli.tables import facts, table
from circuits.errors import UsageError
from circuits.files.documents import json_text
from circuits.progress import PLANS

if TYPE_CHECKING:
    from circuits.steering.effects import SteeringReport
    from circuits.steering.search import DirectionCandidate, DirectionSearch
    from circuits.steering.steered_model import Action

JOURNAL = "journal"
PAIRS, CHOOSE, POSITIONS, CANDIDATES, KL, DRAWS = 64, 32, 5, 6, 0.1, 3
FORMAT, VERSION = "circuits/steering", 1


@command
def direction(
    behaviour: BehaviourArgument,
    *,
    pairs: Annotated[int, typer.Option(min=4, help="Pairs that directions are taken from.")] = PAIRS,
    choose: Annotated[int, typer.Option(min=4, help="Other pairs that one is chosen by.")] = CHOOSE,
    positions: Annotated[int, typer.Option(min=1, help="Last tokens, of those that all prompts share.")] = POSITIONS,
    candidates: Annotated[int, typer.Option(min=1, help="Layers whose direction is ablated and added.")] = CANDIDATES,
    kl: Annotated[float, typer.Option(help="Most nats by which ablating may change corrupted prompts.")] = KL,
    layer: Annotated[
        int | None,
        typer.Option(min=1, help="Take the direction of this layer instead of choosing one.", show_default=False),
    ] = None,
    random: Annotated[int, typer.Option(min=0, help="Random directions to compare with.")] = DRAWS,
    seed: Annotated[int, typer.Option(min=0, help="Draws pairs and random directions.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results (default: outputs/MODEL/BEHAVIOUR-direction)."),
    ] = None,
    resume: ResumeOption = False,
    prompting: Prompting,
    skipping: SkipOptions,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Find the direction of the residual stream that a behaviour hangs on, by layer and token.

    Difference of means of clean (harmful) and corrupted (harmless) prompts; chosen by what ablating it everywhere and
    adding it at its layer does to the first token, among those that leave corrupted prompts as they are and lie not in
    the last fifth of the layers. Use it with `circuits ablate --direction FILE` and `circuits discover --to FILE`.
    """
    output = output_options.output()
    chosen = prompting.varied(load_behaviour(behaviour, skip_unusable=skipping.skip_unusable))

    from circuits.steering.search import SearchSettings, find_direction

    settings = SearchSettings(pairs, choose, positions, candidates, kl, layer=layer, draws=random, seed=seed)
    folder = prepared_folder(out or default_folder(model_name(model_options), f"{chosen.name}-direction"))
    with (
        kept_in(folder / JOURNAL, output, resume=resume) as journal,
        RunLog(folder, command_line()) as log,
        output.progress(log, plan=PLANS["direction"]) as progress,
    ):
        model = model_options.load(progress, output)
        chosen = prompting.with_openings(chosen, model, output)
        skipping.list_unusable(chosen.usable(model.tokenizer).unusable, folder, output)
        found = find_direction(model, chosen, settings, progress=progress, journal=journal)
        files = found.save(folder)
    if found.remark:
        output.warn(found.remark)
    output.show(
        *_tables(found),
        "",
        found.describe(),
        f"The direction, all of them and the table are in {folder}/; next: circuits ablate --direction "
        f"{folder / DIRECTION}",
    )
    output.leave(found.to_dict() | {"folder": str(folder)}, folder, files)


def _tables(found: "DirectionSearch") -> list[Group]:
    best: dict[int, DirectionCandidate] = {}
    for each in found.candidates:
        if each.layer not in best or each.auc > best[each.layer].auc or each.effect is not None:
            best[each.layer] = each
    headings = ["layer", "token", "AUC", "gap", "size", "ablated", "added", "KL", "KL text", "chosen"]
    rows = [_row(each, each == found.chosen) for each in best.values()]
    title = (
        f"directions of {found.direction.origin.behaviour} in {found.direction.origin.model}: AUC on pairs they were "
        f"not taken from; share of clean prompts with an answer as first token when ablated (before "
        f"{found.before.ablated_rate:.2f}), of corrupted ones when added (before {found.before.added_rate:.2f})"
    )
    return [table(title, headings, rows, numbers=tuple(range(9)))]


def _row(each: "DirectionCandidate", chosen: bool) -> list[str]:
    low, high = each.auc_interval
    row = [str(each.layer), str(each.position), f"{each.auc:.2f} [{low:.2f}, {high:.2f}]"]
    row += [f"{each.gap:.2f}", f"{each.size:.2f}"]
    effect = each.effect
    if effect is None:
        return [*row, "", "", "", "", ""]
    measured = [effect.ablated_rate, effect.added_rate]
    row += [*(f"{value:.2f}" for value in measured), f"{effect.kl:.3f}", f"{effect.text_kl:.3f}"]
    return [*row, "yes" if chosen else "" if each.passes else "(does not pass)"]


@dataclass(frozen=True)
class Steering:
    """A direction that ``circuits ablate`` acts on instead of a circuit."""

    direction: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Instead of a circuit: ablate this direction of the residual stream (circuits direction finds one).",
            show_default=False,
        ),
    ] = None
    add: Annotated[
        float | None,
        typer.Option(
            metavar="TIMES",
            help="With --direction: add so many times its size instead of ablating it.",
            show_default=False,
        ),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --direction: write the model with it taken out of all weights that write to the stream.",
            show_default=False,
        ),
    ] = None

    def require_alone(self, circuit: Path | None, acting: Acting, metric: str | None) -> None:
        """Raise :class:`UsageError` where a direction is given with what acts on a circuit."""
        if circuit is not None or acting != Acting() or metric is not None:
            raise UsageError(
                "--direction acts on the residual stream, not on a circuit's nodes; leave out the circuit, --metric, "
                "--what, --ablation, --scale, --steer, --nodes, --strongest and --first-token."
            )
        if self.add is not None and self.weights is not None:
            raise UsageError(
                "--weights writes a model without the direction, and --add adds it; leave one of them out."
            )

    def act(
        self,
        model_options: ModelOptions,
        output: Output,
        *,
        prompts: str | None,
        skipping: SkipOptions,
        pairs: int,
        draws: int,
        seed: int | None,
        out: Path | None,
        resume: bool,
    ) -> None:
        """Ablate the direction, or add it, and show what changes on held-out pairs."""
        from circuits.directions.stream_direction import StreamDirection
        from circuits.files.atomic import write
        from circuits.openings import finds_openings, with_openings
        from circuits.steering.ablated_weights import write_ablated_weights
        from circuits.steering.effects import measure_direction

        assert self.direction is not None
        found = StreamDirection.load(self.direction)
        name, skips = _behaviour_name(prompts, found.origin.behaviour, self.direction), skipping.skip_unusable
        behaviour = load_behaviour(name, skip_unusable=skips)
        target = prepared_file(out, (".json",)) if out else None
        action: Action = "ablate" if self.add is None else "add"
        beside = target or self.direction.with_name(f"{self.direction.stem}.{action}")
        with (
            kept_until_done(beside, output, resume=resume) as journal,
            output.progress(plan=PLANS["direction"]) as progress,
        ):
            model = model_options.load(progress, output, default=found.origin.model or DEFAULT_MODEL)
            written = write_ablated_weights(model, found, self.weights) if self.weights else None
            if written is not None:
                output.say(written.describe())
            if finds_openings(model, behaviour):
                behaviour, openings = with_openings(model, behaviour)
                output.say(openings.describe())
            drawn = behaviour.prompts(model.tokenizer, discovery=0, heldout=pairs, seed=seed or 0)
            output.recorder.drew(drawn)
            skipping.list_unusable(drawn.unusable, (target or self.direction).parent, output)
            scale = 1.0 if self.add is None else self.add
            more: dict[str, Any] = {"draws": draws, "seed": seed or 0, "progress": progress, "journal": journal}
            report = measure_direction(model, found, drawn.heldout, action, scale=scale, **more)
            document = {"format": FORMAT, "version": VERSION, "model": model.info.id, "behaviour": behaviour.name}
            document |= {"pairs": len(drawn.heldout), "prompts_digest": drawn.digest, "summary": report.describe()}
            document |= report.to_dict()
            if target is not None:
                write(target, json_text(document, sort_keys=True), make_folder=True)
        output.show(*_report(report, model.info.id), report.describe())
        files = {"file": str(target) if target else None, "weights": str(written.folder) if written else None}
        output.leave(document | files, (target or self.direction).parent, [target] if target else [])


def _behaviour_name(given: str | None, known: str, file: Path) -> str:
    if not (given or known):
        raise UsageError(f"{file} does not say of which behaviour its direction is; give it with --prompts.")
    return given or known


def _report(report: "SteeringReport", model: str) -> list[Any]:
    done = "ablated at every layer and token" if report.action == "ablate" else f"added {report.scale:g} times"
    place = f"of layer {report.direction.layer}, token {report.direction.position}"
    rows = [("direction", f"{place}, {done}"), ("random", f"{report.draws} directions of the same length")]
    if report.agreement is not None:
        rows.append(("first token and text", f"say the same of {report.agreement:.0%} of the answers"))
    quantities = [
        [each.name, str(each.n), each.before.describe(), each.after.describe(), each.describe_random()]
        for each in report.quantities
    ]
    title = "before and after, with 95 % intervals; random: median [smallest, largest]"
    heading = ["", "n", "before", "after", "random"]
    return [facts(f"in {model}", rows), table(title, heading, quantities, numbers=(1, 2, 3, 4))]
