"""Measurements do not depend on what was done to the process before, and leave it as it was."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import circuits
from circuits.ablation.intervention import Intervention
from circuits.adapters.anatomy import Anatomy
from circuits.errors import GuardError, UsageError
from circuits.graph import Node
from circuits.metrics import AnswerTokens, measure
from circuits.model import Model
from circuits.patching.paths import Path
from circuits.patching.sites import patch_sites
from circuits.scoring import score
from circuits.tracing.plan import Plan
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Metric, NodeAblation, ScorerName
from circuits.vocabulary import Site as PatchSite
from tests.subjects import clean_ids, random_masks, random_pairs
from tests.tiny import tiny_llama

PAIRS = random_pairs(3, 8, shared=3)


@contextmanager
def set_and_back(change: Callable[[Any], None], value: object, before: object) -> Generator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad switched off": lambda: set_and_back(torch.set_grad_enabled, False, True),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype float64": lambda: set_and_back(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": lambda: set_and_back(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device meta": lambda: torch.device("meta"),
    "deterministic algorithms": lambda: set_and_back(torch.use_deterministic_algorithms, True, False),
    "no_grad inside autocast": lambda: _both(torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad()),
}


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Generator[None]:
    with first, second:
        yield


def everything_measured(model: Model) -> dict[str, np.ndarray[Any, Any]]:
    """One result of every kind of measurement."""
    experiment = model.experiment(PAIRS)
    edges, masks = np.arange(0, model.graph.n_edges, 9), random_masks(model.graph.n_edges, (0.3, 0.8))
    slopes = experiment.circuit_gradient(np.where(masks[1], 1.0, 0.0))
    nodes = [Node.parse("a1.h2"), Node.parse("m1")]
    steered = circuits.ablated(model, nodes, Intervention(NodeAblation.MEAN, 0.0, 1.0), reference=PAIRS)
    path = Path.parse("a0.h1->a2.h0<v>->logits", model.graph)
    return {
        "clean": experiment.clean,
        "exact": experiment.edge_effects(edges),
        "circuits": experiment.circuits(masks),
        "gradient": slopes[1],
        "eap-ig": score(experiment, ScorerName.EAP_IG).values,
        "checkpointing": model.experiment(PAIRS, resources=circuits.Resources(checkpointing=True)).attributions([0.5]),
        "sites": patch_sites(experiment, PatchSite.MLP, ["a"] * 8).values,
        "paths": circuits.path_effects(experiment, [path]),
        "ablated": steered.logits(torch.tensor([PAIRS[0].clean], device="cpu")).numpy(),
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray[Any, Any]]:
    return everything_measured(circuits.load_model(tiny_llama(), name="tiny"))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("loaded", ["loaded before", "loaded inside"])
def test_nothing_that_is_measured_depends_on_the_state_of_the_process(
    state: str, loaded: str, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    module = tiny_llama()
    model = circuits.load_model(module, name="tiny")
    with STATES[state]():
        before = _state()
        found = everything_measured(circuits.load_model(module, name="tiny") if loaded == "loaded inside" else model)
        assert _state() == before
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)
        assert np.abs(values).max() > 1e-3, name


def _state() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ("autocast", "autocast is on for cpu"),
        ("inference_mode", "inference mode is on"),
        ("default dtype float64", r"the default type is torch\.float64"),
    ],
)
def test_a_run_outside_of_the_doors_names_the_state_that_would_change_its_numbers(state: str, named: str) -> None:
    tracer = Tracer(Anatomy(tiny_llama()))
    ids = torch.tensor([PAIRS[0].clean])
    with STATES[state](), pytest.raises(UsageError, match=rf"{named}: what is measured here would be rounded"):
        tracer.run(ids, Plan())


def test_weights_made_in_inference_mode_are_refused_by_name() -> None:
    with torch.inference_mode():
        module = tiny_llama()
    with pytest.raises(UsageError, match=r"the weights \('model.embed_tokens.weight' and others\) were made inside"):
        circuits.load_model(module, name="tiny")


# ------------------------------------------------------------------------------------------------------ foreign hooks


def doubled(_: nn.Module, __: object, output: Any) -> Any:
    return (output[0] * 2, *output[1:]) if isinstance(output, tuple) else output * 2


def doubled_input(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (given[0] * 2, *given[1:])


@pytest.mark.parametrize("path", ["model.layers.1", "model.layers.2.self_attn", "model.layers.1.self_attn"])
def test_hooks_of_others_are_named_where_they_break_measuring(path: str) -> None:
    module = tiny_llama()
    handle = module.get_submodule(path).register_forward_hook(doubled)
    with pytest.raises(GuardError, match=rf"carries hooks of others.*'doubled' on {path}.*Remove them"):
        circuits.load_model(module, name="tiny")
    handle.remove()
    circuits.load_model(module, name="tiny")


@pytest.mark.parametrize(
    ("path", "hook"),
    [
        ("model.layers.1.mlp", "pre"),  # part of what the MLP does
        ("model.layers.0.input_layernorm", "pre"),  # a norm divides by what it was multiplied by
        ("model.norm", "post"),
        ("model.layers.0.self_attn.q_proj", "post"),
        ("lm_head", "post"),
    ],
)
def test_a_model_with_harmless_hooks_is_measured_hooks_and_all(path: str, hook: str) -> None:
    module = tiny_llama()
    plain = circuits.load_model(module, name="tiny").experiment(PAIRS).clean
    part = module.get_submodule(path)
    part.register_forward_pre_hook(doubled_input) if hook == "pre" else part.register_forward_hook(doubled)
    experiment = circuits.load_model(module, name="tiny").experiment(PAIRS)
    with torch.no_grad():
        logits = module(clean_ids(PAIRS), use_cache=False).logits[:, -1]
    own = measure(Metric.LOGIT_DIFFERENCE, logits, AnswerTokens.of(PAIRS))
    np.testing.assert_allclose(experiment.clean, own.double().numpy(), atol=1e-5)
    everything = np.ones(experiment.graph.n_edges, dtype=np.bool_)
    np.testing.assert_allclose(experiment.circuits([everything])[0], experiment.clean, atol=1e-4)
    if path != "model.layers.0.input_layernorm":
        assert np.abs(experiment.clean - plain).max() > 1e-2


def test_a_replaced_forward_method_and_hooks_on_all_modules_are_named() -> None:
    module = tiny_llama()
    layer = module.model.layers[1]
    layer.forward = partial(_larger, layer.forward)
    with pytest.raises(GuardError, match=r"'_larger' in place of the forward method of model\.layers\.1"):
        circuits.load_model(module, name="tiny")
    del layer.forward
    handle = nn.modules.module.register_module_forward_hook(
        lambda part, _, output: output * 1.5 if isinstance(part, LlamaDecoderLayer) else None
    )
    try:
        with pytest.raises(GuardError, match="on every module of the process"):
            circuits.load_model(module, name="tiny")
    finally:
        handle.remove()


def _larger(plain: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    return plain(*args, **options) * 1.5


def test_the_advice_for_a_model_without_hooks_is_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LlamaDecoderLayer.forward
    monkeypatch.setattr(LlamaDecoderLayer, "forward", lambda *args, **options: plain(*args, **options) * 1.5)
    with pytest.raises(GuardError, match="Describe it with an Architecture that fits"):
        circuits.load_model(tiny_llama(), name="tiny")


# -------------------------------------------------------------------------------------------------------- not finite


def test_float16_that_overflows_is_said_to_be_not_finite() -> None:
    module = tiny_llama()
    with torch.no_grad():
        module.model.layers[0].mlp.down_proj.weight.mul_(1e5)
    circuits.load_model(module, name="tiny")
    with pytest.raises(
        GuardError, match=r"'finite'.*not finite in float16, whose largest number is 65,504; try bfloat16"
    ):
        circuits.load_model(module.to(torch.float16), name="tiny")


def test_weights_that_hold_nan_are_said_to_be_not_finite() -> None:
    module = tiny_llama()
    with torch.no_grad():
        module.lm_head.weight[3] = torch.nan
    with pytest.raises(GuardError, match=r"'finite'.*not finite in float32; look for NaN and infinite numbers"):
        circuits.load_model(module, name="tiny")


def test_values_that_overflow_only_in_longer_prompts_are_said_to_be_not_finite() -> None:
    model = circuits.load_model(tiny_llama(), name="tiny")
    plain = model.tracer.plain_logits
    model.tracer.plain_logits = lambda ids: plain(ids) * (torch.inf if ids.shape[1] > 6 else 1.0)
    with pytest.raises(GuardError, match="the logits of prompts of 8 tokens are not finite in float32"):
        model.experiment(PAIRS)
