"""The journal: what was measured, kept on disk under what it was measured from, so that a stopped run goes on.

Every stage of the work is made of measurements (a circuit, an edge, a gradient, an answer), and a measurement depends
on its inputs alone: the model, the prompt pairs, the metric, the edges. So each is kept under the digest of exactly
those. A run that is started again asks for the same measurements in the same order and finds them, until it comes to
the first that is missing; whatever changed in between (a limit, a target, a memory budget) changes nothing that it does
not enter. Two runs with different seeds never read each other's, even from one file.

The file is an SQLite database with one row per measurement and a digest in every row: a row that was damaged is
measured again. Rows are written in order and at most :data:`SECONDS` after they were measured; a kill at any moment
leaves a whole file. While a journal is open, its file is locked.
"""

import hashlib
import io
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from circuits.errors import OutputError

SECONDS = 5.0
"""What was measured is written after so many seconds; a kill costs no more, and the measurement it interrupted."""
_VERSION = 2
_TABLE = """
CREATE TABLE IF NOT EXISTS kept (
    of BLOB, kind TEXT, item BLOB, value BLOB, digest BLOB, PRIMARY KEY (of, kind, item)
) WITHOUT ROWID
"""
Arrays = dict[str, NDArray[Any]]


class Journal:
    """An open journal file; close it, or use it in a ``with`` block.

    Args:
        path: The file.
        resume: Whether what an earlier run has left there is used. Otherwise it is thrown away, but not before
            there is something to put in its place.

    Raises :class:`OutputError` where the file cannot be written, or another run has it open.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.problem = ""
        """Why an earlier run's journal could not be used; empty if it could, or if there was none."""
        self._lock = FileLock(f"{self.path}.lock", timeout=0)
        self._take()
        self._stale = not resume
        try:
            self._connection = self._opened()
        except OutputError:
            self._let_go()
            raise
        self._written = time.monotonic()

    def _take(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"another run is writing to {self.path.parent} (it holds {self.path.name}.lock). Wait until it has "
                "ended, or choose another place with --out."
            ) from error
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error

    def shelf(self, **what: Any) -> "Shelf":
        """Return the place of everything that is measured from ``what`` (JSON values), and from nothing else."""
        return Shelf(self, _digest_of("", what | {"release": _release()}))

    @property
    def due(self) -> bool:
        """Whether it is time to hand over what was measured, and to write it."""
        return time.monotonic() - self._written > SECONDS

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return self._stale or self._run("SELECT 1 FROM kept LIMIT 1").fetchone() is None

    def get(self, of: bytes, kind: str, item: bytes) -> bytes | None:
        """Return what is kept of one measurement; None where nothing is, or where it was damaged."""
        if self._stale:
            return None
        row = self._run("SELECT value, digest FROM kept WHERE of = ? AND kind = ? AND item = ?", (of, kind, item))
        value, digest = row.fetchone() or (b"", b"")
        return value if digest and digest == _row_digest(of, kind, item, value) else None

    def put(self, of: bytes, kind: str, item: bytes, value: bytes) -> None:
        """Keep a measurement; it is written when that is due."""
        self.put_together(of, kind, [(item, value)])

    def put_together(self, of: bytes, kind: str, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep measurements that were made together, (item, value): all of them or, where this is stopped, none.

        The last digits of a number depend on what it was measured with, so a resumed run must not have half of a batch.
        """
        rows = [(of, kind, item, value, _row_digest(of, kind, item, value)) for item, value in items]
        self._begin()
        if self._stale:
            self._run("DELETE FROM kept")
            self._stale = False
        self._run("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?)", rows, each=True)
        if self.due:
            self.write()

    def forget(self, of: bytes, kind: str) -> None:
        """Throw away what is kept of one kind."""
        if self._stale:
            return
        self._begin()
        self._run("DELETE FROM kept WHERE of = ? AND kind = ?", (of, kind))

    def holds(self, of: bytes) -> bool:
        """Return whether anything is kept of what was measured from one thing."""
        found = self._run("SELECT 1 FROM kept WHERE of = ? LIMIT 1", (of,)).fetchone()
        return found is not None and not self._stale

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._run("BEGIN")

    def write(self) -> None:
        """Write everything now. Raises :class:`OutputError` where there is no room; what was written stays."""
        if self._connection.in_transaction:
            self._run("COMMIT")
        self._written = time.monotonic()

    def close(self) -> None:
        """Write everything and let go of the file, which is deleted if it is empty; nothing, where that was done."""
        if not self._lock.is_locked:
            return
        try:
            self.write()
            if self.empty and not self._stale:
                self._discard()
        finally:
            self._connection.close()
            self._let_go()

    def remove(self) -> None:
        """Close the journal of a run that has ended and delete it."""
        self._connection.close()
        self._discard()
        self._let_go()

    def _let_go(self) -> None:
        with suppress(OSError):  # a system on which open files cannot be deleted leaves it there, empty
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(problem, OutputError):
            self.close()
            return
        with suppress(OutputError):  # the first error says what is wrong
            self.close()

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.OperationalError as error:
            raise self._unwritable(str(error)) from error
        except sqlite3.DatabaseError:
            self.problem = "is damaged, or of another release"
            self._discard()
        try:
            return self._connected()
        except sqlite3.Error as error:
            raise self._unwritable(str(error)) from error

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA auto_vacuum = FULL")
            connection.execute("PRAGMA synchronous = NORMAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            checked = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if version not in (0, _VERSION) or checked != "ok":
                raise sqlite3.DatabaseError(checked)
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _run(
        self, statement: str, values: tuple[Any, ...] | list[tuple[Any, ...]] = (), *, each: bool = False
    ) -> sqlite3.Cursor:
        """Run a statement with some values, or with ``each`` of several; opens the file anew where it was removed."""
        try:
            return (
                self._connection.executemany(statement, values) if each else self._connection.execute(statement, values)
            )
        except sqlite3.Error as error:
            if self.path.exists():
                raise self._unwritable(str(error)) from error
        # The folder was removed: what comes from here on can still be kept.
        self._connection.close()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connected()
            if each:
                return self._connection.executemany(statement, values)
            return self._connection.execute("SELECT 1 WHERE 0" if statement == "COMMIT" else statement, values)
        except (OSError, sqlite3.Error) as error:
            raise self._unwritable(str(error)) from error

    def _discard(self) -> None:
        try:
            for path in (self.path, self.path.with_name(f"{self.path.name}-journal")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error

    def _unwritable(self, why: str) -> OutputError:
        return OutputError(
            f"cannot write {self.path}: {why}. What was written before is kept: free some space and go on with "
            "--resume, or choose another place with --out."
        )


@dataclass(frozen=True)
class Shelf:
    """The part of a journal that belongs to one thing, such as one model on certain prompts; :data:`NOWHERE` has none.

    Every measurement has a ``kind`` (in words) and an ``item`` (what exactly, as text or bytes).
    """

    journal: Journal | None
    of: bytes

    def under(self, **what: Any) -> "Shelf":
        """Return the place of what depends on ``what`` besides."""
        return Shelf(self.journal, _digest_of(self.of.hex(), what)) if self.journal else self

    @property
    def filled(self) -> bool:
        """Whether anything is kept here."""
        return self.journal is not None and self.journal.holds(self.of)

    @property
    def due(self) -> bool:
        """Whether it is time to hand over what was measured."""
        return self.journal is not None and self.journal.due

    def get(self, kind: str, item: bytes) -> bytes | None:
        """Return what is kept of one measurement, if anything."""
        return self.journal.get(self.of, kind, item) if self.journal else None

    def put(self, kind: str, item: bytes, value: bytes) -> None:
        """Keep a measurement."""
        if self.journal:
            self.journal.put(self.of, kind, item, value)

    def put_together(self, kind: str, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep measurements that were made together, all or none; see :meth:`Journal.put_together`."""
        if self.journal:
            self.journal.put_together(self.of, kind, items)

    def forget(self, kind: str) -> None:
        """Throw away what is kept of one kind: what it was needed for is finished."""
        if self.journal:
            self.journal.forget(self.of, kind)

    def arrays(
        self, kind: str, what: Any, make: Callable[[], Mapping[str, NDArray[Any]]], *, interim: bool = False
    ) -> Arrays:
        """Return the arrays that ``make`` makes of ``what`` (JSON values), made only where they are not kept yet.

        With ``interim`` they are kept only when it is time to write: they will be part of something smaller.
        """
        if self.journal is None:
            return dict(make())
        item = _digest_of("", what)
        found = arrays_in(self.get(kind, item))
        if found is not None:
            return found
        found = dict(make())
        if self.due or not interim:
            self.put(kind, item, bytes_of(found))
        return found

    def document(self, kind: str, what: Any, make: Callable[[], Any]) -> Any:
        """Return the JSON value that ``make`` makes of ``what``, made only where it is not kept yet."""
        if self.journal is None:
            return make()
        item = _digest_of("", what)
        kept = self.get(kind, item)
        if kept is None:
            kept = json.dumps(make()).encode()
            self.put(kind, item, kept)
        return json.loads(kept)


NOWHERE = Shelf(None, b"")
"""Keeps nothing."""


def bytes_of(arrays: Arrays) -> bytes:
    """Return arrays as the bytes of an ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def arrays_in(kept: bytes | None) -> Arrays | None:
    """Return the arrays that :func:`bytes_of` made bytes of; None where there are none, or they are damaged."""
    if kept is None:
        return None
    try:
        with np.load(io.BytesIO(kept), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (BadZipFile, ValueError, EOFError, KeyError):
        return None


def _digest_of(parent: str, what: Any) -> bytes:
    text = json.dumps([parent, what], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _row_digest(of: bytes, kind: str, item: bytes, value: bytes) -> bytes:
    digest = hashlib.blake2b(of, digest_size=8)
    for part in (kind.encode(), item, value):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _release() -> str:
    """Return this package's version: another one may measure otherwise."""
    try:
        return metadata.version("path-patching-circuits")
    except metadata.PackageNotFoundError:
        return ""
