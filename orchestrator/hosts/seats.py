"""Seating: trials, their seats on hosts, and the step that each trial may train to.

A state machine without clocks, threads or Ray: callers pass `now`. Repeating a call does no harm,
as callers retry. Trials of one group (same base in the same form) share hosts.

    join ─► waiting ─► seated ─► leaving ─► left
                          ├─► report with a fault
                          └─► waiting, when its host is given up
    a silent proxy ─► lost          a newer attempt of the same trial ─► superseded

A trial's credit is the step that it may train to (`until`), not a number of steps. So a repeated
request grants no more, and a host that restarts from a saved state has the same credit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from orchestrator.hosts.members import (
    Gauges,
    Host,
    HostStart,
    Member,
    SeatPhase,
    SeatStatus,
    SilentHost,
    SubmittedTask,
)
from trainables.hosts.bench import Failure
from trainables.hosts.claims import PER_DRIVER
from trainables.hosts.orders import (
    HostProcess,
    HostReport,
    Orders,
    SeatOrder,
    SeatReport,
    SeatRequest,
    Task,
    TaskOrder,
    TaskReport,
    fault_metrics,
)

MAX_LONE_CRASHES = 2
"""Default number of host crashes during training of a trial alone, after which the trial fails."""

MAX_DEAD_HOSTS = 3
"""Number of a group's hosts lost in a row, without a new report, after which the group fails."""

NO_BUNDLE = "its host ended before the bundle was written"


