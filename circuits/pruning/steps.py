"""The steps of a search for the closest circuit: dropping edges, and exchanging some for others, both fitted to pairs.

What a set of changes does to every pair is predicted from slopes (:mod:`circuits.pruning.residuals`). Dropping trusts
the predictions, since the next step mends what was wrong with them; exchanging, which need not happen, is measured.
"""

import numpy as np
from numpy.typing import NDArray

from circuits.graph import EdgeIndices
from circuits.patching.protocol import Experiment
from circuits.pruning.connected import connected
from circuits.pruning.residuals import Residuals, greedily
from circuits.scores import Floats

RIDGE = 1.0
"""How far slopes are trusted: see :func:`circuits.pruning.residuals.greedily`. With 4, ioi circuits of 100 edges had a
fidelity of 0.86 on new prompts instead of 0.90; 0.25 is no better."""
_EXCHANGED = (0.02, 0.05)
"""Which shares of the edges are tried to be exchanged: predictions hold for a few changes at once only."""
_HALVES_ABOVE = 1000
"""Larger circuits see every other fit pair in every other round: half the cost, and no pair is met twice on end."""
_FEWEST = 16
"""The fewest fit pairs of a round."""
_SHARES = ((800, 0.3), (250, 0.15), (0, 0.08))
"""Of circuits with more than so many edges, which share of them goes in a round."""
Places = NDArray[np.int64]
Prices = NDArray[np.float64]
"""What keeping each edge of the graph costs, ``(edge,)``, in units of the loss."""


def dropped(size: int) -> int:
    """Return how many edges of a circuit with so many go in a round."""
    return max(1, round(next(share for least, share in _SHARES if size > least) * size))


def rounds(size: int, least: int) -> int:
    """Return in how many rounds a circuit of so many edges comes down to the ``least``."""
    count = 0
    while size > least:
        size, count = size - dropped(size), count + 1
    return count


def in_turn(fit: Experiment, size: int, turn: int) -> Experiment:
    """Return the fit pairs of a round with so many edges: all of them, or one half where edges and pairs are many."""
    half = fit.n_pairs // 2
    return fit.part(half * (turn % 2), half * (turn % 2 + 1)) if size > _HALVES_ABOVE and half >= _FEWEST else fit


def leaving(fit: Experiment, edges: EdgeIndices, count: int, prices: Prices | None = None) -> tuple[Places, Floats]:
    """Return the places of the ``count`` edges by which loss and prices are predicted to be least, the first one first.

    Beside them what leaving out each of the edges alone is predicted to change on average, ``(edge,)``: the metric
    inside the circuit less that without the edge. Cost: one gradient.
    """
    residuals, values, slopes = _slopes(fit, edges, edges)
    own = None if prices is None else -prices[edges]
    gone, _ = greedily(residuals.of(values), -residuals.rows(slopes[:, edges]), count, ridge=RIDGE, prices=own)
    return gone, slopes[:, edges].mean(axis=0)


def without(fit: Experiment, edges: EdgeIndices, count: int, prices: Prices) -> EdgeIndices:
    """Return a circuit without the edges, ``count`` of them, by which loss and prices are predicted to be least.

    Also without edges that are then on no path. Cost: one gradient.
    """
    gone, _ = leaving(fit, edges, count, prices)
    return connected(fit.graph, np.delete(edges, gone))


def exchanged(fit: Experiment, edges: EdgeIndices, pool: EdgeIndices, prices: Prices) -> EdgeIndices:
    """Return a circuit with a few edges exchanged for others of a pool; the same where none lessens loss and prices.

    Cost: one gradient along the edges of the pool, and two circuits.
    """
    out = np.setdiff1d(pool, edges)
    residuals, values, slopes = _slopes(fit, edges, np.union1d(edges, out))
    gains, losses = residuals.rows(slopes[:, out]), -residuals.rows(slopes[:, edges])
    ways = [edges]
    for most in sorted({max(1, round(share * len(edges))) for share in _EXCHANGED}):
        back, rest = greedily(residuals.of(values), gains, most, ridge=2 * RIDGE, prices=prices[out], only_gains=True)
        gone, _ = greedily(rest, losses, len(back), ridge=RIDGE, prices=-prices[edges])
        ways.append(connected(fit.graph, np.union1d(np.delete(edges, gone), out[back]).astype(np.int64)))
    measured = [values, *fit.circuits([_mask(fit, way) for way in ways[1:]])]
    costs = [np.square(residuals.of(each)).sum() for each in measured]
    return ways[int(np.argmin([cost + prices[way].sum() for cost, way in zip(costs, ways, strict=True)]))]


def extended(fit: Experiment, edges: EdgeIndices, pool: EdgeIndices, most: int, prices: Prices) -> EdgeIndices:
    """Return a circuit with edges of a pool added, those by which loss and prices are predicted to be least.

    At most so many, and none that is predicted to make them larger. Cost: one gradient along the edges of the pool.
    """
    out = np.setdiff1d(pool, edges)
    residuals, values, slopes = _slopes(fit, edges, out)
    gains = residuals.rows(slopes[:, out])
    added, _ = greedily(residuals.of(values), gains, most, ridge=RIDGE, prices=prices[out], only_gains=True)
    return connected(fit.graph, np.union1d(edges, out[added]).astype(np.int64))


def losses_without_each(fit: Experiment, edges: EdgeIndices, prices: Prices) -> Floats:
    """Return loss and prices that are predicted for a circuit without each edge, ``(edge,)``, but for what all share.

    Cost: one gradient.
    """
    residuals, values, slopes = _slopes(fit, edges, edges)
    return np.square(residuals.of(values)[:, None] - residuals.rows(slopes[:, edges])).sum(axis=0) - prices[edges]


def _slopes(fit: Experiment, edges: EdgeIndices, among: EdgeIndices) -> tuple[Residuals, Floats, Floats]:
    """Return a circuit's values on pairs, and their slopes along the edges ``among``."""
    return Residuals(fit), *fit.circuit_gradient(_mask(fit, edges).astype(np.float64), among=among)


def _mask(fit: Experiment, edges: EdgeIndices) -> NDArray[np.bool_]:
    mask = np.zeros(fit.graph.n_edges, dtype=np.bool_)
    mask[edges] = True
    return mask
