"""Data sets of Hugging Face: saved folders are read as they are, and what cannot be had is said with what to do."""

import datetime
import sys
from pathlib import Path

import datasets
import pytest

import circuits
from circuits.behaviours import load_behaviour
from circuits.behaviours.reading import hub_datasets
from circuits.behaviours.reading.hub_datasets import HubName
from circuits.errors import FormatError, MissingFileError, UsageError

ROW = {"clean": "When Mary went", "corrupted": "When Anna went", "answer": " Mary", "wrong_answer": " Anna"}
ROWS = [
    {**ROW, "topic": "names", "made": datetime.datetime(2024, 1, 2)},
    {**ROW, "clean": "The capital of", "corrupted": "The city of", "topic": None, "made": None},
]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder))
    return folder


@pytest.fixture
def several(tmp_path: Path) -> Path:
    folder = tmp_path / "several"
    both = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(both).save_to_disk(str(folder))
    return folder


def test_a_saved_data_set_is_read_like_a_file_with_its_columns_as_tags(saved: Path, tokenizer) -> None:
    read = circuits.read_prompts(saved, tokenizer=tokenizer)
    assert [row.source for row in read.pairs] == ["mine, row 1", "mine, row 2"]
    assert (read.name, read.pairs[0].answers, read.pairs[1].clean) == ("mine", (" Mary",), "The capital of")
    first, second = load_behaviour(saved).checked(tokenizer)
    assert first.tags == {"topic": "names", "made": "2024-01-02 00:00:00"}
    assert second.tags == {}
    out, _ = read.write(saved.parent / "clean.jsonl")
    assert [pair.clean for pair in load_behaviour(out).checked(tokenizer)] == [first.clean, second.clean]


def test_a_folder_beside_is_found_by_its_name_alone(saved: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    assert len(load_behaviour("mine").checked(tokenizer)) == 2


def test_of_several_splits_one_has_to_be_named(several: Path, tokenizer) -> None:
    with pytest.raises(UsageError, match=r"has the splits train, test; expected one of them: .*several/train or "):
        load_behaviour(several)
    assert len(load_behaviour(several / "test").checked(tokenizer)) == 1


def test_a_folder_that_is_no_data_set_and_a_broken_one_are_refused(saved: Path) -> None:
    with pytest.raises(FormatError, match="is a folder, not a prompt file, and no data set that save_to_disk"):
        load_behaviour(saved.parent)
    (saved / "data-00000-of-00001.arrow").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot read the data set in"):
        load_behaviour(saved)


def test_a_bar_of_the_library_is_hidden_only_while_it_is_read(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    capsys.readouterr()
    load_behaviour(saved)
    assert capsys.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:me/pairs", HubName("me/pairs")),
        ("hf:me/pairs:train", HubName("me/pairs", split="train")),
        ("hf:me/pairs@1.0:train:small", HubName("me/pairs", "1.0", "train", "small")),
        ("hf:me/pairs:train[:10%]", HubName("me/pairs", split="train[:10%]")),
        ("hf:pairs::small", HubName("pairs", config="small")),
    ],
)
def test_a_name_is_what_it_says(text: str, name: HubName) -> None:
    assert HubName.parse(text) == name
    assert name.split is None or name.of_split(name.split) == text


def test_a_data_set_of_the_hub_is_asked_for_as_it_is_named(monkeypatch: pytest.MonkeyPatch, tokenizer) -> None:
    asked: list[object] = []

    def load(*names: object, **options: object) -> object:
        asked.append((names, options))
        found = datasets.Dataset.from_list(ROWS)
        return found if options["split"] else datasets.DatasetDict({"train": found, "test": found})

    monkeypatch.setattr(datasets, "load_dataset", load)
    behaviour = load_behaviour("hf:me/pairs@v1:train:small")
    assert asked == [(("me/pairs", "small"), {"split": "train", "revision": "v1"})]
    assert (behaviour.name, len(behaviour.checked(tokenizer))) == ("pairs", 2)
    with pytest.raises(UsageError, match="expected one of them: hf:me/pairs@v1:train or hf:me/pairs@v1:test"):
        load_behaviour("hf:me/pairs@v1")


def test_what_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    def unreachable(*_: object, **__: object) -> object:
        raise ConnectionError("Couldn't reach 'me/pairs' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(MissingFileError, match=r"cannot load the data set hf:me/pairs: Couldn't reach .*save_to_disk"):
        load_behaviour("hf:me/pairs")
    with pytest.raises(UsageError, match="names no data set; expected hf:OWNER/NAME"):
        load_behaviour("hf:me/pairs/more")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("hf:me/pairs", saved):
        with pytest.raises(UsageError, match=r"not installed; run pip install .*\[datasets\].*to_parquet"):
            load_behaviour(name)


def test_a_data_set_that_is_too_large_is_refused_before_it_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_datasets, "MOST_BYTES", 10)
    with pytest.raises(FormatError, match="cannot read mine: it has"):
        load_behaviour(saved)
