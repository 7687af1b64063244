"""Reservations of hosts: release of those that are left over, end of those that only wait.

Ray Train creates a placement group for each host. If the set-up of a worker fails, Train's
controller ends, but the group stays while this process is connected (Ray 2.60): the next host
would wait for the same CPUs and GPU without end.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray._private import worker
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

logger = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""Time for Ray to notice the end of a controller."""
_PAUSE_S = 0.25
_State = gcs_pb2.PlacementGroupTableData


def release_orphans(patience_s: float = _PATIENCE_S) -> int:
    """Remove placement groups of this driver's job whose creating actor is dead.

    Groups of this process itself, of live actors and of other jobs stay.

    Args:
        patience_s: Time to wait for the first such group.

    Returns:
        Number of removed groups.
    """
    deadline = time.monotonic() + patience_s
    while not (orphans := _find_orphans()) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    for group in orphans:
        remove_placement_group(group)
    if orphans:
        logger.info("%d reservations of ended hosts were given back", len(orphans))
    return len(orphans)


def end_unplaced() -> int:
    """End the controllers of this driver's job that wait for room; returns their number.

    Ray Train waits for minutes, and has no call to end a run from outside.
    """
    waiting = (_State.PENDING, _State.RESCHEDULING)
    unplaced = [
        record
        for record in _own_records()
        if record.state in waiting and not record.creator_actor_dead
    ]
    for record in unplaced:
        # The driver has made the actor, so that it may end it without a handle.
        worker.global_worker.core_worker.kill_actor(ray.ActorID(record.creator_actor_id), True)
    if unplaced:
        logger.info("%d hosts that waited for room were ended", len(unplaced))
    return len(unplaced)


def _find_orphans() -> list[PlacementGroup]:
    return [
        PlacementGroup(ray.PlacementGroupID(record.placement_group_id))
        for record in _own_records()
        if record.creator_actor_dead and not record.is_detached and record.state != _State.REMOVED
    ]


def _own_records() -> list[Any]:
    """Placement groups that actors of this driver's job have made."""
    job = ray.get_runtime_context().get_job_id()
    # The public table does not have the creator of a group.
    accessor = state._connect_and_get_accessor()
    records = map(_State.FromString, accessor.get_placement_group_table())
    return [
        record
        for record in records
        if record.creator_job_id.hex() == job
        and record.creator_actor_id.strip(b"\xff")  # else the driver itself
    ]
