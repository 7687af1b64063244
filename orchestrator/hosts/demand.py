"""Decisions to start hosts, and to end hosts in favour of groups that have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.hosts.members import Host, HostStart, Member, SubmittedTask
from orchestrator.hosts.seats import Seats


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """Limits on the number of hosts and on the seats of each.

    Attributes:
        max_hosts: Hosts at the same time, including hosts that are ending.
        seats: Seats per host.
        hosts_per_group: Hosts of a group at the same time; `None` means no limit per group.
        is_fresh: A host serves one trial and ends.
        patience_s: Time that a group without a host waits until a busy host of another group takes
            no new trials; an idle host ends at once. Also the time that a host may take to start
            until an idle host of another group ends in its favour.
    """

    max_hosts: int
    seats: int
    hosts_per_group: int | None = None
    is_fresh: bool = False
    patience_s: float = 60.0


def start_hosts(seats: Seats, limits: HostLimits, now: float) -> list[HostStart]:
    """Open the hosts that are needed and allowed; the caller starts the processes.

    Groups without a host come first, in the order of waiting time; then further hosts of a group.
    If no more hosts are allowed, a host of another group is drained for each group without one.
    """
    if seats.is_closed:
        return []
    lines = _lines(seats)
    starts: list[HostStart] = []
    homeless = [group for group in lines if not _open_hosts(seats, group)]
    for group in homeless:
        if len(seats.hosts) < limits.max_hosts:
            starts.append(_open(seats, lines[group][0], limits, now))
    still_homeless = [group for group in homeless if not _open_hosts(seats, group)]
    blocked = [group for group in lines if _is_blocked(seats, group, limits, now)]
    _make_room(seats, lines, [*still_homeless, *blocked], limits, now)
    if still_homeless:
        return starts
    for group, line in lines.items():
        while _may_open(seats, group, limits) and len(line) > sum(
            host.seats - seats.load(host.host_id) for host in _open_hosts(seats, group)
        ):
            starts.append(_open(seats, line[0], limits, now))
    return starts


def _lines(seats: Seats) -> dict[str, list[Member | SubmittedTask]]:
    """Waiting trials and tasks by group, longest waiting time first."""
    everyone: list[Member | SubmittedTask] = [
        *seats.members.values(),
        *seats.tasks.values(),
    ]
    waiting = [who for who in everyone if who.is_waiting]
    lines: dict[str, list[Member | SubmittedTask]] = {}
    for who in sorted(waiting, key=lambda one: one.since):
        lines.setdefault(who.group, []).append(who)
    return lines


def _open_hosts(seats: Seats, group: str) -> list[Host]:
    return [h for h in seats.hosts.values() if h.group == group and not h.is_draining]


def _is_blocked(seats: Seats, group: str, limits: HostLimits, now: float) -> bool:
    """Whether hosts of a group do not come up: other groups may hold the devices."""
    hosts = _open_hosts(seats, group)
    is_any_up = any(host.incarnation is not None for host in hosts)
    return not is_any_up and any(now - host.since > limits.patience_s for host in hosts)


def _may_open(seats: Seats, group: str, limits: HostLimits) -> bool:
    """Whether a group with hosts may have a further host."""
    of_group = limits.hosts_per_group
    return len(seats.hosts) < limits.max_hosts and (
        of_group is None or len(_open_hosts(seats, group)) < of_group
    )


def _open(seats: Seats, who: Member | SubmittedTask, limits: HostLimits, now: float) -> HostStart:
    start = HostStart(host_id=seats.next_host_id(), group=who.group, base=who.base)
    places = 1 if limits.is_fresh else limits.seats
    seats.open_host(start, places, serves=1 if limits.is_fresh else None, now=now)
    return start


def _make_room(
    seats: Seats,
    lines: Mapping[str, list[Member | SubmittedTask]],
    groups: Sequence[str],
    limits: HostLimits,
    now: float,
) -> None:
    """Drain the least busy host for each group, unless enough hosts are ending already.

    A host whose own group has an older trial in line stays: that trial is first.
    """
    ending = sum(host.is_draining for host in seats.hosts.values())
    for group in groups[ending:]:
        since = lines[group][0].since
        blocked = _open_hosts(seats, group)
        older = {name for name, line in lines.items() if line[0].since <= since}
        victims = [
            host
            for host in seats.hosts.values()
            if not host.is_draining and host.group not in older
        ]
        if blocked:  # only the end of an idle host that is up can free a device
            victims = [host for host in victims if host.incarnation is not None]
        if blocked or now - since <= limits.patience_s:
            victims = [host for host in victims if seats.load(host.host_id) == 0]
        if victims:
            min(victims, key=lambda host: seats.load(host.host_id)).is_draining = True
            for host in blocked:
                host.since = now
