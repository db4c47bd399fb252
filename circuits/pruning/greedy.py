"""A circuit grown from the end of the graph: the best edge into what is there already, again and again.

As EAP-IG's package does it (Hanna et al. 2024, arXiv:2403.17806): no edge is taken before what reads it. Edges whose
sender got no incoming edge in the end are then dropped.
"""

import heapq

import numpy as np

from circuits.graph import EdgeIndices
from circuits.numbering import reads_of_senders
from circuits.patching.protocol import Experiment
from circuits.pruning.connected import connected
from circuits.pruning.selection import Selection, require_size
from circuits.scores import EdgeScores
from circuits.statistics import faithfulness


def greedy(experiment: Experiment, scores: EdgeScores, size: int) -> Selection:
    """Take ``size`` edges by |score| from the end of the graph back, then drop those on no path. Cost: one circuit."""
    require_size(scores, size)
    edges = connected(scores.graph, grown(scores, size))
    found = float(faithfulness(experiment, experiment.circuits([scores.graph.mask(edges)])[0]))
    return Selection(edges, found, proposed=size, by_magnitude=True)


def grown(scores: EdgeScores, size: int) -> EdgeIndices:
    """Return up to ``size`` scored edges, each of which leads to the end; the largest |score| first, ties by place.

    One heap: a nest of merges would be as deep as there are senders.
    """
    graph, sizes = scores.graph, np.abs(scores.values)
    reads, waiting = reads_of_senders(graph.shape), list[tuple[float, int]]()
    seen, taken = set[int](), list[int]()

    def reach(receiver: int) -> None:
        if receiver in seen:
            return
        seen.add(receiver)
        for edge in range(int(graph.offsets[receiver]), int(graph.offsets[receiver + 1])):
            if not np.isnan(sizes[edge]):
                heapq.heappush(waiting, (-float(sizes[edge]), edge))

    reach(len(graph.receivers) - 1)
    while waiting and len(taken) < size:
        _, edge = heapq.heappop(waiting)
        taken.append(edge)
        for receiver in reads[int(graph.edge_senders[edge])]:
            reach(receiver)
    return np.sort(np.array(taken, dtype=np.int64))
