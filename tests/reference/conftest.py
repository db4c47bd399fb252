"""The models on which the oracle is checked."""

import pytest
from torch import nn

from tests.reference.gradients import in_float64
from tests.reference.small_models import small_gpt2, small_llama


@pytest.fixture(scope="module", params=[small_llama, small_gpt2], ids=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return request.param()


@pytest.fixture(scope="module")
def double(model: nn.Module) -> nn.Module:
    return in_float64(model)
