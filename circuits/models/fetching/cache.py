"""The cache folder: what takes long to make is made once, completely or not at all.

A folder is made under a temporary name next to its final place and renamed when it is complete, so a run that is
interrupted or killed leaves nothing that looks finished. A lock file lets one process work and the others wait.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from circuits.errors import OutputError
from circuits.files.atomic import require_room

_ADVICE = "Free some space or permissions, or name another folder in the environment variable CIRCUITS_CACHE."
_WRITE_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def cache_folder() -> Path:
    """Return the folder for fetched models: ``CIRCUITS_CACHE``, else the platform's cache folder for this package."""
    chosen = os.environ.get("CIRCUITS_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("circuits"))


def make_once(
    target: Path,
    make: Callable[[Path, Path], None],
    *,
    is_complete: Callable[[Path], bool],
    needed: int,
    on_wait: Callable[[], None],
) -> Path:
    """Return ``target``, made by ``make(scratch, result)`` if it is absent or not complete.

    ``make`` writes the folder's content to ``result`` and whatever else it needs to ``scratch``; both lie in the cache.
    ``needed`` is the space in bytes that this takes at most, checked before anything is made. ``on_wait`` is called
    when another process is already at work on the same folder. Raises :class:`OutputError` where the cache cannot be
    written to; whatever ``make`` raises passes through, and then nothing is left behind.
    """
    if is_complete(target):
        return target
    require_room(target.parent, needed, name="cache folder", advice=_ADVICE)
    with _locked(target.with_name(f"{target.name}.lock"), on_wait):
        if is_complete(target):
            return target
        prefix = f".{target.name}-"
        # Only the holder of the lock makes such folders, so any that exist belong to runs that were killed.
        for stale in [*target.parent.glob(f"{prefix}*"), target]:
            shutil.rmtree(stale, ignore_errors=True)
        with _as_output_error(target.parent), tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as scratch:
            result = Path(scratch) / "result"
            result.mkdir()
            make(Path(scratch), result)
            result.rename(target)
    return target


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Generator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _as_output_error(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_FAILURES:
            raise
        raise OutputError(f"writing to the cache folder '{folder}' failed ({error.strerror}). {_ADVICE}") from error
