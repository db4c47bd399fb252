"""Adapters to tools that do what this package does: how each is handed the same model and prompts, and what it can do.

One function a tool, which says how the tool is really used; :mod:`peers` runs them.
"""

import importlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

EAP, EDGE, CIRCUIT = "EAP, all edges", "one exact edge", "one circuit of 200 edges"


@dataclass(frozen=True)
class Task:
    """The model and prompts that everything is measured on; clean and corrupted share the first token."""

    model: GPT2LMHeadModel
    clean: Tensor
    corrupted: Tensor
    n_edges: int
    """How many single edges are measured."""
    size: int
    """How many edges the circuit has."""

    @property
    def answers(self) -> Tensor:
        """The answer tokens, one column; the wrong answers follow them."""
        return torch.ones(len(self.clean), 1, dtype=torch.long)


@dataclass(frozen=True)
class Operation:
    """Something to time: how many items it is over, and what of it is paid once for all items."""

    name: str
    run: Callable[[], object]
    items: float = 1
    once: Callable[[], object] | None = None


@dataclass(frozen=True)
class Peer:
    """A tool: how it is installed, which packages' versions matter, and its operations."""

    name: str
    packages: tuple[str, ...]
    needs: tuple[str, ...]
    install: str
    operations: Callable[[Task], list[Operation]]


def task(*, quick: bool) -> Task:
    torch.manual_seed(0)
    small = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    config = small if quick else GPT2Config()
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    clean, corrupted = torch.randint(3, config.vocab_size, (2, 16, 16))
    clean[:, 0] = corrupted[:, 0] = 0
    return Task(model, clean, corrupted, *((4, 20) if quick else (12, 200)))


def difference(logits: Tensor) -> Tensor:
    """Return the logit difference of tokens 1 and 2 at the last position, for each prompt."""
    return logits[:, -1, 1] - logits[:, -1, 2]


