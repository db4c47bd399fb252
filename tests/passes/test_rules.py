"""relp and gim against decoders written out by the papers, on every family, and where they cannot be applied."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from circuits.adapters.rules import GIM, PLAIN, RELP, BackwardRules
from circuits.adapters.slopes import by_ratio
from circuits.errors import UnsupportedModelError, UsageError
from circuits.graph import Slot
from circuits.scoring import score
from circuits.scoring.scorers import Settings
from circuits.tracing.state import foreign_hooks
from circuits.vocabulary import Ablation, Metric, ScorerName
from tests.reference import ruled
from tests.reference.ruled import ruled_edge_scores
from tests.subjects import Subject, clean_ids, corrupted_ids, double_of, metric_of, random_pairs, relative, subject_of
from tests.zoo import ZOO

RULES: dict[str, tuple[BackwardRules, ruled.Rules]] = {
    "relp": (RELP, ruled.RELP),
    "gim": (GIM, ruled.GIM),
    "frozen norms": (PLAIN.freezing(norms=True, patterns=False), ruled.FROZEN_NORMS),
    "frozen patterns": (PLAIN.freezing(norms=False, patterns=True), ruled.FROZEN_PATTERNS),
    "plain": (PLAIN, ruled.Rules()),
}
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "olmoe_clipped", "gpt_oss", "granitemoe", "phimoe")
IDS = clean_ids(), corrupted_ids()


# ------------------------------------------------------------------------------------------------- against the papers


@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.ZERO])
@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_equal_those_of_a_decoder_with_the_rules_written_out(family: str, rules: str, ablation: str) -> None:
    double, (ours, theirs) = double_of(family), RULES[rules]
    metric, zero = metric_of(Metric.LOGIT_DIFFERENCE), ablation == Ablation.ZERO
    expected = ruled_edge_scores(family, double.module, IDS, metric, theirs, zero=zero)
    found = double.experiment(ablation=ablation).attributions([1.0], rules=ours)
    assert relative(found[0], expected.mean(0).numpy(), at_least=0.02) < 1e-5
    assert relative(found[1], expected.std(0).numpy(), at_least=0.02) < 1e-5


def test_the_rules_differ_from_each_other_and_from_plain_derivatives() -> None:
    experiment = subject_of("llama").experiment()
    found = {name: experiment.attributions([1.0], rules=rules)[0] for name, (rules, _) in RULES.items()}
    for name, scores in found.items():
        for other in set(found) - {name}:
            assert relative(scores, found[other]) > 0.05, (name, other)


def test_an_activation_has_the_slope_output_over_input_and_no_infinity_at_0() -> None:
    read = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], requires_grad=True)
    made = by_ratio(functional.relu(read), read)
    made.sum().backward()
    torch.testing.assert_close(made, functional.relu(read))
    assert read.grad is not None
    assert read.grad.isfinite().all()
    torch.testing.assert_close(read.grad[[0, 4]], torch.tensor([0.0, 1.0]))


def without_biases(family: str) -> Subject:
    return Subject(family, ZOO[family](attention_bias=False) if family == "qwen3" else ZOO[family]())


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen3", "glm"])
def test_relp_conserves_relevance_where_there_are_no_biases(family: str) -> None:
    """All that is written to the stream, times the gradient there, is the metric, wherever the stream is cut."""
    experiment = without_biases(family).experiment(metric=Metric.MEAN_LOGIT_DIFFERENCE, ablation=Ablation.ZERO)
    graph = experiment.graph
    scores, total = experiment.attributions([1.0], rules=RELP)[0], float(experiment.clean.mean())
    receivers = graph.edge_receivers == len(graph.receivers) - 1
    if family != "glm":  # which has biases on its values
        assert scores[graph.edge_senders == 0].sum() == pytest.approx(total, abs=1e-3)
    assert scores[receivers].sum() == pytest.approx(total, abs=1e-3)
    plain = experiment.attributions([1.0])[0]
    assert abs(plain[receivers].sum() - total) > 0.1


# ------------------------------------------------------------------------------------------------- on every family


@pytest.mark.parametrize("scorer", ["relp", "gim"])
@pytest.mark.parametrize("family", [name for name in ZOO if name not in EXPERTS])
def test_every_norm_softmax_and_activation_is_changed_and_the_model_is_as_it_was(family: str, scorer: str) -> None:
    subject = Subject(family, ZOO[family]())
    experiment, layers = subject.experiment(), subject.graph.shape.n_layers
    hooks, plain = foreign_hooks(subject.module), experiment.attributions([1.0])
    other = experiment.ruled(RULES[scorer][0])
    found, rules = other.attributions([1.0]), other.tracer.rules
    assert rules is not None
    norms = [name for name, part in subject.module.named_modules() if "Norm" in type(part).__name__]
    leaves = [name for name in norms if not list(subject.module.get_submodule(name).children())]
    assert rules.changed["norm"] == len(leaves)
    assert rules.changed["activation"] == (layers if scorer == "relp" else 0)
    assert rules.changed["attention"] == (layers if scorer == "gim" else 0)
    gated = any("gate" in name for name, _ in subject.module.named_modules())
    assert rules.changed["product"] == (layers if gated else 0)
    assert np.isfinite(found).all()
    assert relative(found, plain) > 0.05
    assert foreign_hooks(subject.module) == hooks
    np.testing.assert_array_equal(experiment.attributions([1.0]), plain)


@pytest.mark.parametrize("family", EXPERTS)
def test_mixtures_of_experts_are_refused_by_name_and_frozen_norms_are_not(family: str) -> None:
    experiment = Subject(family, ZOO[family]()).experiment()
    for rules in (RELP, GIM):
        with pytest.raises(UnsupportedModelError, match=r"layers\.0\..*(Moe|GptOssMLP).*has the parts.*eap-ig"):
            experiment.attributions([1.0], rules=rules)
    frozen = experiment.attributions([1.0], rules=PLAIN.freezing(norms=True, patterns=True))[0]
    into = [experiment.graph.receivers[int(receiver)].slot for receiver in experiment.graph.edge_receivers]
    assert not frozen[[slot in (Slot.Q, Slot.K) for slot in into]].any()
    assert np.abs(frozen).max() > 0.02


@pytest.mark.parametrize("rules", [RELP, GIM])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_batches_nor_the_prefix_nor_checkpointing_matter(family: str, rules: BackwardRules) -> None:
    pairs, subject = (*random_pairs(3, 6), *random_pairs(3, 8)), subject_of(family)
    plain = subject.experiment(pairs).attributions([1.0], rules=rules)
    for changes in ({"batch_size": 2}, {"prefix_cache": False}, {"checkpointing": True}, {"keep_gradients": True}):
        other = subject.experiment(pairs, **changes).attributions([1.0], rules=rules)
        assert relative(other, plain) < 1e-4, changes


@pytest.mark.parametrize("rules", [RELP, GIM])
@pytest.mark.parametrize("family", ["gemma2", "olmo2", "cohere", "falcon"])
def test_nor_does_checkpointing_where_norms_are_elsewhere_or_shared(family: str, rules: BackwardRules) -> None:
    subject = Subject(family, ZOO[family]())
    found = subject.experiment(checkpointing=True).attributions([1.0], rules=rules)
    assert relative(found, subject.experiment().attributions([1.0], rules=rules)) < 1e-4


# ------------------------------------------------------------------------------------------------ as scorers


def test_relp_and_gim_are_scorers_and_frozen_parts_are_settings_of_every_gradient_scorer() -> None:
    experiment = subject_of("llama").experiment()
    for name, rules in ((ScorerName.RELP, RELP), (ScorerName.GIM, GIM)):
        scores = score(experiment, name)
        np.testing.assert_array_equal(scores.values, experiment.attributions([1.0], rules=rules)[0])
        assert (scores.scorer, scores.measured) == (name, False)
    graph = experiment.graph
    into_patterns = [graph.receivers[int(r)].slot in (Slot.Q, Slot.K) for r in graph.edge_receivers]
    for name in (ScorerName.EAP, ScorerName.EAP_IG, ScorerName.CLEAN_CORRUPTED, ScorerName.CONDUCTANCE, ScorerName.GIM):
        plain, norms, patterns = (
            score(experiment, name, Settings(freeze_norms=n, freeze_patterns=p)).values
            for n, p in ((False, False), (True, False), (False, True))
        )
        assert not patterns[into_patterns].any()
        assert np.abs(plain[into_patterns]).max() > 0.01
        assert (relative(norms, plain) > 0.02) != (name is ScorerName.GIM)  # which freezes them anyway


@pytest.mark.parametrize("scorer", [ScorerName.RELP, ScorerName.GIM])
def test_a_divergence_has_no_slope_at_the_clean_run(scorer: ScorerName) -> None:
    with pytest.raises(UsageError, match=f"zero gradient at the clean run, so {scorer} would not tell one edge"):
        score(subject_of("llama").experiment(metric=Metric.KL), scorer)


@pytest.mark.parametrize("scorer", [ScorerName.EXACT, ScorerName.RANDOM])
def test_nothing_is_frozen_where_no_gradients_are_taken(scorer: ScorerName) -> None:
    with pytest.raises(UsageError, match=f"the scorer {scorer} takes no gradients.*leave --freeze-norms"):
        score(subject_of("llama").experiment(), scorer, Settings(freeze_norms=True))


# ------------------------------------------------------------------------------------------------ what is refused


class _Logarithmic(nn.Module):
    """A norm whose scale goes through logarithms."""

    def forward(self, value: Tensor) -> Tensor:
        return value * torch.exp(-0.5 * torch.log(value.square().mean(-1, keepdim=True) + 1e-6))


class _Shifted(nn.Module):
    """An MLP whose last projection reads a product and something else."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            mlp.act_fn,
        )

    def forward(self, value: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(value)) * self.up_proj(value) + 1)


