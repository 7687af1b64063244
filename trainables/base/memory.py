"""Memory of this machine or container, free and whole, without importing torch."""

from __future__ import annotations

from pathlib import Path

_GROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files below /sys/fs/cgroup with the memory limit of a container, versions 2 and 1."""

_USED = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}


def free_memory(meminfo: Path = Path("/proc/meminfo"), groups: Path | None = None) -> int:
    """Bytes free for new processes: of the machine, or of the container's limit if less is left.

    Args:
        meminfo: The kernel's file on memory.
        groups: Mount point of control groups.
    """
    groups = groups or Path("/sys/fs/cgroup")
    free = _bytes(meminfo, "MemAvailable")
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
    whole = _bytes(meminfo, "MemTotal")
    limits = [_number(groups / name) for name in _GROUP_LIMITS]
    return min([whole, *(limit for limit in limits if limit is not None)])


def _bytes(meminfo: Path, name: str) -> int:
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(values[name].split()[0]) * 1024


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None
