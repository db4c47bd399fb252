"""Integrated gradients of activations against an explicit loop of hooks over blocks and steps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.graph import Node, NodeKind, Receiver
from circuits.passes.block_paths import BlockPaths
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.tracing.state import foreign_hooks
from circuits.vocabulary import Direction, Metric, ScorerName
from tests.reference.anatomy import INPUT, anatomy_of
from tests.reference.gradients import _before_norm
from tests.reference.hooks import hooked, last_logits, rewired, sender_values
from tests.reference.precision import in_float64
from tests.subjects import Subject, clean_ids, corrupted_ids, metric_of, random_pairs, relative, subject_of
from tests.zoo import ZOO

POINTS = (0.25, 0.75)
BLOCKS = ("input", "attention", "mlp")
METRIC = metric_of(Metric.LOGIT_DIFFERENCE)


class Loop:
    """Runs of the clean prompts in which one block's output is somewhere between its corrupted and its clean value."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.anatomy = subject, anatomy_of(subject.module)
        self.values = [sender_values(subject.module, ids) for ids in (clean_ids(), corrupted_ids())]
        self.heads = [self._mixed(ids) for ids in (clean_ids(), corrupted_ids())]

    def _mixed(self, ids: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        with torch.no_grad(), hooked() as handles:
            for each in self.anatomy.output_projections:
                handles.append(each.register_forward_pre_hook(lambda _, args: found.append(args[0])))
            last_logits(self.subject.module, ids)
        return found

    def gradients(self, kind: str, layer: int, point: float) -> dict[Receiver, Tensor]:
        """The metric's gradient at what each receiver reads in such a run."""
        copies, current = dict[Receiver, Tensor](), dict[Node, Tensor]()
        clean, corrupted = self.values
        start = torch.lerp(corrupted[INPUT], clean[INPUT], point) if kind == "input" else clean[INPUT]

        def read(receiver: Receiver, stream: Tensor) -> Tensor:
            copies[receiver] = stream.clone()
            return copies[receiver]

        def attend(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (torch.lerp(self.heads[1][layer], self.heads[0][layer], point),)

        def add(_: Any, __: Any, output: Any) -> Any:
            mlp = Node(NodeKind.MLP, layer)
            after = output[0] if isinstance(output, tuple) else output
            made = after - current[mlp] + torch.lerp(corrupted[mlp], clean[mlp], point)
            return (made, *output[1:]) if isinstance(output, tuple) else made

        send = current.update if kind == "mlp" else None
        start = start.detach().requires_grad_()
        with torch.enable_grad(), rewired(self.anatomy, read, send, embedding=start), hooked() as handles:
            if kind == "attention":
                handles.append(self.anatomy.output_projections[layer].register_forward_pre_hook(attend))
            if kind == "mlp":
                handles.append(self.anatomy.blocks[layer].register_forward_hook(add))
            total = METRIC(last_logits(self.subject.module, clean_ids())).sum()
        found = torch.autograd.grad(total, list(copies.values()), materialize_grads=True, allow_unused=True)
        return dict(zip(copies, found, strict=True))

    def change(self, sender: Node, gradient: Tensor, kind: str, point: float) -> Tensor:
        """<change of a sender, gradient>, by pair; through a norm after its layer's attention where there is one."""
        clean, corrupted = self.values
        if sender.kind is NodeKind.HEAD and self.anatomy.sandwich[sender.layer]:
            moved = {node: torch.lerp(corrupted[node], clean[node], point) for node in clean}
            gradient = _before_norm(self.anatomy, sender.layer, moved if kind == "attention" else clean, gradient)
        return ((clean[sender] - corrupted[sender]) * gradient).sum((1, 2))


def in_block(node: Node, kind: str, layer: int) -> bool:
    own = {"input": NodeKind.INPUT, "attention": NodeKind.HEAD, "mlp": NodeKind.MLP}[kind]
    return node.kind is own and (kind == "input" or node.layer == layer)


def by_loop(subject: Subject, *, every: bool) -> np.ndarray:
    loop, graph = Loop(subject), subject.graph
    blocks = [("input", 0), *((kind, layer) for layer in range(graph.shape.n_layers) for kind in BLOCKS[1:])]
    total = torch.zeros(len(clean_ids()), graph.n_edges, dtype=torch.float64)
    for kind, layer in blocks:
        for point in POINTS:
            gradients = loop.gradients(kind, layer, point)
            for place, edge in enumerate(graph.edges()):
                if every or in_block(edge.sender, kind, layer):
                    total[:, place] += loop.change(edge.sender, gradients[edge.receiver], kind, point)
    return (total / (len(POINTS) * (len(blocks) if every else 1))).numpy()


@pytest.mark.parametrize(
    ("family", "every"),
    [*((family, every) for family in ("llama", "gpt2", "gpt_neox") for every in (False, True)), ("gemma2", False)],
)
def test_it_equals_an_explicit_loop_over_blocks_and_steps(family: str, every: bool) -> None:
    subject = Subject(family, in_float64(ZOO[family]()).requires_grad_(False))
    expected = by_loop(subject, every=every)
    mean, spread = subject.experiment().estimates(BlockPaths(POINTS, every))
    assert relative(mean, expected.mean(0), at_least=0.02) < 1e-5
    assert relative(spread, expected.std(0, ddof=1), at_least=0.02) < 1e-4
    other = subject.experiment().estimates(BlockPaths(POINTS, not every))[0]
    assert relative(other, mean) > 0.02


@pytest.mark.parametrize("family", list(ZOO))
def test_on_every_family_the_inputs_edges_are_those_of_integrated_gradients_and_the_model_is_as_it_was(
    family: str,
) -> None:
    subject = Subject(family, ZOO[family]())
    experiment, hooks = subject.experiment(), foreign_hooks(subject.module)
    scores = score(experiment, ScorerName.EAP_IG_ACTIVATIONS, Settings(steps=2)).values
    inputs = subject.graph.edge_senders == 0
    plain = experiment.attributions(POINTS)[0]
    assert relative(scores[inputs], plain[inputs]) < 1e-4
    assert relative(scores[~inputs], plain[~inputs]) > 0.02
    published = score(experiment, ScorerName.EAP_IG_ACTIVATIONS_PUBLISHED, Settings(steps=1)).values
    assert np.isfinite(published).all()
    assert relative(published, scores) > 0.02
    assert foreign_hooks(subject.module) == hooks
    np.testing.assert_array_equal(experiment.attributions(POINTS)[0], plain)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_batches_nor_the_prefix_nor_checkpointing_matter(family: str) -> None:
    pairs, subject = (*random_pairs(3, 6), *random_pairs(3, 8)), subject_of(family)
    for every in (False, True):
        for direction in Direction:
            estimate = BlockPaths((0.5,), every)
            whole = subject.experiment(pairs, prefix_cache=False, direction=direction).estimates(estimate)
            for changes in ({}, {"batch_size": 2}, {"checkpointing": True}):
                found = subject.experiment(pairs, direction=direction, **changes).estimates(estimate)
                assert relative(found, whole) < 1e-3, (changes, direction)
