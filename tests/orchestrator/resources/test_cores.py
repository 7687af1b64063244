"""A container's CPU quota counts as cores, in both versions of control groups."""

import os

import pytest

from orchestrator.resources.cores import available_cores

CORES = len(os.sched_getaffinity(0))


def lay_out(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return available_cores(root / "cgroup", root / "membership")


V1 = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"membership": "0::/\n", "cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"membership": "0::/\n", "cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"membership": "0::/\n", "cgroup/cpu.max": "190000 100000\n"}, 1),
        ({"membership": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, CORES),
        ({"membership": "0::/\n", "cgroup/cpu.max": "99900000 100000\n"}, CORES),
        (
            {
                "membership": "0::/slice/pod\n",
                "cgroup/slice/cpu.max": "100000 100000\n",
                "cgroup/slice/pod/cpu.max": "max 100000\n",
            },
            1,
        ),
        (
            {
                "membership": V1,
                "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "100000\n",
                "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "membership": V1,
                "cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "membership": V1,
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            CORES,
        ),
        ({"membership": "0::/\n"}, CORES),
        ({}, CORES),
    ],
    ids=[
        "v2", "v2-half", "v2-rounds-down", "v2-max", "v2-more-than-there-are", "v2-from-above",
        "v1", "v1-seen-from-inside", "v1-none", "no-quota", "no-groups",
    ],
)  # fmt: skip
def test_cores_are_what_affinity_and_quota_leave(tmp_path, files, cores):
    assert lay_out(tmp_path, files) == cores
