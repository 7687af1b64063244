"""Hosts that a cluster has room for: at the start, as it grows, as it shrinks.

A sweep on a cluster asks for the nodes that it needs and waits for them; then every GPU that
joins is room for one host more, and every GPU that goes is room for one less.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from orchestrator.errors import ClusterError
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.members import Occupancy
from orchestrator.hosts.placement import Placement, place_on
from orchestrator.hosts.pool import HostShape
from orchestrator.interrupts import raise_swallowed
from orchestrator.resources.asking import Answer, Asking, Need
from orchestrator.resources.nodes import (
    Node,
    count_gpus,
    is_of_type,
    look_at_nodes,
    type_constraint,
)
from orchestrator.resources.reach import Reach
from orchestrator.resources.room import proxy_resources
from orchestrator.spec.sweep import SweepSpec

POLL_S = 1.0
"""Seconds between two looks at the nodes."""

REFUSED_S = 60.0
"""Time after a refusal of the autoscaler in which no trial is started in the hope of a GPU."""

ANSWER_S = 60.0
"""How long `accelerator: auto` waits for the autoscaler to say whether it can add GPUs.

One that is too busy to say so is taken to be adding them.
"""


class Fleet:
    """The hosts that a sweep may have now.

    Args:
        spec: The sweep.
        is_own: Whether the Ray is this process's own, of which no node can come or go.
        places: Local files and folders that hosts must reach, by the fields that name them.
        look: Returns the nodes that are up.

    Attributes:
        on_gpus: Whether the sweep trains on GPUs; settled by `await_room`, for the whole run.
        placement: Hosts and seats at the last look.
        nodes: Nodes at the last look.
    """

    def __init__(
        self,
        spec: SweepSpec,
        *,
        is_own: bool,
        places: Mapping[str, str] | None = None,
        look: Callable[[], Sequence[Node]] = look_at_nodes,
    ) -> None:
        self._spec, self._is_own, self._look = spec, is_own, look
        self._asking, self._answer = Asking(), Answer()
        self._reach = Reach(places or {})
        self._looked_at, self._refused_at = -math.inf, -math.inf
        self._nothing_since: float | None = None
        self._said = ""
        self.nodes: Sequence[Node] = look()
        self.on_gpus = spec.hosts.accelerator == "gpu"
        self.placement: Placement = place_on(spec, self.nodes, self.on_gpus)

    @property
    def limits(self) -> HostLimits:
        """Number of hosts, and of seats on each host."""
        return self.placement.limits

    @property
    def shape(self) -> HostShape:
        """Resources of a host."""
        return self.placement.shape

    @property
    def max_trials(self) -> int:
        """Trials at the same time: those with a seat, and one more where the cluster may grow."""
        return max(1, self.placement.max_trials) + self.hoped

    @property
    def hoped(self) -> int:
        """Trials that are started in the hope that the cluster grows: one, or none."""
        is_refused = time.monotonic() - self._refused_at < REFUSED_S
        return 1 if self._may_grow() and not is_refused else 0

    # ------------------------------------------------------------------------------ the start

    def await_room(self, show: Callable[[str], None]) -> None:
        """Wait until the cluster has room for the smallest number of hosts.

        Args:
            show: Told what the sweep waits for, whenever that changes.

        Raises:
            ClusterError: The room is not there within `hosts.wait_s`, or never can be.
        """
        began = time.monotonic()
        self._settle_accelerator(show)
        while missing := self._look_again():
            waited_s = time.monotonic() - began
            if self._is_own or waited_s >= self._spec.hosts.wait_s:
                raise self._give_up(waited_s)
            self._asking.keep(self._needs())
            self._answer = self._asking.answer()
            self._tell(show, f"waiting for {missing}{self._explain()}")
            raise_swallowed()
            time.sleep(POLL_S)
        self._asking.keep(())
        self._answer = Answer() if self._is_own else self._asking.answer()

    def _tell(self, show: Callable[[str], None], text: str) -> None:
        if text != self._said:
            self._said = text
            show(text)

    def _settle_accelerator(self, show: Callable[[str], None]) -> None:
        """Settle `accelerator: auto`: GPUs that are up, or that the autoscaler can add."""
        wanted = self._spec.hosts.accelerator
        has_gpu = bool(count_gpus(self.nodes, self._spec.hosts.gpu_type))
        if wanted == "auto" and not has_gpu and not self._is_own:
            has_gpu = self._can_be_added(show)
        self.on_gpus = wanted == "gpu" or (wanted == "auto" and has_gpu)

    def _can_be_added(self, show: Callable[[str], None]) -> bool:
        """Whether the autoscaler can add a GPU; `False` without an autoscaler that says so."""
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            self._asking.keep([self._gpu()])
            answer = self._asking.answer()
            self._look_again()
            if count_gpus(self.nodes, self._spec.hosts.gpu_type):
                return True
            if not answer.has_autoscaler or (answer.is_read and answer.refused):
                return False
            if answer.is_read:
                return True
            self._tell(show, "asking the cluster's autoscaler for a GPU")
            raise_swallowed()
            time.sleep(POLL_S)
        return True

    def _missing(self) -> str:
        """What the cluster lacks for the smallest number of hosts; empty if it has all."""
        parts = (
            [f"{lacking} GPU{_s(lacking)}{self._kind()}"] if (lacking := self._lacking()) else []
        )
        if not self.placement.proxies:
            hosts = 0 if self.on_gpus else self.limits.max_hosts
            whose = f"{hosts} host{_s(hosts)} and a trial" if hosts else "a trial"
            parts.append(f"CPUs for {whose} (a tenth of one for each)")
        return " and ".join(parts)

    def _lacking(self) -> int:
        """Number of GPUs that the smallest number of hosts lacks."""
        if not self.on_gpus:
            return 0
        up = sum(count_gpus(self.nodes, self._spec.hosts.gpu_type).values())
        return max(0, self._spec.hosts.min_hosts - up)

    def _kind(self) -> str:
        wanted = self._spec.hosts.gpu_type
        return f" of type {wanted}" if wanted else ""

    def _needs(self) -> list[Need]:
        """Requests for what is missing."""
        needs = [self._gpu()] * self._lacking()
        if not self.placement.proxies:
            proxy = proxy_resources(self.nodes)
            needs.append(Need({"CPU": proxy.pop("cpu"), **proxy}))
        return needs

    def _gpu(self) -> Need:
        resources, labels = type_constraint(self._spec.hosts.gpu_type, self.nodes)
        return Need({"GPU": 1.0, **resources}, labels)

    def _explain(self) -> str:
        """What the autoscaler does about it."""
        if not self._answer.has_autoscaler:
            return ""
        if self._answer.refused:
            return "; the autoscaler can add no node for it now"
        launching = self._answer.launching
        return f"; {launching} node{_s(launching)} on the way" if launching else ""

    def _give_up(self, waited_s: float) -> ClusterError:
        """The error for room that did not come, or went and did not come back."""
        up, cpus = sum(node.gpus for node in self.nodes), sum(node.cpus for node in self.nodes)
        has = f"Ray has {up} GPU{_s(up)} and {cpus:g} CPUs"
        lacks = f"the sweep lacks {self._missing() or 'a free place for a host'}"
        field, remedy = "hosts", "Lower hosts.count or hosts.seats"
        if not self._is_own:
            field, lacks = "hosts.wait_s", f"{lacks} after {waited_s:.0f} s{self._explain()}"
            remedy = "Add nodes, raise hosts.wait_s or lower hosts.count"
        if self.on_gpus:
            remedy += ", or set hosts.accelerator to cpu to train on CPUs"
        least = self._spec.hosts.min_hosts
        return ClusterError(
            f"{field}: {has}, and {lacks}; allowed: room for {least} host{_s(least)}. "
            f"{remedy}, and run the same command again."
        )

    # ------------------------------------------------------------------------ during the sweep

    def look(self, occupancy: Occupancy) -> bool:
        """Look at the nodes, and ask for more if trials wait; at most once a second.

        Args:
            occupancy: Hosts, and trials with and without a seat.

        Returns:
            Whether the nodes were looked at.

        Raises:
            ClusterError: No host has had a place for `hosts.wait_s` while trials wait, or a node
                does not reach the sweep's files.
        """
        now = time.monotonic()
        if self._is_own or now - self._looked_at < POLL_S:
            return False
        self._look_again()
        wanted = self._spec.hosts.gpu_type
        self._reach.check(
            node
            for node in self.nodes
            if (is_of_type(node, wanted) if self.on_gpus else node.cpus > 0)
        )
        is_waiting = occupancy.waiting + occupancy.tasks > 0
        self._ask_for_more(occupancy.hosts - occupancy.placed if is_waiting else None, now)
        if not is_waiting or occupancy.placed:
            self._nothing_since = None
        elif self._nothing_since is None:
            self._nothing_since = now
        elif now - self._nothing_since >= self._spec.hosts.wait_s:
            raise self._give_up(now - self._nothing_since)
        return True

    def _ask_for_more(self, unplaced: int | None, now: float) -> None:
        """Ask for as many GPUs as there are hosts, up to the largest number.

        Args:
            unplaced: Number of hosts that ask for a GPU themselves; `None` to ask for nothing.
            now: Present time in seconds.
        """
        hosts, most = self.limits.max_hosts, self._spec.hosts.max_hosts
        more = max(1, hosts) if most is None else min(max(1, hosts), most - hosts)
        if unplaced is None or more <= unplaced or not self._may_grow():
            self._asking.keep(())
            return
        self._asking.keep([self._gpu()] * (more - unplaced))
        self._answer = self._asking.answer()
        if self._answer.refused:
            self._refused_at = now

    @property
    def waits_for(self) -> str:
        """What the sweep has asked the cluster for; empty if nothing."""
        more = len(self._asking)
        if not more:
            return ""
        return f"waiting for {more} more GPU{_s(more)}{self._kind()}{self._explain()}"

    def close(self) -> None:
        """Give back what was asked for."""
        self._asking.close()

    def _look_again(self) -> str:
        """Look at the nodes; returns what is missing."""
        self._looked_at = time.monotonic()
        self.nodes = self._look()
        self.placement = place_on(self._spec, self.nodes, self.on_gpus)
        return self._missing()

    def _may_grow(self) -> bool:
        """Whether the cluster may get GPUs for more hosts."""
        most = self._spec.hosts.max_hosts
        is_expected = most is not None or self._answer.has_autoscaler
        return (
            self.on_gpus
            and not self._is_own
            and is_expected
            and (most is None or self.limits.max_hosts < most)
        )


def _s(number: int) -> str:
    return "" if number == 1 else "s"
