"""Random circuits for comparison: nodes keep their number of edges, or edges their kinds and layers."""

import numpy as np

from circuits.graph import ComputationalGraph, EdgeIndices
from circuits.scores import Floats

DRAWS = 200
_BURN_IN = 10
"""Proposed swaps per edge before the first draw; between draws there is one per edge."""


def rewired(
    graph: ComputationalGraph, edges: EdgeIndices, generator: np.random.Generator, draws: int = DRAWS
) -> EdgeIndices:
    """Draw circuits with the same number of edges out of every sender and into every receiver, ``(draw, edge)``.

    Two edges are taken at random and their receivers swapped, where both new edges exist in the model and neither is
    in the circuit already (Maslov and Sneppen 2002); this walk is not independent between draws. Column i keeps the
    sender of ``edges[i]``.
    """
    senders = graph.edge_senders[edges].tolist()
    receivers = graph.edge_receivers[edges].tolist()
    present = set(zip(senders, receivers, strict=True))
    fan_in, offsets = graph.fan_in, graph.offsets
    found = np.empty((draws, len(edges)), dtype=np.int64)
    for draw in range(draws):
        proposals = len(edges) * (_BURN_IN if draw == 0 else 1)
        picks: list[list[int]] = generator.integers(max(1, len(edges)), size=(proposals, 2)).tolist()
        for i, j in picks:
            first, second = (senders[i], receivers[j]), (senders[j], receivers[i])
            if first[0] >= fan_in[first[1]] or second[0] >= fan_in[second[1]] or {first, second} & present:
                continue
            present -= {(senders[i], receivers[i]), (senders[j], receivers[j])}
            present |= {first, second}
            receivers[i], receivers[j] = receivers[j], receivers[i]
        found[draw] = offsets[receivers] + np.array(senders, dtype=np.int64)
    return found


def shuffled_within(
    strata: EdgeIndices, edges: EdgeIndices, generator: np.random.Generator, draws: int = DRAWS
) -> EdgeIndices:
    """Draw other edges of the same strata, ``(draw, edge)``; ``strata`` numbers those of all edges of the graph."""
    near = np.flatnonzero(np.isin(strata, strata[edges]))
    order = near[np.argsort(strata[near], kind="stable")]
    places = np.flatnonzero(np.isin(order, edges))
    found = np.empty((draws, len(edges)), dtype=np.int64)
    at = np.searchsorted(edges, order[places])
    for draw in found:
        draw[at] = order[np.lexsort((generator.random(len(order)), strata[order]))][places]
    return found


def weighted_jaccard(a: EdgeIndices, sizes_a: Floats, b: EdgeIndices, sizes_b: Floats) -> float:
    """Return ``sum min / sum max`` of two sets' weights, each normalised to sum 1; NaN where that is not possible."""
    totals = float(sizes_a.sum()), float(sizes_b.sum())
    if not all(np.isfinite(totals)) or 0 in totals:
        return float("nan")
    union, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    weights = np.zeros((2, len(union)))
    np.add.at(weights[0], places[: len(a)], sizes_a / totals[0])
    np.add.at(weights[1], places[len(a) :], sizes_b / totals[1])
    return float(weights.min(0).sum() / weights.max(0).sum())