def this_package(of: Task) -> list[Operation]:
    import numpy as np
    from core_operations import sweep_order

    import circuits

    model = circuits.load_model(of.model)
    sides = zip(of.clean.tolist(), of.corrupted.tolist(), strict=True)
    pairs = [circuits.TokenPair(tuple(clean), tuple(corrupted), (1,), (2,), "", "") for clean, corrupted in sides]
    experiment = model.experiment(pairs)
    scores = experiment.attributions([1.0])[0]
    mask = np.zeros((1, len(scores)), dtype=np.bool_)
    mask[0, np.argsort(-np.abs(scores))[: of.size]] = True
    parts = np.array_split(sweep_order(model.graph), 8)
    edges = np.concatenate([part[len(part) // 2 :][: 2 * of.n_edges] for part in parts])
    keeping = circuits.Resources(keep_gradients=True)
    return [
        Operation(EAP, lambda: model.experiment(pairs, resources=keeping).attributions([1.0])),
        Operation(EDGE, lambda: experiment.edge_effects(edges), len(edges)),
        Operation(CIRCUIT, lambda: model.experiment(pairs).circuits(mask)),
    ]


def hooked(of: Task) -> Any:
    """Return the model as TransformerLens had it until version 3, with the hooks that edges need."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = of.model.config
    cfg = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        d_head=config.n_embd // config.n_head,
        n_heads=config.n_head,
        d_vocab=config.vocab_size,
        act_fn=config.activation_function,
        normalization_type="LN",
        eps=config.layer_norm_epsilon,
        device="cpu",
    )
    model = HookedTransformer(cfg, tokenizer=_words(config.vocab_size))
    weights = convert_gpt2_weights(of.model, cfg)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    cfg.use_attn_result = cfg.use_split_qkv_input = cfg.use_hook_mlp_in = True
    return _checked(model.eval(), of)


def _words(count: int) -> Any:
    """Return a tokenizer whose token ``i`` is the word ``w<i>``, and whose prompts begin with token 0."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "w0")
    return PreTrainedTokenizerFast(tokenizer_object=words, add_bos_token=True, name_or_path="words", **special)


def _checked(model: Any, of: Task) -> Any:
    with torch.no_grad():
        found, expected = model(of.clean), of.model(of.clean).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    return model


def auto_circuit(of: Task) -> list[Operation]:
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune import run_circuits
    from auto_circuit.prune_algos.ACDC import acdc_prune_scores
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.graph_utils import patchable_model

    model = patchable_model(
        hooked(of).requires_grad_(False), factorized=True, slice_output="last_seq", separate_qkv=True
    )
    prompts = PromptDataset(of.clean, of.corrupted, list(of.answers), list(of.answers + 1))
    loader = PromptDataLoader(prompts, seq_len=None, diverge_idx=0, batch_size=len(of.clean))

    def attribute() -> Any:
        return mask_gradient_prune_scores(model, loader, None, "logit", "avg_diff", mask_val=0.0)

    def acdc(count: int) -> None:
        model.edges = set(sample[:count])
        acdc_prune_scores(model, loader, None, tao_bases=[1], tao_exps=[-9])

    every = sorted(model.edges, key=str)
    sample = [
        every[i] for i in torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[: of.n_edges + 1]
    ]
    scores = attribute()
    return [
        Operation(EAP, attribute),
        Operation(CIRCUIT, lambda: run_circuits(model, loader, [of.size], scores)),
        Operation(EDGE, lambda: acdc(of.n_edges + 1), of.n_edges, once=lambda: acdc(1)),
    ]


def _edge_attribution(of: Task, package: str) -> list[Operation]:
    """Measure EAP-IG or a package that carries a copy of it."""
    modules = [importlib.import_module(f"{package}.{name}") for name in ("attribute", "evaluate", "graph")]
    attribute, evaluate_graph, make = modules[0].attribute, modules[1].evaluate_graph, modules[2].Graph.from_model
    model = hooked(of)
    sides = [[" ".join(f"w{token}" for token in row[1:]) for row in ids.tolist()] for ids in (of.clean, of.corrupted)]
    batches = [(*sides, of.answers)]  # prompts begin with token 0, which the package adds

    def metric(logits: Tensor, *_: Any) -> Tensor:
        return difference(logits)

    def mean(logits: Tensor, *_: Any) -> Tensor:
        return difference(logits).mean()

    def edges(count: int) -> None:
        every.in_graph |= every.real_edge_mask
        for edge in sample[:count]:
            edge.in_graph = False
            evaluate_graph(model, every, batches, metric, quiet=True)
            edge.in_graph = True

    scored, every = make(model), make(model)
    attribute(model, scored, batches, mean, "EAP", quiet=True)
    scored.apply_topn(of.size, True)
    sample = list(every.edges.values())
    sample = [sample[i] for i in torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))[: of.n_edges]]
    return [
        Operation(EAP, lambda: attribute(model, make(model), batches, mean, "EAP", quiet=True)),
        Operation(CIRCUIT, lambda: evaluate_graph(model, scored, batches, metric, quiet=True)),
        Operation(EDGE, lambda: edges(of.n_edges), of.n_edges),
    ]


def eap_ig(of: Task) -> list[Operation]:
    return _edge_attribution(of, "eap")


def circuitkit(of: Task) -> list[Operation]:
    import circuitkit  # noqa: F401  (changes how transformer_lens is imported)

    return _edge_attribution(of, "circuitkit.backends.eap")


def transformer_lens(of: Task) -> list[Operation]:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis import attribution_patching as patching

    model = deepcopy(of.model).requires_grad_(True)
    words = _words(model.config.vocab_size)
    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=model, tokenizer=words, device="cpu")
    _checked(bridge.eval(), of)
    config = patching.EdgeAttributionConfig(granularity="edge")

    def attribute() -> Any:
        return patching.attribution_patch(bridge, of.clean[:1], of.corrupted[:1], last, config)

    def last(logits: Tensor) -> Tensor:
        return difference(logits).sum()

    def circuit() -> Any:
        return patching.faithfulness(bridge, of.clean[:1], of.corrupted[:1], last, best)

    best = attribute().top_edges(of.size)
    share = 1 / len(of.clean)
    return [Operation(EAP, attribute, share), Operation(CIRCUIT, circuit, share)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("circuits", ("path-patching-circuits",), ("circuits",), "pip install .", this_package),
        Peer(
            "auto-circuit",
            ("auto-circuit", "transformer-lens"),
            ("auto_circuit", "transformer_lens.past_key_value_caching"),
            'pip install auto-circuit "transformer-lens<3" attrs',
            auto_circuit,
        ),
        Peer(
            "EAP-IG",
            ("eap", "transformer-lens"),
            ("eap", "transformer_lens.HookedTransformer"),
            'pip install git+https://github.com/hannamw/EAP-IG "transformer-lens<4"',
            eap_ig,
        ),
        Peer(
            "circuitkit (a copy of EAP-IG)",
            ("circuitkit", "transformer-lens"),
            ("circuitkit.backends.eap", "transformer_lens.HookedTransformer"),
            "pip install circuitkit",
            circuitkit,
        ),
        Peer(
            "TransformerLens",
            ("transformer-lens",),
            ("transformer_lens.tools.analysis.attribution_patching",),
            'pip install "transformer-lens>=4.3"',
            transformer_lens,
        ),
    )
}