class Seats:
    """All trials, hosts and tasks of a sweep.

    Args:
        lease_s: A trial whose proxy is silent for longer loses its seat without an export.
        max_crashes: Number of host crashes after which a trial that was training alone, or a task
            in work, is taken to be the cause and fails.
        epoch: Number of drivers that the sweep had before this one.
    """

    def __init__(
        self, lease_s: float, max_crashes: int = MAX_LONE_CRASHES, epoch: int = 0
    ) -> None:
        self._claims = itertools.count(epoch * PER_DRIVER + 1)
        self.lease_s, self.max_crashes = lease_s, max_crashes
        self.members: dict[str, Member] = {}  # in the order they joined: the waiting line
        self.hosts: dict[str, Host] = {}
        self.tasks: dict[str, SubmittedTask] = {}
        self.gauges = Gauges()
        self.is_closed = False
        self._current: dict[int, str] = {}
        self._dead: dict[str, set[str]] = {}  # hosts lost since the last new report, by group
        self._past: dict[str, tuple[int, SeatStatus]] = {}
        self._numbers = itertools.count()

    # -------------------------------------------------------------------------------- proxies

    def join(
        self, trial: int, attempt: str, group: str, request: SeatRequest, now: float
    ) -> SeatStatus:
        """Join the line for a seat, in place of any earlier attempt of the trial."""
        key = _key(trial, attempt)
        if key not in self.members and key not in self._past:
            self._supersede(trial)
            self.members[key] = Member(
                key=key, trial=trial, group=group, request=request, since=now, seen=now
            )
            self._current[trial] = key
        return self._hear(key, now)

    def advance(self, trial: int, attempt: str, until: int, now: float) -> SeatStatus:
        """Let a trial train to step `until`; returns its status."""
        key = _key(trial, attempt)
        member = self.members.get(key)
        if member is not None and not member.is_leaving:
            member.until = max(member.until, until)
        return self._hear(key, now)

    def leave(self, trial: int, attempt: str | None, keep: bool, now: float) -> SeatStatus:
        """Give up a seat or the place in line.

        Args:
            trial: Number of the trial.
            attempt: Attempt that leaves; `None` is the newest.
            keep: Export the bundle of the last report first: the phase is `leaving` until then.
            now: Present time in seconds.
        """
        key = self._current.get(trial, "") if attempt is None else _key(trial, attempt)
        member = self.members.get(key)
        if member is None:
            _, status = self._past.get(key, (trial, SeatStatus(phase=SeatPhase.LEFT)))
            return status
        # The present host can write the bundle, or after a loss the next host.
        is_between_hosts = member.is_waiting and member.known > 0 and not self.is_closed
        can_export = member.host is not None or is_between_hosts
        if member.is_leaving or (keep and can_export):
            member.is_leaving = True
            return self._hear(key, now)
        return self._retire(member, SeatPhase.LEFT)

    def _hear(self, key: str, now: float) -> SeatStatus:
        member = self.members.get(key)
        if member is None:
            _, status = self._past.get(key, (0, SeatStatus(phase=SeatPhase.LOST)))
            return status
        member.seen = now
        self._seat_waiting()
        if member.is_leaving:
            phase = SeatPhase.LEAVING
        elif self.is_closed:
            phase = SeatPhase.CLOSED
        else:
            phase = SeatPhase.WAITING if member.host is None else SeatPhase.SEATED
        return SeatStatus(phase=phase, report=member.report)

    def _retire(self, member: Member, phase: SeatPhase, reason: str = "") -> SeatStatus:
        status = SeatStatus(phase=phase, report=member.report, reason=reason)
        del self.members[member.key]
        self._past[member.key] = (member.trial, status)
        self._seat_waiting()
        return status

    def _supersede(self, trial: int) -> None:
        """Retire older attempts of a trial, those with a lost lease included."""
        for member in [m for m in self.members.values() if m.trial == trial]:
            self._retire(member, SeatPhase.SUPERSEDED)
        for key, (owner, status) in self._past.items():
            if owner == trial and status.phase is SeatPhase.LOST:
                gone = dataclasses.replace(status, phase=SeatPhase.SUPERSEDED)
                self._past[key] = (owner, gone)

    def expire(self, now: float) -> None:
        """Retire trials with an ended lease; leaving trials keep their seats."""
        for member in list(self.members.values()):
            if not member.is_leaving and now - member.seen > self.lease_s:
                self._retire(member, SeatPhase.LOST)

    # ---------------------------------------------------------------------------------- hosts

    def open_host(
        self, start: HostStart, seats: int, serves: int | None, now: float = 0.0
    ) -> None:
        """Add a host that is being started."""
        self.hosts[start.host_id] = Host(
            host_id=start.host_id, group=start.group, seats=seats, serves=serves, since=now
        )

    def next_host_id(self) -> str:
        """A new name for a host, unique in this driver."""
        return f"h{next(self._numbers):03d}"

    def hello(self, host_id: str, incarnation: str) -> None:
        """Note that a host is up, for the first time or after a crash."""
        host = self.hosts.get(host_id)
        if host is None or incarnation in {host.incarnation, *host.past}:
            return
        if host.incarnation is not None:
            host.past.add(host.incarnation)
            self._blame_crash(host)
        host.incarnation, host.holding, host.offered = incarnation, frozenset(), frozenset()
        host.heard_at = None
        for member in self._seated(host_id):
            member.claim = next(self._claims)
        self._seat_waiting()

    def take(self, host_id: str, incarnation: str, report: HostReport) -> None:
        """Take in a host's report; a report of a past incarnation is ignored."""
        host = self.hosts.get(host_id)
        if host is None or host.incarnation != incarnation:
            return
        host.heard_at = None  # no work is in hand until the next orders
        host.holding = report.holding
        self.gauges.note(host, report.gauge)
        for seat_report in report.reports:
            member = self.members.get(seat_report.key)
            if member is not None and member.host == host_id:
                self._note(member, seat_report)
        for freed in report.freed:
            member = self.members.get(freed.key)
            if member is not None and member.is_leaving:
                self._retire(member, SeatPhase.LEFT, freed.error)
        for task_report in report.tasks:
            self.tasks[task_report.task_id].report = task_report
            self._dead.pop(host.group, None)
        self._seat_waiting()

    def _note(self, member: Member, report: SeatReport) -> None:
        if report.step > member.known or report.fault is not None:
            self._dead.pop(member.group, None)
        member.report = report
        member.is_suspect, member.lone_crashes = False, 0
        if member.has_fault and not member.is_leaving:
            member.host = None

    def orders(self, host_id: str, incarnation: str) -> Orders:
        """The present work of a host.

        After a crash, the trials that were training are suspects. Each suspect trains alone up to
        its next report, so that a trial that kills its host does not disturb other trials.
        """
        host = self.hosts.get(host_id)
        if host is None or host.incarnation != incarnation:
            return Orders(is_over=True)
        members = [m for m in self._seated(host_id) if m.is_leaving or not self.is_closed]
        suspects = [m.key for m in members if m.is_suspect]
        if suspects:
            seats = tuple(self._quarantine(host, members, suspects[0]))
            tasks: tuple[TaskOrder, ...] = ()
        else:
            seats = tuple(member.order() for member in members)
            tasks = tuple(TaskOrder(task_id=name, task=e.task) for name, e in self._busy(host_id))
        offered = {s.key for s in seats if s.is_due or s.key not in host.holding}
        host.offered = frozenset(offered | {task.task_id for task in tasks})
        is_over = (host.is_draining or self.is_closed) and not members and not tasks
        return Orders(seats=seats, tasks=tasks, is_over=is_over)

    def _quarantine(
        self, host: Host, members: Iterable[Member], suspect: str
    ) -> Iterator[SeatOrder]:
        """Orders to train the suspect and to pause the other seats on the host."""
        for member in members:
            if member.key == suspect:
                yield member.order()
            elif member.key in host.holding and not member.is_suspect:
                yield dataclasses.replace(member.order(), until=member.known, is_leaving=False)

    def _blame_crash(self, host: Host) -> None:
        """Mark trials in work as suspects; fail a trial or task that crashed too often."""
        active = [m for m in self._seated(host.host_id) if m.key in host.offered]
        for member in active:
            member.is_suspect = True
        for name, submitted in self._busy(host.host_id):
            submitted.crashes += name in host.offered
            if submitted.crashes >= self.max_crashes:
                self._dead.pop(submitted.group, None)
                submitted.report = TaskReport(
                    task_id=name, error=f"its host died {self.max_crashes} times during this task"
                )
        if len(active) == 1 and host.offered == {active[0].key}:
            active[0].lone_crashes += 1
            if active[0].lone_crashes >= self.max_crashes:
                self._dead.pop(host.group, None)  # the cause is found
                reason = f"its host died {self.max_crashes} times while training it alone"
                self._fail(active[0], Failure(fault="failed", reason=reason))

    def beat(self, host_id: str, incarnation: str, process: HostProcess, now: float) -> None:
        """Note a sign of life; one of a past incarnation is ignored."""
        host = self.hosts.get(host_id)
        if host is not None and incarnation not in host.past:
            host.process, host.beat_at = process, now

    def note_orders(self, host_id: str, incarnation: str, now: float) -> None:
        """Note that a host gets orders now, and begins a piece of work."""
        host = self.hosts.get(host_id)
        if host is not None and host.incarnation == incarnation:
            host.heard_at = now

    def take_silent(self, now: float, stopped_s: float, hung_s: float) -> list[SilentHost]:
        """Hosts to end, each named once: the caller ends the process, and Ray restarts it.

        Args:
            now: Present time in seconds.
            stopped_s: Time without a sign of life: the process is stopped, or its node is gone.
            hung_s: Time of one piece of work: a step and an evaluation in each seat, or a task.
        """
        silent: list[SilentHost] = []
        for host in self.hosts.values():
            if host.process is None:
                continue
            if host.beat_at is not None and now - host.beat_at > stopped_s:
                reason = f"gave no sign of life for {now - host.beat_at:.0f} s"
            elif host.heard_at is not None and now - host.heard_at > hung_s:
                reason = f"has been in one piece of work for {now - host.heard_at:.0f} s"
            else:
                continue
            silent.append(SilentHost(host_id=host.host_id, process=host.process, reason=reason))
            host.process, host.beat_at, host.heard_at = None, None, None
        return silent

    def forgive_pause(self, now: float) -> None:
        """Let leases and signs of life count from now, after a pause of the broker itself."""
        for member in self.members.values():
            member.seen = now
        for host in self.hosts.values():
            host.beat_at = None if host.beat_at is None else now
            host.heard_at = None if host.heard_at is None else now

    def refuse(self, host_id: str, failure: Failure) -> None:
        """Note the failure of a host to load the base.

        If the host never came up and is the only one of its group, the group's waiting trials and
        tasks fail. A host that was up before has loaded the base once: its loss counts as a crash,
        and the group fails after `MAX_DEAD_HOSTS` such losses without a new report in between.
        """
        host = self.hosts.get(host_id)
        if host is None:
            return
        host.is_draining = True
        if host.incarnation is not None or host.past:
            self._dead.setdefault(host.group, set()).add(host.host_id)
            self._blame_crash(host)
            self.put_back(host)
            if len(self._dead.get(host.group, ())) >= MAX_DEAD_HOSTS:
                self._fail_line(host.group, failure)
        elif all(other is host or other.group != host.group for other in self.hosts.values()):
            self._fail_line(host.group, failure)

    def end_host(self, host_id: str, failure: Failure | None) -> None:
        """Remove a host; its trials continue elsewhere from saved states.

        A host that ends with a failure has the same effects as one that `refuse`s.
        """
        host = self.hosts.get(host_id)
        if host is None:
            return
        host.is_draining = True
        if failure is not None:
            self.refuse(host_id, failure)
        self.put_back(host)
        del self.hosts[host_id]
        self._seat_waiting()

    def put_back(self, host: Host) -> None:
        """Put a host's trials and tasks back in line; a leaving trial gets one more host."""
        host.holding, host.offered = frozenset(), frozenset()
        for member in list(self._seated(host.host_id)):
            member.host = None
            if member.is_leaving and (member.is_moved or member.has_fault or self.is_closed):
                self._retire(member, SeatPhase.LEFT, NO_BUNDLE)
            elif member.is_leaving:
                member.is_moved = True
        for _, submitted in self._busy(host.host_id):
            submitted.host = None

    def _fail_line(self, group: str, failure: Failure) -> None:
        """Fail all trials and tasks that wait for a host of a group."""
        for member in list(self.members.values()):
            if member.is_waiting and member.group == group:
                self._fail(member, failure)
        for name, submitted in self.tasks.items():
            if submitted.is_waiting and submitted.group == group:
                submitted.report = TaskReport(task_id=name, error=failure.reason)

    def _fail(self, member: Member, failure: Failure) -> None:
        last = {} if member.report is None else member.report.metrics
        member.report = SeatReport(
            key=member.key,
            step=member.known,
            metrics=fault_metrics({**last, "step": member.known}),
            fault=failure.fault,
            reason=failure.reason,
            trace=failure.trace,
        )
        member.host, member.is_suspect = None, False
        if member.is_leaving:
            self._retire(member, SeatPhase.LEFT, failure.reason)

    # ---------------------------------------------------------------------------------- tasks

    def submit_task(self, task_id: str, group: str, task: Task, now: float) -> None:
        """Add a task for a host of a group."""
        self.tasks.setdefault(task_id, SubmittedTask(task=task, group=group, since=now))
        self._seat_waiting()

    def close(self) -> None:
        """Grant no more steps; hosts end as soon as no trial is leaving."""
        self.is_closed = True
        for member in list(self.members.values()):
            if member.is_leaving and member.host is None:
                self._retire(member, SeatPhase.LEFT, NO_BUNDLE)
        for name, submitted in self.tasks.items():
            if submitted.report is None:
                submitted.report = TaskReport(task_id=name, error="the sweep was closed")

    # -------------------------------------------------------------------------------- seating

    def load(self, host_id: str) -> int:
        """Number of a host's seats that trials and tasks take."""
        return len(list(self._seated(host_id))) + len(self._busy(host_id))

    def _seated(self, host_id: str) -> Iterator[Member]:
        return (member for member in self.members.values() if member.host == host_id)

    def _busy(self, host_id: str) -> list[tuple[str, SubmittedTask]]:
        return [(n, t) for n, t in self.tasks.items() if t.host == host_id and t.report is None]

    def _seat_waiting(self) -> None:
        """Give free seats to waiting trials and tasks, first come first served."""
        if self.is_closed:
            return
        for member in self.members.values():
            if member.is_waiting and not self._is_held_elsewhere(member):
                member.host = self._find_seat(member.group)
                member.claim = next(self._claims) if member.host else 0
        for submitted in self.tasks.values():
            if submitted.is_waiting:
                submitted.host = self._find_seat(submitted.group)

    def _is_held_elsewhere(self, member: Member) -> bool:
        """Whether a host still holds another attempt of the trial, and may write its state."""
        prefix = _key(member.trial, "")
        return any(
            key.startswith(prefix) and key != member.key
            for host in self.hosts.values()
            for key in host.holding
        )

    def _find_seat(self, group: str) -> str | None:
        """Take a seat on the group's host with the fewest seats taken; `None` if all are full."""
        free = [
            host
            for host in self.hosts.values()
            if host.group == group
            and host.incarnation is not None
            and not host.is_draining
            and self.load(host.host_id) < host.seats
        ]
        if not free:
            return None
        host = min(free, key=lambda host: self.load(host.host_id))
        if host.serves is not None:
            host.serves -= 1
            host.is_draining = host.serves <= 0
        return host.host_id


def _key(trial: int, attempt: str) -> str:
    return f"t{trial:04d}.{attempt}"
