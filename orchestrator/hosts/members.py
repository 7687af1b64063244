"""Values of the seating: an attempt of a trial, a task, a host, and a seat's status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from trainables.hosts.orders import (
    HostGauge,
    HostPrior,
    HostProcess,
    SeatOrder,
    SeatReport,
    SeatRequest,
    Task,
    TaskReport,
)
from trainables.spec import TrialSpec


class SeatPhase(StrEnum):
    """State of an attempt of a trial."""

    WAITING = "waiting"
    SEATED = "seated"
    LEAVING = "leaving"
    LEFT = "left"
    LOST = "lost"
    """The lease ended, as the proxy was silent for too long: join again."""
    SUPERSEDED = "superseded"
    """A newer attempt of the same trial has joined: give up."""
    CLOSED = "closed"
    """The sweep is ending."""


@dataclass(frozen=True, kw_only=True)
class SeatStatus:
    """Status of a trial's seat, for the proxy; `reason` explains a missing bundle."""

    phase: SeatPhase
    report: SeatReport | None = None
    reason: str = ""

    def answers(self, until: int) -> bool:
        """Whether a proxy that waits for step `until` can stop waiting."""
        if self.phase not in (SeatPhase.WAITING, SeatPhase.SEATED):
            return True
        return self.report is not None and (
            self.report.fault is not None or self.report.step >= until
        )


@dataclass(frozen=True, kw_only=True)
class HostStart:
    """A host that should be started.

    Attributes:
        base: Fields of the `BaseSpec` to load.
        prior: What hosts of the group have measured.
    """

    host_id: str
    group: str
    base: dict[str, Any]
    prior: HostPrior = field(default_factory=HostPrior)


@dataclass(frozen=True, kw_only=True)
class GaugedHost:
    """What a host of a group has measured."""

    host_id: str
    group: str
    gauge: HostGauge


class Gauges:
    """What hosts have measured: for the next host of a group, and for the record.

    Attributes:
        priors: For the next host of each group.
    """

    def __init__(self) -> None:
        self.priors: dict[str, HostPrior] = {}
        self._untold: list[GaugedHost] = []

    def note(self, host: Host, gauge: HostGauge | None) -> None:
        """Take in what a host has measured; its decision on its seats holds from now on.

        Seats that are taken beyond the decision stay taken until their trials leave.
        """
        if gauge is None:
            return
        self._untold.append(GaugedHost(host_id=host.host_id, group=host.group, gauge=gauge))
        self.priors[host.group] = self.priors.get(host.group, HostPrior()).learn(gauge)
        if gauge.decision is not None:
            host.seats, host.limit = gauge.decision.seats, gauge.decision.reason

    def take(self) -> list[GaugedHost]:
        """What was measured since the last call."""
        untold, self._untold = self._untold, []
        return untold


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """Number of hosts and their seats, and of trials with a seat and without one.

    Attributes:
        placed: Number of hosts that have a process; the others wait for one.
        tasks: Number of tasks that wait for a host.
    """

    hosts: int
    seats: int
    seated: int
    waiting: int
    placed: int = 0
    tasks: int = 0


@dataclass(frozen=True, kw_only=True)
class SilentHost:
    """A host that must be ended, because it gave no sign of life or no report for too long."""

    host_id: str
    process: HostProcess
    reason: str


@dataclass(kw_only=True)
class Member:
    """An attempt of a trial that has joined and not left.

    Attributes:
        is_suspect: A host died while training this trial, and the trial has not reported since.
        lone_crashes: Number of successive hosts that died while training this trial alone.
        is_moved: The host ended while the trial was leaving; only one more host may export it.
        claim: Number of the present seating; see `trainables.hosts.claims`.
    """

    key: str
    trial: int
    group: str
    request: SeatRequest
    since: float
    seen: float
    until: int = 0
    report: SeatReport | None = None
    host: str | None = None
    is_leaving: bool = False
    is_suspect: bool = False
    lone_crashes: int = 0
    is_moved: bool = False
    claim: int = 0

    @property
    def known(self) -> int:
        """Step of the last report."""
        return 0 if self.report is None else self.report.step

    @property
    def has_fault(self) -> bool:
        """The trial cannot continue and holds no seat."""
        return self.report is not None and self.report.fault is not None

    @property
    def is_waiting(self) -> bool:
        """The trial waits for a seat."""
        return self.host is None and not self.has_fault

    @property
    def base(self) -> dict[str, Any]:
        """Fields of the `BaseSpec` that a host must load for the trial."""
        return dict(self.request.spec["base"])

    def order(self) -> SeatOrder:
        """The present order for the trial's seat."""
        return SeatOrder(
            key=self.key,
            request=self.request,
            known=self.known,
            until=self.until,
            is_leaving=self.is_leaving,
            claim=self.claim,
        )


