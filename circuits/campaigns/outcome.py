"""What came out of a campaign: one table of all runs, stability across seeds, transfer, failures, and a page."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from circuits.campaigns.campaign import Campaign, Planned
from circuits.campaigns.states import Failure
from circuits.circuit import Circuit
from circuits.comparison.overlap import chance_overlap
from circuits.files.atomic import file_names, write
from circuits.files.documents import json_text, read_json
from circuits.interchange.sidecars import PROMPTS
from circuits.report.report import Table
from circuits.showing import latex_table

FORMAT, VERSION = "circuits/campaign", 1
FILES = ("runs.csv", "runs.tex", "stability.csv", "transfer.csv", "campaign.json", "index.html")
_NUMBERS = ("edges", "faithfulness", "low", "high", "fidelity", "clean", "corrupted")
Cell = str | float


@dataclass(frozen=True)
class RunOutcome:
    """One run: its folder, and the circuit or why there is none."""

    run: Planned
    folder: Path
    failure: Failure | None
    circuit: Circuit | None = None

    def row(self, labels: Mapping[str, str]) -> dict[str, Cell]:
        """Return its row of the table; what is not known is empty."""
        of = asdict(self.run) | {"behaviour": labels[self.run.behaviour], "model": labels[self.run.model]}
        row: dict[str, Cell] = of | {"state": self.failure.kind if self.failure else "finished"}
        row |= dict.fromkeys(_NUMBERS, "")
        if self.circuit is None or self.circuit.evaluation is None:
            return row
        found = self.circuit.evaluation
        low, high = found.faithfulness_ci
        row |= {"edges": len(self.circuit), "faithfulness": found.faithfulness, "low": low, "high": high}
        row |= {"clean": found.metric_clean, "corrupted": found.metric_corrupted}
        return row | ({"fidelity": found.likeness.fidelity.value} if found.likeness else {})


@dataclass(frozen=True)
class SeedStability:
    """How alike the circuits of one behaviour in one model are that other prompts (seeds) led to.

    ``jaccard`` is the mean over pairs of seeds of the edges that both have, over those that one of them has; ``least``
    is the smallest; ``expected`` is the mean for random sets of the same sizes. ``common`` edges are in all circuits.
    ``prompts`` is the mean Jaccard index of the prompts that they were searched on: at 1 they were the same ones, as
    with a file of fewer pairs than are asked for, and alike circuits say nothing of stability.
    """

    behaviour: str
    model: str
    seeds: int
    jaccard: float
    least: float
    expected: float
    common: int
    prompts: float | None

    @property
    def remark(self) -> str:
        """What has to be said of it; empty where nothing has."""
        if self.prompts != 1:
            return ""
        return (
            f"the seeds of {self.behaviour} in {self.model} were searched on the same prompts, so that their circuits "
            "are alike says nothing of stability. Give it more prompts, or ask for fewer pairs."
        )


@dataclass(frozen=True)
class TransferCell:
    """The faithfulness, with its 95 % interval, of one behaviour's circuit on another's held-out prompts."""

    model: str
    circuit: str
    on: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CampaignOutcome:
    """What came out of a campaign, in the order of its grid, however it was run.

    ``transfer_failures`` are of models whose circuits could not be run on each other's prompts.
    """

    campaign: Campaign
    runs: tuple[RunOutcome, ...]
    transfer: tuple[TransferCell, ...] = ()
    transfer_failures: tuple[Failure, ...] = ()

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Everything that failed."""
        return (*(each.failure for each in self.runs if each.failure), *self.transfer_failures)

    @cached_property
    def stability(self) -> tuple[SeedStability, ...]:
        """The stability across seeds, of every behaviour and model with two circuits or more."""
        groups: dict[tuple[str, str], list[RunOutcome]] = {}
        for each in self.runs:
            if each.circuit:
                groups.setdefault((each.run.behaviour, each.run.model), []).append(each)
        labels = self.campaign.labels
        return tuple(
            _stability(labels[behaviour], labels[model], runs)
            for (behaviour, model), runs in groups.items()
            if len(runs) > 1
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What has to be said of the tables."""
        return tuple(each.remark for each in self.stability if each.remark)

    def rows(self) -> list[dict[str, Cell]]:
        """Return the table of all runs, a row for each."""
        labels = self.campaign.labels
        return [each.row(labels) for each in self.runs]

    def to_csv(self) -> str:
        """Return the table of all runs as CSV."""
        return _csv(self.rows())

    def to_latex(self) -> str:
        """Return the table of all runs in LaTeX; see :func:`circuits.showing.latex_table`."""
        rows = self.rows()
        return latex_table("all runs of a campaign", list(rows[0]), [list(row.values()) for row in rows])

    def tables(self) -> list[Table]:
        """Return all tables as texts."""
        tables = [_table("runs", self.rows())]
        if self.stability:
            tables.append(_table("stability: edges shared between seeds (Jaccard)", map(asdict, self.stability)))
        if self.transfer:
            title = "transfer: faithfulness of one behaviour's circuit on another's held-out prompts"
            tables.append(_table(title, map(asdict, self.transfer)))
        if self.failures:
            tables.append(_table("failures", map(asdict, self.failures)))
        return tables

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "campaign": self.campaign.to_dict(),
            "runs": self.rows(),
            "stability": [asdict(each) for each in self.stability],
            "transfer": [asdict(each) for each in self.transfer],
            "failures": [asdict(each) for each in self.failures],
            "remarks": self.remarks,
        }

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write the tables (``runs.csv``, ``runs.tex``, …), ``campaign.json`` and a page; return the files.

        Raises :class:`OutputError`.
        """
        document = {"format": FORMAT, "version": VERSION, **self.to_dict()}
        parts = [_csv([asdict(each) for each in several]) for several in (self.stability, self.transfer)]
        texts = (self.to_csv(), self.to_latex(), *parts, json_text(document), self._page())
        files = tuple(folder / name for name in FILES)
        for file, text in zip(files, texts, strict=True):
            write(file, text, make_folder=True)
        return files

    def _page(self) -> str:
        environment = Environment(
            loader=PackageLoader("circuits", "campaigns"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        tables, names = self.tables(), model_folders(self.campaign)
        labels = {label: names[name] for name, label in self.campaign.labels.items() if name in names}
        models = {label: labels[label] for label in dict.fromkeys(cell.model for cell in self.transfer)}
        shown = {"runs": tables[0].rows, "columns": tables[0].columns, "tables": tables[1:], "models": models}
        return (
            environment.get_template("campaign.html.j2").render(
                **shown, failed=len(self.failures), remarks=self.remarks
            )
            + "\n"
        )


def outcome_of(
    campaign: Campaign, runs: Sequence[RunOutcome], transfer: Mapping[str, Path | Failure]
) -> CampaignOutcome:
    """Put together what runs left: circuits, and the comparisons of each model's circuits."""
    places = {model: place for model, place in transfer.items() if isinstance(place, Path)}
    labels = campaign.labels
    cells = [cell for model, place in places.items() for cell in _cells(labels[model], place / "comparison.json")]
    failed = tuple(each for each in transfer.values() if isinstance(each, Failure))
    return CampaignOutcome(campaign, tuple(runs), tuple(cells), failed)


def model_folders(campaign: Campaign) -> dict[str, str]:
    """Return the name of each model's folder."""
    labels = campaign.labels
    return dict(zip(campaign.models, file_names([labels[name] for name in campaign.models]), strict=True))


def _stability(behaviour: str, model: str, runs: Sequence[RunOutcome]) -> SeedStability:
    circuits = [each.circuit for each in runs if each.circuit]
    prompts = [_searched_on(each.folder) for each in runs]
    shared = [len(a & b) / len(a | b) for a, b in combinations(prompts, 2) if a and b]
    pairs = [
        chance_overlap(a.graph.n_edges, len(a), len(b), len(np.intersect1d(a.edges, b.edges)))
        for a, b in combinations(circuits, 2)
    ]
    found = [each.jaccard for each in pairs]
    common = reduce(np.intersect1d, [circuit.edges for circuit in circuits])
    expected = float(np.mean([each.expected_jaccard for each in pairs]))
    return SeedStability(
        behaviour=behaviour,
        model=model,
        seeds=len(circuits),
        jaccard=float(np.mean(found)),
        least=float(min(found)),
        expected=expected,
        common=len(common),
        prompts=float(np.mean(shared)) if shared else None,
    )


def _searched_on(folder: Path) -> set[tuple[str, str]]:
    """Return the prompt pairs that a run was searched on, as texts; none where they were not left."""
    file = folder / PROMPTS
    if not file.is_file():
        return set()
    pairs = cast("dict[str, list[dict[str, Any]]]", read_json(file))["prompts"]
    return {(str(pair["clean"]), str(pair["corrupted"])) for pair in pairs if pair["split"] == "discovery"}


def _cells(model: str, file: Path) -> list[TransferCell]:
    """Return the faithfulness of whole circuits (not of parts) on the behaviours, from a comparison's numbers."""
    document = cast("dict[str, Any]", read_json(file))
    names = [each["name"] for each in document["circuits"]]
    return [
        TransferCell(model, cell["circuit"], cell["on"], cell["value"], cell["low"], cell["high"])
        for cell in document["transfer"] or ()
        if cell["circuit"] in names
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(_texts(row.values(), digits=6) for row in rows)
    return text.getvalue()


def _table(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    several = list(rows)
    return Table(title, tuple(several[0]), tuple(tuple(_texts(row.values(), digits=3)) for row in several))


def _texts(values: Iterable[Any], *, digits: int) -> list[str]:
    """Return values as cells: numbers with so many digits, nothing for what is not known."""
    return ["" if each is None else f"{each:.{digits}g}" if isinstance(each, float) else str(each) for each in values]
