"""A decoder that transformers does not have is described with an Architecture, judged by the guards, and measured.

It is parallel, normalises what its blocks write, scales what they add, norms queries and keys over all heads, keeps its
number of heads where it likes, and returns a tuple. The measurements by hand know nothing of any of that: they are
hooks on its modules.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import circuits
from circuits import Architecture, each_slot
from circuits.errors import GuardError, UnsupportedModelError, UsageError
from circuits.graph import Edge, Slot
from circuits.patching.experiment import PatchingExperiment
from circuits.scoring import score
from circuits.vocabulary import Direction, ScorerName
from tests.tiny import VOCABULARY, tiny_tokenizer

WIDTH, HEADS, D_HEAD, WORDS, LAYERS, SCALE = 24, 3, 10, 50, 3, 0.6


class Mixer(nn.Module):
    """Three query heads that share one key and one value."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = nn.Linear(WIDTH, HEADS * D_HEAD, bias=False)
        self.keep = nn.Linear(WIDTH, D_HEAD)
        self.give = nn.Linear(WIDTH, D_HEAD)
        self.ask_norm = nn.RMSNorm(HEADS * D_HEAD)
        self.back = nn.Linear(HEADS * D_HEAD, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q = self.ask_norm(self.ask(x)).unflatten(-1, (HEADS, D_HEAD)).transpose(1, 2)
        k, v = (part(x).unsqueeze(1).expand(-1, HEADS, -1, -1) for part in (self.keep, self.give))
        return self.back(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)), None


