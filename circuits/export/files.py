"""Write a file completely or not at all; know beforehand that a folder has room for it."""

import shutil
import tempfile
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
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        partial.replace(target)
    except OSError as error:
        _discard(partial)
        raise OutputError(
            f"cannot write {target}: {error.strerror}. The folder must exist, be writable and have space left."
        ) from error


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
