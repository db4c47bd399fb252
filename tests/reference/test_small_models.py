"""The tiny models are of a scale at which a wrong method gives a wrong number."""

import torch
from torch import nn

from tests.reference.hooks import clean_run
from tests.reference.small_models import logit_difference, pairs

CLEAN, CORRUPTED = pairs()


def test_the_small_models_have_logits_of_a_few_units_and_attention_that_is_not_uniform(model: nn.Module) -> None:
    logits = clean_run(model, CLEAN)
    assert 0.7 < float(logits.std()) < 6
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(model(CLEAN, output_attentions=True).attentions)[..., -1, :]
    model.set_attn_implementation("sdpa")
    entropy = -(weights * weights.clamp_min(1e-9).log()).sum(-1)
    assert 0.3 < float(entropy.mean()) < 0.9 * torch.log(torch.tensor(CLEAN.shape[1])).item()


def test_corrupting_the_prompt_changes_the_metric_by_more_than_one(model: nn.Module) -> None:
    gap = logit_difference(clean_run(model, CLEAN)) - logit_difference(clean_run(model, CORRUPTED))
    assert float(gap.abs().max()) > 1
