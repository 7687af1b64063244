"""Resources that a sweep asks a cluster for, and what the cluster's autoscaler answers.

A placement group that waits is demand for autoscalers of both versions, and it ends with its
driver. `ray.autoscaler.sdk.request_resources` would not do: each call replaces the request of
every other job, and Ray Train calls it for its workers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

logger = logging.getLogger(__name__)

_STATUS_TIMEOUT_S = 5


class Need(NamedTuple):
    """Resources on one node, and labels of the node."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the autoscaler says about what was asked for.

    Attributes:
        has_autoscaler: The cluster has an autoscaler that tells its state (version 2).
        is_read: The autoscaler has read the present requests.
        refused: Number of requests for which no node can be added, now at least.
        launching: Number of nodes that are being added, for any job.
    """

    has_autoscaler: bool = False
    is_read: bool = False
    refused: int = 0
    launching: int = 0


@dataclass
class Asking:
    """Requests that wait in the cluster until they are met or given back."""

    _waiting: list[tuple[Need, PlacementGroup]] = field(default_factory=list)
    _asked_in: int | None = None  # version of the cluster's state in which all requests wait

    def keep(self, needs: Sequence[Need]) -> None:
        """Ask for these resources, and for nothing else any more.

        What has been found for a request is given back at once: it is asked for to be there.
        """
        missing = list(needs)
        kept = []
        for need, group in self._waiting:
            if need in missing and _is_pending(group):
                missing.remove(need)
                kept.append((need, group))
            else:
                remove_placement_group(group)
        self._waiting = kept + [(need, _ask(need)) for need in missing]
        if missing:
            self._asked_in = None

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Give back all requests."""
        if ray.is_initialized():
            self.keep(())

    def answer(self) -> Answer:
        """What the autoscaler says; an empty answer if it cannot be asked."""
        try:
            if not is_autoscaler_v2():
                return Answer()
            reply = GetClusterStatusReply()
            client = GcsClient(address=ray.get_runtime_context().gcs_address)
            reply.ParseFromString(client.get_cluster_status(timeout_s=_STATUS_TIMEOUT_S))
        except (ray.exceptions.RayError, OSError, RuntimeError) as error:
            logger.warning("the autoscaler's state cannot be read: %s", error)
            return Answer()
        if self._asked_in is None:
            self._asked_in = reply.cluster_resource_state.cluster_resource_state_version
        return read_answer(reply, [group.id.hex() for _, group in self._waiting], self._asked_in)


def read_answer(reply: Any, asked: Sequence[str], asked_in: int) -> Answer:
    """The answer in a `GetClusterStatusReply`.

    Args:
        reply: The message.
        asked: Ids of the placement groups that wait.
        asked_in: Version of the cluster's state in which they wait.
    """
    scaling = reply.autoscaling_state
    refused = " ".join(one.details for one in scaling.infeasible_gang_resource_requests)
    return Answer(
        has_autoscaler=scaling.autoscaler_state_version > 0,
        is_read=scaling.last_seen_cluster_resource_state_version >= asked_in,
        refused=sum(one in refused for one in asked),
        launching=sum(one.count for one in scaling.pending_instance_requests)
        + len(scaling.pending_instances),
    )


def _ask(need: Need) -> PlacementGroup:
    labels = [dict(need.labels)] if need.labels else None
    return placement_group([dict(need.resources)], bundle_label_selector=labels)


def _is_pending(group: PlacementGroup) -> bool:
    return bool(placement_group_table(group).get("state") in ("PENDING", "RESCHEDULING"))
