"""Circuits that lead to what is read at another token than the last, against whole prompts in the whole model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.behaviours.endings import ending_at
from circuits.behaviours.pairs import TokenPair
from circuits.circuit import Circuit
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import PromptError, UsageError
from circuits.graph import Edge, Node, NodeKind, Receiver, Slot
from circuits.patching.measurement import Options
from circuits.records import BehaviourInfo, Method, Target
from circuits.scoring.scorers import score
from circuits.vocabulary import Metric, ScorerName
from tests.directions.zoo_models import anatomy, model
from tests.reference.hooks import hooked, last_logits, rewired, sender_values
from tests.subjects import random_masks, random_pairs, relative

LAYER = 2
PROJECTION = Options(Metric.PROJECTION)
SUBJECTS = (3, 4, 5)
PAIRS = [replace(pair, roles={"subject": (2, place)}) for pair, place in zip(random_pairs(3, 7), SUBJECTS, strict=True)]
PLACES = {"-3": (4, 4, 4), "subject": SUBJECTS, "last": (6, 6, 6), "end": (6, 6, 6)}


def direction(family: str) -> StreamDirection:
    return StreamDirection(np.random.default_rng(0).normal(size=model(family).info.d_model), 1, -1)


def ids(side: str, pairs: Sequence[TokenPair] = PAIRS) -> Tensor:
    return torch.tensor([getattr(pair, side) for pair in pairs])


def length(family: str, position: str, stream: Tensor) -> np.ndarray:
    """Read at each pair's own place in the whole prompt."""
    rows = stream[torch.arange(len(stream)), torch.tensor(PLACES[position])]
    return rows.double().numpy() @ direction(family).vector


@torch.no_grad()
def stream_of(family: str, side: str) -> Tensor:
    caught = list[Tensor]()
    with hooked() as handles:
        block = anatomy(family).blocks[LAYER]
        handles.append(block.register_forward_pre_hook(lambda _, args: caught.append(args[0].clone())))
        last_logits(model(family).tracer.anatomy.module, ids(side))
    return caught[0]


@torch.no_grad()
def slow_circuit(family: str, position: str, live: set[Edge]) -> np.ndarray:
    module, found = model(family).tracer.anatomy.module, anatomy(family)
    base, current, caught = sender_values(module, ids("corrupted")), dict[Node, Tensor](), list[Tensor]()
    reader = Receiver(Node(NodeKind.HEAD, LAYER, 0), Slot.Q)

    def read(receiver: Receiver, _: Tensor) -> Tensor:
        end = Receiver(Node(NodeKind.RESID, LAYER)) if receiver == reader else receiver
        stream = found.stream(receiver, lambda u: current[u] if Edge(u, end) in live else base[u])
        if receiver == reader:
            caught.append(stream)
        return stream

    with rewired(found, read, current.update):
        last_logits(module, ids("clean"))
    return length(family, position, caught[0])


@torch.no_grad()
def slow_effect(family: str, position: str, edge: Edge) -> np.ndarray:
    module, found = model(family).tracer.anatomy.module, anatomy(family)
    clean, corrupted = (sender_values(module, ids(side)) for side in ("clean", "corrupted"))
    change = found.stream_change(clean, edge.sender, corrupted[edge.sender])
    plain = stream_of(family, "clean")
    if edge.receiver.node.kind is NodeKind.RESID:
        return length(family, position, plain) - length(family, position, plain + change)

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        return stream + change if receiver == edge.receiver else stream

    with rewired(found, read, layers=(edge.receiver.node.layer,)):
        return length(family, position, plain) - length(family, position, stream_of(family, "clean"))


