"""Room for hosts and proxies, node by node."""

import random

import pytest

from orchestrator.resources.nodes import Node
from orchestrator.resources.room import PROXY_CPUS, Room, proxy_resources, room_on

STEADY = Node(node_id="s", cpus=2.0, steady=1000)
HEAD = Node(node_id="h")
TRAINER = Node(node_id="g", cpus=1.0, gpus=1)


def nodes_of(*cpus):
    return [Node(node_id=str(number), cpus=each) for number, each in enumerate(cpus)]


@pytest.mark.parametrize(
    ("cpus", "hosts", "proxies", "room"),
    [
        ((3.0,), 2, 6, Room(host_cpus=1.0, proxies=6)),
        ((2.3,), 2, 6, Room(host_cpus=0.8, proxies=6)),
        ((1.0, 1.0, 1.0), 2, 16, Room(host_cpus=0.32, proxies=16)),
        ((1.0,), 2, 30, Room(host_cpus=0.1, proxies=7)),
        ((0.1,), 1, 4, Room(host_cpus=0.1, proxies=0)),
        ((), 1, 4, Room(host_cpus=0.1, proxies=0)),
    ],
    ids=["whole", "shared", "three-nodes", "fewer-proxies", "no-room", "no-cpus"],
)
def test_hosts_on_cpus_get_what_proxies_leave_on_every_node(cpus, hosts, proxies, room):
    assert room_on([HEAD, *nodes_of(*cpus)], hosts, proxies, on_gpus=False) == room


@pytest.mark.parametrize("cpus", [(1.0, 1.0, 1.0), (2.0, 0.5), (3.0,)])
@pytest.mark.parametrize(("hosts", "proxies"), [(1, 9), (2, 6), (2, 12)])
@pytest.mark.parametrize("choose", [min, max], ids=["packed", "spread"])
def test_no_order_of_arrival_keeps_a_host_or_a_proxy_out(cpus, hosts, proxies, choose):
    room = room_on(nodes_of(*cpus), hosts, proxies, on_gpus=False)
    sizes = [room.host_cpus] * hosts + [PROXY_CPUS] * room.proxies
    draw = random.Random(0)
    for _ in range(30):
        draw.shuffle(sizes)
        free = list(cpus)
        for size in sizes:
            places = [rest for rest in free if rest >= size - 1e-9]
            assert places, (sizes, free)
            free[free.index(choose(places))] -= size


def test_hosts_on_gpus_ask_for_cpus_only_where_proxies_are_kept_elsewhere():
    assert room_on([HEAD, STEADY, TRAINER], 1, 8, on_gpus=True) == Room(host_cpus=1.0, proxies=8)
    assert room_on([HEAD, STEADY, TRAINER], 1, 99, on_gpus=True).proxies == 20
    assert room_on([TRAINER, TRAINER], 2, 8, on_gpus=True) == Room(host_cpus=0.0, proxies=8)
    assert room_on([HEAD, STEADY], 1, 8, on_gpus=True).host_cpus == 0.0
    crowded = Node(node_id="b", cpus=1.0, gpus=4)
    assert room_on([STEADY, TRAINER, crowded], 5, 8, on_gpus=True).host_cpus == 0.25


def test_nodes_that_will_be_taken_away_have_no_room():
    leaving = Node(node_id="l", cpus=4.0, is_leaving=True)
    assert room_on([leaving], 1, 4, on_gpus=False).proxies == 0


def test_proxies_ask_for_a_node_that_stays_where_the_cluster_names_some():
    assert proxy_resources([HEAD, TRAINER]) == {"cpu": 0.1}
    assert proxy_resources([HEAD, STEADY]) == {"cpu": 0.1, "lorchestra_steady": 0.001}
