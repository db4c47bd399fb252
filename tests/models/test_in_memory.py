"""Models in memory: measured as they are, and left as they are."""

import copy
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from circuits.adapters.architecture import Architecture, concatenated, each_slot
from circuits.behaviours import TokenPair, load_behaviour
from circuits.errors import DeviceError, GuardError, PromptError, UnsupportedModelError, UsageError
from circuits.graph import Edge
from circuits.model import Model, load_model
from circuits.models.in_memory import weights_in_memory
from tests.subjects import PAIRS, random_masks, relative
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Let peft ask transformers for a property that has a new name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def measured(model: Model) -> list[np.ndarray]:
    """Every kind of measurement, in brief."""
    experiment = model.experiment(PAIRS)
    edges = np.arange(0, model.graph.n_edges, 7)
    circuits = experiment.circuits(random_masks(model.graph.n_edges, (0.3, 0.8)))
    return [experiment.clean, experiment.edge_effects(edges), experiment.attributions([0.5, 1.0])[0], circuits]


def same(left: Model, right: Model, tolerance: float = 0.0) -> bool:
    pairs = zip(measured(left), measured(right), strict=True)
    return all(relative(here, there) <= tolerance for here, there in pairs)


def state_of(module: nn.Module) -> list[object]:
    """All that measuring could leave behind on a module."""
    parts = [(name, id(part), sorted(part.__dict__), part.training) for name, part in module.named_modules()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    weights = [(name, id(value), value.requires_grad, value.grad) for name, value in module.named_parameters()]
    return [parts, hooks, weights]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_model_in_memory_scores_as_the_same_model_in_a_folder(make: Any, tmp_path: Path) -> None:
    module = make()
    module.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    here, there = load_model(module, tokenizer=tiny_tokenizer(), device="cpu"), load_model(str(tmp_path), device="cpu")
    assert same(here, there)
    assert here.info.id == type(module).__name__
    assert (here.info.revision, there.info.revision) == ("in memory", "local")
    assert here.info.tokenizer_digest == there.info.tokenizer_digest != ""
    assert here.info.shape == there.info.shape


@pytest.mark.parametrize("frozen", [True, False])
def test_measuring_leaves_the_module_as_it_was_and_no_gradients_on_it(frozen: bool) -> None:
    module = tiny_llama().requires_grad_(not frozen)
    ids = torch.arange(9)[None]
    seen: list[int] = []
    module.model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    before, logits = state_of(module), module(ids).logits
    model = load_model(module)
    measured(model)
    assert state_of(module) == before
    assert torch.equal(module(ids).logits, logits)
    assert module(ids).logits.requires_grad is not frozen


def test_scores_do_not_depend_on_whether_parameters_ask_for_gradients() -> None:
    assert same(load_model(tiny_llama().requires_grad_(True)), load_model(tiny_llama()))


def test_what_is_measured_shares_its_weights_with_the_module() -> None:
    module = tiny_llama().requires_grad_(True)
    loaded = weights_in_memory(module).module
    places = {name: value.data_ptr() for name, value in module.named_parameters()}
    assert {name: value.data_ptr() for name, value in loaded.named_parameters()} == places
    assert not any(value.requires_grad for value in loaded.parameters())


def test_the_digest_is_of_the_content_of_all_weights() -> None:
    digest = weights_in_memory(tiny_llama()).digest
    assert weights_in_memory(tiny_llama().requires_grad_(True), name="other").digest == digest
    changed, halves = tiny_llama(), tiny_llama().bfloat16()
    with torch.no_grad():
        changed.model.layers[2].mlp.down_proj.weight[3, 4] += 1e-3
    assert len({digest, weights_in_memory(changed).digest, weights_in_memory(halves).digest}) == 3


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_tied_embeddings_stay_tied_and_score_as_untied_ones_with_the_same_values(make: Any, tmp_path: Path) -> None:
    tied, untied = make(tied=True), make(tied=False)
    untied.load_state_dict(tied.state_dict())
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    loaded = load_model(tied.requires_grad_(True))
    module: Any = loaded.tracer.anatomy.module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert same(loaded, load_model(untied), tolerance=1e-5)
    tied.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert same(loaded, load_model(str(tmp_path), device="cpu"), tolerance=1e-5)


# ----------------------------------------------------------------------------------------------------------- wrappers


def with_lora(**options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    where = ["q_proj", "v_proj", "o_proj", "down_proj"]
    with quiet_peft():
        torch.manual_seed(0)
        settings = LoraConfig(r=4, lora_alpha=16, target_modules=where, init_lora_weights=False, **options)
        return get_peft_model(tiny_llama(), settings).eval()


def test_a_model_wrapped_by_peft_scores_as_the_merged_one_and_stays_wrapped() -> None:
    wrapped = with_lora(lora_dropout=0.1)
    before = state_of(wrapped)
    model = load_model(wrapped, tokenizer=tiny_tokenizer())
    merged = load_model(copy.deepcopy(wrapped).merge_and_unload())
    assert same(model, merged, tolerance=2e-5)
    assert not same(model, load_model(tiny_llama()), tolerance=0.05)
    assert state_of(wrapped) == before
    assert model.info.id == "LlamaForCausalLM"
    assert any("lora_A" in name for name, _ in model.tracer.anatomy.module.named_parameters())


def test_an_adapter_that_adds_positions_is_refused() -> None:
    from peft import PrefixTuningConfig, get_peft_model

    with quiet_peft():
        wrapped = get_peft_model(tiny_llama(), PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    with pytest.raises(UnsupportedModelError, match=r"of the kind PREFIX_TUNING, which adds positions.*expected LoRA"):
        load_model(wrapped)


def test_a_compiled_model_is_measured_as_it_was_before() -> None:
    assert same(load_model(torch.compile(tiny_llama(), backend="eager")), load_model(tiny_llama()))


# ----------------------------------------------------------------------------------------------- a decoder of one's own


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, normed: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(normed).chunk(3, -1))
        read = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(read.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention, self.between = nn.LayerNorm(16), Attention(), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.attention(self.before(stream))
        return stream + self.mlp(self.between(stream))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(320, 16), nn.ModuleList([Block() for _ in range(3)])
        self.norm, self.unembed = nn.LayerNorm(16), nn.Linear(16, 320)

    def forward(self, ids: Tensor) -> Tensor:
        stream = self.embed(ids)
        for block in self.blocks:
            stream = block(stream)
        return self.unembed(self.norm(stream))


SHAPE = "layers 0-2 and heads 0-3"


def own() -> Own:
    torch.manual_seed(0)
    return Own().eval()


OWN = Architecture(
    name="own",
    layers="blocks",
    final_norm="norm",
    attention="attention",
    attention_norm="before",
    projections=each_slot("attention.qkv"),
    layout=concatenated,
    output="attention.out",
    mlp="mlp",
    mlp_norm="between",
    heads=4,
)


def test_a_decoder_of_ones_own_is_measured_with_its_architecture() -> None:
    """The edge from the last MLP to the logits, against the same done by hand."""
    module = own()
    model = load_model(module, architecture=OWN, name="mine")
    assert (model.info.id, model.info.architecture, model.info.shape.describe()) == ("mine", "own", SHAPE)
    experiment = model.experiment(PAIRS)
    written: dict[str, Tensor] = {}
    last = module.blocks[2]
    by_hand = []
    for pair in PAIRS:
        with torch.no_grad():
            for side, ids in (("corrupted", pair.corrupted), ("clean", pair.clean)):
                hook = last.mlp.register_forward_hook(lambda *a, side=side: written.update({side: a[2]}))
                stream = {"logits": module(torch.tensor([ids]))[0, -1]}
                hook.remove()
            change = written["corrupted"] - written["clean"]
            hook = module.norm.register_forward_pre_hook(lambda _, a, by=change: (a[0] + by,))
            patched = module(torch.tensor([pair.clean]))[0, -1]
            hook.remove()
        by_hand.append(preference(stream["logits"], pair) - preference(patched, pair))
    effects = experiment.edge_effects(np.array([model.graph.index(Edge.parse("m2->logits"))]))[0]
    assert relative(effects, np.array(by_hand)) < 1e-5


def preference(logits: Tensor, pair: TokenPair) -> float:
    right, wrong = (logits[list(ids)].double().logsumexp(0) for ids in (pair.answers, pair.wrong_answers))
    return float(right - wrong)


def test_a_wrong_architecture_is_refused_by_the_guards() -> None:
    with pytest.raises(GuardError, match="mine fails the guard"):
        load_model(own(), architecture=replace(OWN, parallel=True), name="mine")


def test_a_plain_module_without_an_architecture_is_refused_with_how_to_describe_it() -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"'Own' is of the class Own, which is not of transformers.*architecture=Architecture",
    ):
        load_model(own())


def test_a_model_without_a_tokenizer_measures_token_ids_and_refuses_text() -> None:
    model = load_model(tiny_llama())
    assert model.tokenizer is None
    assert "tokenizer" not in [guard.name for guard in model.guards]
    assert model.info.tokenizer_digest == ""
    assert np.abs(model.experiment(PAIRS).edge_effects(np.arange(20))).max() > 0.01
    with pytest.raises(PromptError, match=r"ioi is made of text, and this model has no tokenizer.*tokenizer=\.\.\."):
        load_behaviour("ioi").prompts(model.tokenizer)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("part", ["", "model.layers.1.mlp"])
def test_a_model_in_training_mode_is_refused_and_stays_in_it(part: str) -> None:
    module = tiny_llama()
    module.get_submodule(part).train()
    with pytest.raises(UsageError, match=rf"in training mode .({part or 'all of it'}).*`model.eval\(\)`"):
        load_model(module)
    assert module.get_submodule(part).training


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dtype": "bfloat16"}, r"dtype 'bfloat16' was asked for, .* has float32, .*`model.to\(torch.bfloat16\)`"),
        ({"attention": "eager"}, r"attention 'eager' was asked for, .* has sdpa, .*`model.set_attn_implementation"),
    ],
)
def test_a_model_in_memory_is_not_converted(asked: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(tiny_llama(), **asked)


def test_a_device_other_than_the_models_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"device 'mps' was asked for, .* has cpu"):
        load_model(tiny_llama(), device="mps")


def test_what_a_model_in_memory_is_already_may_be_asked_for() -> None:
    model = load_model(tiny_llama().bfloat16(), device="cpu", dtype="bfloat16", attention="sdpa")
    assert (model.dtype, model.attention) == ("bfloat16", "sdpa")


def test_weights_that_are_nowhere_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"keeps 'model.embed_tokens.weight' off its devices"):
        load_model(tiny_llama().to("meta"))
    with pytest.raises(UnsupportedModelError, match="has no weights"):
        load_model(nn.Identity().eval(), architecture=OWN)


def test_modules_that_cannot_be_copied_are_refused() -> None:
    module = tiny_llama()
    module.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match=r"cannot be copied .*lock.*Keep out of them"):
        load_model(module)


def test_a_lowered_matmul_precision_is_said_beside_the_dtype_it_concerns() -> None:
    full, half = load_model(tiny_llama()), load_model(tiny_llama().bfloat16())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert (full.dtype, half.dtype) == ("float32, matmul precision high", "bfloat16")
    finally:
        torch.set_float32_matmul_precision(before)
    assert full.dtype == "float32"
