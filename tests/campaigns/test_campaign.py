"""What a campaign's file says, and what is wrong with one."""

from pathlib import Path

import pytest

from circuits.campaigns.campaign import Campaign
from circuits.errors import FormatError, MissingFileError, UsageError


def loaded(folder: Path, text: str) -> Campaign:
    (folder / "grid.toml").write_text(text)
    return Campaign.load(folder / "grid.toml")


def test_a_file_names_a_grid_with_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("")
    found = loaded(
        tmp_path,
        'behaviours = ["ioi", "mine.jsonl"]\nmodels = ["smollm2-135m"]\nseeds = 2\n'
        "[options]\npairs = 8\nheads = false\nquick = true\ntarget = 0.8\n[transfer]\npairs = 4\n",
    )
    assert [run.name for run in found.runs()] == [
        "ioi-smollm2-135m-0",
        "ioi-smollm2-135m-1",
        "mine-smollm2-135m-0",
        "mine-smollm2-135m-1",
    ]
    last = found.runs()[3]
    assert found.arguments(last, tmp_path / "x") == (
        *("discover", "--model", "smollm2-135m", "--seed", "1", "--out", f"{tmp_path}/x"),
        *("--record", f"{tmp_path}/x/run.json", "--pairs", "8", "--no-heads", "--quick", "--target", "0.8"),
        *("--resume", "--json", "--quiet", "--", f"{tmp_path}/mine.jsonl"),
    )


def test_seeds_are_listed_or_counted_and_transfer_can_be_left_out(tmp_path: Path) -> None:
    assert loaded(tmp_path, 'behaviours = ["ioi"]\nseeds = [3, 5]\ntransfer = false').seeds == (3, 5)
    assert loaded(tmp_path, 'behaviours = ["ioi"]\ntransfer = false').transfer is None
    assert loaded(tmp_path, 'behaviours = ["ioi"]\ntransfer = true').transfer == {}


def test_files_of_one_name_in_two_folders_keep_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.jsonl").write_text("")
    runs = loaded(tmp_path, 'behaviours = ["a/mine.jsonl", "b/mine.jsonl"]').runs()
    assert len({run.name for run in runs}) == 2


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("behaviours = [", FormatError, "is no TOML: .* A campaign has lines such as behaviours ="),
        ('models = ["gpt2"]', FormatError, "names no behaviours; a campaign has behaviours, models, seeds"),
        ('behaviours = ["ioi"]\nseed = 3', FormatError, "has 'seed'; a campaign has behaviours, models, seeds"),
        ('behaviours = "ioi"', UsageError, "the behaviours of a campaign are several values, got 'ioi'"),
        ("behaviours = []", UsageError, "at least one of its behaviours"),
        ('behaviours = ["ioi", "ioi"]', UsageError, "'ioi' is there twice among the behaviours"),
        ('behaviours = ["ioi"]\nseeds = [-1]', UsageError, "seeds of a campaign are numbers from 0 up, got -1"),
        ('behaviours = ["ioi"]\nseeds = 0', UsageError, "at least one of its seeds"),
        ('behaviours = ["ioi"]\nseeds = "3"', UsageError, "seeds of a campaign are several values, got '3'"),
        ('behaviours = ["ioi"]\n[options]\nout = "x"', UsageError, "sets --out of its runs itself; leave it out"),
        ('behaviours = ["ioi"]\n[options]\npairs = [1]', UsageError, "the option pairs is a list; expected text"),
        ('behaviours = ["ioi"]\noptions = 3', UsageError, "the options of a campaign are a table, got 3"),
    ],
)
def test_what_is_no_campaign_is_refused(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        loaded(tmp_path, text)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.toml"):
        Campaign.load(tmp_path / "nowhere.toml")
