"""How many cores this process may use: its affinity, and the CPU quota of its container."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cores(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Whole cores, at least one: a quota of 2.5 CPUs gives 2.

    Args:
        cgroups: Where the control groups of Linux are mounted, version 1 or 2.
        membership: File with the groups of this process.
    """
    quotas = _quotas(cgroups, membership)
    return max(1, min([len(os.sched_getaffinity(0)), *map(int, quotas)]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """CPU quotas of the groups this process is in and of those above them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _quotas_from(cgroups, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in {controllers, "cpu", "cpu,cpuacct"}:
                yield from _quotas_from(cgroups / mount, path, _quota_v1)


def _quotas_from(mount: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    # In a container the path can be the host's, and only the mount itself is there.
    group = mount / path.strip("/")
    for folder in (group, *group.parents):
        quota = read(folder)
        if quota is not None:
            yield quota
        if folder == mount:
            return


def _quota_v2(folder: Path) -> float | None:
    """Of a file such as `150000 100000` or `max 100000`: microseconds in each period."""
    words = _words(folder / "cpu.max")
    return _ratio(*words) if len(words) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    """Of two files; a quota of -1 is none."""
    words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    return _ratio(*words) if len(words) == 2 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)
