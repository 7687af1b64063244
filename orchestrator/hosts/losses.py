"""Hosts that are taken away through no fault of their trials, with their nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator.hosts.members import Host
from orchestrator.hosts.seats import Seats


def lose_nodes(seats: Seats, node_ids: Collection[str]) -> list[str]:
    """Put the trials of hosts on lost nodes back in line; returns the names of the hosts.

    No trial is blamed. Ray Train starts the worker again as soon as a device is free: the host is
    then like one that is being started.
    """
    lost = [
        host
        for host in seats.hosts.values()
        if host.process is not None and host.process.node_id in node_ids
    ]
    for host in lost:
        _take_away(seats, host)
    return [host.host_id for host in lost]


def depart(seats: Seats, host_id: str, incarnation: str) -> None:
    """Put the trials of a host back in line that has saved them, as it is about to be ended."""
    host = seats.hosts.get(host_id)
    if host is not None and host.incarnation == incarnation:
        _take_away(seats, host)


def _take_away(seats: Seats, host: Host) -> None:
    if host.incarnation is not None:
        host.past.add(host.incarnation)
    host.incarnation, host.process = None, None
    host.beat_at, host.heard_at = None, None
    seats.put_back(host)


class DeviceTime:
    """How long hosts have held their devices, in seconds of the caller's clock.

    A host that has lost its node holds none until it has a process again.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._held_s: dict[str, float] = {}
        self._ended_s = 0.0

    def start(self, host_id: str, now: float) -> None:
        """Count a host, from the order to start it."""
        self._since[host_id], self._held_s[host_id] = now, 0.0

    def stop(self, host_id: str, now: float) -> None:
        """Count a host no more until it has a process again; nothing for one that has ended."""
        if host_id in self._held_s:
            self._held_s[host_id] += now - self._since.pop(host_id, now)

    def end(self, host_id: str, now: float) -> None:
        """Count a host no more."""
        self.stop(host_id, now)
        self._ended_s += self._held_s.pop(host_id)

    def resume(self, host_ids: Iterable[str], now: float) -> None:
        """Count hosts that have a process; does nothing for those that are counted."""
        for host_id in host_ids:
            if host_id in self._held_s:
                self._since.setdefault(host_id, now)

    def total_s(self, now: float) -> float:
        """Seconds of all hosts so far."""
        running = sum(now - since for since in list(self._since.values()))
        return running + sum(list(self._held_s.values())) + self._ended_s
