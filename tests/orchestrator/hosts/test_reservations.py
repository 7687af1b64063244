"""Reservations of a dead controller are released; other reservations stay."""

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from orchestrator.hosts.reservations import release_orphans

pytestmark = pytest.mark.ray


class Controller:
    """Reserves resources, as Ray Train's controller does before the set-up of a host."""

    def reserve(self):
        group = placement_group([{"CPU": 0.1}])
        assert group.wait(30)
        return group.id.hex()


def state_of(group):
    return placement_group_table()[group]["state"]


def test_only_the_reservation_of_a_dead_controller_is_given_back(local_ray):
    own = placement_group([{"CPU": 0.1}])
    assert own.wait(30)
    controller = ray.remote(num_cpus=0)(Controller)
    live, dead = controller.remote(), controller.remote()
    groups = ray.get([live.reserve.remote(), dead.reserve.remote()])
    assert release_orphans(patience_s=0.0) == 0
    ray.kill(dead)
    assert release_orphans() == 1
    assert [state_of(group) for group in groups] == ["CREATED", "REMOVED"]
    assert state_of(own.id.hex()) == "CREATED"
    ray.kill(live)
    assert release_orphans() == 1
    remove_placement_group(own)
