"""An ablated model is the model itself but for its nodes; nothing stays on the model."""

import pytest
import torch
from torch import Tensor

from circuits.ablation.generation import AblatedModel, ablated, end_tokens
from circuits.ablation.intervention import Intervention, reference_of
from circuits.ablation.nodes import acting_nodes
from circuits.behaviours.tokens import Message
from circuits.errors import PromptError, UnknownNameError, UsageError
from circuits.graph import Node, NodeKind
from circuits.model import Model, load_model
from circuits.tracing.plan import LayerSite
from circuits.vocabulary import NodeAblation, NodeChoice
from tests.ablation.conftest import ANSWER, PLANTED, TOKENIZER, circuit_of, pairs_of, planted_model, tiny_model
from tests.reference.hooks import hooked
from tests.tiny import FAMILIES, tiny_llama

families = pytest.mark.parametrize("family", FAMILIES)
ZERO = Intervention(NodeAblation.ZERO)
PAIRS = pairs_of()
IDS = torch.tensor([pair.clean for pair in PAIRS])


def own_logits(model: Model, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.tracer.anatomy.module(ids, use_cache=False).logits[:, -1]


def everything(model: Model) -> tuple[Node, ...]:
    return tuple(node for node in model.graph.senders if node.kind is not NodeKind.INPUT)


# ------------------------------------------------------------------------------------------------- nothing is changed


@families
def test_ablating_nothing_generates_token_by_token_what_transformers_generates(family: str) -> None:
    model = tiny_model(family)
    new, _ = ablated(model, (), ZERO).continuations([pair.clean for pair in PAIRS], 8)
    module = model.tracer.anatomy.module
    theirs = module.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False, pad_token_id=0
    )[:, IDS.shape[1] :].tolist()
    ends = end_tokens(model)
    assert 0 in ends
    for mine, row in zip(new, theirs, strict=True):
        stop = next((place for place, token in enumerate(row) if token in ends), len(row))
        assert list(mine) == row[:stop]
    assert len(set(new)) > 1


@families
def test_a_scale_of_one_changes_no_bit(family: str) -> None:
    model = tiny_model(family)
    for kind in NodeAblation:
        unchanged = ablated(model, everything(model), Intervention(kind, scale=1.0), reference=PAIRS)
        assert torch.equal(unchanged.logits(IDS), ablated(model, (), ZERO).logits(IDS))


def test_a_scale_of_one_changes_no_bit_where_the_visits_are_made_as_well() -> None:
    model = tiny_model()
    still = Intervention(NodeAblation.ZERO, scale=1.0, steer=1e-30)
    acting = ablated(model, everything(model), still, reference=PAIRS)
    assert len(acting.visits) == 6
    assert torch.equal(acting.logits(IDS), ablated(model, (), ZERO).logits(IDS))


# ---------------------------------------------------------------------------------------------- exactly what is changed