class Think(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.think = Mixer(), Think()
        self.before, self.after_mixer, self.after_think = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        read = self.before(x)
        return x + SCALE * self.after_mixer(self.mixer(read)[0]) + SCALE * self.after_think(self.think(read))


class Settings:
    """What the scale is read from, as in models of transformers."""

    scale = SCALE


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.n_heads = Settings(), HEADS
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(16, WIDTH)
        self.steps = nn.ModuleList(Step() for _ in range(LAYERS))
        self.last, self.say = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        for step in self.steps:
            x = step(x)
        return (self.say(self.last(x)),)


DESCRIPTION = Architecture(
    name="mine",
    layers="steps",
    final_norm="last",
    attention="mixer",
    projections=each_slot("mixer.ask", "mixer.keep", "mixer.give"),
    projection_norms={Slot.Q: "mixer.ask_norm"},
    output="mixer.back",
    attention_norm="before",
    attention_post_norm="after_mixer",
    mlp="think",
    mlp_norm="before",
    mlp_post_norm="after_think",
    parallel=True,
    residual_scale="scale",
    heads="n_heads",
)


def decoder() -> Decoder:
    """In float64, with weights that make every part matter."""
    generator = torch.Generator().manual_seed(0)
    module = Decoder().double().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if weight.dim() < 2:
                weight.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
            else:
                weight.copy_(noise * (1 if name.startswith(("words", "places")) else 1.4 / weight.shape[1] ** 0.5))
    return module


MODULE = decoder()
CLEAN = torch.randint(WORDS, (4, 7), generator=torch.Generator().manual_seed(1))
CORRUPTED = torch.cat([CLEAN[:, :2], CLEAN.roll(1, 0)[:, 2:-1], CLEAN[:, -1:]], dim=1)
ANSWERS = [(2, 3), (4, 5), (6, 7), (8, 9)]
PAIRS = [
    circuits.TokenPair(tuple(here), tuple(there), (right,), (wrong,), "", "")
    for here, there, (right, wrong) in zip(CLEAN.tolist(), CORRUPTED.tolist(), ANSWERS, strict=True)
]


@pytest.fixture(scope="module")
def model() -> circuits.Model:
    return circuits.load_model(MODULE, architecture=DESCRIPTION)


@pytest.fixture(scope="module")
def experiment(model: circuits.Model) -> PatchingExperiment:
    return model.experiment(PAIRS)


# ---------------------------------------------------------------------------------------------- measurements by hand


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def metric(ids: Tensor) -> np.ndarray:
    logits = MODULE(ids)[0][:, -1]
    return np.array([float(row[right] - row[wrong]) for row, (right, wrong) in zip(logits, ANSWERS, strict=True)])


def seen(module: nn.Module, ids: Tensor, *, entering: bool = False) -> Tensor:
    """What a module gives (or is given) in a plain run."""
    kept: list[Tensor] = []
    if entering:
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    with hooks(handle):
        metric(ids)
    return kept[0]


def with_head_of(layer: int, head: int) -> Tensor:
    """What a layer's attention adds to the stream in the clean run when one head is as in the corrupted one."""
    step = MODULE.steps[layer]
    inside = seen(step.mixer.back, CLEAN, entering=True).clone()
    other = seen(step.mixer.back, CORRUPTED, entering=True)
    columns = slice(head * D_HEAD, (head + 1) * D_HEAD)
    inside[..., columns] = other[..., columns]
    return SCALE * step.after_mixer(step.mixer.back(inside))


def test_a_head_into_the_logits_is_what_the_final_norm_makes_of_the_changed_stream(
    experiment: PatchingExperiment,
) -> None:
    for layer, head in ((0, 2), (2, 1)):
        change = with_head_of(layer, head) - SCALE * seen(MODULE.steps[layer].after_mixer, CLEAN)
        handle = MODULE.last.register_forward_pre_hook(lambda _, args, change=change: (args[0] + change,))
        with hooks(handle):
            expected = metric(CLEAN)
        check_edge(experiment, f"a{layer}.h{head}->logits", metric(CLEAN) - expected)


def test_a_head_into_a_later_mlp_changes_what_that_mlp_alone_reads(experiment: PatchingExperiment) -> None:
    change = with_head_of(0, 1) - SCALE * seen(MODULE.steps[0].after_mixer, CLEAN)
    step = MODULE.steps[1]
    stream = seen(step, CLEAN, entering=True)
    handle = step.think.register_forward_pre_hook(lambda _, args: (step.before(stream + change),))
    with hooks(handle):
        expected = metric(CLEAN)
    check_edge(experiment, "a0.h1->m1", metric(CLEAN) - expected)


def test_an_mlp_into_a_query_goes_through_the_norm_over_all_queries(experiment: PatchingExperiment) -> None:
    step, mixer = MODULE.steps[2], MODULE.steps[2].mixer
    after_think = MODULE.steps[1].after_think
    change = SCALE * (seen(after_think, CORRUPTED) - seen(after_think, CLEAN))
    queries = mixer.ask_norm(mixer.ask(step.before(seen(step, CLEAN, entering=True) + change)))
    columns = slice(D_HEAD, 2 * D_HEAD)

    def patch(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return torch.cat([output[..., : columns.start], queries[..., columns], output[..., columns.stop :]], -1)

    with hooks(mixer.ask_norm.register_forward_hook(patch)):
        expected = metric(CLEAN)
    check_edge(experiment, "m1->a2.h1<q>", metric(CLEAN) - expected)


def test_the_embedding_into_shared_values_reaches_all_heads(experiment: PatchingExperiment) -> None:
    step, stream = MODULE.steps[1], seen(MODULE.steps[1], CLEAN, entering=True)
    change = seen(MODULE.steps[0], CORRUPTED, entering=True) - seen(MODULE.steps[0], CLEAN, entering=True)
    values = step.mixer.give(step.before(stream + change))
    with hooks(step.mixer.give.register_forward_hook(lambda *_: values)):
        expected = metric(CLEAN)
    check_edge(experiment, "input->a1.kv0<v>", metric(CLEAN) - expected)


def check_edge(experiment: PatchingExperiment, edge: str, expected: np.ndarray) -> None:
    found = experiment.edge_effects(np.array([experiment.graph.index(Edge.parse(edge))]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(expected).max() > 0.01, f"{edge} does nothing"


# ------------------------------------------------------------------------------------------------------ the identities


def test_its_sizes_are_read_from_its_modules(model: circuits.Model) -> None:
    shape = model.info.shape
    assert (shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.d_model, shape.d_head) == (3, 3, 1, 24, 10)
    assert shape.parallel
    assert (model.info.architecture, model.info.id, model.tokenizer) == ("mine", "Decoder", None)


def test_the_guards_pass_within_rounding(model: circuits.Model) -> None:
    assert {"additivity", "wiring", "everything live", "restart", "head isolation"} <= {g.name for g in model.guards}
    assert max(guard.error for guard in model.guards) < 1e-6


def test_all_live_is_the_clean_run_and_none_the_corrupted_run(experiment: PatchingExperiment) -> None:
    everything, nothing = (np.full(experiment.graph.n_edges, live) for live in (True, False))
    found = experiment.circuits([everything, nothing])
    np.testing.assert_allclose(found, [metric(CLEAN), metric(CORRUPTED)], atol=1e-12)
    assert np.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parametrize("direction", list(Direction))
def test_exact_scores_are_those_of_the_plain_masked_run(model: circuits.Model, direction: Direction) -> None:
    experiment = model.experiment(PAIRS, circuits.Options(direction=direction))
    n = experiment.graph.n_edges
    found = score(experiment, ScorerName.EXACT).values
    if direction is Direction.NOISING:
        expected = experiment.clean - experiment.circuits(list(~np.eye(n, dtype=np.bool_)))
        np.testing.assert_allclose(found, expected.mean(1), atol=1e-12)
    else:
        swapped = model.experiment([flipped(pair) for pair in PAIRS])
        np.testing.assert_allclose(found, -score(swapped, ScorerName.EXACT).values, atol=1e-12)
    assert np.abs(found).max() > 0.1


def flipped(pair: circuits.TokenPair) -> circuits.TokenPair:
    return replace(pair, clean=pair.corrupted, corrupted=pair.clean)


def test_gradient_scores_go_in_the_direction_of_exact_ones(experiment: PatchingExperiment) -> None:
    exact, estimated = (score(experiment, name).values for name in (ScorerName.EXACT, ScorerName.EAP_IG))
    assert np.corrcoef(exact, estimated)[0, 1] > 0.5


def test_the_module_is_left_as_it_was(experiment: PatchingExperiment) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in MODULE.modules())
    assert all(parameter.requires_grad for parameter in MODULE.parameters())


# ------------------------------------------------------------------------------------------------- wrong descriptions


GUARDS: dict[str, tuple[dict[str, object], str]] = {
    "sequential": ({"parallel": False}, r"not reach its modules in the order that the adapter 'mine' declares"),
    "no norm behind the attention": ({"attention_post_norm": None}, r"fails the guard 'additivity'.*a norm or factor"),
    "no norm behind the MLP": ({"mlp_post_norm": None}, r"fails the guard 'additivity'.*a norm or factor between"),
    "no scale": ({"residual_scale": None}, r"fails the guard 'additivity'.*a norm or factor between a block and"),
    "no norm over the queries": ({"projection_norms": {}}, r"fails the guard 'head isolation'"),
    "no norm before": ({"attention_norm": None}, r"fails the guard 'wiring'.*A receiver does not read what the graph"),
    "another norm before": ({"attention_norm": "after_mixer"}, r"fails the guard 'wiring'.*a norm or a projection"),
    "keys for values": (
        {"projections": each_slot("mixer.ask", "mixer.give", "mixer.keep")},
        r"not reach its modules in the order that the adapter 'mine' declares",
    ),
}


@pytest.mark.parametrize("mistake", GUARDS)
def test_a_wrong_description_is_refused_by_a_guard(mistake: str) -> None:
    changes, message = GUARDS[mistake]
    with pytest.raises(GuardError, match=message):
        circuits.load_model(MODULE, architecture=replace(DESCRIPTION, **changes))


WORDS_FOR: dict[str, tuple[dict[str, object], str]] = {
    "a path that is not there": (
        {"output": "mixer.out"},
        r"the architecture 'mine' names 'mixer\.out' in Step, but Mixer has no module 'out'; it has ask, keep.*Correct",
    ),
    "no layers": (
        {"layers": "blocks"},
        r"names 'blocks' in Decoder, but Decoder has no module 'blocks'; it has words, places, steps",
    ),
    "a number of heads that does not fit": (
        {"heads": 4},
        r"4 heads do not fit the projections of 'mine': the output projection reads 30 numbers, queries, keys and "
        r"values are 50 together",
    ),
    "no number of heads": (
        {"heads": "config.num_attention_heads"},
        r"says that the number of heads is at 'config\.num_attention_heads', and 'num_attention_heads' is not there",
    ),
    "a projection that is not linear": (
        {"projections": each_slot("mixer.ask_norm", "mixer.keep", "mixer.give")},
        r"the module 'mixer\.ask_norm' \(RMSNorm\) should be a linear projection",
    ),
}


@pytest.mark.parametrize("mistake", WORDS_FOR)
def test_a_description_that_does_not_fit_says_what_to_correct(mistake: str) -> None:
    changes, message = WORDS_FOR[mistake]
    with pytest.raises(UnsupportedModelError, match=message):
        circuits.load_model(MODULE, architecture=replace(DESCRIPTION, **changes))


def test_a_decoder_without_a_description_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'Decoder' is of the class Decoder.*Describe it"):
        circuits.load_model(MODULE)


def test_a_decoder_in_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training mode.*Call `model\.eval\(\)` first"):
        circuits.load_model(Decoder(), architecture=DESCRIPTION)


def test_a_decoder_that_looks_ahead_is_refused() -> None:
    class LooksAhead(Decoder):
        def forward(self, ids: Tensor) -> tuple[Tensor]:
            x = self.words(ids) + self.words(ids).mean(1, keepdim=True)
            for step in self.steps:
                x = step(x)
            return (self.say(self.last(x)),)

    module = LooksAhead()
    module.load_state_dict(MODULE.float().state_dict())
    MODULE.double()
    with pytest.raises(GuardError, match=r"fails the guard 'causality'.*this is no decoder"):
        circuits.load_model(module.eval(), architecture=DESCRIPTION)


def test_a_projection_that_runs_twice_is_refused() -> None:
    """Only its first output would be patched, and it is the second that counts."""

    class Twice(Mixer):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            q = self.ask_norm(self.ask(x)).unflatten(-1, (HEADS, D_HEAD)).transpose(1, 2)
            k, _, v = (part(x).unsqueeze(1).expand(-1, HEADS, -1, -1) for part in (self.keep, self.give, self.give))
            return self.back(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)), None

    module = decoder()
    for step in module.steps:
        step.mixer.__class__ = Twice
    with pytest.raises(GuardError, match=r"fails the guard '"):
        circuits.load_model(module, architecture=DESCRIPTION)


# ----------------------------------------------------------------------------------------------------------- the guide


class Plain(nn.Module):
    """The attention that the guide's example describes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Plain(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 40), nn.GELU(), nn.Linear(40, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def test_the_example_of_the_guide_runs_as_it_stands_in_ten_lines() -> None:
    found = re.search(r"## Models of your own.*?```python\n(.*?)```", circuits.guide("models"), re.DOTALL)
    assert found is not None
    description = found[1].partition("Architecture(\n")[2].partition("\n)")[0]
    assert len(description.splitlines()) == 10
    ends = {"norm": nn.LayerNorm(WIDTH), "unembed": nn.Linear(WIDTH, VOCABULARY)}
    begin = {"embed": nn.Embedding(VOCABULARY, WIDTH), "blocks": nn.Sequential(PlainBlock(), PlainBlock())}
    decoder = nn.Sequential(OrderedDict(begin | ends))
    names: dict[str, Any] = {"decoder": decoder.eval(), "tokenizer": tiny_tokenizer()}
    exec(found[1], names)
    assert (names["model"].graph.n_edges, len(names["model"].guards)) == (110, 9)
