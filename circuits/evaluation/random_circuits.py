"""Random circuits to hold a circuit against: same size, same number of edges at every sender and receiver."""

import numpy as np
from numpy.typing import NDArray

from circuits.graph import ComputationalGraph, EdgeIndices


def rewired(graph: ComputationalGraph, edges: EdgeIndices, seed: int, *, swaps_per_edge: int = 10) -> NDArray[np.bool_]:
    """Give the mask of a random circuit in which every sender and receiver keeps its number of edges.

    Pairs of edges exchange their receivers again and again where both new edges exist and are not taken (the directed
    form of the configuration model's edge swap).
    """
    generator = np.random.default_rng(seed)
    senders, receivers = graph.edge_senders[edges].copy(), graph.edge_receivers[edges].copy()
    taken = set(zip(senders.tolist(), receivers.tolist(), strict=True))
    fan_in = np.array(graph.fan_in)
    for i, j in generator.integers(0, len(edges), size=(swaps_per_edge * len(edges), 2)).tolist():
        first, second = (int(senders[i]), int(receivers[j])), (int(senders[j]), int(receivers[i]))
        possible = first[0] < fan_in[first[1]] and second[0] < fan_in[second[1]]
        if possible and first not in taken and second not in taken:
            taken -= {(int(senders[i]), int(receivers[i])), (int(senders[j]), int(receivers[j]))}
            taken |= {first, second}
            receivers[i], receivers[j] = receivers[j], receivers[i]
    mask = np.zeros(graph.n_edges, dtype=np.bool_)
    mask[graph.offsets[receivers] + senders] = True
    return mask