@families
@pytest.mark.parametrize("first_token", [False, True])
def test_with_all_nodes_ablated_predictions_come_from_the_embedding_alone(family: str, first_token: bool) -> None:
    model = tiny_model(family)
    module = model.tracer.anatomy.module
    with torch.no_grad():
        if family == "gpt2":
            body = module.transformer
            stream = body.wte(IDS) + body.wpe(torch.arange(IDS.shape[1]))
            stream = stream + sum(block.attn.c_proj.bias for block in body.h)  # belongs to no head
            expected = module.lm_head(body.ln_f(stream))[:, -1]
        else:
            expected = module.lm_head(module.model.norm(module.model.embed_tokens(IDS)))[:, -1]
    intervention = Intervention(NodeAblation.ZERO, first_token=first_token)
    found = ablated(model, everything(model), intervention).logits(IDS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (own_logits(model) - expected).abs().max() > 1


@pytest.mark.parametrize("kind", NodeAblation)
def test_means_scale_and_direction_are_applied_as_plain_hooks_apply_them(kind: NodeAblation) -> None:
    model = tiny_model("llama")
    head, mlp = Node(NodeKind.HEAD, 1, 3), Node(NodeKind.MLP, 0)
    scale, steer = -0.5, 1.5
    acting = ablated(model, (head, mlp), Intervention(kind, scale, steer), reference=PAIRS)
    layers = model.tracer.anatomy.module.model.layers
    seen: dict[str, Tensor] = {}

    def look(side: str) -> None:
        ids = torch.tensor([getattr(pair, side) for pair in PAIRS])
        with hooked() as handles:
            o_proj, m = layers[1].self_attn.o_proj, layers[0].mlp
            handles.append(o_proj.register_forward_pre_hook(lambda _, args: seen.update({f"z {side}": args[0]})))
            handles.append(m.register_forward_hook(lambda _, __, out: seen.update({f"m {side}": out})))
            own_logits(model, ids)

    look("clean")
    look("corrupted")
    mine = torch.arange(48) // 12 == 3

    def changed(name: str, value: Tensor) -> Tensor:
        there = seen[f"{name} corrupted"]
        mean = {"mean": there[:, 1:].mean((0, 1)), "last-mean": there[:, -1].mean(0), "zero": torch.tensor(0.0)}[kind]
        direction = (seen[f"{name} clean"][:, -1] - there[:, -1]).mean(0)
        new = mean + scale * (value - mean) + steer * direction
        new[:, 0] = value[:, 0]
        return torch.where(mine, new, value) if name == "z" else new

    with hooked() as handles:
        handles.append(layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, a: (changed("z", a[0]),)))
        handles.append(layers[0].mlp.register_forward_hook(lambda _, __, out: changed("m", out)))
        expected = own_logits(model)
    torch.testing.assert_close(acting.logits(IDS), expected, rtol=1e-4, atol=1e-4)
    assert (expected - own_logits(model)).abs().max() > 0.1


def test_prompts_of_other_lengths_count_by_their_tokens_and_are_never_padded() -> None:
    model, short = tiny_model(), pairs_of()[0]
    from dataclasses import replace

    short = replace(short, clean=short.clean[:3], corrupted=short.corrupted[:3])
    both = reference_of(model.tracer, [*PAIRS[1:], short])
    alone, rest = reference_of(model.tracer, [short]), reference_of(model.tracer, PAIRS[1:])
    place = (1, LayerSite.Z)
    n, tokens = len(PAIRS) - 1, (len(PAIRS) - 1) * 6
    torch.testing.assert_close(both.mean[place], (2 * alone.mean[place] + tokens * rest.mean[place]) / (2 + tokens))
    torch.testing.assert_close(both.direction[place], (alone.direction[place] + n * rest.direction[place]) / (1 + n))


def test_a_planted_heads_answer_goes_with_it_and_with_its_sign() -> None:
    model = planted_model()
    new, logits = ablated(model, (), ZERO).continuations([pair.clean for pair in PAIRS], 1)
    assert new == [(ANSWER,)] * len(PAIRS)
    without = ablated(model, (PLANTED,), ZERO)
    assert (ANSWER,) not in without.continuations([pair.clean for pair in PAIRS], 1)[0]
    turned = ablated(model, (PLANTED,), Intervention(NodeAblation.ZERO, scale=-1.0)).logits(IDS)
    assert (turned.argmin(-1) == ANSWER).all()
    mean = ablated(model, (PLANTED,), Intervention(), reference=PAIRS)
    assert mean.continuations([pair.clean for pair in PAIRS], 1)[0] == new  # it always writes its mean
    assert (logits.argmax(-1) == ANSWER).all()


# -------------------------------------------------------------------------------------------------- nothing stays


def hooks_of(model: Model) -> list[int]:
    modules = list(model.tracer.anatomy.module.modules())
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]


def test_nothing_stays_on_the_model_after_an_exception() -> None:
    model = load_model(tiny_llama(), tokenizer=TOKENIZER, name="fresh")
    acting = ablated(model, everything(model), ZERO)
    acting.logits(IDS)
    before, hooks = own_logits(model), hooks_of(model)

    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("in the middle of it")

    broken = AblatedModel(model, acting.nodes, ZERO, {**acting.visits, (1, LayerSite.Z): fail})
    with pytest.raises(Exception, match="in the middle of it"):
        broken.continuations([pair.clean for pair in PAIRS], 2)
    assert hooks_of(model) == hooks
    assert torch.equal(own_logits(model), before)
    assert not torch.equal(acting.logits(IDS), before)


# ------------------------------------------------------------------------------------------------- circuits and text


