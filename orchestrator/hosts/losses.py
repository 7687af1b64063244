"""Hosts that are taken away through no fault of their trials, with their nodes."""

from __future__ import annotations

from collections.abc import Collection

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
