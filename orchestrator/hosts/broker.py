"""The actor between proxies and hosts: `Seats` with a clock and with calls that wait."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import ClusterError
from orchestrator.hosts.demand import HostLimits, start_hosts
from orchestrator.hosts.losses import depart, lose_nodes
from orchestrator.hosts.members import (
    GaugedHost,
    HostActivity,
    HostStart,
    Occupancy,
    SeatPhase,
    SeatStatus,
    SilentHost,
    describe_activity,
)
from orchestrator.hosts.seats import MAX_LONE_CRASHES, Seats
from trainables.hosts.bench import Failure
from trainables.hosts.orders import (
    HostProcess,
    HostReport,
    Orders,
    SeatRequest,
    Task,
    TaskReport,
)

logger = logging.getLogger(__name__)

MAX_WAIT_S = 5.0
"""Longest wait of a call: each call of a proxy renews the lease of its trial."""

IDLE_WAIT_S = 1.0
"""How long a host without work is kept waiting."""

PAUSE_S = 5.0
"""Time between two calls of the pool from which on the broker, or the driver, was stopped."""

PING_S = 5.0
"""How long a check of the broker waits for an answer; a slow broker is not a dead one."""

T = TypeVar("T")


def broker_name(location: str) -> str:
    """Name of the broker actor of the sweep in a storage location."""
    return f"lorchestra-broker-{hashlib.sha256(location.encode()).hexdigest()[:12]}"


def start_broker(
    location: str,
    lease_s: float = 60.0,
    max_crashes: int = MAX_LONE_CRASHES,
    epoch: int = 0,
) -> ActorHandle:
    """The broker actor of a sweep, beside its driver.

    The actor ends with its last handle. A broker left by an earlier run in this process is ended
    first: as this driver holds the storage's lock, no other driver uses that broker.
    """
    name = broker_name(location)
    with contextlib.suppress(ValueError):  # raised as soon as no actor has the name
        while True:
            ray.kill(ray.get_actor(name))
            time.sleep(0.05)
    # A soft affinity counts for nothing where the driver's node has no CPUs (Ray 2.60): the broker
    # would go with the first node that is taken away.
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=10_000)(Broker)
    return actor.options(name=name, scheduling_strategy=node).remote(lease_s, max_crashes, epoch)


@contextlib.contextmanager
def broker_loss_told() -> Iterator[None]:
    """Turn Ray's error for a dead actor into one sentence.

    Raises:
        ClusterError: The broker died, and with it the knowledge of who trains where.
    """
    try:
        yield
    except ray.exceptions.RayActorError as error:
        logger.error("the broker died", exc_info=error)
        raise ClusterError(
            "the process that seats trials on hosts died (killed from outside, or because memory "
            "was short). Nothing recorded is lost: run the same command again."
        ) from error


def require_broker(broker: ActorHandle) -> None:
    """Raise `ClusterError` if the broker is dead; one that is slow to answer is not."""
    with broker_loss_told(), contextlib.suppress(ray.exceptions.GetTimeoutError):
        ray.get(broker.ping.remote(), timeout=PING_S)


class Broker:
    """Body of the actor; repeating a call with the same arguments does no harm."""

    def __init__(
        self, lease_s: float, max_crashes: int = MAX_LONE_CRASHES, epoch: int = 0
    ) -> None:
        self._seats = Seats(lease_s, max_crashes, epoch)
        self._changed = asyncio.Event()
        self._called_at: float | None = None

    # -------------------------------------------------------------------------------- proxies

    async def join(self, trial: int, attempt: str, group: str, request: SeatRequest) -> SeatStatus:
        """See `Seats.join`."""
        status = self._seats.join(trial, attempt, group, request, time.monotonic())
        self._wake()
        return status

    async def advance(self, trial: int, attempt: str, until: int, wait_s: float) -> SeatStatus:
        """Grant credit up to step `until`; wait at most `wait_s` for the report."""

        def look() -> SeatStatus:
            return self._seats.advance(trial, attempt, until, time.monotonic())

        look()
        self._wake()
        return await self._wait(look, lambda status: status.answers(until), wait_s)

    async def leave(
        self, trial: int, attempt: str | None, keep: bool, wait_s: float = 0.0
    ) -> SeatStatus:
        """Give up the seat; wait at most `wait_s` until the seat is free."""

        def look() -> SeatStatus:
            return self._seats.leave(trial, attempt, keep, time.monotonic())

        look()
        self._wake()
        return await self._wait(look, lambda s: s.phase is not SeatPhase.LEAVING, wait_s)

    # ---------------------------------------------------------------------------------- hosts

    async def hello(self, host_id: str, incarnation: str) -> None:
        """See `Seats.hello`."""
        self._seats.hello(host_id, incarnation)
        self._wake()

    async def refuse(self, host_id: str, failure: Failure) -> None:
        """See `Seats.refuse`."""
        self._seats.refuse(host_id, failure)
        self._wake()

    async def exchange(self, host_id: str, incarnation: str, report: HostReport) -> Orders:
        """Take in a host's report; return the host's orders as soon as there is work."""
        self._seats.take(host_id, incarnation, report)
        self._wake()

        def look() -> Orders:
            return self._seats.orders(host_id, incarnation)

        orders = await self._wait(
            look, lambda orders: not orders.is_settled(report.holding), IDLE_WAIT_S
        )
        self._seats.note_orders(host_id, incarnation, time.monotonic())
        return orders

    async def depart(self, host_id: str, incarnation: str) -> None:
        """See `orchestrator.hosts.losses.depart`."""
        depart(self._seats, host_id, incarnation)
        self._wake()

    async def beat(self, host_id: str, incarnation: str, process: HostProcess) -> None:
        """See `Seats.beat`."""
        self._seats.beat(host_id, incarnation, process, time.monotonic())

    # --------------------------------------------------------------------------------- driver

    async def start_hosts(self, limits: HostLimits) -> list[HostStart]:
        """See `orchestrator.hosts.demand.start_hosts`."""
        now = time.monotonic()
        if self._called_at is not None and now - self._called_at > PAUSE_S:
            self._seats.forgive_pause(now)
        self._called_at = now
        self._seats.expire(now)
        starts = start_hosts(self._seats, limits, now)
        self._wake()
        return starts

    async def activities(self) -> list[HostActivity]:
        """What each host does at this moment."""
        members, tasks = self._seats.members.values(), self._seats.tasks
        return [describe_activity(host, members, tasks) for host in self._seats.hosts.values()]

    async def take_gauges(self) -> list[GaugedHost]:
        """What hosts have measured since the last call."""
        return self._seats.gauges.take()

    async def take_silent(self, stopped_s: float, hung_s: float) -> list[SilentHost]:
        """See `Seats.take_silent`; after `start_hosts`, which sees pauses of the broker."""
        return self._seats.take_silent(time.monotonic(), stopped_s, hung_s)

    async def lose_nodes(self, node_ids: Collection[str]) -> list[str]:
        """See `orchestrator.hosts.losses.lose_nodes`."""
        lost = lose_nodes(self._seats, node_ids)
        self._wake()
        return lost

    async def end_host(self, host_id: str, failure: Failure | None) -> None:
        """See `Seats.end_host`."""
        self._seats.end_host(host_id, failure)
        self._wake()

    async def submit_task(self, task_id: str, group: str, task: Task) -> None:
        """See `Seats.submit_task`."""
        self._seats.submit_task(task_id, group, task, time.monotonic())
        self._wake()

    async def task_report(self, task_id: str, wait_s: float) -> TaskReport | None:
        """The report of a task; `None` if the task is not done within `wait_s`."""
        return await self._wait(
            lambda: self._seats.tasks[task_id].report, lambda r: r is not None, wait_s
        )

    async def settle(self, wait_s: float) -> bool:
        """Wait until no trial is leaving; `False` after `wait_s`."""

        def is_settled() -> bool:
            return not any(member.is_leaving for member in self._seats.members.values())

        return await self._wait(is_settled, bool, wait_s)

    async def occupancy(self) -> Occupancy:
        """Hosts and their seats, and trials with and without a seat."""
        members, hosts = self._seats.members.values(), self._seats.hosts.values()
        seated = sum(member.host is not None for member in members)
        return Occupancy(
            hosts=len(hosts),
            seats=sum(host.seats for host in hosts),
            seated=seated,
            waiting=len(members) - seated,
            placed=sum(host.process is not None for host in hosts),
            tasks=sum(task.is_waiting for task in self._seats.tasks.values()),
        )

    async def ping(self) -> None:
        """Answer, as a sign of life."""

    async def close(self) -> None:
        """See `Seats.close`."""
        self._seats.close()
        self._wake()

    # -------------------------------------------------------------------------------- waiting

    def _wake(self) -> None:
        """Make all waiting calls check their conditions again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(
        self, look: Callable[[], T], is_enough: Callable[[T], bool], wait_s: float
    ) -> T:
        deadline = time.monotonic() + min(wait_s, MAX_WAIT_S)
        while not is_enough(value := look()):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return value
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), left_s)
            except TimeoutError:
                return look()
        return value
