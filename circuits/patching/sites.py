"""Activation patching: clean activations put into the corrupted run, or the reverse, site by site.

The classic first look (Meng et al. 2022, arXiv:2202.05262; Zhang and Nanda 2024, arXiv:2309.16042): one activation, at
one layer and token position, takes its value from the other run; the rest is recomputed. Rows of one pass are
``(place, pair)``, and a pass starts at the layer it patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from circuits.behaviours.pairs import TokenPair, clusters_of
from circuits.behaviours.tokens import Tokenizer, token_texts
from circuits.errors import PromptError, UsageError
from circuits.memory.batching import in_batches
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.protocol import Progress, no_progress
from circuits.patching.recorded_pairs import PairBatch
from circuits.patching.sequences import AnyExperiment, of_one_token
from circuits.patching.site_results import ALL, SitePatching
from circuits.tracing.plan import LayerSite, Plan, Visit, put
from circuits.tracing.runs import Recorder, Run
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Ablation, Direction
from circuits.vocabulary import Site as PatchSite


def position_labels(tokenizer: Tokenizer, pairs: Sequence[TokenPair]) -> list[str]:
    """Return names of token positions: the token that is there in all prompts, else the first pair's, in ``‹…›``.

    Where clean and corrupted prompts differ the name has both: ``‹John≠Paul›``.
    """
    length = len(pairs[0].clean)
    labels: list[str] = []
    for position in range(length):
        members = [pair for pair in pairs if len(pair.clean) > position]
        here = {(pair.clean[position], pair.opposite[position]) for pair in members}
        texts = token_texts(tokenizer, (pairs[0].clean[position], pairs[0].opposite[position]))
        clean, corrupted = (text.strip() or repr(text)[1:-1] for text in texts)
        if any(one != other for one, other in here):
            labels.append(f"‹{clean}≠{corrupted}›")
        else:
            labels.append(clean if len(here) == 1 else f"‹{clean}›")
    return labels


@in_own_state
def patch_sites(
    experiment: AnyExperiment,
    site: PatchSite | str,
    tokens: Sequence[str] | None = None,
    *,
    progress: Progress = no_progress,
) -> SitePatching:
    """Patch every layer's activation: at every position, at all of them at once, or every head by itself.

    ``tokens`` are labels of the positions (:func:`position_labels`); without them all positions of a layer are patched
    at once. Heads are always patched at all positions. Raises :class:`PromptError` for positions of prompts of several
    lengths, and :class:`UsageError` for a site that the model does not have. Cost: about half a forward pass per layer
    and column.
    """
    site, experiment = PatchSite.parse(site), of_one_token(experiment, "activation patching")
    if experiment.options.ablation is not Ablation.CORRUPTED:
        raise UsageError(
            "activation patching exchanges values between the clean and the corrupted run; leave --ablation corrupted."
        )
    shape = experiment.graph.shape
    if site is PatchSite.MLP and not shape.mlps:
        raise UsageError("this model has no MLPs to patch; choose the site resid, attn or head.")
    heads, by_position = site is PatchSite.HEAD, tokens is not None and site is not PatchSite.HEAD
    if by_position and any(batch.clean.length != len(tokens or ()) for batch in experiment.batches):
        raise PromptError(
            "patching by position needs prompts of one token length; use --by layer, or prompts of equal length."
        )
    columns = [f"h{head}" for head in range(shape.n_heads)] if heads else tokens if by_position and tokens else [ALL]
    values = np.zeros((shape.n_layers, len(columns), experiment.n_pairs))
    kind = f"patching of {site} by pair, {experiment.options.direction}"
    for layer in range(shape.n_layers):
        what, make = [layer, by_position, len(columns)], partial(_of_layer, experiment, site, layer, by_position)
        values[layer] = experiment.kept.arrays(kind, what, lambda make=make: {"values": make(len(columns))})["values"]
        progress(layer + 1, shape.n_layers)
    return SitePatching(
        site,
        experiment.options.direction,
        experiment.metric,
        tuple(columns),
        values,
        experiment.clean,
        experiment.corrupted,
        clusters_of(experiment.pairs),
    )


def _of_layer(
    experiment: PatchingExperiment, site: PatchSite, layer: int, by_position: bool, columns: int
) -> NDArray[np.float64]:
    """Return the metric after patching each column of a layer, ``(column, pair)``."""
    values = np.zeros((columns, experiment.n_pairs))
    for batch in experiment.batches:
        runs = (batch.clean, batch.base)
        noising = experiment.options.direction is Direction.NOISING
        current, other = runs if noising else (runs[1], runs[0])
        patcher = _Patcher(experiment, batch, current, other, site, layer, by_position)
        shared = patcher.shared
        values[:shared, batch.index] = experiment.measured(batch, current.logits)
        items, budget = np.arange(shared, columns), experiment.budget(batch)
        for members, found in in_batches(items, patcher.values, budget, rows_per_item=len(batch.index)):
            values[np.ix_(members, batch.index)] = found
    return values


@dataclass(frozen=True)
class _Patcher:
    """Patches one layer of one batch of pairs."""

    experiment: PatchingExperiment
    batch: PairBatch
    current: Run
    other: Run
    site: PatchSite
    layer: int
    by_position: bool

    @property
    def shared(self) -> int:
        """How many of the columns are positions that both runs share, where patching changes nothing."""
        columns_are_positions = self.by_position and self.site is not PatchSite.HEAD
        return self.current.length - self.current.ids.shape[1] if columns_are_positions else 0

    def values(self, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the metric for each column, ``(column, pair)``."""
        count, layer, recorder = len(columns), self.layer, Recorder()
        stream = self.current.stream[layer].repeat(count, 1, 1)
        attention: dict[int, Tensor] = {}
        visits: dict[tuple[int, LayerSite], Visit] = {}
        match self.site:
            case PatchSite.RESID:
                stream = self._mixed(self.current.stream[layer], self.other.stream[layer], columns)
            case PatchSite.ATTN:
                attention[layer] = self._mixed(self.current.attention[layer], self.other.attention[layer], columns)
            case PatchSite.MLP:
                patched = self._mixed(self.current.mlp[layer], self.other.mlp[layer], columns)
                visits[layer, LayerSite.MLP_OUT] = partial(put, patched)
            case PatchSite.HEAD:
                visits[layer, LayerSite.Z] = partial(put, self._mixed_heads(columns))
        plan = Plan(start=layer, stream=stream, attention=attention, visits=visits, logits=recorder.keep_logits)
        self.experiment.tracer.run(self.current.ids.repeat(count, 1), plan, prefix=self.current.prefix)
        return self.experiment.measured(self.batch, recorder.logits)

    def _mixed(self, current: Tensor, other: Tensor, columns: NDArray[np.int64]) -> Tensor:
        """Return rows ``(column, pair)`` of the current value with each column's position taken from the other run."""
        mixed = current.repeat(len(columns), 1, 1, 1)
        for row, position in enumerate((columns - self.shared).tolist()):
            place = slice(position, position + 1) if self.by_position else slice(None)
            mixed[row, :, place] = other[:, place]
        return mixed.flatten(0, 1)

    def _mixed_heads(self, columns: NDArray[np.int64]) -> Tensor:
        """Return rows ``(head, pair)`` of head outputs, each with one head (all positions) from the other run."""
        heads = self.experiment.graph.shape.n_heads
        current, other = (
            rearrange(run.z[self.layer], "b p (h k) -> b p h k", h=heads) for run in (self.current, self.other)
        )
        mixed = current.repeat(len(columns), 1, 1, 1, 1)
        for row, head in enumerate(columns.tolist()):
            mixed[row, :, :, head] = other[:, :, head]
        return rearrange(mixed, "c b p h k -> (c b) p (h k)")
