"""Heatmaps: orientation, colour, text, deterministic bytes."""

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from circuits.drawing.heatmap import heatmap
from circuits.errors import OutputError, UnknownNameError, UsageError


def draw(path: Path, values: np.ndarray, rows: list[str] | None = None, columns: list[str] | None = None) -> bytes:
    heatmap(
        values,
        rows=rows or [str(i) for i in range(values.shape[0])],
        columns=columns or [str(i) for i in range(values.shape[1])],
        title="the title",
        colour_label="effect (nats)",
        path=path,
        row_label="layer",
        column_label="token",
    )
    return path.read_bytes()


def colours_from_below(path: Path, n_rows: int) -> list[tuple[float, float, float]]:
    """Colours of the rows' centres, bottom first, in a picture of one column without numbers in the way."""
    picture = matplotlib.image.imread(path)[..., :3]
    width = picture.shape[1]
    saturated = picture.max(axis=2) - picture.min(axis=2) > 0.3
    rows_with_colour = np.flatnonzero(saturated[:, : int(width * 0.55)].any(axis=1))
    top, bottom = rows_with_colour[0], rows_with_colour[-1]
    columns_with_colour = np.flatnonzero(saturated[:, : int(width * 0.55)].any(axis=0))
    x = columns_with_colour[0] + 12
    step = (bottom - top) / n_rows
    return [tuple(picture[int(bottom - (i + 0.5) * step), x].tolist()) for i in range(n_rows)]


def test_the_first_row_is_at_the_bottom_and_colours_diverge_from_white_at_zero(tmp_path: Path) -> None:
    draw(tmp_path / "x.png", np.array([[-2.0], [0.0], [2.0]]))
    low, middle, high = colours_from_below(tmp_path / "x.png", 3)
    assert low[2] > low[0] + 0.2
    assert high[0] > high[2] + 0.2
    assert min(middle) > 0.9


def test_the_scale_is_symmetric_even_when_the_values_are_not(tmp_path: Path) -> None:
    draw(tmp_path / "x.png", np.array([[4.0], [0.0], [4.0]]))
    low, middle, high = colours_from_below(tmp_path / "x.png", 3)
    assert low == high
    assert min(middle) > 0.9


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_values_give_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 5))
    assert draw(tmp_path / f"a.{suffix}", values) == draw(tmp_path / f"b.{suffix}", values)
    assert draw(tmp_path / f"a.{suffix}", values) != draw(tmp_path / f"b.{suffix}", -values)


def test_all_texts_are_text_and_dollar_signs_are_not_mathematics(tmp_path: Path) -> None:
    columns = [" Mary", "$x_1$", "<b>&", "\n", "日本"]
    values = np.random.default_rng(0).normal(size=(40, 5))
    svg = draw(tmp_path / "x.svg", values, columns=columns).decode("utf-8")
    for text in (
        "the title",
        "effect (nats)",
        "layer",
        "token",
        ">Mary<",
        ">$x_1$<",
        "&lt;b&gt;&amp;",
        "␣",
        "日本",
        ">39<",
    ):
        assert text in svg


def test_few_cells_carry_their_numbers_and_missing_ones_do_not(tmp_path: Path) -> None:
    small = draw(tmp_path / "x.svg", np.array([[0.25, -1.5, np.nan], [-0.001, 0.75, 1.0]])).decode("utf-8")
    for text in (">0.25<", ">−1.50<", ">0.75<", ">0.00<"):
        assert text in small
    assert "nan" not in small.lower()
    assert ">−0.00<" not in small
    large = draw(tmp_path / "y.svg", np.full((20, 20), 0.25)).decode("utf-8")
    assert large.count(">0.25<") <= 1


def test_values_that_are_all_zero_or_missing_can_be_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "x.svg", np.zeros((2, 2)))
    draw(tmp_path / "y.svg", np.full((2, 2), np.nan))


def test_labels_that_do_not_fit_the_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 row labels and 3 column labels .* got \(2, 2\)"):
        draw(tmp_path / "x.svg", np.zeros((2, 2)), columns=["a", "b", "c"])
    with pytest.raises(UsageError, match=r"got \(0, 2\)"):
        draw(tmp_path / "x.svg", np.zeros((0, 2)))
    with pytest.raises(UnknownNameError, match=r"no file format '\.jpg'.*\.png"):
        draw(tmp_path / "x.jpg", np.zeros((2, 2)))
    with pytest.raises(OutputError, match="cannot write"):
        draw(tmp_path / "absent" / "x.svg", np.zeros((2, 2)))


def test_drawing_leaves_matplotlibs_global_state_alone(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from circuits.drawing.heatmap import heatmap\n"
        "heatmap(np.ones((2, 2)), rows='ab', columns='cd', title='t', colour_label='c', "
        f"path={str(tmp_path / 'x.svg')!r})\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "False"
