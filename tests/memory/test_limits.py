"""The memory there is: what the host has free, and what limits on the process leave of it."""

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from circuits.memory.limits import free_memory, host_memory

V2 = (("memory.max", "memory.current", "memory.stat"), "inactive_file")
V1 = (("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"), "total_inactive_file")
LIMITED = """
import resource, sys
from circuits.memory.limits import host_memory, shared_memory
import psutil
now = psutil.Process().memory_info()
limit, size = (resource.RLIMIT_AS, now.vms) if sys.argv[1] == "v" else (resource.RLIMIT_DATA, now.data)
resource.setrlimit(limit, (size + 300_000_000, resource.RLIM_INFINITY))
print(host_memory(), shared_memory())
"""


def group(folder: Path, limit: str, use: int = 500_000, kind: tuple[tuple[str, ...], str] = V2) -> None:
    """Write the files of a control group of which 20,000 bytes are cached files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(kind[0], (limit, str(use), f"anon 1\n{kind[1]} 20000\nother_{kind[1]} 7"), strict=True):
        (folder / name).write_text(f"{text}\n")


def own(folder: Path, line: str) -> Path:
    file = folder / "own"
    file.write_text(f"1:name=systemd:/elsewhere\n{line}\n")
    return file


def available() -> int:
    return int(psutil.virtual_memory().available)


@pytest.mark.parametrize(("where", "kind"), [(".", V2), ("memory", V1)])
def test_a_container_may_use_what_its_limit_leaves_and_cached_files_do_not_count(
    tmp_path: Path, where: str, kind: tuple[tuple[str, ...], str]
) -> None:
    group(tmp_path / where, "900000", kind=kind)
    assert host_memory(tmp_path) == 420_000
    group(tmp_path / where, "900000", use=950_000, kind=kind)
    assert host_memory(tmp_path) == 0
    group(tmp_path / where, "max", kind=kind)
    assert host_memory(tmp_path) == pytest.approx(available(), rel=0.3)
    group(tmp_path / where, "5", kind=kind)
    (tmp_path / where / kind[0][2]).unlink()
    assert host_memory(tmp_path) > 10**6


@pytest.mark.parametrize(
    ("line", "root", "kind"), [("0::/user.slice/job", "", V2), ("4:cpu,memory:/user.slice/job", "memory", V1)]
)
def test_the_tightest_of_the_groups_around_a_process_counts(
    tmp_path: Path, line: str, root: str, kind: tuple[tuple[str, ...], str]
) -> None:
    mine = own(tmp_path, line)
    groups = tmp_path / "groups"
    group(groups / root / "user.slice" / "job", "9000000", kind=kind)
    assert host_memory(groups, mine) == 8_520_000
    group(groups / root / "user.slice", "800000", kind=kind)
    assert host_memory(groups, mine) == 320_000
    group(groups / root / "other.slice", "600000", kind=kind)
    assert host_memory(groups, mine) == 320_000


def test_a_group_that_is_slowed_down_above_a_size_has_that_for_a_limit(tmp_path: Path) -> None:
    group(tmp_path, "max")
    (tmp_path / "memory.high").write_text("700000\n")
    assert host_memory(tmp_path) == 220_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are read on Linux")
@pytest.mark.parametrize("limit", ["v", "d"])
def test_ulimits_leave_what_is_not_yet_asked_for(limit: str) -> None:
    command = [sys.executable, "-c", LIMITED, limit]
    found, shared = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert found == pytest.approx(300_000_000, rel=0.1)
    assert shared > 2 * found  # which the limit does not touch
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_the_free_memory_of_a_cpu_is_that_of_the_host() -> None:
    assert free_memory(torch.device("cpu")) == pytest.approx(available(), rel=0.3)
