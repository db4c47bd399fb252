"""Prompt pairs of one token length, recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from circuits.behaviours.pairs import TokenPair, template_of
from circuits.behaviours.roles import role_of_positions
from circuits.behaviours.tokens import Tokens
from circuits.errors import PromptError, UsageError
from circuits.files.journal import NOWHERE, Shelf
from circuits.graph import ComputationalGraph
from circuits.metrics import AnswerTokens
from circuits.passes.role_sums import RoleSums
from circuits.patching.fitted_constants import fitted_constants
from circuits.patching.measurement import Options, Resources
from circuits.tracing.prefix import PrefixCache
from circuits.tracing.replacements import SenderMeans, mean_run, sender_means, zero_run
from circuits.tracing.requirements import require_pairs
from circuits.tracing.runs import Columns, Run
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation, Direction


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one token length: ``base`` is what corrupted edges carry.

    ``columns`` are the tokens whose logits the metric reads, in ascending order; None where it reads all.
    ``roles`` are those of the positions that are run, where edges have roles. ``places`` are the counterparts of the
    positions that are run in the ``corrupted`` run, where the sides of a pair differ in length.
    """

    index: NDArray[np.int64]
    answers: AnswerTokens
    clean: Run
    corrupted: Run
    base: Run
    columns: Columns | None = None
    roles: RoleSums | None = None
    places: Int[Tensor, "pair pos"] | None = None

    def part(self, begin: int, end: int) -> "PairBatch":
        """Return the pairs of the batch whose places are ``begin .. end - 1``, counted from there."""
        part = self.rows(slice(*np.searchsorted(self.index, (begin, end)).tolist()))
        return replace(part, index=part.index - begin)

    def rows(self, chosen: slice) -> "PairBatch":
        """Return some pairs of the batch, by their row."""
        answers = self.answers.rows(chosen)
        runs = (run.rows(chosen) for run in (self.clean, self.corrupted, self.base))
        roles = None if self.roles is None else self.roles.rows(chosen)
        places = None if self.places is None else self.places[chosen]
        return PairBatch(self.index[chosen], answers, *runs, columns=self.columns, roles=roles, places=places)

    def at_counterparts(self, corrupted: Float[Tensor, "pair _ width"]) -> Float[Tensor, "pair pos width"]:
        """Return what the corrupted run has at the counterparts of the positions that are run."""
        return corrupted if self.places is None else taken(corrupted, self.places)


def roles_of(pairs: Sequence[TokenPair], graph: ComputationalGraph, like: Run) -> RoleSums | None:
    """Return the roles of the positions of a run; None in a graph without. Raises as :func:`role_of_positions`."""
    names, run = graph.shape.roles, like.ids.shape[1]
    if not names:
        return None
    roles = np.stack([role_of_positions(pair, names)[-run:] for pair in pairs])
    return RoleSums(torch.as_tensor(roles, device=like.ids.device), len(names))


def taken(
    values: Shaped[Tensor, "pair _ *width"], places: Int[Tensor, "pair pos"]
) -> Shaped[Tensor, "pair pos *width"]:
    """Return the values of each pair at some positions of its own."""
    places = places.to(values.device)
    return values[torch.arange(len(places), device=values.device)[:, None], places]


def counterparts_of(pairs: Sequence[TokenPair], clean: Run) -> Int[Tensor, "pair pos"] | None:
    """Return where, in the corrupted run, the counterparts of the positions that are run are; None: at the same."""
    if not any(pair.alignment for pair in pairs):
        return None
    shared = clean.length - clean.ids.shape[1]
    return torch.tensor([pair.counterparts[shared:] for pair in pairs], device=clean.ids.device) - shared


def require_noising(pairs: Sequence[TokenPair], direction: Direction) -> None:
    """Raise :class:`UsageError` where denoising would have to run a corrupted prompt at the positions of another."""
    aligned = next((pair for pair in pairs if pair.alignment), None)
    if direction is Direction.DENOISING and aligned is not None:
        raise UsageError(
            f"denoising restores parts of the corrupted run, and that of {aligned.clean_text[:60]!r} has other "
            f"positions ({len(aligned.corrupted)} tokens, not {aligned.length}); expected sides of equal lengths. "
            f"Choose words of the same number of tokens; where there is a choice, --direction {Direction.NOISING} "
            "measures aligned pairs."
        )


def wanted_prefix_cache(tracer: Tracer, options: Options, resources: Resources) -> PrefixCache:
    """Return the prefix cache that is wanted and that the ablation and the model allow."""
    if not resources.prefix_cache:
        return PrefixCache("not wanted")
    if not options.ablation.by_runs:
        return PrefixCache(f"{options.ablation} ablation also replaces values at the positions that prompts share")
    return tracer.prefix_cache


