"""The hosts of a sweep: one-worker Ray Train runs, started and ended as trials need them."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train.torch import TorchTrainer

from orchestrator.errors import ClusterError
from orchestrator.hosts.backend import LoneWorker, has_notice
from orchestrator.hosts.broker import broker_name, require_broker
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.losses import DeviceTime
from orchestrator.hosts.members import HostActivity, HostStart, Occupancy, SilentHost
from orchestrator.hosts.reservations import end_unplaced, release_orphans
from orchestrator.hosts.silence import STOPPED_S, end_process
from orchestrator.interrupts import BackgroundThread
from orchestrator.journal.meter import Usage
from orchestrator.journal.paths import HOSTS_FOLDER
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.resources.nodes import Node, threads_here, type_constraint
from orchestrator.wording import last_line
from trainables.hosts.bench import Bench, Failure, describe_error
from trainables.spec import BaseSpec
from trainables.training.kinds import EngineChoice

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.3
MAX_LOST_HOSTS, LOST_WITHIN_S = 5, 600.0
"""Number of hosts that may be lost within so many seconds by no fault of their trials."""

_CLOSING_S = 2.0
"""How long hosts that end are waited for, until those that wait for room are ended."""

MAX_CONTROLLER_FAILURES = 10
"""Number of times that Train may retry to place a worker; a try takes a minute by default."""


@dataclass(frozen=True, kw_only=True)
class HostShape:
    """Resources of a host.

    Attributes:
        cpus: Logical CPUs of the worker.
        gpus: GPUs of the worker; 0 trains on the CPU.
        gpu_type: Type of the GPUs; `None` for any.
        max_failures: Maximum number of worker restarts; after the next crash, another host takes
            over the trials.
        torch_threads: Threads of a torch operation on this machine, for the account of cores.
        sharing: Number of hosts on CPUs that share the cores of a node; 0 keeps torch's default
            number of threads.
        engine: `hosts.engine` of the sweep.
        hung_s: Longest time of one piece of work, after which a host is ended and started again.
        memory: Bytes of the device that a host may take; `None` for all of a GPU's, and no limit
            on a CPU.
        finds_seats: Whether a host decides on the number of its seats.
        build_bench: Makes the engine; `None` makes the training engine.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    gpu_type: str | None = None
    max_failures: int = 5
    torch_threads: int = 1
    engine: EngineChoice = "exact"
    sharing: int = 1
    hung_s: float = 3600.0
    memory: int | None = None
    finds_seats: bool = False
    build_bench: Callable[[BaseSpec], Bench] | None = None


class Grounds(Protocol):
    """The cluster, as far as it grows and shrinks; see `orchestrator.hosts.fleet.Fleet`.

    Attributes:
        nodes: The nodes at the last look.
    """

    nodes: Sequence[Node]

    @property
    def limits(self) -> HostLimits:
        """Limits on the number of hosts."""

    @property
    def shape(self) -> HostShape:
        """Resources of a host."""

    @property
    def waits_for(self) -> str:
        """What the cluster was asked for."""

    def look(self, occupancy: Occupancy) -> bool:
        """Look at the nodes; gives whether that was due. Raises `ClusterError` to give up."""