@pytest.mark.parametrize("position", ["-3", "subject"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2", "olmo2"])
def test_values_circuits_and_edges_towards_another_token_equal_the_whole_model_with_hooks(
    family: str, position: str
) -> None:
    cut = leading_to(model(family), f"resid:{LAYER}:{position}", along=direction(family))
    found = cut.experiment(PAIRS, PROJECTION)
    for side, values in (("clean", found.clean), ("corrupted", found.corrupted)):
        assert relative(values, length(family, position, stream_of(family, side)), at_least=0.1) < 1e-4
    every = list(found.graph.edges())
    masks = random_masks(found.graph.n_edges, (0.3, 0.8))
    slow = [slow_circuit(family, position, {every[i] for i in np.flatnonzero(mask)}) for mask in masks]
    assert relative(found.circuits(masks), np.array(slow), at_least=0.1) < 1e-3
    edges = np.unique([*range(0, found.graph.n_edges, 23), *range(found.graph.n_edges - 3, found.graph.n_edges)])
    exact = np.array([slow_effect(family, position, every[i]) for i in edges])
    assert np.abs(exact).max() > 1e-3
    assert relative(found.edge_effects(edges), exact, at_least=0.01) < 1e-3
    last = leading_to(model(family), f"resid:{LAYER}:last", along=direction(family)).experiment(PAIRS, PROJECTION)
    assert not np.allclose(last.clean, found.clean, rtol=1e-2)


@pytest.mark.parametrize("site", ["a2.h3<q>", "m1.n5", "a2.kv1<v>"])
def test_heads_and_neurons_are_read_at_other_tokens_too(site: str) -> None:
    """Whole prompts that end there by themselves are the reference; their last token is tested elsewhere."""
    reference = [replace(pair, roles={"subject": (2, 4)}) for pair in random_pairs(4, 7, seed=21)]
    ended = [replace(p, clean=p.clean[:5], corrupted=p.corrupted[:5], roles={}) for p in reference]
    for position in ("-3", "subject"):
        shorter = [
            replace(pair, clean=pair.clean[: place + 1], corrupted=pair.corrupted[: place + 1], roles={})
            for pair, place in zip(PAIRS, PLACES[position], strict=True)
        ]
        cut, plain = (leading_to(model("llama"), text) for text in (f"{site}:{position}", site))
        found = cut.experiment(PAIRS, PROJECTION, reference=reference)
        expected = plain.experiment(shorter, PROJECTION, reference=ended)
        edges = np.arange(0, found.graph.n_edges, 7)
        np.testing.assert_allclose(found.clean, expected.clean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.edge_effects(edges), expected.edge_effects(edges), rtol=1e-3, atol=1e-5)
        whole = plain.experiment(PAIRS, PROJECTION, reference=reference)
        assert not np.allclose(whole.clean, found.clean, rtol=1e-2)


@pytest.mark.parametrize("scorer", [ScorerName.EAP, ScorerName.EAP_IG, ScorerName.EXACT])
def test_scorers_and_edges_by_role_take_other_tokens(scorer: ScorerName) -> None:
    cut = leading_to(model("llama"), f"resid:{LAYER}:subject", along=direction("llama"))
    plain = cut.experiment(PAIRS, PROJECTION)
    roles = cut.by_role(["subject", "other", "end"]).experiment(PAIRS, PROJECTION)
    found, parted = score(plain, scorer).values, score(roles, scorer).values
    assert np.abs(found).max() > 0
    if scorer is ScorerName.EAP:  # to first order an edge is the sum of its roles
        summed = np.zeros(len(found))
        for value, edge in zip(parted, roles.graph.edges(), strict=True):
            summed[plain.graph.index(replace(edge, receiver=replace(edge.receiver, role="")))] += value
        np.testing.assert_allclose(summed, found, atol=1e-5)


def test_sides_of_different_lengths_end_at_counterparts() -> None:
    pair = TokenPair((1, 2, 3, 4), (1, 9, 2, 3, 4), (), (), "a", "b", roles={"it": (1, 3)}, alignment=(0, 2, 3, 4))
    (ended,) = ending_at([pair], "-2")
    assert (ended.clean, ended.corrupted, ended.alignment) == ((1, 2, 3), (1, 9, 2, 3), (0, 2, 3))
    assert ended.roles == {"it": (1,)}
    assert ending_at([pair], "last") == [pair]
    assert ending_at([pair], "it")[0].clean == pair.clean
    by_difference = TokenPair((1, 2, 3, 4), (1, 7, 3, 4), (), (), "a", "b")
    assert [ending_at([by_difference], role)[0].clean for role in ("before", "at", "after", "end")] == [
        *((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    ]


def test_a_direction_of_an_earlier_token_is_read_there() -> None:
    own = replace(direction("llama"), layer=LAYER, position=-3)
    cut = leading_to(model("llama"), own)
    assert str(cut.info.target) == "resid:2:-3"
    values = cut.experiment(PAIRS, PROJECTION).clean
    assert relative(values, length("llama", "-3", stream_of("llama", "clean")), at_least=0.1) < 1e-4
    facts = BehaviourInfo("mine", "projection", "length"), Method("exact", "top")
    circuit = Circuit(cut.info, *facts, np.array([0]), np.ones(1))
    assert Circuit.from_document(circuit.to_document()) == circuit


def test_tokens_that_are_not_there_are_refused_with_those_that_are() -> None:
    whole, along = model("llama"), direction("llama")
    with pytest.raises(PromptError, match=r"has 7 tokens, so it has none at -8; choose one from -7 to -1"):
        leading_to(whole, "resid:2:-8", along=along).experiment(PAIRS, PROJECTION)
    with pytest.raises(PromptError, match=r"no token with the role 'subjekt'; its roles are subject, end"):
        leading_to(whole, "resid:2:subjekt", along=along).experiment(PAIRS, PROJECTION)
    unnamed = [replace(pair, roles={}) for pair in PAIRS]
    with pytest.raises(PromptError, match=r"no token with the role 'subject'; its roles are before, at"):
        leading_to(whole, "resid:2:subject", along=along).experiment(unnamed, PROJECTION)
    with pytest.raises(UsageError, match=r"'a b' is no token of a prompt; expected last, one counted from the end"):
        leading_to(whole, "resid:2:a b", along=along)
    with pytest.raises(UsageError, match=r"'-0' is no token of a prompt"):
        leading_to(whole, "resid:2:-0", along=along)
    with pytest.raises(UsageError, match=r"resid:2:-3 is a vector; give the direction"):
        leading_to(whole, "resid:2:-3")
    with pytest.raises(UsageError, match=r"a2\.h3<q>:last is read by itself, and a second direction was given"):
        leading_to(whole, "a2.h3<q>", along=along)
    other = leading_to(whole, "resid:2:-3", along=along).info.target
    with pytest.raises(UsageError, match="was read along another direction"):
        leading_to(whole, other, along=StreamDirection(np.ones(32), 2))
    assert Target.parse("resid:2:-1") == Target.parse("resid:2:last") == Target.parse("resid:2") == Target(2)
    assert Target.parse("m14.n123:subject") == Target(14, site="m14.n123", position="subject")
