"""How many hosts a sweep has on given CPUs and GPUs, and what each of them asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.pool import HostShape
from orchestrator.resources.cores import available_cores
from orchestrator.resources.nodes import Node, count_gpus
from orchestrator.resources.room import PROXY_CPUS, Room, room_on
from orchestrator.spec.sweep import SweepSpec
from trainables.memory.seating import MOST_SEATS_THAT_PAY


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Hosts and seats of a sweep on a cluster.

    Attributes:
        limits: Number of hosts, and of seats on each host.
        shape: Resources of a host.
        proxies: Number of trials that have room for their proxies; `None` for any number.
    """

    limits: HostLimits
    shape: HostShape
    proxies: int | None = None

    @property
    def max_trials(self) -> int:
        """Maximum number of trials with a seat at the same time.

        Where hosts decide on their seats, these are those of hosts on which every seat pays.
        """
        most = MOST_SEATS_THAT_PAY if self.shape.finds_seats else self.limits.seats
        seats = self.limits.max_hosts * (1 if self.limits.is_fresh else most)
        return seats if self.proxies is None else min(seats, self.proxies)


def place(spec: SweepSpec, cpus: int, gpus: int) -> Placement:
    """Placement of a sweep: a host per GPU, or on CPUs a host per stored form in the space.

    Hosts on CPUs share the cores evenly: two hosts that competed for all cores were six times
    slower than two hosts with one thread each. `hosts.count` limits the hosts on GPUs, and says
    their number on CPUs.
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
    wanted = hosts.max_hosts
    max_hosts = min(gpus, wanted or gpus) if gpus else max(1, min(forms, cpus))
    if hosts.fresh and not gpus:
        max_hosts = max(1, min(seats, cpus))
    if wanted is not None and not gpus:
        max_hosts = wanted
    return Placement(
        limits=HostLimits(
            max_hosts=max_hosts,
            seats=seats,
            # A second copy of a base on the same cores needs memory and saves no time.
            hosts_per_group=None if gpus or hosts.fresh or wanted is not None else 1,
            is_fresh=hosts.fresh,
        ),
        shape=HostShape(
            gpus=1.0 if gpus else 0.0,
            max_failures=hosts.max_failures,
            hung_s=hosts.max_silence_s,
            torch_threads=max(1, cpus // max_hosts),
            sharing=max_hosts,
            gpu_type=hosts.gpu_type if gpus else None,
            memory=hosts.memory,
            finds_seats=finds_seats,
            engine=hosts.engine,
        ),
    )


def place_on(spec: SweepSpec, nodes: Sequence[Node], on_gpus: bool) -> Placement:
    """Placement on the nodes that are up; hosts on CPUs share what proxies leave.

    Args:
        spec: The sweep.
        nodes: The nodes.
        on_gpus: Whether the sweep trains on GPUs; then there may be no host yet.
    """
    cores = max(1, min(int(sum(node.cpus for node in nodes)), available_cores()))
    gpus = sum(count_gpus(nodes, spec.hosts.gpu_type).values()) if on_gpus else 0
    placement = place(spec, cores, max(1, gpus) if on_gpus else 0)
    limits, shape = placement.limits, placement.shape
    if on_gpus:
        limits = replace(limits, max_hosts=min(gpus, limits.max_hosts))
    else:
        homes = [node for node in nodes if node.cpus and not node.is_leaving]
        shape = replace(shape, sharing=math.ceil(limits.max_hosts / max(1, len(homes))))
    room = room_for(replace(placement, limits=limits), nodes, on_gpus)
    shape = replace(shape, cpus=room.host_cpus)
    return Placement(limits=limits, shape=shape, proxies=room.proxies)


def room_for(placement: Placement, nodes: Sequence[Node], on_gpus: bool) -> Room:
    """Room for the hosts of a placement, and for the proxies of its trials."""
    hosts, trials = max(1, placement.limits.max_hosts), max(1, placement.max_trials)
    return room_on(nodes, hosts, trials, on_gpus)


def logical_cpus(spec: SweepSpec, cores: int) -> int:
    """Logical CPUs of an own Ray: those of the hosts, and a tenth for each proxy."""
    return cores + math.ceil(PROXY_CPUS * (place(spec, cores, 0).max_trials + 1))
