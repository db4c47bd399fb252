"""Where files go: the folder ``outputs/``, proved writable before long work begins; and a run's log."""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from circuits.errors import OutputError, UnknownNameError, UsageError
from circuits.files.atomic import file_name, require_room
from circuits.files.documents import exists, local_path

ROOM = 50_000_000
"""Bytes that must be free: scores of 800,000 edges take 30 MB, everything else little."""
FILES = (".json", ".jsonl", ".csv", ".svg", ".png", ".pdf", ".html", ".parquet", ".dot", ".txt")
"""Suffixes that a folder for results does not have."""
_ADVICE = "Choose another place with --out, or free some space."


def default_folder(model: str, *names: str) -> Path:
    """Return ``outputs/<model>/<name>…``; of a model that is a folder, the folder's name."""
    local = local_path(model)
    known_as = local.resolve().name if exists(local) else model.replace("/", "--")
    return Path("outputs", *(file_name(name) for name in (known_as, *names)))


def prepared_folder(folder: Path) -> Path:
    """Make a folder and prove that it can be written to and has room; raises :class:`OutputError`.

    A file's name is refused with :class:`UsageError`: who gives one expects one file.
    """
    if folder.suffix.lower() in FILES and not folder.is_dir():
        raise UsageError(f"'{folder}' is the name of a file, and several files are written; give a folder with --out.")
    require_room(folder, ROOM, name="folder", advice=_ADVICE)
    return folder


def prepared_file(file: Path, suffixes: Iterable[str], default: str = "") -> Path:
    """Return where a file goes, its suffix checked and its folder prepared.

    A folder, or a path without a suffix, means the file ``default`` in it, so that ``--out FOLDER`` means the same for
    every command. Raises :class:`UnknownNameError` and :class:`OutputError`.
    """
    known = tuple(suffixes)
    if default and not file.name.lower().endswith(known) and (file.is_dir() or not file.suffix):
        file = file / default
    if not file.name.lower().endswith(known):
        raise UnknownNameError("file format", file.suffix or file.name, known, hint=f"The file was to be {file}.")
    if file.is_dir():
        raise OutputError(f"'{file}' is a folder; name a file in it.")
    prepared_folder(file.parent)
    return file


class RunLog:
    """Keeps ``run.log`` in a folder: what the library logs, when each stage began, and how the run ended.

    Where it cannot be written, ``problem`` says why, and the work goes on without it.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._command, self._stage = command, ""
        self._logger, self._library = logging.getLogger(__name__), logging.getLogger("circuits")
        self.problem = ""
        try:
            self._handler: logging.Handler = _Handler(folder / "run.log", mode="a", encoding="utf-8")
        except OSError as error:
            self.problem = f"there is no log of this run: cannot write {folder / 'run.log'}: {error.strerror}."
            self._handler = logging.NullHandler()
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that a stage began."""
        del done, total
        if stage != self._stage:
            self._stage = stage
            self._logger.info("%s", stage)

    def warning(self, text: str) -> None:
        """Note a warning."""
        self._logger.warning("%s", text)

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        self._level = self._library.level
        self._library.setLevel(logging.INFO)
        self._library.addHandler(self._handler)
        self._logger.info("%s", self._command)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._begun
        if problem is None:
            self._logger.info("finished after %.1f s", seconds)
        else:
            self._logger.error(
                "ended after %.1f s by %s: %s", seconds, type(problem).__name__, problem, exc_info=problem
            )
        self._library.removeHandler(self._handler)
        self._library.setLevel(self._level)
        with suppress(OSError):  # a full disk; the error that ended the run is the one to be seen
            self._handler.close()


class _Handler(logging.FileHandler):
    """A log that cannot be written (a full disk) must not stop the work that it tells of."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        del record
