"""The Ray cluster a sweep runs on: the caller's, a named one, or a local one of its own."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ray

from orchestrator.errors import SweepError
from orchestrator.hosts.cores import available_cores
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.evaluators import WorkerShape
from orchestrator.hosts.pool import HostShape
from orchestrator.hosts.reachable import check_ray, named_address, plain_ray_errors
from orchestrator.spec.sweep import SweepSpec

PROXY_CPUS = 0.1

_SWITCHES = {
    # Ctrl-C is the sweep's to handle: every step is in the event log.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The event log and MLflow hold what Ray Tune's own result files would.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The old output engine can be silent; the new one prints a table at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a sweep spreads over a cluster.

    Attributes:
        limits: How many hosts, and seats on each.
        shape: What one host is made of.
    """

    limits: HostLimits
    shape: HostShape

    @property
    def max_trials(self) -> int:
        """Trials that can have a seat at once."""
        return self.limits.max_hosts * (1 if self.limits.is_fresh else self.limits.seats)


def place(spec: SweepSpec, cpus: int, gpus: int) -> Placement:
    """One host per GPU; on CPUs, one host per stored form in the space.

    Hosts on a CPU share its cores evenly: two that contended for them were measured six times
    slower than one thread each.
    """
    forms = _base_forms(spec)
    max_hosts = gpus if gpus else max(1, min(forms, cpus))
    if spec.hosts.fresh and not gpus:
        max_hosts = max(1, min(spec.hosts.seats, cpus))
    return Placement(
        limits=HostLimits(
            max_hosts=max_hosts,
            seats=spec.hosts.seats,
            # A second copy of a base on the same cores would only take memory.
            hosts_per_group=None if gpus or spec.hosts.fresh else 1,
            is_fresh=spec.hosts.fresh,
        ),
        shape=HostShape(
            gpus=1.0 if gpus else 0.0,
            max_failures=spec.hosts.max_failures,
            torch_threads=max(1, cpus // max_hosts),
        ),
    )


@contextmanager
def ray_cluster(spec: SweepSpec) -> Iterator[Placement]:
    """A running Ray and the sweep's placement on it; a local Ray ends with the block.

    Joins `$RAY_ADDRESS`, or whatever Ray the process is connected to already.

    Raises:
        ClusterError: Ray cannot be joined or started.
        SweepError: The cluster has too few CPUs.
    """
    # Logical: room for a proxy per seat beside a core per host.
    seats = place(spec, available_cores(), 0).max_trials
    with _session(available_cores() + math.ceil(PROXY_CPUS * (seats + 1))):
        yield _placement_on_cluster(spec)


@contextmanager
def ray_for_evaluation() -> Iterator[WorkerShape]:
    """A running Ray and the shape of its evaluation workers.

    Raises:
        ClusterError: Ray cannot be joined or started.
    """
    with _session(available_cores()):
        yield shape_of_workers()


def shape_of_workers() -> WorkerShape:
    """One evaluation worker per GPU; on CPUs, one worker with this machine's cores."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    cpus = max(1, min(int(resources.get("CPU", 0.0)), available_cores()))
    return WorkerShape(
        workers=max(1, gpus),
        cpus=PROXY_CPUS if gpus else 1.0,
        gpus=1.0 if gpus else 0.0,
        torch_threads=max(1, cpus // max(1, gpus)),
    )


@contextmanager
def _session(cpus: int) -> Iterator[None]:
    """Ray for the block: the caller's, the Ray at `$RAY_ADDRESS`, or a local one."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    check_ray()
    address = named_address()
    with plain_ray_errors(), keeping_signals():
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start_local(cpus)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Put back what SIGTERM did before the block: Ray takes it, and would end without a word."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main:  # Python allows it nowhere else, and Ray does not take it there
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _start_local(cpus: int) -> None:
    # Other users of this machine must not be able to run code as this one. Where the mode is not
    # set, ray.init() itself turns token authentication on for a new cluster (set by us it would
    # come too late: Ray reads it on import). The token is our own, so that no file holds it.
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        num_cpus=cpus,
        # Saves a port, a process and seconds. Train's cleaner of groups whose controller died asks
        # its API in vain, but a group does not outlive this cluster.
        include_dashboard=False,
        object_store_memory=200 * 2**20,  # nothing large passes through it
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _placement_on_cluster(spec: SweepSpec) -> Placement:
    """As many hosts as the cluster has room for beside the trials' proxies."""
    resources = ray.cluster_resources()
    cpus = resources.get("CPU", 0.0)
    placement = place(
        spec, max(1, min(int(cpus), available_cores())), int(resources.get("GPU", 0))
    )
    room = (cpus - PROXY_CPUS * (placement.max_trials + 1)) / placement.limits.max_hosts
    per_host = min(1.0, math.floor(100 * room) / 100)
    if per_host < PROXY_CPUS:
        raise SweepError(
            f"Ray has {cpus:g} CPUs, too few for {placement.limits.max_hosts} hosts and "
            f"{placement.max_trials} trials at once; allowed: a tenth of a CPU for each. Lower "
            "hosts.seats, or give Ray more CPUs."
        )
    return replace(placement, shape=replace(placement.shape, cpus=per_host))


def _base_forms(spec: SweepSpec) -> int:
    """How many different bases the space can ask for, at most."""
    forms = 1
    for knob, distribution in spec.space.items():
        if knob.startswith("base."):
            forms *= len(distribution.get("choice", ())) or 1
    return forms
