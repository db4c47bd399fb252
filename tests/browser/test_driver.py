"""The browser itself: where it cannot start, and where a page misbehaves, tests fail."""

from pathlib import Path

import pytest

from tests.browser.driver import Browser, browser


def test_a_browser_that_does_not_start_is_an_error_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "window.py"
    broken.write_text("raise SystemExit('no library for that')")
    with pytest.raises(RuntimeError, match="no library for that"), browser(broken):
        pass


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("throw new Error('broken page')", "broken page"),
        ("console.error('complaint')", "complaint"),
        ("console.warn('careful')", "careful"),
    ],
)
def test_errors_and_warnings_of_a_page_are_noticed(started: Browser, tmp_path: Path, script: str, problem: str) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><script>{script}</script>")
    started.open(tmp_path / "page.html")
    started.run("0")
    assert any(problem in each for each in started.problems)
    started.problems.clear()


def test_a_page_that_asks_for_something_else_is_noticed(started: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<!doctype html><link rel=stylesheet href=other.css>")
    started.open(tmp_path / "page.html")
    assert [url.rpartition("/")[2] for url in started.requests] == ["page.html", "other.css"]
    started.problems.clear()
