"""Sets of nodes exchanged between runs, against plain hooks, patched sites and the two runs themselves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.errors import UnknownNameError, UsageError
from circuits.graph import Node, NodeKind
from circuits.patching.node_sets import NodeSet, interchange_effects
from circuits.patching.sites import patch_sites
from circuits.vocabulary import Direction, Metric, Site
from tests.reference.anatomy import anatomy_of
from tests.reference.hooks import hooked, last_logits
from tests.subjects import PAIRS, Subject, clean_ids, corrupted_ids, metric_of, random_pairs, relative

LENGTH = len(PAIRS[0].clean)
HEADS, MLPS = ([Node(NodeKind.HEAD, 0, 1), Node(NodeKind.HEAD, 2, 3)], [Node(NodeKind.MLP, 1)])


@torch.no_grad()
def exchanged_with_hooks(subject: Subject, nodes: NodeSet, direction: Direction, held: NodeSet = ()) -> np.ndarray:
    """The metric of one run whose heads (before the output projection) and MLPs take the other run's values.

    Those that are held take the values of this run itself, as it is without the exchange.
    """
    ids, other_ids = clean_ids(), corrupted_ids()
    if direction is Direction.DENOISING:
        ids, other_ids = other_ids, ids
    anatomy = anatomy_of(subject.module)
    seen: dict[Node, Tensor] = {}

    def place(node: Node) -> slice:
        d = anatomy.shape.d_head
        return slice(node.index * d, (node.index + 1) * d) if node.kind is NodeKind.HEAD else slice(None)

    def hook(node: Node, change: Callable[[Node, Tensor], Tensor]) -> object:
        if node.kind is NodeKind.MLP:
            return anatomy.mlps[node.layer].register_forward_hook(lambda _, __, out: change(node, out))
        projection = anatomy.output_projections[node.layer]
        return projection.register_forward_pre_hook(lambda _, args: (change(node, args[0]),))

    def look(node: Node, value: Tensor) -> Tensor:
        seen[node] = value.clone()
        return value

    def mix(node: Node, value: Tensor) -> Tensor:
        mixed = value.clone()
        mixed[..., place(node)] = seen[node][..., place(node)]
        return mixed

    for run, chosen in ((other_ids, nodes), (ids, held)):
        with hooked() as handles:
            handles.extend(hook(node, look) for node in chosen)
            last_logits(subject.module, run)
    with hooked() as handles:
        handles.extend(hook(node, mix) for node in (*nodes, *held))
        logits = last_logits(subject.module, ids)
    return metric_of(Metric.LOGIT_DIFFERENCE)(logits).double().numpy()


@pytest.mark.parametrize("direction", list(Direction))
def test_sets_equal_runs_with_plain_hooks(subject: Subject, direction: Direction) -> None:
    experiment = subject.experiment(direction=direction)
    sets = [(HEADS[0],), (MLPS[0],), tuple(HEADS), (*HEADS, *MLPS)]
    found = interchange_effects(experiment, sets, direction)
    plain = experiment.clean if direction is Direction.NOISING else experiment.corrupted
    sign = 1 if direction is Direction.NOISING else -1
    expected = np.array([sign * (plain - exchanged_with_hooks(subject, nodes, direction)) for nodes in sets])
    assert relative(found, expected, at_least=0.1) < 1e-4


@pytest.mark.parametrize("direction", list(Direction))
def test_nodes_that_are_held_keep_what_they_send(subject: Subject, direction: Direction) -> None:
    experiment = subject.experiment(direction=direction)
    sets, held = [(HEADS[0],), (Node(NodeKind.HEAD, 0, 0),), (Node(NodeKind.MLP, 0),)], (HEADS[1], MLPS[0])
    found = interchange_effects(experiment, sets, direction, held=held)
    plain = experiment.clean if direction is Direction.NOISING else experiment.corrupted
    sign = 1 if direction is Direction.NOISING else -1
    expected = np.array([sign * (plain - exchanged_with_hooks(subject, nodes, direction, held)) for nodes in sets])
    assert relative(found, expected, at_least=0.02) < 1e-3
    assert relative(found, interchange_effects(experiment, sets, direction), at_least=0.02) > 1e-3
    rest = tuple(node for node in subject.graph.senders[1:] if node != HEADS[0])
    directly = interchange_effects(experiment, [(HEADS[0],)], direction, directly=True)
    alone = interchange_effects(experiment, [(HEADS[0],)], direction, held=rest)
    assert relative(directly, alone, at_least=0.005) < 1e-3


@pytest.mark.parametrize("direction", list(Direction))
def test_single_heads_and_mlps_equal_patched_sites(subject: Subject, direction: Direction) -> None:
    experiment = subject.experiment(random_pairs(5, 6) + random_pairs(3, 8), direction=direction, batch_size=2)
    shape = subject.graph.shape
    gap = experiment.clean.mean() - experiment.corrupted.mean()
    for site, columns in ((Site.HEAD, shape.n_heads), (Site.MLP, 1)):
        restored = patch_sites(experiment, site).restored
        kind = NodeKind.HEAD if site is Site.HEAD else NodeKind.MLP
        sets = [(Node(kind, layer, unit),) for layer in range(shape.n_layers) for unit in range(columns)]
        found = interchange_effects(experiment, sets, direction).mean(1).reshape(shape.n_layers, columns)
        np.testing.assert_allclose(found / gap, restored, atol=2e-4)


def test_all_nodes_together_are_the_other_run(subject: Subject) -> None:
    experiment = subject.experiment()
    for direction in Direction:
        found = interchange_effects(experiment, [tuple(subject.graph.senders)], direction)
        np.testing.assert_allclose(found[0], experiment.clean - experiment.corrupted, atol=2e-4)


def test_effects_are_positive_where_lower_is_better_too(subject: Subject) -> None:
    experiment = subject.experiment(metric=Metric.KL)
    for direction in Direction:
        found = interchange_effects(experiment, [tuple(subject.graph.senders)], direction)
        np.testing.assert_allclose(found[0], experiment.corrupted - experiment.clean, atol=2e-4)
        assert found.mean() > 0.1


def test_nodes_that_send_nothing_or_are_not_there_are_refused(subject: Subject) -> None:
    experiment = subject.experiment()
    for nodes, problem, words in (
        ((), UsageError, "is empty"),
        ((Node(NodeKind.LOGITS),), UsageError, "'logits' sends nothing of its own"),
        ((Node(NodeKind.KV, 0, 0),), UsageError, "'a0.kv0' sends nothing of its own"),
        ((Node(NodeKind.HEAD, 9, 0),), UnknownNameError, "no node 'a9.h0'"),
    ):
        with pytest.raises(problem, match=words):
            interchange_effects(experiment, [nodes], "noising")
