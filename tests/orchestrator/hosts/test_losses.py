"""Hosts that go with their nodes: no trial is blamed, and the host may come back."""

from orchestrator.hosts.demand import HostLimits, start_hosts
from orchestrator.hosts.losses import DeviceTime, depart, lose_nodes
from orchestrator.hosts.members import SeatPhase
from orchestrator.hosts.seats import Seats
from trainables.hosts.bench import Failure
from trainables.hosts.orders import HostProcess, HostReport, SeatReport, SeatRequest

REQUEST = SeatRequest(spec={"base": {"model": "m"}}, state_dir="s", bundle_dir="b")


def build_seats(*nodes, trials=1):
    """A trial per host, in training; each host is on the node of its number."""
    seats = Seats(60.0)
    for trial in range(trials):
        seats.join(trial, "a", "g", REQUEST, 0.0)
    limits = HostLimits(max_hosts=len(nodes), seats=1)
    for start, node in zip(start_hosts(seats, limits, 0.0), nodes, strict=True):
        seats.beat(start.host_id, "i0", HostProcess(node_id=node, pid=1), 0.0)
        seats.hello(start.host_id, "i0")
    for trial in range(trials):
        seats.advance(trial, "a", 10, 0.0)
    for host in seats.hosts:
        seats.orders(host, "i0")
    return seats


def test_trials_of_a_lost_node_wait_and_those_of_others_go_on():
    seats = build_seats("n0", "n1", trials=2)
    assert lose_nodes(seats, {"n1", "n7"}) == ["h001"]
    assert [member.host for member in seats.members.values()] == ["h000", None]
    assert seats.orders("h001", "i0").is_over
    assert lose_nodes(seats, {"n1"}) == []


def test_a_trial_that_lost_many_nodes_is_not_taken_for_their_killer():
    seats = build_seats("n0")
    for number in range(5):
        lose_nodes(seats, {f"n{number}"})
        assert seats.members["t0000.a"].is_waiting
        process = HostProcess(node_id=f"n{number + 1}", pid=1)
        seats.beat("h000", f"i{number + 1}", process, 0.0)
        seats.hello("h000", f"i{number + 1}")
        (order,) = seats.orders("h000", f"i{number + 1}").seats
        assert order.until == 10
    member = seats.members["t0000.a"]
    assert (member.is_suspect, member.lone_crashes, member.report) == (False, 0, None)


def test_what_the_lost_process_still_says_does_not_count():
    seats = build_seats("n0")
    lose_nodes(seats, {"n0"})
    report = SeatReport(key="t0000.a", step=10, metrics={"step": 10})
    seats.take("h000", "i0", HostReport(reports=(report,)))
    seats.beat("h000", "i0", HostProcess(node_id="n0", pid=1), 1.0)
    assert seats.members["t0000.a"].report is None
    assert seats.hosts["h000"].process is None


def test_a_leaving_trial_of_a_lost_node_is_exported_by_one_more_host():
    seats = build_seats("n0")
    report = SeatReport(key="t0000.a", step=10, metrics={"step": 10})
    seats.take("h000", "i0", HostReport(holding=frozenset({"t0000.a"}), reports=(report,)))
    seats.leave(0, "a", keep=True, now=0.0)
    lose_nodes(seats, {"n0"})
    assert seats.members["t0000.a"].is_moved
    seats.beat("h000", "i1", HostProcess(node_id="n1", pid=1), 0.0)
    seats.hello("h000", "i1")
    lose_nodes(seats, {"n1"})
    assert seats.leave(0, "a", keep=True, now=0.0).phase is SeatPhase.LEFT


def test_a_host_that_departs_is_over_and_its_successor_takes_the_trial():
    seats = build_seats("n0")
    depart(seats, "h000", "another")
    assert seats.members["t0000.a"].host == "h000"
    depart(seats, "h000", "i0")
    assert seats.members["t0000.a"].is_waiting
    seats.end_host("h000", None)
    assert [start.group for start in start_hosts(seats, HostLimits(max_hosts=1, seats=1), 0.0)]


def test_a_restarted_host_that_cannot_load_its_base_is_a_loss_and_not_a_bad_base():
    seats = build_seats("n0")
    lose_nodes(seats, {"n0"})
    seats.end_host("h000", Failure(fault="failed", reason="the disk is full"))
    assert seats.members["t0000.a"].is_waiting


def test_a_host_without_a_device_costs_nothing():
    held = DeviceTime()
    held.start("h0", 10.0)
    held.start("h1", 10.0)
    assert held.total_s(15.0) == 10.0
    held.stop("h0", 20.0)  # its node was lost
    assert held.total_s(30.0) == 10.0 + 20.0
    held.resume(["h0", "h1", "h9"], 40.0)
    assert held.total_s(45.0) == 15.0 + 35.0
    for name in ("h0", "h1"):
        held.end(name, 50.0)
    held.stop("h0", 55.0)
    held.resume(["h0", "h1"], 60.0)  # what is said late of hosts that have ended
    assert held.total_s(99.0) == 20.0 + 40.0
