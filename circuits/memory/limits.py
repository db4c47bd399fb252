"""How much memory is free: of a device, or of the host within the limits of containers and of this process."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_CONTAINER = (
    (("memory.max", "memory.high"), "memory.current", "memory.stat", "inactive_file "),
    (("memory.limit_in_bytes",), "memory.usage_in_bytes", "memory.stat", "total_inactive_file "),
)
"""Files with a group's limits, its use and the part of that which is given up when needed (cached files)."""


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes (of the host, where a device does not tell).

    What torch holds without using it counts as free.
    """
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        unused = int(module.memory_reserved(device)) - int(module.memory_allocated(device))
        return int(module.mem_get_info(device)[0]) + unused
    return host_memory()


def host_memory(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return in bytes the least of what :func:`shared_memory` is free and what ``ulimit -v`` and ``-d`` leave."""
    return min([shared_memory(groups, own), *_left_to_process()])


def shared_memory(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return in bytes what the host has free and the control groups around this process (version 1 or 2) leave.

    Other processes may take it as well, unlike what a limit on this process leaves.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups(groups, own)])


def _left_to_process() -> Iterator[int]:
    """Yield what the limits on address space and on data leave, which count what is asked for, used or not."""
    process = psutil.Process()
    if sys.platform == "linux":
        used: Any = process.memory_info()
        for limit, size in ((psutil.RLIMIT_AS, used.vms), (psutil.RLIMIT_DATA, used.data)):
            allowed = process.rlimit(limit)[0]
            if allowed != psutil.RLIM_INFINITY:
                yield max(0, allowed - size)


def _left_in_groups(groups: Path, own: Path) -> Iterator[int]:
    """Yield what the limit of each group leaves: of the one that the process is in, and of all around it."""
    folders = [groups, groups / "memory"]  # where a container shows its own group, whatever it is called outside
    for line in own.read_text("utf-8").splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = groups / "memory" if controllers else groups
            inner = root / path.strip("/")
            folders += [inner, *(folder for folder in inner.parents if folder.is_relative_to(root))]
    for folder in dict.fromkeys(folders):
        for limits, *rest, cached in _CONTAINER:
            use, described = (folder / name for name in rest)
            files = [folder / name for name in limits if (folder / name).is_file()]
            if files and use.is_file() and described.is_file():
                lines = described.read_text("ascii").splitlines()
                given_up = sum(int(line.removeprefix(cached)) for line in lines if line.startswith(cached))
                allowed = [text for file in files if (text := file.read_text("ascii").strip()).isdecimal()]
                yield from (max(0, int(limit) - int(use.read_text("ascii")) + given_up) for limit in allowed)
