"""One line for the whole of a work: its share only grows, and the time left is told once it can be."""

import io

import pytest
from rich.console import Console

from circuits.errors import UnknownNameError, UsageError
from circuits.progress import PLANS, PlannedStage, WholeProgress, discovery_plan, in_words, stage_name
from circuits.progress_line import show_progress

PLAN = (
    PlannedStage("loading", 10, counts=False, loads=True),
    PlannedStage("scoring", 30),
    PlannedStage("pruning", 60, counts=False),
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("pruning 53 edges (faithfulness 0.97)", "pruning"),
        ("scoring (eap-ig)", "scoring"),
        ("generating: as it is, ablated", "generating"),
        ("measuring what the heads do, on 16 held-out pairs", "measuring what the heads do"),
        ("recording the prompts", "recording the prompts"),
    ],
)
def test_a_stage_is_called_the_same_while_its_numbers_change(stage: str, name: str) -> None:
    assert stage_name(stage) == name


def test_the_share_is_that_of_the_weights_and_the_time_left_follows_from_the_pace() -> None:
    clock = Clock()
    whole = WholeProgress(PLAN, clock=clock)
    whole("loading the model", 0, 0)
    assert whole.seconds_left is None
    clock.now = 40.0  # reading weights says nothing about the pace
    whole("scoring (eap-ig)", 0, 4)
    assert whole.describe() == "stage 2 of 3: scoring (eap-ig)"
    assert whole.share == pytest.approx(0.1)
    clock.now = 70.0
    whole("scoring (eap-ig)", 2, 4)
    assert whole.share == pytest.approx(0.25)
    assert whole.seconds_left == pytest.approx(0.75 * 100 * 30 / 15)  # 15 of 100 took 30 s
    assert whole.left() == "about 2 min left"


def test_the_share_never_gets_smaller_and_stays_below_one_until_the_end() -> None:
    clock = Clock()
    whole = WholeProgress(PLAN, clock=clock)
    shares = list[float]()
    told = [
        ("scoring", 4, 4),
        ("scoring", 1, 4),
        ("pruning 9 edges", 3, 3),
        ("scoring", 0, 4),
        ("pruning 8 edges", 1, 9),
    ]
    for stage, done, total in told:
        for _ in range(100):
            clock.now += 30.0
            whole(stage, done, total)
            shares.append(whole.share)
    assert shares == sorted(shares)
    assert shares[-1] <= 0.99
    assert whole.describe() == "stage 3 of 3: pruning 8 edges"


def test_a_stage_without_steps_comes_closer_to_its_end_by_the_same_share_in_every_equal_time() -> None:
    clock = Clock()
    whole = WholeProgress(PLAN, clock=clock)
    whole("scoring", 0, 1)
    clock.now = 30.0
    whole("pruning 50 edges", 0, 0)  # scoring took a second per weight: 60 s are expected
    assert whole.share == pytest.approx(0.4)
    clock.now = 90.0
    assert whole.share == pytest.approx(0.4 + 0.6 * (1 - 2.718281828**-1))


def test_stages_that_are_not_planned_are_told_within_the_present_one() -> None:
    whole = WholeProgress(PLAN)
    whole("downloading weights", 5, 10)
    assert whole.describe() == "stage 1 of 3: downloading weights"
    assert whole.share < 0.1
    free = WholeProgress()
    free("running 3 circuits on ioi", 1, 3)
    assert (free.describe(), free.share, free.left()) == ("running 3 circuits on ioi", 0.0, "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "10 s"), (41, "50 s"), (89, "90 s"), (100, "2 min"), (1700, "28 min"), (7300, "2 h 02 min")],
)
def test_times_are_told_as_one_would_say_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_plans_need_weights() -> None:
    with pytest.raises(UsageError, match="weight above 0"):
        WholeProgress((PlannedStage("x", 0),))


@pytest.mark.parametrize("width", [80, 200])
def test_the_line_is_one_line_on_narrow_and_wide_terminals(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, legacy_windows=False, color_system=None)
    with show_progress(discovery_plan("minimal"), console=console) as progress:
        progress("proposing edges", 0, 0)
        progress("pruning 53 edges (faithfulness 0.97)", 1, 2)
        console.print("")  # a refresh
    lines = [line for text in screen.getvalue().split("\r") for line in text.split("\n") if "stage" in line]
    shown = lines[-1].replace("\x1b[2K", "")
    assert "stage 5 of 10: pruning 53 edges" in shown
    assert "%" in shown
    assert len(shown) <= width


def test_a_plan_is_found_by_the_name_of_the_work() -> None:
    with show_progress("discover", console=Console(file=io.StringIO())) as progress:
        progress("pruning 3 edges", 0, 0)
    assert progress.describe() == "stage 3 of 7: pruning 3 edges"
    with pytest.raises(UnknownNameError, match="Closest: 'discover'"), show_progress("discovr"):
        pass


def test_nothing_is_shown_where_nobody_looks() -> None:
    screen = io.StringIO()
    with show_progress(PLANS["score"], console=Console(file=screen, force_terminal=False)) as progress:
        progress("scoring", 1, 2)
    assert screen.getvalue() == ""
    assert progress.share > 0


def test_a_stage_whose_name_begins_with_that_of_another_is_told_from_it() -> None:
    whole = WholeProgress(discovery_plan("closest", rivals=1))
    seen = list[str]()
    for stage in ("pruning 90 edges", "pruning back 80 edges", "evaluating", "pruning 70 edges", "evaluating rivals"):
        whole(stage, 0, 0)
        seen.append(whole.describe().partition(":")[0])
    assert seen == [f"stage {number} of 14" for number in (4, 5, 8, 10, 12)]
