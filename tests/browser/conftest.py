"""The browser, started once; every test must leave it without a complaint and without a request for anything else."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.browser.driver import Browser, browser


@pytest.fixture(scope="session")
def started() -> Generator[Browser]:
    with browser() as window:
        yield window


@pytest.fixture
def window(started: Browser) -> Generator[Browser]:
    yield started
    assert started.problems == []
    assert [url for url in started.requests if not url.startswith("file://")] == []
    assert len(started.requests) <= 1


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for pages that several tests open."""
    return tmp_path_factory.mktemp("pages")