Of = TypeVar("Of")
Means = Mapping[str, SenderMeans]
"""Means over reference pairs by template; where one serves for all, under the empty name."""


def replacements(
    tracer: Tracer,
    runs: tuple[Run, Run],
    pairs: Sequence[TokenPair],
    means: Means | None,
    options: Options,
    places: Int[Tensor, "pair pos"] | None = None,
) -> Run:
    """Return what corrupted edges carry, for the prompts of two runs (clean, corrupted).

    With ``places`` (:func:`counterparts_of`) that are the corrupted run's values there, which no run had as a whole.
    Raises :class:`PromptError` for a pair of a template that no reference pair has.
    """
    clean, corrupted = runs
    if options.ablation.by_runs:
        return corrupted if places is None else corrupted.as_of(clean, lambda values: taken(values, places))
    if means is None:
        return zero_run(tracer, clean)
    return mean_run(tracer, clean, of_pairs(pairs, means, options.ablation))


def of_pairs(pairs: Sequence[TokenPair], means: Mapping[str, Of], ablation: Ablation) -> list[Of]:
    """Return the means that serve each pair. Raises as :func:`replacements`."""
    if ablation is not Ablation.MEAN_BY_TEMPLATE:
        return [means[""]] * len(pairs)
    missing = next((pair for pair in pairs if template_of(pair) not in means), None)
    if missing is not None:
        raise PromptError(
            f"no reference pair has the template {template_of(missing)!r} of the prompt {missing.clean_text!r}; "
            "expected some of every template (tags `template`, else `cluster`). Draw fewer pairs (--pairs), add some "
            "to the file, or use --ablation mean-by-position."
        )
    return [means[template_of(pair)] for pair in pairs]


def means_of(tracer: Tracer, reference: Sequence[TokenPair], options: Options, shelf: Shelf = NOWHERE) -> Means | None:
    """Return the means that an ablation takes over the corrupted prompts of reference pairs; None where it takes none.

    Constants that are fitted instead are kept on the ``shelf`` of the model. Cost: one forward pass of these prompts;
    a fit, once. Raises :class:`UsageError` where there are none.
    """
    if not options.ablation.by_means:
        return None
    if not reference:
        raise UsageError(
            f"{options.ablation} ablation takes means over reference pairs, which are neither searched nor judged on, "
            "and there are none. Draw fewer pairs (--pairs), add some to the file, give some with `reference=`, or use "
            "--ablation corrupted."
        )
    if options.ablation is Ablation.OPTIMAL and options.metric.along_direction:
        raise UsageError(
            f"{options.ablation} ablation keeps next-token predictions, and the metric {options.metric} reads none. "
            "Use --ablation mean."
        )
    require_pairs(tracer.anatomy, reference)
    if options.ablation is Ablation.OPTIMAL:
        return {"": fitted_constants(tracer, reference, shelf)}
    by_template, groups = options.ablation is Ablation.MEAN_BY_TEMPLATE, dict[str, list[Tokens]]()
    for pair in reference:
        groups.setdefault(template_of(pair) if by_template else "", []).append(pair.corrupted)
    by_position = options.ablation is not Ablation.MEAN
    return {name: sender_means(tracer, prompts, by_position=by_position) for name, prompts in groups.items()}


def resampled(pairs: Sequence[TokenPair], seed: int = 0) -> tuple[TokenPair, ...]:
    """Return the pairs, each with the corrupted prompt of another pair of the same length, drawn without repetition.

    Raises :class:`UsageError` for a pair that is the only one of its length.
    """
    by_length: dict[int, list[int]] = {}
    for place in map(int, np.random.default_rng(seed).permutation(len(pairs))):
        by_length.setdefault(len(pairs[place].clean), []).append(place)
    made = list(pairs)
    for length, places in by_length.items():
        if len(places) < 2:
            raise UsageError(
                f"resample ablation takes the corrupted prompt of another pair of the same length, and only one pair "
                f"has {length} tokens ({pairs[places[0]].clean_text!r}). Draw more pairs (--pairs), use prompts of "
                "fewer lengths, or --ablation corrupted."
            )
        for here, there in zip(places, (*places[1:], places[0]), strict=True):
            other = pairs[there]
            its = other.corrupted, other.corrupted_text, other.alignment
            made[here] = replace(pairs[here], corrupted=its[0], corrupted_text=its[1], alignment=its[2])
    return tuple(made)


def first_difference(pair: TokenPair) -> int:
    """Return the first position at which the prompts of a pair differ; of equal prompts the last.

    What is before it stands at the same positions on both sides, and is no counterpart of what comes later.
    """
    both = enumerate(zip(pair.clean, pair.opposite, pair.counterparts, strict=True))
    here = next((i for i, (mine, its, at) in both if mine != its or at != i), len(pair.clean) - 1)
    return min(here, pair.counterparts[here])
