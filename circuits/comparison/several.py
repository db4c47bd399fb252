"""Any number of circuits compared: pair by pair, their core and differences, what they do on each other's prompts."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Self, cast

from circuits.circuit import Circuit
from circuits.comparison.changes import EdgeChanges
from circuits.comparison.crossing import (
    Column,
    Contrast,
    Dissociation,
    Share,
    TransferMatrix,
    dissociation,
    shared_by,
    transfer_matrix,
)
from circuits.comparison.names import names_of
from circuits.comparison.pair import CircuitDiff, difference, require_one_shape
from circuits.comparison.parts import CORE, MembershipCount, Part, membership_counts, parts_of, pruned_to_live_paths
from circuits.comparison.words import column_sentences, dissociation_sentences, in_short, transfer_sentences
from circuits.errors import UnknownNameError, UsageError
from circuits.files.documents import plain
from circuits.scores import EdgeScores
from circuits.showing import doubts_html

FORMAT, VERSION = "circuits/comparison", 1


@dataclass(frozen=True)
class Comparison:
    """What circuits share and what they do on each other's prompts.

    ``columns`` and ``changes`` are empty until they are measured (:func:`circuits.measure_comparison`,
    :func:`circuits.compare_models`).
    """

    circuits: tuple[Circuit, ...]
    names: tuple[str, ...]
    pairs: tuple[CircuitDiff, ...]
    parts: tuple[Part, ...]
    columns: tuple[Column, ...] = ()
    changes: tuple[EdgeChanges, ...] = ()

    def __repr__(self) -> str:
        measured = ", transfer measured" if self.columns else ""
        return f"Comparison({', '.join(self.names)}"[:200] + f": {len(self.pairs)} pairs{measured})"

    def _repr_html_(self) -> str:
        """Show in a notebook what may be said, in sentences."""
        return f"<p>{html.escape(repr(self))}</p>{doubts_html(self.sentences())}"

    def pair(self, a: str, b: str) -> CircuitDiff:
        """Return the comparison of two of the circuits, by name and in the circuits' order."""
        for name in (a, b):
            if name not in self.names:
                raise UnknownNameError("circuit", name, self.names)
        for diff in self.pairs:
            if {a, b} == set(diff.names):
                return diff
        raise UsageError(f"'{a}' is one circuit; name two of {', '.join(self.names)}.")

    @property
    def difference(self) -> CircuitDiff:
        """The comparison of the two circuits, where there are two."""
        if len(self.pairs) != 1:
            raise UsageError(f"{len(self.circuits)} circuits are compared; choose two with .pair(a, b).")
        return self.pairs[0]

    def part(self, name: str) -> Part | None:
        """Return ``core`` or ``only <name>``; None where it has no edges."""
        return next((part for part in self.parts if part.name == name), None)

    @property
    def core(self) -> Part | None:
        """The edges that every circuit has; None where there are none."""
        return self.part(CORE)

    @cached_property
    def memberships(self) -> tuple[MembershipCount, ...]:
        """How many edges and nodes are in exactly which circuits."""
        return membership_counts(self.circuits, self.names)

    @cached_property
    def transfer(self) -> TransferMatrix | None:
        """The faithfulness of circuits and parts on every behaviour, where that was measured."""
        rows = (*self.names, *(part.name for part in self.parts))
        return transfer_matrix(self.columns, rows) if self.columns else None

    @cached_property
    def dissociations(self) -> tuple[Dissociation, ...]:
        """What knocking out costs, for every two circuits, where that was measured."""
        found = [dissociation(a, b) for a, b in combinations(self.columns, 2)]
        return tuple(each for each in found if each is not None)

    def with_columns(self, columns: Sequence[Column]) -> Self:
        """Return the same comparison with what was measured on each other's prompts."""
        return replace(self, columns=tuple(columns))

    def with_changes(self, changes: Sequence[EdgeChanges]) -> Self:
        """Return the same comparison with what the same edges do in other models."""
        return replace(self, changes=tuple(changes))

    def live(self) -> "Comparison":
        """Return the comparison with parts that leave out edges on no path through them from input to logits."""
        return replace(self, parts=tuple(pruned_to_live_paths(part) for part in self.parts))

    def draw(self, path: str | Path, *, title: str | None = None) -> None:
        """Draw two circuits into one diagram, or of more circuits the edges that several have, as the suffix says."""
        if len(self.pairs) == 1:
            self.pairs[0].draw(path, title=title)
            return
        from circuits.drawing.node_map import draw_several

        draw_several(self, path, shared=True)

    def draw_nodes(self, path: str | Path) -> None:
        """Draw a map of the model's heads and MLPs that shows which circuits have them; the suffix says as what."""
        from circuits.drawing.node_map import draw_several

        draw_several(self, path)

    def sentences(self) -> list[str]:
        """Return in sentences what the numbers do and do not support, one sentence or two per entry."""
        models = list(dict.fromkeys(circuit.model.id for circuit in self.circuits))
        sentences: list[str] = []
        if len(models) > 1:
            of = ", ".join(
                f"{name} is {each.behaviour.name} in {each.model.id}"
                for name, each in zip(self.names, self.circuits, strict=True)
            )
            sentences.append(f"The models differ: {of}.")
        sentences += self._in_short()
        for diff in self.pairs:
            sentences += diff.sentences()
        if len(self.circuits) > 2:
            core = self.core
            held = f"{len(core.circuit)} edges, {core.live} of them on a path" if core else "no edge"
            sentences.append(f"All {len(self.circuits)} circuits have {held} in common.")
        for change in self.changes:
            sentences += change.sentences()
        if len(self.circuits) == 1:
            return sentences
        if self.transfer is None:
            sentences.append(
                "Whether one circuit can do the other's work was not measured (cross-transfer), nor whether one can be "
                "knocked out without the other; overlap does not tell."
            )
            return sentences
        sentences += column_sentences(self.columns)
        sentences += transfer_sentences(self.transfer, self.names)
        for found in self.dissociations:
            sentences += dissociation_sentences(found)
        return sentences

    def _in_short(self) -> list[str]:
        dissociated = {(each.a, each.b): each for each in self.dissociations}
        return [in_short(diff, self.transfer, dissociated.get(diff.names)) for diff in self.pairs]

    def describe(self) -> str:
        """Return in sentences what the numbers do and do not support."""
        return "\n".join(self.sentences())

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the circuits themselves as plain JSON values; what cannot be computed is ``None``."""
        transfer = self.transfer
        document = {
            "format": FORMAT,
            "version": VERSION,
            "circuits": [
                {
                    "name": name,
                    "model": circuit.model.id,
                    "digest": circuit.model.digest,
                    "behaviour": circuit.behaviour.name,
                    "metric": circuit.behaviour.metric,
                    "edges": len(circuit),
                }
                for name, circuit in zip(self.names, self.circuits, strict=True)
            ],
            "pairs": [diff.to_dict() for diff in self.pairs],
            "memberships": [asdict(count) for count in self.memberships],
            "parts": [
                {
                    "name": part.name,
                    "edges": len(part.circuit),
                    "live_edges": part.live,
                    "made_of": part.circuit.provenance.made_of,
                }
                for part in self.parts
            ],
            "transfer": _cells(transfer.cells, "circuit", "on") if transfer else None,
            "dissociations": [_dissociation(each) for each in self.dissociations],
            "changes": [change.to_dict() for change in self.changes],
            "remarks": column_sentences(self.columns),
            "sentences": self.sentences(),
        }
        return cast("dict[str, Any]", plain(document))


def compare(
    *circuits: Circuit, names: Sequence[str] = (), scores: Sequence[EdgeScores | None] = (), seed: int = 0
) -> Comparison:
    """Compare two or more circuits of one model, or of models of the same shape.

    Args:
        circuits: The circuits.
        names: What to call them; otherwise their behaviours, or what else tells them apart.
        scores: For each circuit the scores of the whole graph, or None: ranks are then correlated over the union of two
            circuits, with intervals over prompts.
        seed: Draws rewired circuits and resamples.

    Raises :class:`UsageError` for fewer than two circuits, different shapes, or names that are not one each. Runs no
    model; :func:`circuits.measure_comparison` measures transfer and knocking out.
    """
    if len(circuits) < 2:
        raise UsageError(f"at least two circuits can be compared, got {len(circuits)}.")
    require_one_shape(circuits)
    called = tuple(names) or names_of(circuits)
    if len(called) != len(circuits) or len(set(called)) != len(called):
        raise UsageError(f"{len(circuits)} circuits need as many different names, got {', '.join(called)}.")
    given = tuple(scores) or (None,) * len(circuits)
    if len(given) != len(circuits):
        raise UsageError(f"{len(circuits)} circuits need as many scores (or None), got {len(given)}.")
    pairs = tuple(
        difference(
            circuits[i],
            circuits[j],
            names=(called[i], called[j]),
            scores_a=given[i],
            scores_b=given[j],
            seed=seed,
        )
        for i, j in combinations(range(len(circuits)), 2)
    )
    return Comparison(circuits, called, pairs, parts_of(circuits, called))


def _cells(cells: Mapping[tuple[str, str], Share], first: str, second: str) -> list[dict[str, Any]]:
    return [
        {first: row, second: column, **asdict(share.value), "n": share.n, "random": share.random}
        for (row, column), share in cells.items()
    ]


def _dissociation(found: Dissociation) -> dict[str, Any]:
    shared = None
    if found.shared is not None:
        name = shared_by(found.a, found.b)
        sides = zip((found.a, found.b), found.shared, strict=True)
        shared = _cells({(name, behaviour): share for behaviour, share in sides}, "knocked_out", "behaviour")
    return {
        "a": found.a,
        "b": found.b,
        "whole": _contrast(found.whole),
        "only": _contrast(found.only) if found.only else None,
        "shared": shared,
        "double_dissociation": found.double,
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "losses": _cells(contrast.losses, "knocked_out", "behaviour"),
        "gains": [asdict(gain) for gain in contrast.gains],
        "interaction": asdict(contrast.interaction),
        "selective": contrast.selective,
        "double_dissociation": contrast.double,
    }
