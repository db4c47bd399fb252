"""The border to other packages: whatever they raise becomes an error of this one, and nothing is swallowed."""

import pytest

from circuits.errors import FormatError, UsageError, border


class PanicException(BaseException):
    """As pyo3 raises where Rust panics."""


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (Exception("bare\nsecond line"), "bare"),
        (KeyError("key"), "KeyError: 'key'"),
        (TypeError("wrong type"), "TypeError: wrong type"),
        (ZeroDivisionError("by zero"), "by zero"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (AssertionError(), "AssertionError"),
        (PanicException("index out of bounds"), "index out of bounds"),
        (UserWarning("x" * 1000), "x" * 300),
    ],
)
def test_what_another_package_raises_is_told_by_its_first_line_and_kept_as_the_cause(
    problem: BaseException, told: str
) -> None:
    with pytest.raises(FormatError) as caught, border(FormatError, lambda text: f"cannot read it: {text}."):
        raise problem
    assert str(caught.value) == f"cannot read it: {told}."
    assert caught.value.__cause__ is problem


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), SystemExit(3), UsageError("ours")])
def test_errors_of_this_package_and_stops_pass_as_they_are(problem: BaseException) -> None:
    with pytest.raises(type(problem)) as caught, border(FormatError, str):
        raise problem
    assert caught.value is problem
