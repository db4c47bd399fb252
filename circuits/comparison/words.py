"""What transfer and knocking out do and do not support, in sentences."""

from enum import StrEnum

from circuits.comparison.crossing import (
    LEAST_PAIRS,
    LEAST_RANDOM,
    Column,
    Contrast,
    Dissociation,
    Share,
    TransferMatrix,
)
from circuits.comparison.pair import CircuitDiff

MOST = 0.5
"""From this share on, of what the behaviour's own circuit does, a circuit does most of the work."""

HARDLY = 0.05
"""Below this share of it, hardly any."""


class Work(StrEnum):
    """How much of another behaviour's work a circuit does, against that one's own circuit."""

    MOST = "most"
    PART = "part"
    LITTLE = "a small part"
    HARDLY = "hardly any"
    NONE = "none"
    UNKNOWN = "unknown"


def work(share: Share, own: Share | None) -> Work:
    """Judge a circuit on another behaviour: beyond random circuits, and beside what its own circuit does."""
    if share.beyond_random is None:
        return Work.UNKNOWN
    if not share.beyond_random:
        return Work.NONE
    all_of_it = min(own.value.value, 1.0) if own else 1.0
    most = MOST * all_of_it
    if share.value.high < HARDLY * all_of_it:
        return Work.HARDLY
    if share.value.low > most:
        return Work.MOST
    return Work.LITTLE if share.value.high < most else Work.PART


def in_short(diff: CircuitDiff, matrix: TransferMatrix | None, found: Dissociation | None) -> str:
    """Return in one sentence what was found about two circuits."""
    a, b = diff.names
    parts = [f"{a} and {b} share {len(diff.shared)} edges, {diff.edge_overlap.in_short()}"]
    for row, column in ((a, b), (b, a)):
        if matrix and (row, column) in matrix.cells:
            done = work(matrix.cell(row, column), matrix.cells.get((column, column)))
            parts.append(_IN_SHORT[done].format(row, column))
    if found is not None:
        parts.append(f"knocked out whole, {_found(found.whole)}")
        if found.only is not None and _found(found.only) != _found(found.whole):
            parts.append(f"by what only one of them has, {_found(found.only)}")
    return f"In short: {'; '.join(parts)}."


def _found(contrast: Contrast) -> str:
    """Return in a few words what :func:`_verdict` says in full."""
    if contrast.undecided:
        return "they are too little measured to say whether they are dissociated"
    if contrast.double:
        return "they are doubly dissociated"
    return "they are dissociated in one direction only" if any(contrast.selective) else "they are not dissociated"


_IN_SHORT = {
    Work.MOST: "{}'s does most of what {}'s own circuit does",
    Work.PART: "{}'s does part of what {}'s own circuit does",
    Work.LITTLE: "{}'s does a small part of what {}'s own circuit does",
    Work.HARDLY: "{}'s does hardly any of {}'s work",
    Work.NONE: "{}'s does none of {}'s work",
    Work.UNKNOWN: "whether {}'s does {}'s work is open",
}


def transfer_sentences(matrix: TransferMatrix, names: tuple[str, ...]) -> list[str]:
    """Return in sentences, for every circuit, whether it does the others' work."""
    sentences: list[str] = []
    for row in names:
        for column in matrix.columns:
            if row != column and (row, column) in matrix.cells:
                share, own = matrix.cell(row, column), matrix.cells.get((column, column))
                sentences.append(f"{row}'s circuit alone on {column}'s prompts: {_kept(share, own)}.")
    return sentences


def _kept(share: Share, own: Share | None) -> str:
    """Return in words how much of another behaviour a circuit keeps, against what that one's own circuit keeps."""
    text = f"faithfulness {share.value.describe()}, n = {share.n}"
    if own is not None:
        text += f" (its own circuit {own.value.value:.2f})"
    if share.random:
        median, largest = (round(value, 2) + 0.0 for value in (share.random_median, max(share.random)))  # no -0.00
        text += f"; {len(share.random)} random circuits of the same size: median {median:.2f}, largest {largest:.2f}"
    return (
        text
        + {
            Work.MOST: ", so it does most of the other's work",
            Work.PART: ", so it does part of the other's work; whether most of it, these prompts do not tell",
            Work.LITTLE: ", so it does a small part of the other's work, more than chance",
            Work.HARDLY: ", more than chance, yet hardly any of the other's work",
            Work.NONE: ", so no more than chance: it does not do the other's work",
            Work.UNKNOWN: f"; with fewer than {LEAST_PAIRS} pairs, or than {LEAST_RANDOM} random circuits of the same "
            "size beside it, this cannot be told from chance",
        }[work(share, own)]
    )


