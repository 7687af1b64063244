"""Room for a sweep's small processes beside its hosts, counted node by node.

A sum over all nodes is not enough: three nodes with a third of a CPU left have no room for a host
that asks for a whole one, however large the sum is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.resources.nodes import STEADY, Node

PROXY_CPUS = 0.1
"""Logical CPUs of a trial's proxy."""

STEADY_SHARE = 0.001
"""Share of the resource `STEADY` of each process that must not be taken away."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What hosts ask for, and what is left for proxies.

    Attributes:
        host_cpus: Logical CPUs that a host asks for; 0 where its GPU says where it goes.
        proxies: Number of proxies that have a place at the same time.
    """

    host_cpus: float
    proxies: int


def proxy_resources(nodes: Sequence[Node]) -> dict[str, float]:
    """Resources of a trial's proxy: on nodes that stay, where the cluster names such nodes."""
    steady = {STEADY: STEADY_SHARE} if any(node.steady for node in nodes) else {}
    return {"cpu": PROXY_CPUS, **steady}


def room_on(nodes: Sequence[Node], hosts: int, proxies: int, on_gpus: bool) -> Room:
    """Room on the nodes for some hosts and as many proxies as wanted, or fewer.

    Args:
        nodes: The nodes that are up.
        hosts: Number of hosts.
        proxies: Number of proxies that are wanted.
        on_gpus: Hosts are placed by their GPUs: they ask for CPUs only where no proxy can come.
    """
    homes = _homes(nodes)
    places = sum(_tenths(node.cpus) for node in homes)
    if on_gpus:
        return Room(host_cpus=_cpus_beside_gpus(nodes), proxies=min(proxies, places))
    for hundredths in range(100, 9, -1):
        cpus = hundredths / 100
        if _all_fit(homes, hosts, cpus, proxies):
            return Room(host_cpus=cpus, proxies=proxies)
    cpus = PROXY_CPUS  # of equal size, so that no room is left unused
    return Room(host_cpus=cpus, proxies=max(0, min(proxies, places - hosts - 1)))


def _homes(nodes: Sequence[Node]) -> list[Node]:
    """Nodes on which proxies may be."""
    up = [node for node in nodes if not node.is_leaving and node.cpus > 0]
    return [node for node in up if node.steady] or up


def _all_fit(homes: Sequence[Node], hosts: int, cpus: float, proxies: int) -> bool:
    """Whether the last host finds a place wherever Ray has put the proxies and other hosts.

    A node has no place for it when less than `cpus` are left there; so the load must stay below
    what takes the place from every node. One tenth is left for short tasks.
    """
    spare = sum(math.floor(100 * max(0.0, node.cpus - cpus) + 1e-6) for node in homes)
    load = 100 * (PROXY_CPUS * (proxies + 1) + (hosts - 1) * cpus)
    has_place = any(node.cpus >= cpus for node in homes)
    return has_place and spare >= math.floor(load + 1e-6)


def _cpus_beside_gpus(nodes: Sequence[Node]) -> float:
    """CPUs of a host on a GPU: all that its node has for it, if proxies are kept elsewhere.

    Else none: proxies may take the CPUs of the node at any time.
    """
    devices = [node for node in nodes if node.gpus]
    if not any(node.steady for node in nodes) or not devices:
        return 0.0
    shares = [node.cpus / node.gpus for node in devices]
    return min(1.0, math.floor(100 * min(shares) + 1e-6) / 100)


def _tenths(cpus: float) -> int:
    return math.floor(cpus / PROXY_CPUS + 1e-6)
