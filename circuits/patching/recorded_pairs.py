"""Prompt pairs of one token length, recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

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
from circuits.vocabulary import Ablation


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one token length: ``base`` is what corrupted edges carry.

    ``columns`` are the tokens whose logits the metric reads, in ascending order; None where it reads all.
    ``roles`` are those of the positions that are run, where edges have roles.
    """

    index: NDArray[np.int64]
    answers: AnswerTokens
    clean: Run
    corrupted: Run
    base: Run
    columns: Columns | None = None
    roles: RoleSums | None = None

    def part(self, begin: int, end: int) -> "PairBatch":
        """Return the pairs of the batch whose places are ``begin .. end - 1``, counted from there."""
        part = self.rows(slice(*np.searchsorted(self.index, (begin, end)).tolist()))
        return replace(part, index=part.index - begin)

    def rows(self, chosen: slice) -> "PairBatch":
        """Return some pairs of the batch, by their row."""
        answers = self.answers.rows(chosen)
        runs = (run.rows(chosen) for run in (self.clean, self.corrupted, self.base))
        roles = None if self.roles is None else self.roles.rows(chosen)
        return PairBatch(self.index[chosen], answers, *runs, columns=self.columns, roles=roles)


def roles_of(pairs: Sequence[TokenPair], graph: ComputationalGraph, like: Run) -> RoleSums | None:
    """Return the roles of the positions of a run; None in a graph without. Raises as :func:`role_of_positions`."""
    names, run = graph.shape.roles, like.ids.shape[1]
    if not names:
        return None
    roles = np.stack([role_of_positions(pair, names)[-run:] for pair in pairs])
    return RoleSums(torch.as_tensor(roles, device=like.ids.device), len(names))


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
    tracer: Tracer, runs: tuple[Run, Run], pairs: Sequence[TokenPair], means: Means | None, options: Options
) -> Run:
    """Return what corrupted edges carry, for the prompts of two runs (clean, corrupted).

    Raises :class:`PromptError` for a pair of a template that no reference pair has.
    """
    clean, corrupted = runs
    if options.ablation.by_runs:
        return corrupted
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
            made[here] = replace(pairs[here], corrupted=other.corrupted, corrupted_text=other.corrupted_text)
    return tuple(made)


def first_difference(pair: TokenPair) -> int:
    """Return the first position at which the prompts of a pair differ; of equal prompts the last."""
    differing = (i for i, (here, there) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if here != there)
    return next(differing, len(pair.clean) - 1)