def test_a_circuit_is_acted_on_at_its_heads_and_mlps() -> None:
    model = tiny_model()
    circuit = circuit_of(model, ["input->a1.h2<q>", "input->a0.kv1<v>", "a0.h3->m1", "a1.h2->logits", "m1->logits"])
    assert [str(node) for node in acting_nodes(circuit)] == ["a0.h3", "a1.h2", "m1"]
    assert [str(node) for node in acting_nodes(circuit, NodeChoice.HEADS)] == ["a0.h3", "a1.h2"]
    assert [str(node) for node in acting_nodes(circuit, NodeChoice.MLPS)] == ["m1"]
    by_circuit, by_nodes = ablated(model, circuit, ZERO), ablated(model, acting_nodes(circuit), ZERO)
    assert torch.equal(by_circuit.logits(IDS), by_nodes.logits(IDS))
    assert not torch.equal(by_circuit.logits(IDS), own_logits(model))


def test_text_and_chat_messages_are_continued_as_transformers_continues_them() -> None:
    model = tiny_model()
    plain = ablated(model, (), ZERO)
    for prompt, ids in (
        ("When Mary and John", TOKENIZER.encode("When Mary and John")),
        ((Message("user", "Hello"),), TOKENIZER.encode("<|start|>user\nHello<|end|>\n<|start|>assistant\n")),
    ):
        row = torch.tensor([ids])
        theirs = model.tracer.anatomy.module.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=4, do_sample=False, pad_token_id=0
        )[0, row.shape[1] :]
        assert plain.generate(prompt, max_new_tokens=4) == TOKENIZER.decode(theirs, skip_special_tokens=True)


def test_losses_are_those_of_the_models_own_logits() -> None:
    model = tiny_model()
    texts = [pair.clean for pair in PAIRS] + [PAIRS[0].clean[:4]]
    with torch.no_grad():
        logits = model.tracer.anatomy.module(IDS).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="none")
    found = ablated(model, (), ZERO).losses(texts)
    torch.testing.assert_close(torch.cat(found[:-1]), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[-1], found[0][:3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ablated(model, everything(model), ZERO).losses(texts)[0], found[0])


# ---------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_done_is_refused_with_the_reason() -> None:
    model, other = tiny_model("llama"), tiny_model("gpt2")
    circuit = circuit_of(model, ["input->a1.h2<q>", "a1.h2->logits"])
    with pytest.raises(UsageError, match="1 to 8 new tokens, got 9: only the beginning"):
        ablated(model, circuit, ZERO).generate("When", max_new_tokens=9)
    with pytest.raises(UsageError, match="there are none for this circuit; give pairs"):
        ablated(model, circuit)
    with pytest.raises(UsageError, match="use the circuit's own model"):
        ablated(other, circuit, ZERO)
    with pytest.raises(UsageError, match="no mlps among the circuit's nodes"):
        ablated(model, circuit, ZERO, which=NodeChoice.MLPS)
    with pytest.raises(UnknownNameError, match=r"no node 'a9\.h0'"):
        ablated(model, [Node(NodeKind.HEAD, 9, 0)], ZERO)
    with pytest.raises(UsageError, match="'input' cannot be ablated; expected heads and MLPs"):
        ablated(model, [Node(NodeKind.INPUT)], ZERO)
    with pytest.raises(UsageError, match="expected at least one pair"):
        ablated(model, circuit, Intervention(), reference=[])
    with pytest.raises(UsageError, match=r"'scale' of Intervention is nan; expected a finite number"):
        Intervention(scale=float("nan"))
    with pytest.raises(UnknownNameError, match=r"no ablation of nodes 'zeros'\. Closest: 'zero'"):
        Intervention("zeros")
    assert Intervention("zero") == ZERO
    with pytest.raises(UnknownNameError, match="Closest: 'heads'"):
        acting_nodes(circuit, "head")
    with pytest.raises(PromptError, match="prompt is empty"):
        ablated(model, (), ZERO).generate("")


def test_a_model_without_tokenizer_continues_token_ids_only() -> None:
    model = load_model(tiny_llama(), name="bare")
    plain = ablated(model, (), ZERO)
    assert len(plain.continuations([PAIRS[0].clean], 1)[0]) == 1
    with pytest.raises(PromptError, match="no tokenizer; use `continuations`"):
        plain.generate("When")
