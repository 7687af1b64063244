"""A stopped process of Ray is killed; a process that is not Ray's is left alone."""

import os
import signal
import subprocess
import time

import psutil
import pytest
import ray

from orchestrator.hosts.silence import end_process
from trainables.hosts.orders import HostProcess

pytestmark = pytest.mark.ray


class Host:
    """Stands for a worker of Ray Train."""

    def process(self):
        return HostProcess(node_id=ray.get_runtime_context().get_node_id(), pid=os.getpid())


def test_a_stopped_process_is_ended(local_ray):
    host = ray.remote(num_cpus=0)(Host).remote()
    process = ray.get(host.process.remote())
    os.kill(process.pid, signal.SIGSTOP)
    end_process(process)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(process.pid)
    end_process(process)  # it is gone: nothing to do


def test_an_id_that_another_program_has_by_now_is_left_alone(local_ray):
    with subprocess.Popen(["sleep", "60"]) as other:
        node = ray.get_runtime_context().get_node_id()
        end_process(HostProcess(node_id=node, pid=other.pid))
        time.sleep(0.2)
        assert other.poll() is None
        other.kill()


def test_a_process_on_a_node_that_is_gone_is_left_to_ray(local_ray):
    with pytest.raises(ray.exceptions.RayError):
        end_process(HostProcess(node_id="1" * 56, pid=1))