def dissociation_sentences(found: Dissociation) -> list[str]:
    """Return in sentences what knocking out shows, and whether it is a double dissociation."""
    whole, only = found.whole, found.only
    sentences = _costs(whole, "{}'s circuit")
    if found.shared is None:
        return [*sentences, "They share no edges.", _verdict(whole, "the circuits")]
    sentences += [
        f"The edges that both have, knocked out, cost {found.a} {_lost(found.shared[0])} and {found.b} "
        f"{_lost(found.shared[1])}.",
        _verdict(whole, "the whole circuits"),
    ]
    if only is None:
        return [*sentences, "One circuit is a part of the other, so what only each of them has cannot be compared."]
    return [*sentences, *_costs(only, "the edges that only {} has"), _verdict(only, "what only one of them has")]


def _costs(contrast: Contrast, what: str) -> list[str]:
    a, b = contrast.behaviours
    return [
        f"Knocking out {what.format(own)} costs {own} {_lost(contrast.own[i])} and {other} "
        f"{contrast.losses[contrast.knocked[i], other].value.describe()}: {contrast.gains[i].value.describe()} more of "
        f"its own, {_selective(contrast.gains[i])}."
        for i, own, other in ((0, a, b), (1, b, a))
    ]


def _lost(share: Share) -> str:
    return f"{share.value.describe()} of the behaviour"


def _selective(gain: Share) -> str:
    if gain.value.low <= 0:
        return "less than the other's" if gain.value.high < 0 else "an interval that holds 0"
    if not gain.random:
        return "above 0"
    beside = f"{len(gain.random)} random knock-outs: median {gain.random_median:.2f}, largest {max(gain.random):.2f}"
    if gain.beyond_random is None:
        return f"above 0 ({beside})"
    return f"more than random ({beside})" if gain.beyond_random else f"above 0, but not above random ({beside})"


def _verdict(contrast: Contrast, what: str) -> str:
    (a, b), total = contrast.behaviours, contrast.interaction.describe()
    if contrast.undecided:
        pairs, random = (min(counts) for counts in zip(*((g.n, len(g.random)) for g in contrast.gains), strict=True))
        return (
            f"Of {what} no verdict is given: it takes at least {LEAST_PAIRS} pairs of each behaviour and "
            f"{LEAST_RANDOM} random knock-outs, and there are {pairs} and {random}. Raise --pairs and --random."
        )
    if contrast.double:
        return (
            f"Of {what} this is a double dissociation: each knock-out costs its own behaviour more than the other "
            f"(together {total}). So each is needed for its own behaviour more than for the other; it does not show "
            "that they have no parts in common."
        )
    missed = [i for i in (0, 1) if not contrast.selective[i]]
    reasons = "; ".join(_reason(contrast, i) for i in missed)
    if len(missed) == 1:
        return (
            f"Of {what} this is a dissociation in one direction, and no double dissociation: knocking out "
            f"{(b, a)[missed[0]]}'s is selective, {(a, b)[missed[0]]}'s is not shown to be ({reasons})."
        )
    return f"Of {what} there is no double dissociation: neither knock-out is shown to be selective ({reasons})."


def _reason(contrast: Contrast, i: int) -> str:
    own = contrast.behaviours[i]
    if contrast.gains[i].value.low <= 0:
        return f"{own}'s does not cost {own} more than the other"
    return f"some random knock-out costs {own} as much more than the other"


def column_sentences(columns: tuple[Column, ...]) -> list[str]:
    """Return in sentences which behaviours were not shown."""
    return [
        f"Nothing is concluded from {column.name}'s prompts: {column.remark}" for column in columns if column.remark
    ]
