"""What a run runs on: Python, the system, processors, packages and memory."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("path-patching-circuits", "torch", "transformers", "nnsight", "numpy", "tokenizers", "scipy")
"""The packages on which figures can depend."""


@dataclass(frozen=True)
class Environment:
    """Versions and hardware; ``gpu`` is empty where there is none, ``threads`` how many torch computes with."""

    python: str
    system: str
    processor: str
    cores: int
    threads: int
    gpu: str
    packages: dict[str, str]

    def describe(self) -> str:
        """Return in one line what it is."""
        hardware = self.gpu or f"{self.processor}, {self.threads} of {self.cores} cores"
        return f"Python {self.python} on {self.system}; {hardware}"


def environment() -> Environment:
    """Return what this process runs on. Torch is asked only where it has been imported."""
    return Environment(
        python=platform.python_version(),
        system=platform.platform(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=_threads(),
        gpu=_gpu()[0],
        packages=versions(),
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that figures can depend on."""
    return {package: _version(package) for package in PACKAGES}


def peak_memory() -> int:
    """Return the most bytes that this process has held in memory so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def peak_gpu_memory() -> int:
    """Return the most bytes that torch has held on a GPU so far; 0 without one."""
    return _gpu()[1]


def _gpu() -> tuple[str, int]:
    if "torch" not in sys.modules:
        return "", 0
    from circuits.models.devices import gpu_use

    return gpu_use()


def _threads() -> int:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
