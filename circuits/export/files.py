"""Write a file completely or not at all."""

from pathlib import Path

from circuits.errors import OutputError


def write(path: str | Path, data: bytes | str) -> None:
    """Write text (as UTF-8) or bytes; raises :class:`OutputError` and leaves an earlier file as it was."""
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    try:
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
