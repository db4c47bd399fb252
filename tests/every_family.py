"""Every supported family, in float32 and in float64."""

import pytest

from tests.subjects import Subject, double_of, subject_of
from tests.tiny import FAMILIES


@pytest.fixture(scope="session", params=list(FAMILIES))
def subject(request: pytest.FixtureRequest) -> Subject:
    return subject_of(request.param)


@pytest.fixture(scope="session", params=list(FAMILIES))
def double(request: pytest.FixtureRequest) -> Subject:
    return double_of(request.param)
