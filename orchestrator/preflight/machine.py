"""The processor, GPUs, memory and disk of this machine, without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.hosts.cores import available_cores
from orchestrator.wording import format_size

_ASK_S = 5.0
_QUERY = "--query-gpu=name,memory.total,driver_version"
_GROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files below /sys/fs/cgroup with the memory limit of a container, versions 2 and 1."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        memory: Bytes in all.
        driver: Version of its driver.
    """

    name: str
    memory: int
    driver: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trials can use here.

    Attributes:
        cores: CPU cores, within affinity and quota.
        has_bfloat16: Whether the CPU multiplies bfloat16.
        memory: Bytes that are free for new processes.
        gpus: NVIDIA GPUs that their driver shows.
        whole_memory: Bytes of the machine or of its container.
    """

    cores: int
    has_bfloat16: bool
    memory: int
    gpus: tuple[Gpu, ...]
    whole_memory: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """`2 CPU cores, no GPU, 16.0 GB of free memory`."""
        gpus = ", ".join(f"{gpu.name} with {format_size(gpu.memory)}" for gpu in self.gpus)
        return (
            f"{self.cores} CPU {'core' if self.cores == 1 else 'cores'}, {gpus or 'no GPU'}, "
            f"{format_size(self.memory)} of free memory"
        )


def look_at_machine() -> Machine:
    """The machine of this process."""
    return Machine(
        cores=available_cores(),
        has_bfloat16="avx512_bf16" in _cpu_flags(Path("/proc/cpuinfo")),
        memory=free_memory(),
        gpus=tuple(_gpus()),
        whole_memory=whole_memory(),
    )


def free_memory(meminfo: Path = Path("/proc/meminfo"), groups: Path | None = None) -> int:
    """Bytes free for new processes: of the machine, or of the container's limit if less is left.

    Args:
        meminfo: The kernel's file on memory.
        groups: Mount point of control groups.
    """
    groups = groups or Path("/sys/fs/cgroup")
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(values["MemAvailable"].split()[0]) * 1024
    for name in _GROUP_LIMITS:
        limit = _number(groups / name)
        used = _number((groups / name).with_name(_USED[Path(name).name]))
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def whole_memory(meminfo: Path = Path("/proc/meminfo"), groups: Path | None = None) -> int:
    """Bytes of the machine, or of the container's limit if that is less.

    Args:
        meminfo: The kernel's file on memory.
        groups: Mount point of control groups.
    """
    groups = groups or Path("/sys/fs/cgroup")
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    whole = int(values["MemTotal"].split()[0]) * 1024
    limits = [_number(groups / name) for name in _GROUP_LIMITS]
    return min([whole, *(limit for limit in limits if limit is not None)])


_USED = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(existing_parent(folder)).free


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _gpus() -> Iterator[Gpu]:
    """GPUs that `nvidia-smi` lists and `$CUDA_VISIBLE_DEVICES` does not hide."""
    program = shutil.which("nvidia-smi")
    if program is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    command = [program, _QUERY, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return  # a driver that does not answer has no GPU to use
    for line in done.stdout.splitlines():
        name, memory, driver = (part.strip() for part in line.rsplit(",", 2))
        if memory.isdigit():
            yield Gpu(name=name, memory=int(memory) * 2**20, driver=driver)
