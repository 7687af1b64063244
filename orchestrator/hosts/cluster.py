"""The Ray cluster of a sweep: the caller's connection, a named cluster, or a new local one."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import ray

from orchestrator.errors import SweepError
from orchestrator.hosts.cores import available_cores
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.embedded import embedded_ray
from orchestrator.hosts.evaluators import WorkerShape
from orchestrator.hosts.pool import HostShape
from orchestrator.hosts.reachable import check_ray, named_address, plain_ray_errors
from orchestrator.spec.sweep import SweepSpec
from trainables.memory.seating import MOST_SEATS_THAT_PAY

PROXY_CPUS = 0.1

_SWITCHES = {
    # The sweep handles Ctrl-C itself: the event log has every step.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Ray Tune's result files would repeat the event log and MLflow.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The old output engine can be silent; the new one prints a table at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Hosts and seats of a sweep on a cluster.

    Attributes:
        limits: Number of hosts, and of seats on each host.
        shape: Resources of a host.
    """

    limits: HostLimits
    shape: HostShape

    @property
    def max_trials(self) -> int:
        """Maximum number of trials with a seat at the same time.

        Where hosts decide on their seats, these are those of hosts on which every seat pays.
        """
        most = MOST_SEATS_THAT_PAY if self.shape.finds_seats else self.limits.seats
        return self.limits.max_hosts * (1 if self.limits.is_fresh else most)


def place(spec: SweepSpec, cpus: int, gpus: int) -> Placement:
    """Placement of a sweep: a host per GPU, or on CPUs a host per stored form in the space.

    Hosts on CPUs share the cores evenly: two hosts that competed for all cores were six times
    slower than two hosts with one thread each.
    """
    # Upper bound of the number of different bases in the space.
    forms = math.prod(
        len(distribution.get("choice", ())) or 1
        for knob, distribution in spec.space.items()
        if knob.startswith("base.")
    )
    hosts = spec.hosts
    seats = 1 if hosts.seats == "auto" else hosts.seats
    # Where nothing limits the memory, as on a CPU, no further seat was measured to pay.
    finds_seats = hosts.seats == "auto" and not hosts.fresh and bool(gpus or hosts.memory)
    max_hosts = gpus if gpus else max(1, min(forms, cpus))
    if spec.hosts.fresh and not gpus:
        max_hosts = max(1, min(seats, cpus))
    return Placement(
        limits=HostLimits(
            max_hosts=max_hosts,
            seats=seats,
            # A second copy of a base on the same cores needs memory and saves no time.
            hosts_per_group=None if gpus or spec.hosts.fresh else 1,
            is_fresh=spec.hosts.fresh,
        ),
        shape=HostShape(
            gpus=1.0 if gpus else 0.0,
            max_failures=spec.hosts.max_failures,
            hung_s=spec.hosts.max_silence_s,
            torch_threads=max(1, cpus // max_hosts),
            memory=hosts.memory,
            finds_seats=finds_seats,
            engine=spec.hosts.engine,
        ),
    )


@contextmanager
def ray_cluster(spec: SweepSpec) -> Iterator[Placement]:
    """A running Ray and the sweep's placement there; a local Ray ends with the block.

    The Ray is the one that the process is connected to, the one at `$RAY_ADDRESS`, or a local one.

    Raises:
        ClusterError: Ray cannot be joined or started.
        SweepError: The cluster has too few CPUs.
    """
    # Logical CPUs: a core per host, and a tenth of a core for each proxy.
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
    """Shape of evaluation workers: a worker per GPU, or a single worker with all local cores."""
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
    with ExitStack() as stack:
        with plain_ray_errors(), keeping_signals():
            if address is None:
                stack.enter_context(embedded_ray(cpus))
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                stack.callback(ray.shutdown)
        try:
            yield
        finally:
            with keeping_signals():
                stack.close()


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Keep the SIGTERM handler for a start or an end of Ray.

    Ray sets a handler of its own, which exits without a message, and at its end the default one.
    A SIGTERM that arrives in the block is handed to the handler from before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets no handlers here, and so Ray sets none
        return
    handler = signal.getsignal(signal.SIGTERM)
    has_arrived = False
    try:
        yield
    except SystemExit as exit_:  # of Ray's handler
        if exit_.code != signal.SIGTERM:
            raise
        has_arrived = True
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    if has_arrived:
        signal.raise_signal(signal.SIGTERM)
        raise SystemExit(signal.SIGTERM)  # a handler that returns does not undo half a start


def _placement_on_cluster(spec: SweepSpec) -> Placement:
    """Placement on the running cluster; hosts share the CPUs that proxies leave."""
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
