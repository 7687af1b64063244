"""End of a host's process that gave no sign of life: stopped, or hung in a call of a driver.

Ray ends a process by asking it to end, which a stopped process never hears. Ray Train then
restarts the worker, as after a crash.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.hosts.orders import HostProcess

STOPPED_S = 60.0
"""Time without a sign of life after which a host is ended and started again."""

_TASK_S = 30.0


def end_process(process: HostProcess) -> None:
    """Kill the process of a host, on this node or on another.

    Does nothing if the process has ended. A node that cannot be reached is left to Ray, which
    gives up the node.

    Raises:
        RayError: The node could not run the order to kill.
    """
    if process.node_id == ray.get_runtime_context().get_node_id():
        _kill(process.pid)
        return
    where = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_kill)
    ray.get(task.options(scheduling_strategy=where).remote(process.pid), timeout=_TASK_S)


def _kill(pid: int) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if title.startswith(b"ray::"):  # else the id belongs to another process by now
            os.kill(pid, signal.SIGKILL)
