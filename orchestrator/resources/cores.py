"""Number of cores that this process may use: CPU affinity, and the CPU quota of a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cores(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Number of whole cores, at least one: a quota of 2.5 CPUs gives 2.

    Args:
        cgroups: Mount point of Linux control groups, version 1 or 2.
        membership: File with the control groups of this process.
    """
    quotas = _quotas(cgroups, membership)
    return max(1, min([len(os.sched_getaffinity(0)), *map(int, quotas)]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """CPU quotas of the control groups of this process, and of their parents."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _quotas_from(cgroups, path, "cpu.max")
        elif "cpu" in controllers.split(","):
            for mount in {controllers, "cpu", "cpu,cpuacct"}:
                yield from _quotas_from(
                    cgroups / mount, path, "cpu.cfs_quota_us", "cpu.cfs_period_us"
                )


def _quotas_from(mount: Path, path: str, *files: str) -> Iterator[float]:
    """CPU quotas of a group and its parents.

    The files hold a quota and a period in microseconds, such as `150000 100000`. A quota of `max`
    or `-1` means no limit.
    """
    # In a container, the path can be the host's: then only the mount itself exists.
    group = mount / path.strip("/")
    for folder in (group, *group.parents):
        words = [word for name in files for word in _words(folder / name)]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            yield int(words[0]) / int(words[1])
        if folder == mount:
            return


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
