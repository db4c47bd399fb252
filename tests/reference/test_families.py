"""The oracle on every family: its two halves agree, its ends are the model's own runs, its gradients are slopes."""

import copy
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from torch import Tensor, nn

from circuits.graph import ComputationalGraph, Edge, Node, NodeKind, Receiver, Slot
from tests.reference.anatomy import INPUT, Anatomy, anatomy_of
from tests.reference.gradients import gradient_edge_scores
from tests.reference.hooks import (
    LOGITS,
    clean_run,
    exact_edge_effects,
    hooked,
    live_run,
    masked_run,
    plain_read,
    rewired,
    sender_values,
    zeros,
)
from tests.reference.layers import Heads, Layer, Rest
from tests.reference.precision import in_float64
from tests.reference.seams import replaced
from tests.reference.small_models import logit_difference, pairs
from tests.zoo import ZOO

CLEAN, CORRUPTED = pairs(2, 6, seed=4)
PARALLEL = ("gptj", "gpt_neox", "falcon", "phi", "stablelm_parallel", "cohere")
SEQUENTIAL = ("gpt_neox_sequential", "falcon_rw", "phi3", "phimoe")
SANDWICH = ("gemma2", "gemma3", "olmo2", "olmo3", "glm4", "exaone4")
WHOLE_WIDTH = ("olmo2", "olmo3", "olmoe")
MULTI_QUERY = ("falcon", "gpt_bigcode")


@dataclass(frozen=True)
class Subject:
    """One family's tiny model in float64."""

    family: str
    model: nn.Module

    @cached_property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.model)

    @property
    def graph(self) -> ComputationalGraph:
        return self.anatomy.graph

    @cached_property
    def every(self) -> list[Edge]:
        return list(self.graph.edges())

    @cached_property
    def some(self) -> list[Edge]:
        """One edge for each kind of sender into each slot of layers 1 and 2, the MLP and the logits."""
        found: dict[object, Edge] = {}
        for edge in reversed(self.every):
            receiver = edge.receiver
            if receiver.node.layer != 0 and edge.sender.layer < 2:
                found.setdefault((edge.sender.kind, receiver.node.kind, receiver.slot, receiver.node.layer % 2), edge)
        return list(found.values())


@pytest.fixture(scope="module", params=ZOO)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param, in_float64(ZOO[request.param]()))


def largest(x: Tensor) -> float:
    return float(x.abs().max())


# ----------------------------------------------------------------------------------------------------------- structure


def test_the_structure_found_by_trying_is_that_of_the_family(subject: Subject) -> None:
    shape, config = subject.graph.shape, subject.model.config
    assert shape.parallel == (subject.family.startswith(PARALLEL) and not subject.family.startswith(SEQUENTIAL))
    assert set(subject.anatomy.sandwich) == {subject.family.startswith(SANDWICH)}
    assert (shape.n_layers, shape.n_heads) == (config.num_hidden_layers, config.num_attention_heads)
    assert shape.d_model == config.hidden_size
    groups = getattr(config, "num_kv_heads", getattr(config, "num_key_value_heads", config.num_attention_heads))
    assert shape.n_kv_heads == (1 if subject.family in MULTI_QUERY else groups)  # whatever the configuration says


def test_every_receiver_has_columns_of_its_own_and_together_they_are_the_projections(subject: Subject) -> None:
    columns: dict[nn.Module, list[int]] = {}
    for receiver in subject.anatomy.receivers(1):
        if receiver.slot is None or (subject.family.startswith(WHOLE_WIDTH) and receiver.slot is not Slot.V):
            continue
        module, own = subject.anatomy.projection(receiver)
        assert len(own) == subject.graph.shape.d_head
        columns.setdefault(module, []).extend(own)
    for module, found in columns.items():
        width = module.weight.shape[1 if type(module).__name__ == "Conv1D" else 0]
        assert sorted(found) == list(range(width))


def test_the_layers_attention_biases_are_what_is_left_of_the_model_without_heads(subject: Subject) -> None:
    anatomy, values = subject.anatomy, sender_values(subject.model, CLEAN)
    silent = {node: value if node.kind is not NodeKind.HEAD else value * 0 for node, value in values.items()}
    rest = anatomy.stream(LOGITS, silent.__getitem__) - sum(values[n] for n in values if n.kind is not NodeKind.HEAD)
    biases = sum(anatomy.attention_bias(layer) for layer in range(anatomy.shape.n_layers))
    assert largest(rest - biases) < 1e-12


# ------------------------------------------------------------------------------------------------------------- senders