class _Inline(nn.Module):
    """An MLP whose activation is no module."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.up_proj, self.down_proj = mlp.up_proj, mlp.down_proj

    def forward(self, value: Tensor) -> Tensor:
        return self.down_proj(functional.gelu(self.up_proj(value)))


class _Unread(_Shifted):
    """An MLP that calls its activation after everything else."""

    def forward(self, value: Tensor) -> Tensor:
        made = self.down_proj(self.up_proj(value))
        return made + 0 * self.act_fn(self.gate_proj(value)).sum()


def changed(change: Callable[[Any], None]) -> Subject:
    return subject_of("llama").changed(change)


def replace_norm(module: Any) -> None:
    module.model.layers[1].input_layernorm = _Logarithmic()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_norm, r"model\.layers\.1\.input_layernorm \(_Logarithmic\): the scale of the norm cannot be taken"),
        (lambda m: setattr(m.model.layers[1], "mlp", _Shifted(m.model.layers[1].mlp)), "neither its activation nor"),
        (lambda m: setattr(m.model.layers[1], "mlp", _Inline(m.model.layers[1].mlp)), "has the parts up_proj, down"),
        (lambda m: setattr(m.model.layers[1], "mlp", _Unread(m.model.layers[1].mlp)), "ran without its activation"),
    ],
)
def test_a_model_that_the_rules_do_not_fit_is_refused_by_name(change: Callable[[Any], None], message: str) -> None:
    subject = changed(change)
    experiment, before = subject.experiment(), subject.logits(IDS[0])
    hooks, plain = foreign_hooks(subject.module), experiment.attributions([1.0])
    with pytest.raises(UnsupportedModelError, match=message):
        experiment.attributions([1.0], rules=RELP)
    assert foreign_hooks(subject.module) == hooks
    torch.testing.assert_close(subject.logits(IDS[0]), before)
    np.testing.assert_array_equal(experiment.attributions([1.0]), plain)


def test_attention_without_a_softmax_of_torch_is_refused_by_gim_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("llama")
    subject.module.config._attn_implementation = "eager"

    def attend(
        _: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **__: Any
    ) -> Any:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        scores = query @ key.mT * scaling + (0 if mask is None else mask)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = weights / weights.sum(-1, keepdim=True)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(sys.modules[type(subject.module).__module__], "eager_attention_forward", attend)
    experiment = subject.experiment()
    assert np.abs(score(experiment, ScorerName.RELP).values).max() > 0.02
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.self_attn \(LlamaAttention\): the softmax"):
        score(experiment, ScorerName.GIM)
