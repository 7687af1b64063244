"""Decisions to start hosts and to end hosts in favour of other groups."""

from orchestrator.hosts.demand import HostLimits, start_hosts
from orchestrator.hosts.seats import Seats
from trainables.hosts.orders import SeatRequest, Task
from trainables.spec import BaseSpec, DataSpec, OptimSpec, TrialSpec

SPEC = TrialSpec(
    base=BaseSpec(model="m"), optim=OptimSpec(steps=60), data=DataSpec(train="rows.jsonl")
).to_dict()
REQUEST = SeatRequest(spec=SPEC, state_dir="s", bundle_dir="b")
ONE = HostLimits(max_hosts=1, seats=2)


def build_line(*groups):
    """One waiting trial for each named group, a second apart."""
    state = Seats(lease_s=1000)
    for trial, group in enumerate(groups):
        state.join(trial, "a", group, REQUEST, float(trial))
    return state


def started(state, limits, now=0.0):
    return [start.group for start in start_hosts(state, limits, now)]


def bring_up(state):
    for host_id, host in state.hosts.items():
        if host.incarnation is None:
            state.hello(host_id, "one")


def test_nobody_waits_and_nothing_starts():
    assert started(Seats(lease_s=1), ONE) == []


def test_a_host_that_is_starting_is_counted_on():
    state = build_line("g", "g")
    assert started(state, HostLimits(max_hosts=4, seats=2)) == ["g"]
    assert started(state, HostLimits(max_hosts=4, seats=2)) == []


def test_more_hosts_start_for_a_long_line_up_to_the_limit():
    state = build_line(*"ggggggg")
    assert started(state, HostLimits(max_hosts=3, seats=2)) == ["g", "g", "g"]


def test_every_group_gets_a_host_before_any_gets_a_second():
    state = build_line("a", "a", "a", "a", "b")
    assert started(state, HostLimits(max_hosts=3, seats=1)) == ["a", "b", "a"]


def test_a_host_start_says_what_base_to_load():
    (start,) = start_hosts(build_line("g"), ONE, 0.0)
    assert BaseSpec(**start.base).model == "m"


def test_an_idle_host_gives_way_to_a_group_without_one():
    state = build_line("a")
    started(state, ONE)
    bring_up(state)
    state.leave(0, "a", False, 0.0)
    state.join(1, "a", "b", REQUEST, 0.0)
    assert started(state, ONE) == []
    assert state.orders("h000", "one").is_over
    state.end_host("h000", None)
    assert started(state, ONE) == ["b"]


def test_a_busy_host_gives_way_only_after_the_patience_of_those_who_wait():
    state = build_line("a", "b")
    started(state, ONE)
    bring_up(state)
    started(state, ONE, now=50.0)
    assert not state.hosts["h000"].is_draining
    started(state, ONE, now=62.0)
    assert state.hosts["h000"].is_draining
    assert state.join(2, "a", "a", REQUEST, 63.0).phase == "waiting"
    assert not state.orders("h000", "one").is_over  # those seated go on to their end


def test_one_group_without_a_host_drains_one_host():
    state = build_line("a", "a", "c")
    limits = HostLimits(max_hosts=2, seats=1)
    for now in (0.0, 100.0, 200.0):
        started(state, limits, now)
        bring_up(state)
    state.join(9, "a", "d", REQUEST, 200.0)
    for now in (300.0, 301.0):
        started(state, limits, now)
    assert sum(host.is_draining for host in state.hosts.values()) == 1


def build_blocked(idle, blocked):
    """Idle hosts of some groups, and hosts of other groups that do not come up for 10 s."""
    state = build_line(*idle)
    limits = HostLimits(max_hosts=len(idle) + len(blocked), seats=2)
    started(state, limits)
    bring_up(state)
    for trial in range(len(idle)):
        state.leave(trial, "a", False, 0.0)
    for trial, group in enumerate(blocked, len(idle)):
        state.join(trial, "a", group, REQUEST, 5.0)
    assert started(state, limits, now=10.0) == list(blocked)
    return state, limits


def draining(state):
    return [host_id for host_id, host in state.hosts.items() if host.is_draining]


def test_an_idle_host_gives_way_to_a_host_that_does_not_come_up():
    state, limits = build_blocked("a", "b")
    assert started(state, limits, now=70.0) == []
    assert draining(state) == []
    assert started(state, limits, now=71.0) == []
    assert state.orders("h000", "one").is_over


def test_a_busy_host_does_not_give_way_to_a_host_that_does_not_come_up():
    state, limits = build_blocked("a", "b")
    state.join(9, "a", "a", REQUEST, 20.0)
    assert started(state, limits, now=200.0) == []
    assert draining(state) == []


def test_of_two_hosts_that_do_not_come_up_neither_gives_way_to_the_other():
    state, limits = build_blocked("a", "bc")
    for now in (200.0, 201.0):
        started(state, limits, now)
    assert draining(state) == ["h000"]


def test_a_host_that_was_given_room_has_patience_again():
    state, limits = build_blocked("ab", "c")
    started(state, limits, now=71.0)
    assert draining(state) == ["h000"]
    state.end_host("h000", None)
    started(state, limits, now=131.0)
    assert draining(state) == []
    started(state, limits, now=132.0)
    assert draining(state) == ["h001"]


def test_fresh_hosts_have_one_seat_and_serve_once():
    state = build_line("g", "g")
    limits = HostLimits(max_hosts=1, seats=4, is_fresh=True)
    assert started(state, limits) == ["g"]
    bring_up(state)
    assert state.load("h000") == 1
    state.leave(0, "a", False, 0.0)
    assert started(state, limits) == []
    assert state.orders("h000", "one").is_over
    state.end_host("h000", None)
    assert started(state, limits) == ["g"]


def test_a_task_alone_starts_a_host():
    state = Seats(lease_s=1)
    state.submit_task("base", "g", Task(spec=SPEC, split="test"), 0.0)
    assert started(state, ONE) == ["g"]


def test_a_closed_sweep_starts_nothing():
    state = build_line("g")
    state.close()
    assert started(state, ONE) == []


def test_without_a_device_nothing_starts():
    assert started(build_line("g"), HostLimits(max_hosts=0, seats=2)) == []
