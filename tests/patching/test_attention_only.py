"""Decoders whose layers are attention alone (``Architecture(mlp=None)``): the identities that every family has.

The masked run by hand is written out from the definition: every receiver reads its corrupted value plus the changes of
the senders that are live for it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import circuits
from circuits import Architecture, Behaviour, TokenPair, each_slot
from circuits.behaviours.pairs import Pair
from circuits.circuit import Circuit
from circuits.errors import GuardError, UnknownNameError, UnsupportedModelError, UsageError
from circuits.evaluation import evaluate
from circuits.graph import NodeKind
from circuits.pruning import minimal, top
from circuits.scoring import score
from circuits.scoring.budget import Budget
from circuits.scoring.scorers import Settings
from circuits.scoring.verified import TopK
from circuits.tracing.plan import Plan
from circuits.vocabulary import Direction, ScorerName
from tests.adapters.test_own_decoder import Plain
from tests.tiny import VOCABULARY, tiny_tokenizer

WIDTH, HEADS, LAYERS = 24, 4, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Plain()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


class Grouped(Plain):
    """Four query heads on two key/value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 6)).transpose(1, 2)
        k, v = (part(x).unflatten(-1, (2, 6)).transpose(1, 2).repeat_interleave(2, 1) for part in (self.k, self.v))
        return self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class NormedBlock(Block):
    """Has a norm between the heads' sum and the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.post = Grouped(), nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.post(self.attention(self.norm(x)))


class Decoder(nn.Module):
    def __init__(self, *, grouped: bool = False) -> None:
        super().__init__()
        self.embed, self.norm, self.unembed = (
            nn.Embedding(VOCABULARY, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, VOCABULARY),
        )
        self.blocks = nn.ModuleList((NormedBlock if grouped else Block)() for _ in range(LAYERS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x))


DESCRIPTION = Architecture(
    name="attention only",
    layers="blocks",
    final_norm="norm",
    attention="attention",
    projections=each_slot("attention.q", "attention.k", "attention.v"),
    output="attention.out",
    attention_norm="norm",
    mlp=None,
    mlp_norm=None,
    heads=HEADS,
)
DESCRIPTIONS = {False: DESCRIPTION, True: replace(DESCRIPTION, attention_post_norm="post")}


def decoder(*, grouped: bool = False) -> Decoder:
    torch.manual_seed(0)
    module = Decoder(grouped=grouped).double().eval()
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, dtype=torch.float64)
            weight.copy_(1.4 * noise / weight.shape[1] ** 0.5 if weight.dim() > 1 else 1 + 0.3 * noise)
        module.embed.weight.mul_(4)
    return module.requires_grad_(False)


MODULES = {grouped: decoder(grouped=grouped) for grouped in (False, True)}
CLEAN = torch.randint(VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(1))
CORRUPTED = torch.cat([CLEAN[:, :2], CLEAN.roll(1, 0)[:, 2:-1], CLEAN[:, -1:]], dim=1)
PAIRS = [
    TokenPair(here, there, (2 * i,), (2 * i + 1,), f"{here}", f"{there}")
    for i, (here, there) in enumerate(zip(CLEAN, CORRUPTED, strict=True))
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "grouped and normed"])
def model(request: pytest.FixtureRequest) -> circuits.Model:
    return circuits.load_model(MODULES[request.param], architecture=DESCRIPTIONS[request.param])


@pytest.fixture(scope="module")
def plain() -> circuits.Model:
    return circuits.load_model(MODULES[False], tokenizer=tiny_tokenizer(), architecture=DESCRIPTION)


def metric(logits: Tensor) -> np.ndarray:
    return np.array([float(row[-1, 2 * i] - row[-1, 2 * i + 1]) for i, row in enumerate(logits)])


def masked_by_hand(live: set[str]) -> np.ndarray:
    """The clean prompts, with corrupted values on every edge that is not live; plain attention only."""
    module = MODULES[False]

    def run(streams: dict[str, Tensor] | None, ids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        wrote, read = {"input": module.embed(ids)}, dict[str, Tensor]()

        def reads(receiver: str) -> Tensor:
            if streams is None:
                read[receiver] = sum(wrote.values()) + bias
            else:
                changes = (wrote[s] - base[s] for s in wrote if f"{s}->{receiver}" in live)
                read[receiver] = sum(changes, streams[receiver])
            return read[receiver]

        bias: Any = 0
        for layer, block in enumerate(module.blocks):
            attention, made = block.attention, dict[str, Tensor]()
            for head in range(HEADS):
                own = slice(head * 6, head * 6 + 6)
                parts = {"q": attention.q, "k": attention.k, "v": attention.v}
                q, k, v = (
                    nn.functional.linear(
                        block.norm(reads(f"a{layer}.h{head}<{slot}>")), part.weight[own], part.bias[own]
                    )
                    for slot, part in parts.items()
                )
                z = scaled_dot_product_attention(q, k, v, is_causal=True)
                made[f"a{layer}.h{head}"] = z @ attention.out.weight[:, own].T
            wrote |= made
            bias = bias + attention.out.bias
        reads("logits")
        return wrote, read

    base, streams = run(None, CORRUPTED)
    final = run(streams, CLEAN)[1]["logits"]
    return metric(module.unembed(module.norm(final)))


def random_masks(n_edges: int, shares: Sequence[float]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.random(n_edges) < share for share in shares]


def test_the_graph_has_heads_and_no_mlps(model: circuits.Model) -> None:
    graph, shape = model.graph, model.info.shape
    assert not shape.mlps
    assert {node.kind for node in graph.senders} == {NodeKind.INPUT, NodeKind.HEAD}
    assert (len(graph.senders), graph.n_edges) == (1 + LAYERS * HEADS, shape.n_edges)
    assert [graph.index(edge) for edge in graph.edges()] == list(range(graph.n_edges))
    with pytest.raises(UnknownNameError, match=r"no node 'm1'.*layers 0-2 and heads 0-3.*, and no MLPs"):
        graph.indices("m1->logits")
    assert all(guard.passed for guard in model.guards)
    assert max(guard.error for guard in model.guards) < 1e-6


def test_all_live_is_the_clean_run_and_none_the_corrupted_run(model: circuits.Model) -> None:
    module = MODULES[model.info.shape.grouped]
    everything, nothing = (np.full(model.graph.n_edges, live) for live in (True, False))
    found = model.experiment(PAIRS).circuits([everything, nothing])
    np.testing.assert_allclose(found, [metric(module(CLEAN)), metric(module(CORRUPTED))], atol=1e-9)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_circuits_are_those_of_the_masked_run_by_hand(plain: circuits.Model) -> None:
    experiment, names = plain.experiment(PAIRS), [str(edge) for edge in plain.graph.edges()]
    masks = random_masks(plain.graph.n_edges, (0.2, 0.5, 0.8, 0.95))
    expected = [masked_by_hand({name for name, kept in zip(names, mask, strict=True) if kept}) for mask in masks]
    np.testing.assert_allclose(experiment.circuits(masks), expected, atol=1e-9)
    assert np.abs(np.array(expected) - experiment.clean).max() > 0.1
    edge = "a0.h1->a2.h3<v>"
    without = masked_by_hand(set(names) - {edge})
    np.testing.assert_allclose(experiment.edge_effects([edge])[0], experiment.clean - without, atol=1e-9)


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_exact_scores_are_those_of_the_plain_masked_run(model: circuits.Model, ablation: str) -> None:
    experiment = model.experiment(PAIRS, circuits.Options(ablation=ablation))  # type: ignore[arg-type]
    edges = np.arange(0, model.graph.n_edges, 5)
    masks = np.ones((len(edges), model.graph.n_edges), dtype=np.bool_)
    masks[np.arange(len(edges)), edges] = False
    expected = experiment.clean - experiment.circuits(masks)
    np.testing.assert_allclose(experiment.edge_effects(edges), expected, atol=1e-9)
    assert np.abs(expected).max() > 0.05


def test_denoising_is_noising_of_the_prompts_exchanged(model: circuits.Model) -> None:
    exchanged = [replace(pair, clean=pair.corrupted, corrupted=pair.clean) for pair in PAIRS]
    found = score(model.experiment(PAIRS, circuits.Options(direction=Direction.DENOISING)), "exact").values
    np.testing.assert_allclose(found, -score(model.experiment(exchanged), "exact").values, atol=1e-9)


def test_attribution_at_the_clean_run_is_the_slope_of_the_whole_models_mask(model: circuits.Model) -> None:
    experiment = model.experiment(PAIRS)
    slopes = experiment.circuit_gradient(np.ones(model.graph.n_edges))[1].mean(0)
    np.testing.assert_allclose(experiment.attributions([1.0])[0], slopes, atol=1e-5)
    by_layer = model.experiment(PAIRS, resources=circuits.Resources(checkpointing=True)).attributions([0.3, 1.0])
    np.testing.assert_allclose(by_layer, experiment.attributions([0.3, 1.0]), atol=1e-5)
    assert np.abs(slopes).max() > 0.05


def test_every_scorer_pruner_and_reading_works(plain: circuits.Model, tmp_path: Path) -> None:
    experiment = plain.experiment(PAIRS)
    exact = score(experiment, "exact").values
    for name in ScorerName:
        settings = Settings(top=TopK(20, Budget(edges=60)))
        values = score(experiment, name, settings).values
        assert np.isfinite(values).all()
        if name is ScorerName.RECURSIVE_ELIMINATION:  # it tells places
            assert len(np.unique(np.abs(values))) == len(values)
        elif name not in (ScorerName.RANDOM, ScorerName.EAP, ScorerName.IFR):  # ifr tells no causes, and no signs
            assert np.corrcoef(values, exact)[0, 1] > 0.5
    scores = score(experiment, "exact")
    for chosen in (minimal(experiment, scores, target=0.8), top(experiment, scores, 40)):
        assert evaluate(experiment, chosen.edges).faithfulness == pytest.approx(chosen.faithfulness)
    labels = [str(place) for place in range(CLEAN.shape[1])]
    assert circuits.patch_sites(experiment, "head", labels).values.shape == (LAYERS, HEADS)
    with pytest.raises(UsageError, match="this model has no MLPs to patch; choose the site resid, attn or head"):
        circuits.patch_sites(experiment, "mlp", labels)
    one_hop = circuits.path_effects(experiment, ["L0H1->logits"])
    np.testing.assert_allclose(one_hop, experiment.edge_effects(["L0H1->logits"]), atol=1e-9)


def test_a_circuit_is_found_written_read_drawn_and_ablated(plain: circuits.Model, tmp_path: Path) -> None:
    words = ("Mary", "John", "Anna", "Paul", "store", "park")
    texts = [f"{a} and {b} to" for a in words for b in words if a != b]
    tokenizer = tiny_tokenizer()
    by_length: dict[int, list[str]] = {}
    for text in texts:
        by_length.setdefault(len(tokenizer.encode(text)), []).append(text)
    same = max(by_length.values(), key=len)
    raw = [Pair(here, there, ("a",), ("b",)) for here, there in zip(same, same[1:] + same[:1], strict=True)]
    prompts = Behaviour("words", "words", lambda _: raw).prompts(tokenizer, discovery=4, heldout=4)
    experiment = plain.experiment(prompts.discovery)
    scores = score(experiment, "eap-ig")
    edges = top(experiment, scores, 30).edges
    info = circuits.records.BehaviourInfo("words", "logit-difference", "nats")
    method = circuits.records.Method("eap-ig", "top")
    circuit = Circuit(plain.info, info, method, edges, scores.values[edges])
    circuit.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json")
    assert (again.model, again.graph) == (plain.info, plain.graph)
    assert [str(edge) for edge in again.edge_list] == [str(edge) for edge in circuit.edge_list]
    circuit.draw(tmp_path / "circuit.dot")
    assert "m0" not in (tmp_path / "circuit.dot").read_text()
    roles = circuits.head_roles(plain, circuit, prompts.heldout)
    assert len(roles.heads) == sum(node.kind is NodeKind.HEAD for node in circuit.nodes)
    ablated = circuits.ablated(plain, circuit, reference=prompts.discovery)
    assert not torch.equal(ablated.logits(CLEAN), MODULES[False](CLEAN)[:, -1])


# ------------------------------------------------------------------------------------------------- wrong descriptions


class WithMlp(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.mlp(x)


def test_an_mlp_that_is_left_out_is_noticed() -> None:
    module = decoder()
    module.blocks[1].__class__ = WithMlp
    module.blocks[1].mlp = nn.Linear(WIDTH, WIDTH).double().eval()
    with pytest.raises(GuardError, match="fails the guard 'additivity'"):
        circuits.load_model(module.requires_grad_(False), architecture=DESCRIPTION)


@pytest.mark.parametrize("left", ["mlp_norm", "mlp_output", "mlp_post_norm"])
def test_parts_of_an_mlp_that_is_none_are_refused(left: str) -> None:
    changes: Any = {left: "norm"}
    with pytest.raises(UnsupportedModelError, match=rf"has no `mlp`, but gives its {left}, 'norm'. Name the MLP, or"):
        circuits.load_model(MODULES[False], architecture=replace(DESCRIPTION, **changes))


def test_an_mlp_that_reads_nothing_has_no_slope() -> None:
    """What no gradient reaches is no error: it changes nothing."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.value.expand_as(x)

    module = decoder()
    for block in module.blocks:
        block.__class__ = WithMlp
        block.mlp = Constant()
    model = circuits.load_model(module.eval().requires_grad_(False), architecture=replace(DESCRIPTION, mlp="mlp"))
    for checkpointing in (False, True):
        experiment = model.experiment(PAIRS, resources=circuits.Resources(checkpointing=checkpointing))
        found = experiment.attributions([0.5])[0]
        into_mlps = np.array([edge.receiver.node.kind is NodeKind.MLP for edge in model.graph.edges()])
        assert not found[into_mlps].any()
        assert np.abs(found[~into_mlps]).max() > 0.05