@dataclass(kw_only=True)
class SubmittedTask:
    """A submitted task."""

    task: Task
    group: str
    since: float
    host: str | None = None
    report: TaskReport | None = None
    crashes: int = 0

    @property
    def is_waiting(self) -> bool:
        """The task waits for a host."""
        return self.host is None and self.report is None

    @property
    def base(self) -> dict[str, Any]:
        """Fields of the `BaseSpec` that a host must load for the task."""
        return dict(self.task.spec["base"])


@dataclass(kw_only=True)
class Host:
    """A host that was started and has not ended.

    Attributes:
        serves: Number of trials that the host may still take; `None` means no limit.
        since: Time of opening the host, or of last draining another host in favour of this one.
        holding: Seats that the host last reported to hold.
        offered: Seats and tasks with work in the host's last orders.
        process: Process of the host, for its end.
        beat_at: Time of the last sign of life; `None` before the first.
        heard_at: Time of the orders for the work in hand; `None` without such work.
        limit: What limits the seats, where the host has decided on them.
    """

    host_id: str
    group: str
    seats: int
    serves: int | None
    since: float = 0.0
    incarnation: str | None = None
    past: set[str] = field(default_factory=set)
    holding: frozenset[str] = frozenset()
    offered: frozenset[str] = frozenset()
    is_draining: bool = False
    process: HostProcess | None = None
    beat_at: float | None = None
    heard_at: float | None = None
    limit: str = ""


HostStage = Literal["starting", "loading", "working", "ending"]
"""State of a host: no process yet, the base is being loaded, up, or taking no new work."""


@dataclass(frozen=True, kw_only=True)
class HostActivity:
    """What a host does at this moment, for people.

    Attributes:
        form: Stored form of the base, such as `nf4`.
        limit: What limits the seats, where the host has decided on them.
        trials: Numbers of the trials on its seats.
        tasks: Names of the tasks on its seats.
    """

    host_id: str
    stage: HostStage
    form: str
    seats: int
    limit: str = ""
    trials: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()


def describe_activity(
    host: Host, members: Iterable[Member], tasks: Mapping[str, SubmittedTask]
) -> HostActivity:
    """What a host does, from the states of all members and tasks."""
    stage: HostStage = "loading" if host.incarnation is None else "working"
    if host.incarnation is None and host.beat_at is None:
        stage = "starting"
    seated = tuple(sorted(m.trial for m in members if m.host == host.host_id))
    busy = tuple(n for n, t in tasks.items() if t.host == host.host_id and t.report is None)
    return HostActivity(
        host_id=host.host_id,
        stage="ending" if host.is_draining and not (seated or busy) else stage,
        form=form_of_key(host.group),
        seats=host.seats,
        limit=host.limit,
        trials=seated,
        tasks=busy,
    )


def group_key(spec: TrialSpec) -> str:
    """Name of the base that a trial needs; trials with equal keys can share a host."""
    return base_key(spec.to_dict()["base"])


def base_key(base: dict[str, Any]) -> str:
    """`group_key` of the fields of a `BaseSpec`."""
    revision = f"@{base['revision']}" if base["revision"] else ""
    is_double = base["double_quant"] and base["quantization"] in ("nf4", "fp4")
    form = base["quantization"] + ("+dq" if is_double else "")
    return f"{base['model']}{revision} {form} {base['compute_dtype']}"


def form_of_key(group: str) -> str:
    """The stored form in a `base_key`, such as `nf4`."""
    *_, form, _ = ("", *group.rsplit(" ", 2))
    return form.removesuffix("+dq")
