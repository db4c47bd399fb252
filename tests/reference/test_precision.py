"""The float64 copy of a model computes in float64 wherever the model computes in float32 whatever its dtype."""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from tests.reference.hooks import clean_run
from tests.reference.precision import in_float64
from tests.reference.small_models import close, pairs
from tests.zoo import ZOO

CLEAN, _ = pairs()


@pytest.mark.parametrize("family", ZOO)
def test_the_copy_computes_what_the_model_computes_but_finer(family: str) -> None:
    model = ZOO[family]()
    fine, coarse = clean_run(in_float64(model), CLEAN), clean_run(model, CLEAN)
    assert (coarse.dtype, fine.dtype) == (torch.float32, torch.float64)
    close(coarse.double(), fine, 2e-4)
    assert float((coarse - fine).abs().max()) > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "cohere", "mpt"])
def test_a_step_too_small_for_float32_changes_the_logits_in_proportion(family: str) -> None:
    """Merely converting the weights is not enough: somewhere on the way float32 swallows the step."""

    def slopes(model: nn.Module) -> Tensor:
        table, before = model.get_input_embeddings().weight, clean_run(model, CLEAN)
        noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(9)).double()
        changes = []
        for step in (1e-9, 2e-9):
            changed = copy.deepcopy(model)
            with torch.no_grad():
                changed.get_input_embeddings().weight += step * noise
            changes.append((clean_run(changed, CLEAN) - before) / step)
        return torch.stack(changes)

    model = ZOO[family]()
    once, twice = slopes(in_float64(model))
    assert float((once - twice).abs().max()) < 1e-4 * float(once.abs().max())
    once, twice = slopes(copy.deepcopy(model).double())
    assert float((once - twice).abs().max()) > 0.1 * float(once.abs().max())


def test_the_copy_has_classes_of_the_same_name_and_signature_that_can_be_called_past_the_instance() -> None:
    model = ZOO["llama"]()
    double = in_float64(model)
    assert [type(m).__name__ for m in double.modules()] == [type(m).__name__ for m in model.modules()]
    assert all(isinstance(b, type(a)) for a, b in zip(model.modules(), double.modules(), strict=True))
    assert inspect.signature(double.forward) == inspect.signature(model.forward)
    norm, x = double.model.norm, torch.linspace(-1, 1, 32, dtype=torch.float64)
    exact = norm.weight * x / (x.square().mean() + norm.variance_epsilon).sqrt()
    torch.testing.assert_close(type(norm).forward(norm, x), exact, rtol=1e-14, atol=0)
    assert float((type(model.model.norm).forward(norm, x) - exact).abs().max()) > 1e-9
    assert clean_run(model, CLEAN).dtype == torch.float32
