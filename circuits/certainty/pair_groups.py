"""One mechanism or several: do the pairs of a behaviour hang on the same edges?

Pairs are grouped by what each of them takes from every edge: the slope of its metric along the edge's weight, averaged
over circuits in which all edges have the same weight (:data:`POINTS`), so that a pair's edges sum to its own gap. The
vectors are compared by their cosine, after truncated SVD (k-means; the number of groups by silhouette), as in
arXiv:2605.09129. Groups are found whatever the data are; whether they *matter* is measured: on held-out pairs, is the
circuit of a pair's own group closer to the model than one circuit of equal size for all? Groups can also be given, by a
tag of the pairs (the kind of harm, the template), and are judged alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.errors import PromptError, UsageError
from circuits.files.documents import json_text
from circuits.files.journal import Journal
from circuits.graph import EdgeIndices
from circuits.model import Model
from circuits.openings import finds_openings, with_openings
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import StageProgress, no_stages
from circuits.patching.sequences import AnyExperiment
from circuits.scores import Floats
from circuits.statistics import Estimate, share_of

POINTS = (1 / 6, 1 / 2, 5 / 6)
"""The weights of all edges at which slopes are taken: the midpoint rule."""
DIMENSIONS = 20
MOST = 6
PAIRS, EXAMPLES = 64, 3
LEAST, ENOUGH, DONE = 200, 0.8, 0.5
"""The fewest edges that circuits are tried with, the fidelity that they should have on the pairs to group, and the one
on held-out pairs below which nothing can be said."""
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class PairGroup:
    """Pairs that hang on the same edges; ``examples`` are clean prompts, ``behaviours`` how many are of each.

    ``name`` is the tag's value where a tag gave the groups, else empty. ``own`` and ``shared`` are the errors on
    held-out pairs of the group's own circuit and of the one for all, in units of what the empty circuit gets wrong on
    all pairs; None where no held-out pair is of this group.
    """

    pairs: int
    heldout: int
    behaviours: dict[str, int]
    examples: tuple[str, ...]
    own: float | None
    shared: float | None
    name: str = ""


@dataclass(frozen=True)
class PairGroups:
    """What :func:`group_pairs` found.

    ``by`` is the tag that gave the groups; None where they were found. ``silhouettes`` has the silhouette (-1 to 1) of
    each number of groups that was tried. ``gain`` is by how much the squared error of one circuit for all shrinks when
    every held-out pair is run in its own group's circuit, as a share of what the empty circuit gets wrong; ``fidelity``
    that of the circuit for all on the same pairs. ``rand`` is the adjusted Rand index of groups and behaviours, where
    there are several behaviours: 1 the same, 0 chance. ``tags`` has that of the groups and of each tag that parts the
    pairs.
    """

    model: str
    behaviours: tuple[str, ...]
    size: int
    silhouettes: dict[int, float]
    groups: tuple[PairGroup, ...]
    gain: Estimate
    fidelity: float
    rand: float | None = None
    by: str | None = None
    tags: dict[str, float] = field(default_factory=dict[str, float])
    remarks: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether circuits of their own are surely closer to the model on held-out pairs than a working one for all."""
        return self.fidelity >= DONE and self.gain.low is not None and self.gain.low > 0

    @property
    def verdict(self) -> str:
        """Return in a sentence what may be claimed."""
        if self.fidelity < DONE:
            return (
                f"Nothing can be said: one circuit of {self.size:,} edges for all has a fidelity of "
                f"{self.fidelity:.2f} on held-out pairs, too little to be better or worse than others. "
                "Take more edges (--size)."
            )
        if self.several:
            return f"Several mechanisms: {len(self.groups)} circuits are closer to the model than one for all."
        return "No evidence for several mechanisms: one circuit for all is no worse than one for each group."

    def to_document(self) -> dict[str, Any]:
        """Return what ``groups.json`` holds."""
        silhouettes = {str(count): value for count, value in self.silhouettes.items()}
        return asdict(self) | {"silhouettes": silhouettes, "several": self.several, "verdict": self.verdict}

    def to_json(self) -> str:
        """Return the text of ``groups.json``."""
        return json_text(self.to_document())