def test_senders_add_up_to_the_final_stream(subject: Subject) -> None:
    seen: list[Tensor] = []
    with hooked() as handles:
        handles.append(subject.anatomy.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
        clean_run(subject.model, CLEAN)
    values = sender_values(subject.model, CLEAN)
    assert tuple(values) == subject.graph.senders
    assert largest(subject.anatomy.stream(LOGITS, values.__getitem__) - seen[0]) < 1e-10
    plain = sum(values.values()) + sum(subject.anatomy.biases)
    assert (largest(plain - seen[0]) < 1e-10) != subject.family.startswith(SANDWICH)


def test_every_sender_says_something_else_about_the_corrupted_prompts(subject: Subject) -> None:
    clean, corrupted = sender_values(subject.model, CLEAN), sender_values(subject.model, CORRUPTED)
    for node, value in clean.items():
        assert largest(subject.anatomy.stream_change(clean, node, corrupted[node])) > 0.01
        assert largest(value) > 0.01
        unchanged = subject.anatomy.stream_change(clean, node, value)
        assert largest(unchanged) == 0


# ---------------------------------------------------------------------------------------------------------- end points


def test_all_edges_live_is_the_clean_run(subject: Subject) -> None:
    for ablation in ("corrupted", "zero"):
        logits = masked_run(subject.model, CLEAN, CORRUPTED, subject.every, ablation=ablation)
        assert largest(logits - clean_run(subject.model, CLEAN)) < 1e-10


def test_no_edge_live_is_the_corrupted_run_and_half_of_them_neither(subject: Subject) -> None:
    clean, corrupted = clean_run(subject.model, CLEAN), clean_run(subject.model, CORRUPTED)
    assert largest(masked_run(subject.model, CLEAN, CORRUPTED, []) - corrupted) < 1e-10
    half = masked_run(subject.model, CLEAN, CORRUPTED, subject.every[::2])
    assert min(largest(half - clean), largest(half - corrupted)) > 0.1


# -------------------------------------------------------------------------------------------------------- single edges


def test_an_edge_effect_is_the_live_run_with_one_edge_replaced(subject: Subject) -> None:
    model, edges = subject.model, subject.some[::5]
    clean, corrupted = sender_values(model, CLEAN), sender_values(model, CORRUPTED)
    ends = {ids: logit_difference(clean_run(model, ids)) for ids in (CLEAN, CORRUPTED)}
    cases = [
        ("noising", "corrupted", CLEAN, corrupted, 1),
        ("denoising", "corrupted", CORRUPTED, clean, -1),
        ("noising", "zero", CLEAN, zeros(corrupted), 1),
    ]
    for direction, ablation, ids, base, sign in cases:
        options = {"direction": direction, "ablation": ablation}
        effects = exact_edge_effects(model, CLEAN, CORRUPTED, edges, logit_difference, **options)
        for edge, effect in zip(edges, effects, strict=True):
            others = [other for other in subject.every if other != edge]
            changed = logit_difference(live_run(model, ids, base=base, live=others))
            assert largest(effect - sign * (ends[ids] - changed)) < 1e-10
        assert largest(effects) > 0.1


def test_patching_one_query_leaves_every_other_query_key_and_value_of_its_layer_alone(subject: Subject) -> None:
    layer, seen = subject.anatomy.layers[1], []

    def spy(like: Tensor, rest: Rest, heads: Heads) -> tuple[Tensor, Tensor]:
        seen.append(heads)
        return Layer.attend(layer, like, rest, heads)

    def read(receiver: Receiver, stream: Tensor) -> Tensor:
        return stream.flip(-1) if receiver == patched else stream

    patched = Receiver(Node(NodeKind.HEAD, 1, 2), Slot.Q)
    for reader in (plain_read, read):
        with replaced(layer, "attend", spy), rewired(subject.anatomy, reader, layers=(1,)):
            clean_run(subject.model, CLEAN)
    for slot, before, after in zip(Slot, *seen, strict=True):
        changed = [h for h in range(before.shape[1]) if largest(before[:, h] - after[:, h]) > 1e-9]
        assert changed == ([2] if slot is Slot.Q else [])


# ----------------------------------------------------------------------------------------------------------- gradients


def test_gradient_scores_agree_with_exact_effects_when_the_difference_is_small(subject: Subject) -> None:
    """Tokens 100-160 embed almost as tokens 0-60 do, so corrupting a prompt by +100 is a step of 1e-6."""
    nearby, generator = copy.deepcopy(subject.model), torch.Generator().manual_seed(5)
    table = nearby.get_input_embeddings().weight
    with torch.no_grad():
        table[100:161] = table[:61] + 1e-6 * torch.randn(61, table.shape[1], generator=generator).to(table)
    exact = exact_edge_effects(nearby, CLEAN, CLEAN + 100, subject.some, logit_difference)
    scores = gradient_edge_scores(nearby, CLEAN, CLEAN + 100, logit_difference)
    estimate = torch.stack([scores[:, subject.graph.index(edge)] for edge in subject.some])
    assert largest(exact) > 1e-7
    assert largest(exact - estimate) < 1e-4 * largest(exact)
    assert float(exact.abs().amax(1).min()) > 1e-10


def test_gradient_scores_at_a_point_are_slopes_of_the_run_from_that_point(subject: Subject) -> None:
    """The whole difference of a sender counts, but norms after attention as they are in that run."""
    model, anatomy, point, step = subject.model, subject.anatomy, 0.3, 1e-5
    clean, corrupted = sender_values(model, CLEAN), sender_values(model, CORRUPTED)
    start = torch.lerp(corrupted[INPUT], clean[INPUT], point)
    here = sender_values(model, CLEAN, embedding=start)
    scores = gradient_edge_scores(model, CLEAN, CORRUPTED, logit_difference, points=(point,))

    def moved(edge: Edge, by: float) -> Tensor:
        new = here[edge.sender] + by * (clean[edge.sender] - corrupted[edge.sender])
        change = anatomy.stream_change(here, edge.sender, new)
        layers = () if edge.receiver == LOGITS else (edge.receiver.node.layer,)
        with rewired(
            anatomy, lambda v, stream: stream + change if v == edge.receiver else stream, layers=layers, embedding=start
        ):
            return logit_difference(clean_run(model, CLEAN))

    slopes = torch.stack([(moved(edge, step) - moved(edge, -step)) / (2 * step) for edge in subject.some])
    estimate = torch.stack([scores[:, subject.graph.index(edge)] for edge in subject.some])
    assert largest(slopes) > 0.1
    assert largest(slopes - estimate) < 1e-6 * largest(slopes)
