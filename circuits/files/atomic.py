"""Write a file completely or not at all; know beforehand that a folder has room for it."""

import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from circuits.errors import OutputError


def write(path: str | Path, data: bytes | str, *, make_folder: bool = False) -> None:
    """Write text (as UTF-8) or bytes; raises :class:`OutputError` and leaves an earlier file as it was.

    With ``make_folder`` a folder that was removed since work began is made again.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    try:
        if make_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        # Half a character, as of a file name that is no UTF-8, must not cost what was computed.
        partial.write_bytes(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
        partial.replace(target)
    except OSError as error:
        _discard(partial)
        raise OutputError(
            f"cannot write {target}: {error.strerror}. The folder must exist, be writable and have space left."
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those it lies in; raises :class:`OutputError` where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}. Choose another.") from error


LONGEST_NAME = 100
"""File names are cut to this many bytes; systems allow 255, of which suffixes and what is put before take some."""


def file_name(name: str) -> str:
    """Return a name as a file or folder may be called: letters, digits and ``. _ - @ #``, never hidden, never empty.

    What is too long is cut, and what nothing is left of is called ``unnamed``; both with a digest of the whole name.
    """
    plain = re.sub(r"[^\w.@#-]+", "-", name).strip(".-")
    if plain and len(plain.encode("utf-8", "replace")) <= LONGEST_NAME:
        return plain
    cut = plain.encode("utf-8", "replace")[: LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{cut or 'unnamed'}-{_digest(name)}"


def file_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return a file name for each of several distinct names, all distinct, also where upper and lower case are one.

    As :func:`file_name`; where several names would be called alike (``a b`` and ``a/b``), each with a digest of it.
    """
    plain = [file_name(name) for name in names]
    taken = Counter(name.casefold() for name in plain)
    return tuple(
        short if taken[short.casefold()] == 1 else f"{short}-{_digest(name)}"
        for name, short in zip(names, plain, strict=True)
    )


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]


def _discard(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return


def require_room(folder: Path, needed: int, *, name: str, advice: str) -> None:
    """Make a folder and prove that ``needed`` bytes can be written to it; raises :class:`OutputError` with the advice.

    ``name`` says what the folder is, for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise OutputError(f"the {name} '{folder}' cannot be written to ({error.strerror}). {advice}") from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the {name} '{folder}' has {free / 1e6:.0f} MB of free space, but {needed / 1e6:.0f} MB are needed. "
            f"{advice}"
        )
