"""Prompt pairs in data sets of Hugging Face: of the hub, or saved in a folder; the only module that imports datasets.

A data set of the hub is named ``hf:OWNER/NAME``, with ``@REVISION``, ``:SPLIT`` and ``:CONFIGURATION`` after it where
they are needed. A folder is what ``save_to_disk`` of that library writes.
"""

import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from circuits.behaviours.reading.rows import Rows, as_row
from circuits.errors import FormatError, MissingFileError, UsageError, border
from circuits.files.documents import MOST_BYTES, too_large

PREFIX = "hf:"
_NAME = re.compile(
    r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.\[\]%:-]*?))?(?::(?P<config>[\w.-]+))?"
)
_ALONE, _SEVERAL = "state.json", "dataset_dict.json"
"""What lies in the folder of one split, and in that of several."""


@dataclass(frozen=True)
class HubName:
    """A data set of the hub: its name, and revision, split and configuration where they are given."""

    name: str
    revision: str | None = None
    split: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name from its text form; raises :class:`UsageError` for any other."""
        found = _NAME.fullmatch(text)
        if found is None:
            raise UsageError(
                f"'{text}' names no data set; expected hf:OWNER/NAME, with @REVISION, :SPLIT and :CONFIGURATION after "
                "it where they are needed, such as hf:OWNER/NAME:train."
            )
        return cls(found["name"], found["revision"], found["split"] or None, found["config"])

    def of_split(self, split: str) -> str:
        """Return the name of one split, in its text form."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.name}{revision}:{split}" + (f":{self.config}" if self.config else "")


def is_saved(path: Path) -> bool:
    """Return whether a folder is a saved data set, or one of several splits."""
    return any((path / name).is_file() for name in (_ALONE, _SEVERAL))


def hub_rows(text: str) -> Rows:
    """Return the rows of a data set of the hub, which is fetched once and then kept by the library's own cache.

    Raises :class:`UsageError` for no name, without the library, and where a split has to be chosen;
    :class:`MissingFileError` where the data set cannot be had.
    """
    asked, library = HubName.parse(text), _library(text)

    def advice(problem: str) -> str:
        return (
            f"cannot load the data set {text}: {problem} Check its name, split and configuration, and the connection; "
            "without one, save it where there is one (save_to_disk) and give that folder."
        )

    with _quiet(library), border(MissingFileError, advice):
        found = library.load_dataset(asked.name, asked.config, split=asked.split, revision=asked.revision)
    return _rows(found, asked.name, asked.of_split)


def saved_rows(path: Path) -> Rows:
    """Return the rows of a saved data set.

    Raises :class:`UsageError` without the library, and where a folder holds several splits; :class:`FormatError` for
    what cannot be read.
    """
    library = _library(str(path))
    with _quiet(library), border(FormatError, lambda problem: f"cannot read the data set in {path}: {problem}."):
        found = library.load_from_disk(str(path))
    return _rows(found, path.name, lambda split: str(path / split))


def _rows(found: Any, name: str, of_split: Callable[[str], str]) -> Rows:
    if isinstance(found, dict):
        splits: dict[str, Any] = cast("dict[str, Any]", found)
        if len(splits) != 1:
            raise UsageError(
                f"the data set {name} has the splits {', '.join(splits) or 'none'}; expected one of them: "
                f"{' or '.join(map(of_split, splits))}."
            )
        found = next(iter(splits.values()))
    if found.data.nbytes > MOST_BYTES:
        raise too_large(name, found.data.nbytes)
    rows = tuple(as_row(f"{name}, row {number}", _plain(record)) for number, record in enumerate(found, start=1))
    if not rows:
        raise FormatError(f"{name} has no prompt pairs; expected one in each row.")
    return Rows(rows)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a row has, as JSON would hold them."""
    return json.loads(json.dumps({key: value for key, value in record.items() if value is not None}, default=str))


def _library(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{what} is a data set of Hugging Face, and the library that reads it is not installed; run pip install "
            "'path-patching-circuits[datasets]', or write the data set as Parquet or JSON Lines (to_parquet, to_json)."
        ) from error
    return datasets


@contextmanager
def _quiet(library: Any) -> Generator[None]:
    """Show no bars of the library's own."""
    on = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if on:
            library.enable_progress_bars()