# ------------------------------------------------------------------------------------------------------- other makes


class NormFreeBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x)


class NormFree(Decoder):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


def without_biases(module: Any) -> None:
    for block in module.blocks:
        for name in "qkv":
            setattr(block.attention, name, nn.Linear(WIDTH, WIDTH, bias=False).double())
        block.attention.out.bias = None


def silent(module: Any) -> None:
    module.blocks[0].attention.out.weight.zero_()


def cut(module: Any) -> None:
    module.blocks = module.blocks[:1]


def deep(module: Any) -> None:
    module.blocks = nn.ModuleList(deepcopy(module.blocks[i % LAYERS]) for i in range(12))


def norm_free(module: Any) -> None:
    module.__class__ = NormFree
    del module.norm
    for block in module.blocks:
        block.__class__ = NormFreeBlock
        del block.norm


NO_NORMS: dict[str, Any] = {"final_norm": None, "attention_norm": None}
MAKES: list[tuple[str, Any, dict[str, Any], float]] = [
    ("one layer", cut, {}, 1e-9),
    ("twelve layers", deep, {}, 1e-9),
    ("no biases", without_biases, {}, 1e-9),
    ("a layer that writes nothing", silent, {}, 1e-9),
    ("one wide head", lambda _: None, {"heads": 1}, 1e-9),
    ("float32", lambda module: module.float(), {}, 1e-4),
    ("its output embedding named", lambda _: None, {"unembedding": "unembed"}, 1e-9),
    ("no norms", norm_free, NO_NORMS | {"unembedding": "unembed"}, 1e-9),
]


