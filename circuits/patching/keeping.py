"""Values of many items (circuits, edges) on every pair: some are kept from before, the rest are measured."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.behaviours.behaviour import digest_of
from circuits.behaviours.pairs import TokenPair, template_of
from circuits.files.journal import NOWHERE, Arrays, Shelf
from circuits.patching.protocol import Progress
from circuits.vocabulary import Ablation, Metric


def shelf_of_pairs(shelf: Shelf, pairs: Sequence[TokenPair], metric: Metric, ablation: Ablation) -> Shelf:
    """Return where what is measured on prompt pairs is kept: under all that it depends on but the direction."""
    if shelf is NOWHERE:
        return NOWHERE
    weights = [pair.weight for pair in pairs]
    roles = {"roles of pairs": [dict(pair.roles) for pair in pairs]} if any(pair.roles for pair in pairs) else {}
    templates = {"templates": [template_of(pair) for pair in pairs]} if ablation is Ablation.MEAN_BY_TEMPLATE else {}
    what = {"pairs": digest_of(pairs), "weights": weights, "metric": metric, "ablation": ablation}
    return shelf.under(**what, **roles, **templates)


def mask_item(weights: NDArray[np.bool_] | NDArray[np.float64]) -> bytes:
    """Return the name under which circuits, or one with weights, are kept."""
    return hashlib.blake2b(weights.tobytes(), digest_size=16).digest()


class Measured:
    """``values[i]`` are those of item i on every pair, NaN where they are still to be measured.

    Args:
        shelf: Where values are kept.
        kind: What is measured.
        items: The names under which items are kept, without repetition.
        pairs: How many pairs there are.
        parts: In how many batches the pairs come, for the progress report.
        progress: Is told.
    """

    def __init__(
        self, shelf: Shelf, kind: str, items: Sequence[bytes], pairs: int, *, parts: int, progress: Progress
    ) -> None:
        self._shelf, self._kind, self._items = shelf, kind, items
        self._progress, self._done, self._total = progress, 0, len(items) * parts
        self.values: Float[np.ndarray, "item pair"] = np.full((len(items), pairs), np.nan)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.int64], Tensor]] = []
        for row, item in enumerate(items):
            kept = shelf.get(kind, item)
            if kept is not None:
                self.values[row] = _row(kept, pairs)

    @contextmanager
    def missing(self, pairs: NDArray[np.int64]) -> Generator[NDArray[np.int64]]:
        """Name the items that are to be measured on a batch of pairs; what was added until the end is kept."""
        rows = np.flatnonzero(np.isnan(self.values[:, pairs]).any(axis=1))
        self._done += len(self._items) - len(rows)
        try:
            yield rows
        finally:
            self._settle()

    def add(self, items: NDArray[np.int64], pairs: NDArray[np.int64], found: Float[Tensor, "item pair"]) -> None:
        """Take over values; they stay on their device until it is time to write, so that nothing waits for them."""
        self._waiting.append((items, pairs, found))
        self._done += len(items)
        self._progress(self._done, self._total)
        if self._shelf.due:
            self._settle()

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        for items, pairs, found in waiting:
            self.values[items[:, None], pairs] = as_numpy(found)
        if self._shelf is not NOWHERE:
            settled = [int(item) for items, _, _ in waiting for item in items]
            self._shelf.put_together(self._kind, [(self._items[item], _bytes(self.values[item])) for item in settled])


def as_numpy(values: Tensor) -> Float[np.ndarray, "..."]:
    """Return a tensor's values as an array of double precision."""
    return values.detach().to("cpu", torch.float64).numpy()


def _bytes(row: NDArray[np.float64]) -> bytes:
    """Return a row as bytes: in half the space where that loses nothing, as most often with float32 models."""
    with np.errstate(over="ignore"):
        short = row.astype("<f4")
    return (short if np.array_equal(short, row, equal_nan=True) else row.astype("<f8")).tobytes()


def _row(kept: bytes, pairs: int) -> NDArray[np.float64]:
    return np.frombuffer(kept, dtype="<f4" if len(kept) == 4 * pairs else "<f8").astype(np.float64)


def sums_over_pairs(values: Float[Tensor, "pair edge"]) -> Arrays:
    """Return the sums of values and of their squares over pairs, ``(edge,)``."""
    sums, squares = values.sum(0), values.double().square().sum(0)
    return {name: each.detach().double().cpu().numpy() for name, each in (("sum", sums), ("squares", squares))}


def mean_and_spread(total: NDArray[np.float64], squares: NDArray[np.float64], n: int) -> Arrays:
    """Return the mean and the standard deviation over ``n`` pairs, from the sums of values and of their squares."""
    mean = total / n
    return {"mean": mean, "spread": np.sqrt(np.maximum(squares / n - mean**2, 0) * n / max(1, n - 1))}
