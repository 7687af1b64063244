"""The processor, GPUs, memory and disk of this machine, without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.resources.cores import available_cores
from orchestrator.wording import format_size
from trainables.base.memory import free_memory, whole_memory

_ASK_S = 5.0
_QUERY = "--query-gpu=name,memory.total,driver_version"


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


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(existing_parent(folder)).free


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


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
