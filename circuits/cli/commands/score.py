"""``circuits score``: a number for every edge, or for those asked for."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from circuits.cli.arguments import BehaviourArgument, ByRoleOption, DirectionOption, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import Recorded, Session, model_name, recorded
from circuits.cli.tables import STRONGEST, facts, table
from circuits.cli.verifying import Verifying
from circuits.cli.working import Sharing
from circuits.errors import MissingFileError, UsageError
from circuits.files.documents import exists
from circuits.graph import EdgeIndices
from circuits.interchange.score_files import SUFFIXES, read_edges, write_scores
from circuits.patching.protocol import StageProgress, of_stage
from circuits.progress import PLANS
from circuits.scores import EdgeScores
from circuits.vocabulary import ELIMINATION_IN_BRIEF, Direction, ScorerName

if TYPE_CHECKING:
    from circuits.patching.sequences import AnyExperiment


@command
def score(
    behaviour: BehaviourArgument,
    *,
    scorer: Annotated[
        str, typer.Option(metavar="|".join(ScorerName), help=f"How edges are scored; {ELIMINATION_IN_BRIEF}.")
    ] = ScorerName.EAP_IG,
    edges: Annotated[
        str,
        typer.Option(metavar="FILE|all|top:N", help="Which edges; top:N are the N best by eap-ig."),
    ] = "all",
    steps: Annotated[int, typer.Option(help="Steps of eap-ig.", min=1)] = 5,
    freeze_norms: Annotated[
        bool, typer.Option("--freeze-norms", help="Take gradients with the scales of norms as constants.")
    ] = False,
    freeze_patterns: Annotated[
        bool, typer.Option("--freeze-patterns", help="Take gradients with the attention patterns as constants.")
    ] = False,
    by_role: ByRoleOption = False,
    direction: DirectionOption = Direction.NOISING,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .csv or .parquet file.", rich_help_panel="Output")
    ] = None,
    resume: ResumeOption = False,
    sharing: Sharing,
    verifying: Verifying,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Score edges: positive means that corrupting the edge hurts the behaviour."""
    output = output_options.output()
    name, wanted = ScorerName.parse(scorer), _Wanted(edges)
    searched = verifying.top_k(name)
    chosen = measurement.behaviour(behaviour)
    options = measurement.options(chosen, direction=direction or Direction.NOISING)
    resources = model_options.resources(name)
    default = f"scores-{name}.csv"
    file = prepared_file(out or default_folder(model_name(model_options), chosen.name) / default, SUFFIXES, default)

    from circuits.scoring import score as score_edges
    from circuits.scoring.scorers import SHARED, Settings

    seed = measurement.seed or 0
    with kept_until_done(file, output, resume=resume) as journal, output.progress(plan=PLANS["score"]) as progress:
        if name in SHARED:
            sharing.share_out(file, output, progress, resume=resume)
        session = Session(model_options, resources, measurement, output, file.parent)
        begun = recorded(session, chosen, options, progress, by_role=by_role, journal=journal)
        if model_options.memory != "auto":
            output.say(f"memory: {begun.experiment.plan}")
        indices = wanted.indices(begun.experiment, steps, progress)
        step, meeting = of_stage(progress, f"scoring ({name})"), sharing.meeting(file)
        told = Settings(indices, steps, seed, searched, step, freeze_norms, freeze_patterns, meeting)
        scores = score_edges(begun.experiment, name, told)
        write_scores(scores, file, make_folder=True)
        sharing.end(file)
    _report(begun, scores, file, output)


def _report(begun: Recorded, scores: EdgeScores, file: Path, output: Output) -> None:
    experiment, options, name = begun.experiment, begun.experiment.options, scores.scorer
    for warning in begun.warnings:
        output.warn(warning)
    rows = list(scores.rows(scores.ranked(by_magnitude=True)[:STRONGEST]))
    rows.sort(key=lambda row: -abs(float(row["score"])))
    output.show(
        facts(
            f"{begun.behaviour} in {begun.model.info.id}",
            [
                ("edges scored", f"{len(scores.scored):,} of {scores.graph.n_edges:,} by {name}"),
                *([("verified", scores.verification.describe())] if scores.verification else []),
                (
                    str(options.metric),
                    f"clean {experiment.clean.mean():.3f}, corrupted {experiment.corrupted.mean():.3f}",
                ),
                ("prompt pairs", str(experiment.n_pairs)),
                *_role_rows(scores),
                ("written to", str(file)),
            ],
        ),
        table(
            "strongest edges",
            ["edge", f"score ({options.metric.unit})"],
            [[str(row["edge"]), f"{row['score']:.4g}"] for row in rows],
            numbers=(1,),
        ),
    )
    output.leave(
        {
            "scorer": name,
            "measured": scores.measured,
            "verification": asdict(scores.verification) if scores.verification else None,
            "metric": options.metric,
            "n": experiment.n_pairs,
            "metric_clean": float(experiment.clean.mean()),
            "metric_corrupted": float(experiment.corrupted.mean()),
            "prefix_cache": str(experiment.prefix_cache),
            "edges": len(scores.scored),
            "roles": list(scores.graph.shape.roles),
            "cancels_over_roles": scores.cancelling,
            "strongest": rows,
            "warnings": list(begun.warnings),
            "file": str(file),
        },
        file.parent,
        [file],
    )


def _role_rows(scores: EdgeScores) -> list[tuple[str, str]]:
    """Return how scores are spread over the roles of edges, and how much of them cancels over these."""
    roles, sizes = scores.graph.shape.roles, np.abs(np.nan_to_num(scores.by_role)).sum(axis=1)
    if not roles:
        return []
    shares: list[float] = (sizes / max(float(sizes.sum()), 1e-30)).tolist()
    named = ", ".join(f"{role} {share:.0%}" for role, share in zip(roles, shares, strict=True))
    return [("|score| by role", named), ("cancels over roles", f"{scores.cancelling:.0%} of |score|")]


class _Wanted:
    """The edges that ``--edges`` names."""

    def __init__(self, text: str) -> None:
        self._text = text
        head, _, number = text.partition(":")
        self._top: int | None = None
        if head == "top" and not exists(Path(text)):
            if not re.fullmatch("0*[1-9][0-9]{0,8}", number):
                raise UsageError(f"--edges top:N needs a number from 1 up, got '{text}'; such as top:200.")
            self._top = int(number)
        elif text != "all" and not exists(Path(text), file=True):
            raise MissingFileError(
                f"there is no file '{text}'; --edges takes all, top:N, or a file with one edge per line, such as "
                "a3.h5->m7."
            )

    def indices(self, experiment: "AnyExperiment", steps: int, progress: StageProgress) -> EdgeIndices | None:
        """Return the edges' positions; None: all edges."""
        from circuits.scoring import score as score_edges
        from circuits.scoring.scorers import Settings

        if self._text == "all":
            return None
        if self._top is None:
            return read_edges(self._text, experiment.graph)
        told = Settings(steps=steps, progress=lambda done, total: progress("ranking (eap-ig)", done, total))
        return score_edges(experiment, ScorerName.EAP_IG, told).ranked()[: self._top]