@pytest.mark.parametrize(("change", "described", "tolerance"), [make[1:] for make in MAKES], ids=[m[0] for m in MAKES])
def test_other_makes_of_decoders_have_the_identities(change: Any, described: Any, tolerance: float) -> None:
    module = decoder()
    with torch.no_grad():
        change(module)
    module.eval().requires_grad_(False)
    model = circuits.load_model(module, architecture=replace(DESCRIPTION, **described))
    experiment, n_edges = model.experiment(PAIRS), model.graph.n_edges
    edges = np.arange(0, n_edges, 1 + n_edges // 40)
    masks = np.ones((len(edges) + 2, n_edges), dtype=np.bool_)
    masks[np.arange(len(edges)), edges] = False
    masks[-1] = False
    found = experiment.circuits(masks)
    np.testing.assert_allclose(experiment.edge_effects(edges), experiment.clean - found[:-2], atol=tolerance)
    np.testing.assert_allclose(found[-2:], [metric(module(CLEAN)), metric(module(CORRUPTED))], atol=tolerance)
    gradient = experiment.circuit_gradient(np.ones(n_edges))[1].mean(0)
    np.testing.assert_allclose(experiment.attributions([1.0])[0], gradient, atol=max(tolerance, 1e-5))
    assert np.abs(found[-2] - found[-1]).max() > 0.1


def test_projections_of_a_stream_without_norm_are_those_of_the_stream() -> None:
    module = decoder()
    norm_free(module)
    model = circuits.load_model(module, architecture=replace(DESCRIPTION, **NO_NORMS, unembedding="unembed"))
    difference = (module.unembed.weight[0] - module.unembed.weight[1])[None]
    found: list[Tensor] = []
    model.tracer.reading(difference).run(CLEAN, Plan(logits=found.append))
    logits = module(CLEAN)[:, -1]
    bias = module.unembed.bias[0] - module.unembed.bias[1]
    torch.testing.assert_close(found[0][:, 0] + bias, logits[:, 0] - logits[:, 1])
    torch.testing.assert_close(model.tracer.reading(difference).plain_logits(CLEAN), found[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"final_norm": None},
            r"has no `final_norm`, and which module makes the logits is not known. Name it as `unemb",
        ),
        ({"unembedding": "lm_head"}, r"names 'lm_head' in Decoder, but Decoder has no module 'lm_head'"),
        ({"heads": 3}, "fails the guard 'head isolation'"),
        ({"heads": 5}, "5 heads do not fit the projections"),
        ({"mlp": "mlp"}, "Block has no module 'mlp'"),
    ],
    ids=str,
)
def test_descriptions_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        circuits.load_model(decoder(), architecture=replace(DESCRIPTION, **change))