@dataclass
class HostPool:
    """Starts hosts for waiting trials and ends finished hosts.

    The end of its `with` block drains the hosts. The broker decides which hosts are needed; each
    host's `TorchTrainer.fit()` blocks a thread of this process.

    Args:
        broker: The actor of `orchestrator.hosts.broker`.
        storage: Storage of the sweep; Train's own files go to `hosts/` in the folder until hosts
            have ended.
        limits: Limits on the number of hosts.
        shape: Resources of a host.
        tell: Shows a sentence to the user.
        show_hosts: Shows what the hosts do.
        grounds: The cluster, from which limits and shape are read again while it changes; `None`
            for one that stays as it is.
        show_wait: Shows what the sweep waits for; empty for nothing.

    Attributes:
        problem: Why the sweep cannot go on in this Ray; `None` while it can.
    """

    broker: ActorHandle
    storage: SweepStorage
    limits: HostLimits
    shape: HostShape = field(default_factory=HostShape)
    tell: Callable[[str], None] = lambda sentence: None
    show_hosts: Callable[[Sequence[HostActivity]], None] = lambda hosts: None
    grounds: Grounds | None = None
    show_wait: Callable[[str], None] = lambda waiting: None

    def __post_init__(self) -> None:
        self._closing = threading.Event()
        self._is_abandoned = False  # Ray ends a process that calls it after its end
        self._session = uuid.uuid4().hex[:8]  # unique, as Train resumes a run of the same name
        self._runs: list[BackgroundThread] = []
        self._time = DeviceTime()
        self._losses: list[float] = []
        self._hosts: list[HostActivity] = []
        self._nodes: frozenset[str] = frozenset()
        self._waits_for = ""
        self.problem: ClusterError | None = None
        self._watch = BackgroundThread(self._watch_demand, "host-pool")

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error or an interrupt, wait only for hosts between two pieces of work: Ray may
        # end this process when the thread of a host that is still up calls it after its end.
        # Checkpoints are saved already.
        self.close(timeout_s=60.0 if error is None else 5.0)

    def close(self, timeout_s: float = 60.0) -> bool:
        """Wait for leaving trials, then end all hosts; a call after an interrupted one goes on.

        Returns:
            Whether every host ended within `timeout_s`. Other hosts end with this process.
        """
        deadline = time.monotonic() + timeout_s
        if not self._closing.is_set():
            with suppress(ray.exceptions.RayActorError):  # hosts of a dead broker end themselves
                while not ray.get(self.broker.settle.remote(1.0)) and time.monotonic() < deadline:
                    pass
                ray.get(self.broker.close.remote())
            self._closing.set()
        threads = [self._watch, *self._runs]
        for thread in threads:
            while not thread.is_over and (left_s := deadline - time.monotonic()) > 0:
                thread.await_end(min(_CLOSING_S, left_s))
                if not thread.is_over:
                    end_unplaced()
        self.show_hosts(())
        late = [thread.name for thread in threads if not thread.is_over]
        self._is_abandoned = bool(late)
        shutil.rmtree(self.storage.folder / HOSTS_FOLDER, ignore_errors=True)
        if late:
            logger.warning("hosts still running after %.0f s: %s", timeout_s, ", ".join(late))
        return not late

    def check(self) -> None:
        """Raise `ClusterError` if the broker is dead, or if hosts cannot be kept."""
        if self.problem is None:
            require_broker(self.broker)
        else:
            raise self.problem

    def places(self) -> int:
        """Trials that can have a seat at this moment, on the hosts and on those not started."""
        hosts = self._hosts
        unopened = max(0, self.limits.max_hosts - len(hosts))
        return sum(host.seats for host in hosts) + unopened * self.limits.seats

    def usage(self) -> Usage:
        """Device-seconds of all hosts so far, counted from the order to start a host."""
        seconds = self._time.total_s(time.monotonic())
        return Usage(seconds * max(1, self.shape.torch_threads), seconds * self.shape.gpus)

    # ---------------------------------------------------------------------------- own threads

    def _watch_demand(self) -> None:
        while not self._closing.wait(WATCH_INTERVAL_S):
            try:
                self._look_at_grounds()
                starts: list[HostStart] = ray.get(self.broker.start_hosts.remote(self.limits))
                self._end_silent_hosts()
            except ClusterError as error:
                self.problem = error
                return
            except ray.exceptions.RayError as error:
                try:
                    require_broker(self.broker)
                except ClusterError as loss:
                    self.problem = loss
                    return
                logger.warning("host pool: the broker did not answer: %s", error)
                continue
            for start in starts:
                logger.info("starting host %s for %s", start.host_id, start.group)
                run = BackgroundThread(partial(self._run, start), start.host_id)
                self._runs.append(run)
                run.start()
            with suppress(ray.exceptions.RayError):  # the next turn sees a lost broker
                self._hosts = ray.get(self.broker.activities.remote())
                placed = (host.host_id for host in self._hosts if host.stage != "starting")
                self._time.resume(placed, time.monotonic())
                self.show_hosts(self._hosts)

    def _look_at_grounds(self) -> None:
        """Take in nodes that have come or gone.

        Raises:
            ClusterError: The cluster lacks what the sweep needs, for too long.
        """
        grounds = self.grounds
        if grounds is None or not grounds.look(ray.get(self.broker.occupancy.remote())):
            return
        self.limits, self.shape = (
            grounds.limits,
            replace(grounds.shape, build_bench=self.shape.build_bench),
        )
        nodes = frozenset(node.node_id for node in grounds.nodes)
        gone, self._nodes = self._nodes - nodes, nodes
        for host_id in ray.get(self.broker.lose_nodes.remote(gone)) if gone else ():
            self._time.stop(host_id, time.monotonic())
            sentence = f"host {host_id} went with its node: its trials continue elsewhere"
            logger.warning("%s", sentence)
            self.tell(sentence)
        if grounds.waits_for != self._waits_for:
            self._waits_for = grounds.waits_for
            self.show_wait(self._waits_for)

    def _end_silent_hosts(self) -> None:
        """End hosts that are stopped or hung; their trials continue from their checkpoints."""
        silent: list[SilentHost] = ray.get(
            self.broker.take_silent.remote(STOPPED_S, self.shape.hung_s)
        )
        for host in silent:
            sentence = f"host {host.host_id} {host.reason}: it is ended and started again"
            logger.warning("%s", sentence)
            self.tell(sentence)
            try:
                end_process(host.process)
            except ray.exceptions.RayError as error:  # Ray gives up nodes that it cannot reach
                logger.warning("host %s cannot be reached: %s", host.host_id, error)

    def _run(self, start: HostStart) -> None:
        """Run a host to the end and tell the broker the result."""
        failure: Failure | None = None
        self._time.start(start.host_id, time.monotonic())
        is_lost = False
        try:
            self._build_trainer(start).fit()
        except Exception as error:  # any error must reach the host's trials, or end the run
            if self._is_abandoned:
                return
            said = last_line(error) if str(error).strip() else describe_error(error)
            level = logging.INFO if self._closing.is_set() else logging.WARNING
            logger.log(level, "host %s ended: %s", start.host_id, said, exc_info=error)
            is_lost = True
            if isinstance(error, ray.train.WorkerGroupError):  # its own worker, again and again
                failure = Failure(fault="failed", reason=f"its host ended: {said}")
            elif _had_place(error):
                self._count_loss(said)
        self._time.end(start.host_id, time.monotonic())
        if self._is_abandoned:
            return
        try:
            if is_lost:
                release_orphans()  # before the broker asks for the next host
            ray.get(self.broker.end_host.remote(start.host_id, failure))
        except ray.exceptions.RayError as error:
            logger.warning("host %s ended after its broker: %s", start.host_id, error)

    def _count_loss(self, said: str) -> None:
        """Let the host's trials go on in another host, unless hosts are lost again and again."""
        now = time.monotonic()
        self._losses = [at for at in self._losses if now - at < LOST_WITHIN_S] + [now]
        if len(self._losses) >= MAX_LOST_HOSTS:
            self.problem = ClusterError(
                f"{len(self._losses)} hosts ended before or during their work, at last: {said}. "
                "Nothing recorded is lost: see to the cause and run the same command again."
            )

    def _config_of(self, start: HostStart) -> dict[str, Any]:
        """What `trainables.hosts.worker.run_host` gets."""
        return {
            "broker": broker_name(self.storage.location),
            "host_id": start.host_id,
            "base": start.base,
            "sharing": self.shape.sharing,
            "has_gpu": self.shape.gpus > 0,
            "memory": self.shape.memory,
            "finds_seats": self.shape.finds_seats,
            "prior": start.prior,
            "engine": self.shape.engine,
            "seats": 1 if self.limits.is_fresh else self.limits.seats,
            "build_bench": self.shape.build_bench,
        }

    def _build_trainer(self, start: HostStart) -> TorchTrainer:
        config = self._config_of(start)
        nodes = () if self.grounds is None else self.grounds.nodes
        kind, labels = type_constraint(self.shape.gpu_type, nodes)
        resources = {"CPU": self.shape.cpus, **kind} | (
            {"GPU": self.shape.gpus} if self.shape.gpus else {}
        )
        return TorchTrainer(
            _run_host,
            train_loop_config=config,
            torch_config=LoneWorker(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=1,
                use_gpu=self.shape.gpus > 0,
                resources_per_worker=resources,
                label_selector=labels or None,
            ),
            run_config=ray.train.RunConfig(
                name=f"{start.host_id}-{self._session}",
                storage_path=str(self.storage.folder / HOSTS_FOLDER),
                failure_config=ray.train.FailureConfig(
                    max_failures=self.shape.max_failures,
                    controller_failure_limit=MAX_CONTROLLER_FAILURES,
                ),
            ),
        )


def _run_host(config: dict[str, Any]) -> None:
    """Body of a worker; imports transformers in the worker only, not in the driver."""
    from trainables.hosts.worker import run_host

    sharing, has_gpu = config.pop("sharing"), config.pop("has_gpu")
    threads = threads_here(sharing, has_gpu) if sharing else 0
    run_host({**config, "torch_threads": threads, "has_notice": has_notice})


def _had_place(error: Exception) -> bool:
    """Whether a host that ended had room in the cluster, or at least did not only wait for it."""
    cause = getattr(error, "controller_failure", None)
    return type(cause).__name__ != "WorkerGroupStartupTimeoutError"