def group_pairs(
    model: Model,
    behaviours: Behaviour | Sequence[Behaviour],
    *,
    count: int | None = None,
    by: str | None = None,
    size: int | None = None,
    options: Options | None = None,
    resources: Resources | None = None,
    pairs: int = PAIRS,
    heldout: int = PAIRS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> PairGroups:
    """Group the pairs of a behaviour, or of several mixed together, by the edges they hang on, and judge the groups.

    Args:
        model: The model.
        behaviours: One behaviour, or several to mix.
        count: How many groups. Default: as many as have the largest silhouette, 2 to 6.
        by: A tag of the pairs that gives the groups in place of their edges, such as ``category`` of ``refusal``.
        size: How many edges the circuits have that groups are judged by: the best by |mean|. Default: 200, or doubled
            until one circuit for all has a fidelity of 0.8 on the pairs that are grouped.
        options: What is measured. Default: each behaviour's own metric.
        resources: What measuring may use.
        pairs: How many pairs of each behaviour are grouped.
        heldout: How many others of each the groups are judged on.
        seed: Draws pairs, and the beginnings of k-means.
        progress: Is told about the stages.
        journal: Keeps what is measured.

    Raises :class:`PromptError` for fewer than 8 pairs or a tag that does not part them. Cost: three gradients of all
    edges of all pairs, each up to ten forward passes; a circuit for each size tried; and on held-out pairs as many
    circuits as groups and one.
    """
    _check_groups(model, count, by, size)
    several = [behaviours] if isinstance(behaviours, Behaviour) else list(behaviours)
    drawn = {"discovery": pairs, "heldout": heldout, "seed": seed}
    how: dict[str, Any] = {"resources": resources, "journal": journal}
    mixed = [_recorded(model, each, drawn, options, how, progress) for each in several]
    taken, of_others = (np.concatenate(each) for each in zip(*(part.vectors(progress) for part in mixed), strict=True))
    if len(taken) < 8:
        raise PromptError(f"{len(taken)} pairs cannot be grouped; at least 8 are needed.")
    tags = _tags(mixed)
    if by is None:
        names: list[str] = []
        labels, of_heldout, silhouettes = _grouped(taken, of_others, count, seed)
    else:
        names, labels, of_heldout, silhouettes = _given(mixed, by, taken, tags)
    size = size or _enough(mixed, taken)
    shared, *own = (_best(taken[chosen], size) for chosen in [labels >= 0, *_one_each(labels)])
    errors = np.concatenate([part.squared_errors([shared, *own], heldout=True) for part in mixed], axis=1)
    return PairGroups(
        model=model.info.id,
        behaviours=tuple(part.prompts.behaviour for part in mixed),
        size=size,
        silhouettes=silhouettes,
        groups=_groups(mixed, names, labels, of_heldout, errors),
        gain=_gain(mixed, of_heldout, errors, seed),
        fidelity=1 - float(errors[0].mean()),
        rand=_rand(_of_behaviours(mixed), labels) if len(mixed) > 1 else None,
        by=by,
        tags={tag: _rand(values, labels) for tag, values in tags.items() if tag != by},
        remarks=tuple(remark for part in mixed for remark in part.prompts.remarks),
    )


def _check_groups(model: Model, count: int | None, by: str | None, size: int | None) -> None:
    if count is not None and count < 2:
        raise UsageError(f"the number of groups must be at least 2, got {count}.")
    if count is not None and by is not None:
        raise UsageError(f"the tag {by} says how many groups there are; leave out the number of groups, or the tag.")
    if size is not None and not 0 < size <= model.graph.n_edges:
        raise UsageError(f"circuits of groups must have 1 to {model.graph.n_edges:,} edges, got {size}.")


def _recorded(
    model: Model,
    behaviour: Behaviour,
    drawn: dict[str, int],
    options: Options | None,
    how: dict[str, Any],
    progress: StageProgress,
) -> "_Part":
    """Draw and record the pairs of a behaviour, with the model's own openings where the behaviour has others'."""
    if finds_openings(model, behaviour):
        behaviour = with_openings(model, behaviour)[0]
    prompts = behaviour.prompts(model.tokenizer, **drawn)
    progress(f"recording the prompts of {behaviour.name}", 0, 0)
    how = how | {"reference": prompts.reference}
    options = options or Options(behaviour.metric)
    return _Part(prompts, *(model.experiment(side, options, **how) for side in (prompts.discovery, prompts.heldout)))


@dataclass(frozen=True)
class _Part:
    """The pairs of one behaviour."""

    prompts: PromptSet
    experiment: AnyExperiment
    heldout: AnyExperiment

    def vectors(self, progress: StageProgress) -> tuple[Floats, Floats]:
        """Return what each pair takes from each edge, ``(pair, edge)``: of the pairs to group, and of held-out ones."""
        found: list[Floats] = []
        for name, side in (("", self.experiment), ("held-out ", self.heldout)):
            rows = np.zeros((side.n_pairs, side.graph.n_edges))
            for done, point in enumerate(POINTS):
                progress(f"slopes of {name}pairs of {self.prompts.behaviour}", done, len(POINTS))
                rows += side.circuit_gradient(np.full(side.graph.n_edges, point))[1] / len(POINTS)
            found.append(rows)
        return found[0], found[1]

    def squared_errors(self, circuits: list[EdgeIndices], *, heldout: bool) -> Floats:
        """Return how wrong circuits are on one part of the pairs, ``(circuit, pair)``, the empty one's last.

        Squares of the metric, over the mean of the empty circuit's: behaviours of other units can be put together.
        """
        side = self.heldout if heldout else self.experiment
        values = side.circuits([side.graph.mask(edges) for edges in circuits])
        wrong = np.square(np.concatenate([values, side.corrupted[None]]) - side.clean)
        return wrong / wrong[-1].mean()


def _grouped(rows: Floats, heldout: Floats, count: int | None, seed: int) -> tuple[Labels, Labels, dict[int, float]]:
    """Return each pair's group, that of each held-out pair, and the silhouettes of the numbers of groups tried."""
    normalize: Callable[[Floats], Floats] = _sklearn("preprocessing").normalize
    k_means, silhouette_score = _sklearn("cluster").KMeans, _sklearn("metrics").silhouette_score
    svd = _sklearn("decomposition").TruncatedSVD(min(DIMENSIONS, len(rows) - 1), random_state=seed)
    made = normalize(svd.fit_transform(normalize(rows)))
    others = normalize(svd.transform(normalize(heldout)))
    tried = range(2, MOST + 1) if count is None else [count]
    means = {each: k_means(each, n_init=10, random_state=seed).fit(made) for each in tried if each < len(rows)}
    silhouettes = {each: float(silhouette_score(made, found.labels_)) for each, found in means.items()}
    best = means[max(silhouettes, key=lambda each: silhouettes[each])]
    return np.asarray(best.labels_, dtype=np.int64), np.asarray(best.predict(others), dtype=np.int64), silhouettes


def _tags(mixed: list[_Part]) -> dict[str, list[str]]:
    """Return the tags that part the pairs to group, and their values: every pair has them, and no value is all."""
    pairs = [pair for part in mixed for pair in part.prompts.discovery]
    shared = [tag for tag in pairs[0].tags if all(tag in pair.tags for pair in pairs)]
    values = {tag: [pair.tags[tag] for pair in pairs] for tag in shared}
    return {tag: found for tag, found in values.items() if 1 < len(set(found)) <= len(pairs) // 2}


def _given(
    mixed: list[_Part], by: str, rows: Floats, tags: dict[str, list[str]]
) -> tuple[list[str], Labels, Labels, dict[int, float]]:
    """Return the values of a tag, each pair's place among them, that of each held-out pair, and their silhouette.

    A held-out pair of a value that no pair to group has is in no group: -1, the circuit for all.
    """
    if by not in tags:
        parting = f"The tags that do: {', '.join(tags)}." if tags else "No tag does; draw more with --pairs."
        raise PromptError(
            f"the tag {by} does not part the pairs: at least two values are needed, each pair must have one, and there "
            f"must be two pairs for each on average. {parting}"
        )
    names = sorted(set(tags[by]))
    others = [pair.tags.get(by) for part in mixed for pair in part.prompts.heldout]
    labels = np.array([names.index(value) for value in tags[by]])
    of_heldout = np.array([names.index(value) if value in names else -1 for value in others])
    made: Floats = _sklearn("preprocessing").normalize(rows)
    return names, labels, of_heldout, {len(names): float(_sklearn("metrics").silhouette_score(made, labels))}


def _enough(mixed: list[_Part], rows: Floats) -> int:
    """Return how many edges a circuit for all needs to be :data:`ENOUGH` on the pairs to group; all, if need be."""
    total = rows.shape[1]
    sizes = [min(LEAST, total)]
    while sizes[-1] < total:
        sizes.append(min(2 * sizes[-1], total))
    circuits = [_best(rows, size) for size in sizes]
    errors = np.concatenate([part.squared_errors(circuits, heldout=False) for part in mixed], axis=1).mean(axis=1)
    return next((size for size, wrong in zip(sizes, errors, strict=False) if 1 - wrong >= ENOUGH), total)


def _best(rows: Floats, size: int) -> EdgeIndices:
    """Return the edges that pairs take most from, on average."""
    return np.sort(np.argsort(-np.abs(rows.mean(axis=0)), kind="stable")[:size])


def _one_each(labels: Labels) -> list[NDArray[np.bool_]]:
    """Return the members of each group, one boolean per pair."""
    return [labels == each for each in range(int(labels.max()) + 1)]


def _groups(
    mixed: list[_Part], values: list[str], labels: Labels, of_heldout: Labels, errors: Floats
) -> tuple[PairGroup, ...]:
    names = [part.prompts.behaviour for part in mixed for _ in part.prompts.discovery]
    texts = [pair.clean_text for part in mixed for pair in part.prompts.discovery]
    groups: list[PairGroup] = []
    for each, members in enumerate(_one_each(labels)):
        inside = np.flatnonzero(members).tolist()
        others = of_heldout == each
        wrong = [None, None] if not others.any() else np.sqrt(errors[[each + 1, 0]][:, others].mean(1)).tolist()
        counts = {name: sum(names[i] == name for i in inside) for name in dict.fromkeys(names)}
        examples = tuple(texts[i] for i in inside[:EXAMPLES])
        value = values[each] if values else ""
        groups.append(PairGroup(len(inside), int(others.sum()), counts, examples, wrong[0], wrong[1], value))
    return tuple(groups)


def _gain(mixed: list[_Part], of_heldout: Labels, errors: Floats, seed: int) -> Estimate:
    """Return by how much squared errors shrink with circuits of their own, as a share of the empty circuit's."""
    own = errors[of_heldout + 1, np.arange(errors.shape[1])]
    clusters, first = list[Labels](), 0
    for part in mixed:
        clusters.append(clusters_of(part.prompts.heldout) + first)
        first = int(clusters[-1].max()) + 1
    return share_of(errors[0] - own, errors[-1], clusters=np.concatenate(clusters), seed=seed)


def _of_behaviours(mixed: list[_Part]) -> list[str]:
    """Return the behaviour of each pair to group."""
    return [str(place) for place, part in enumerate(mixed) for _ in part.prompts.discovery]


def _rand(values: list[str], labels: Labels) -> float:
    """Return the adjusted Rand index of groups and what each pair has."""
    return float(_sklearn("metrics").adjusted_rand_score(values, labels))


def _sklearn(part: str) -> Any:
    """Return a part of scikit-learn, which has no types."""
    return import_module(f"sklearn.{part}")
