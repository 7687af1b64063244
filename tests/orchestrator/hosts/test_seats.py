"""The state machine of trials, seats and hosts, without Ray."""

import itertools

import pytest

from orchestrator.hosts.members import (
    HostStart,
    SeatPhase,
    base_key,
    describe_activity,
    group_key,
)
from orchestrator.hosts.seats import MAX_DEAD_HOSTS, Seats
from trainables.hosts.bench import Failure
from trainables.hosts.orders import (
    HostGauge,
    HostProcess,
    HostReport,
    SeatFreed,
    SeatReport,
    SeatRequest,
    Task,
    TaskReport,
)
from trainables.memory.calibration import Correction, MemoryReading
from trainables.memory.seating import SeatsDecision
from trainables.spec import BaseSpec, DataSpec, OptimSpec, TrialSpec

BROKEN = Failure(fault="failed", reason="its host ended: no driver")
SPEC = TrialSpec(
    base=BaseSpec(model="m"), optim=OptimSpec(steps=60), data=DataSpec(train="rows.jsonl")
).to_dict()
REQUEST = SeatRequest(spec=SPEC, state_dir="s", bundle_dir="b")


def build_seats(hosts=1, seats=2, group="g", serves=None, **options):
    """Seats with hosts h0, h1, … up, each in its first incarnation `one`."""
    state = Seats(lease_s=30, **options)
    for number in range(hosts):
        start = HostStart(host_id=f"h{number}", group=group, base={})
        state.open_host(start, seats, serves)
        state.hello(f"h{number}", "one")
    return state


def join(state, *trials, attempt="a", group="g", now=0.0):
    return [state.join(trial, attempt, group, REQUEST, now).phase for trial in trials]


def report(state, trial, step, host="h0", incarnation="one", attempt="a", fault=None):
    key = f"t{trial:04d}.{attempt}"
    word = SeatReport(key=key, step=step, metrics={"step": step}, fault=fault)
    orders = state.orders(host, incarnation)
    holding = frozenset(order.key for order in orders.seats)
    state.take(host, incarnation, HostReport(reports=(word,), holding=holding))


def freed(state, trial, host="h0", incarnation="one", attempt="a", error=""):
    word = SeatFreed(key=f"t{trial:04d}.{attempt}", error=error)
    state.take(host, incarnation, HostReport(freed=(word,)))


def credit(state, host="h0", incarnation="one"):
    """Remaining credit of each seat of a host, by trial."""
    return {
        int(order.key[1:5]): order.until - order.known
        for order in state.orders(host, incarnation).seats
    }


def phase(state, trial, attempt="a", until=0, now=0.0):
    return state.advance(trial, attempt, until, now).phase


# ---------------------------------------------------------------------------------- credit


def test_a_joined_trial_gets_no_credit_before_it_asks():
    state = build_seats()
    assert join(state, 0) == [SeatPhase.SEATED]
    assert credit(state) == {0: 0}


def test_credit_is_what_was_asked_however_often_the_call_is_repeated():
    state = build_seats()
    join(state, 0)
    for _ in range(3):
        state.advance(0, "a", 20, 0.0)
    assert credit(state) == {0: 20}
    report(state, 0, 20)
    assert credit(state) == {0: 0}
    state.advance(0, "a", 20, 0.0)  # a late duplicate
    assert credit(state) == {0: 0}


def test_a_proxy_hears_the_report_of_its_trial():
    state = build_seats()
    join(state, 0, 1)
    report(state, 1, 20)
    assert state.advance(1, "a", 20, 0.0).report.step == 20
    assert state.advance(0, "a", 20, 0.0).report is None


@pytest.mark.parametrize(("step", "answers"), [(19, False), (20, True), (40, True)])
def test_a_standing_answers_a_proxy_once_its_report_reaches_the_step(step, answers):
    state = build_seats()
    join(state, 0)
    report(state, 0, step)
    assert state.advance(0, "a", 20, 0.0).answers(20) is answers


# ---------------------------------------------------------------------------------- the line


def test_free_seats_go_to_those_who_waited_longest():
    state = build_seats(seats=2)
    assert join(state, 5, 3, 9, 1) == [
        SeatPhase.SEATED,
        SeatPhase.SEATED,
        SeatPhase.WAITING,
        SeatPhase.WAITING,
    ]
    state.leave(3, "a", False, 0.0)
    assert [phase(state, trial) for trial in (9, 1)] == [SeatPhase.SEATED, SeatPhase.WAITING]


def test_trials_go_to_hosts_of_their_group_only():
    state = build_seats(group="nf4")
    assert join(state, 0, group="int8") == [SeatPhase.WAITING]
    assert state.orders("h0", "one").seats == ()


def test_trials_spread_over_the_hosts_of_a_group():
    state = build_seats(hosts=2)
    join(state, 0, 1)
    assert (list(credit(state, "h0")), list(credit(state, "h1"))) == ([0], [1])


def test_a_host_that_serves_one_trial_takes_no_second():
    state = build_seats(seats=1, serves=1)
    assert join(state, 0, 1) == [SeatPhase.SEATED, SeatPhase.WAITING]
    state.leave(0, "a", False, 0.0)
    assert phase(state, 1) is SeatPhase.WAITING
    assert state.orders("h0", "one").is_over


# ---------------------------------------------------------------------------------- leaving


def test_leaving_with_the_bundle_keeps_the_seat_until_the_host_says_it_is_free():
    state = build_seats(seats=1)
    join(state, 0, 1)
    assert state.leave(0, "a", True, 0.0).phase is SeatPhase.LEAVING
    assert state.leave(0, "a", True, 0.0).phase is SeatPhase.LEAVING
    assert phase(state, 1) is SeatPhase.WAITING
    freed(state, 0)
    assert phase(state, 1) is SeatPhase.SEATED
    assert state.leave(0, "a", True, 0.0).phase is SeatPhase.LEFT


def test_leaving_without_the_bundle_frees_the_seat_at_once():
    state = build_seats(seats=1)
    join(state, 0, 1)
    assert state.leave(0, "a", False, 0.0).phase is SeatPhase.LEFT
    assert list(credit(state)) == [1]


def test_a_trial_that_left_gets_no_more_credit():
    state = build_seats()
    join(state, 0)
    state.leave(0, "a", True, 0.0)
    assert phase(state, 0, until=40) is SeatPhase.LEAVING
    assert credit(state) == {0: 0}


def test_a_bundle_that_could_not_be_written_is_told_to_the_proxy():
    state = build_seats()
    join(state, 0)
    state.leave(0, "a", True, 0.0)
    freed(state, 0, error="OSError: disk full")
    assert state.leave(0, "a", True, 0.0).reason == "OSError: disk full"


def test_the_driver_can_release_whatever_attempt_is_current():
    state = build_seats()
    join(state, 0, attempt="b")
    assert state.leave(0, None, True, 0.0).phase is SeatPhase.LEAVING
    freed(state, 0, attempt="b")
    assert state.leave(0, None, True, 0.0).phase is SeatPhase.LEFT
    assert state.leave(77, None, True, 0.0).phase is SeatPhase.LEFT


def test_a_waiting_trial_leaves_the_line():
    state = build_seats(seats=1)
    join(state, 0, 1, 2)
    assert state.leave(1, "a", True, 0.0).phase is SeatPhase.LEFT
    state.leave(0, "a", False, 0.0)
    assert list(credit(state)) == [2]


# ------------------------------------------------------------------------- leases and attempts


def test_a_silent_proxy_loses_its_seat_and_can_join_again():
    state = build_seats(seats=1)
    join(state, 0, 1, now=0.0)
    phase(state, 1, now=29.0)
    state.expire(31.0)
    assert phase(state, 0, now=31.0) is SeatPhase.LOST
    assert phase(state, 1, now=31.0) is SeatPhase.SEATED
    assert join(state, 0, attempt="b", now=32.0) == [SeatPhase.WAITING]


def test_every_call_renews_the_lease():
    state = build_seats()
    join(state, 0)
    for now in (20.0, 40.0, 60.0):
        phase(state, 0, now=now)
        state.expire(now)
    assert phase(state, 0, now=60.0) is SeatPhase.SEATED


def test_a_trial_that_is_leaving_needs_no_lease():
    state = build_seats()
    join(state, 0)
    state.leave(0, "a", True, 0.0)
    state.expire(1000.0)
    assert state.orders("h0", "one").seats[0].is_leaving


def test_a_newer_attempt_takes_over_and_the_older_cannot_disturb_it():
    state = build_seats()
    join(state, 0, attempt="old")
    join(state, 0, attempt="new")
    assert phase(state, 0, attempt="old", until=60) is SeatPhase.SUPERSEDED
    assert join(state, 0, attempt="old") == [SeatPhase.SUPERSEDED]
    state.leave(0, "old", False, 0.0)
    report(state, 0, 20, attempt="old")
    assert phase(state, 0, attempt="new") is SeatPhase.SEATED
    assert credit(state) == {0: 0}


def test_a_proxy_with_a_lost_lease_cannot_take_over_from_its_successor():
    state = build_seats()
    join(state, 0, attempt="old", now=0.0)
    state.expire(31.0)
    assert phase(state, 0, attempt="old", now=31.0) is SeatPhase.LOST
    join(state, 0, attempt="new", now=31.0)
    assert phase(state, 0, attempt="old", now=32.0) is SeatPhase.SUPERSEDED


def test_an_attempt_waits_until_no_host_holds_an_earlier_one():
    state = build_seats(hosts=2, seats=1)
    join(state, 0, attempt="old")
    state.take("h0", "one", HostReport(holding=frozenset({"t0000.old"})))
    assert join(state, 0, attempt="new") == [SeatPhase.WAITING]
    state.take("h0", "one", HostReport())
    assert phase(state, 0, attempt="new") is SeatPhase.SEATED


def test_joining_again_in_the_same_attempt_changes_nothing():
    state = build_seats()
    join(state, 0)
    report(state, 0, 20)
    assert join(state, 0) == [SeatPhase.SEATED]
    assert state.advance(0, "a", 20, 0.0).report.step == 20


# ---------------------------------------------------------------------------- hosts that die


def test_a_restarted_host_gets_all_its_seats_and_the_credit_left_on_them():
    state = build_seats()
    join(state, 0)
    state.advance(0, "a", 40, 0.0)
    report(state, 0, 20)
    state.advance(0, "a", 60, 0.0)
    state.hello("h0", "two")
    (order,) = state.orders("h0", "two").seats
    assert (order.known, order.until) == (20, 60)


def test_word_of_a_past_incarnation_is_not_heard():
    state = build_seats()
    join(state, 0)
    state.advance(0, "a", 20, 0.0)
    state.hello("h0", "two")
    state.hello("h0", "one")
    report(state, 0, 20, incarnation="one")
    assert state.advance(0, "a", 20, 0.0).report is None
    assert state.orders("h0", "one").is_over


def test_a_host_nobody_knows_is_over():
    assert Seats(lease_s=30).orders("h9", "one").is_over


def test_after_a_crash_suspects_train_alone_one_after_the_other():
    state = build_seats(seats=3)
    join(state, 0, 1, 2)
    for trial in (0, 1):
        state.advance(trial, "a", 20, 0.0)
    state.orders("h0", "one")
    state.take("h0", "one", HostReport(holding=frozenset({"t0002.a", "t0000.a", "t0001.a"})))
    state.orders("h0", "one")
    state.hello("h0", "two")
    assert credit(state, incarnation="two") == {0: 20}
    report(state, 0, 20, incarnation="two")
    state.advance(0, "a", 40, 0.0)
    assert credit(state, incarnation="two") == {0: 0, 1: 20}
    report(state, 1, 20, incarnation="two")
    assert credit(state, incarnation="two") == {0: 20, 1: 0, 2: 0}


@pytest.mark.parametrize("limit", [1, 4])
def test_how_many_crashes_convict_a_trial_is_the_users_choice(limit):
    state = build_seats(seats=1, max_crashes=limit)
    join(state, 0)
    state.advance(0, "a", 20, 0.0)
    for crash in range(1, limit + 1):
        state.orders("h0", "one" if crash == 1 else f"i{crash - 1}")
        state.hello("h0", f"i{crash}")
        fault = state.advance(0, "a", 20, 0.0).report
        assert (fault is not None) == (crash == limit)
    assert fault.fault == "failed"


def test_a_trial_that_kills_its_host_alone_fails_and_its_neighbour_goes_on():
    state = build_seats()
    join(state, 0, 1)
    for trial in (0, 1):
        state.advance(trial, "a", 20, 0.0)
    incarnations = ("one", "two", "three")
    for now, then in itertools.pairwise(incarnations):
        state.orders("h0", now)
        state.hello("h0", then)
    state.orders("h0", "three")
    state.hello("h0", "four")
    status = state.advance(0, "a", 20, 0.0)
    assert status.report.fault == "failed"
    assert "died 2 times while training it alone" in status.report.reason
    assert credit(state, incarnation="four") == {1: 20}


def test_a_crash_while_idle_makes_nobody_a_suspect():
    state = build_seats()
    join(state, 0, 1)
    report(state, 0, 20)
    report(state, 1, 20)
    state.orders("h0", "one")
    state.hello("h0", "two")
    assert not any(member.is_suspect for member in state.members.values())


def build_next_host(state, host_id, seats=2):
    """Another host of the group, up."""
    state.open_host(HostStart(host_id=host_id, group="g", base={}), seats, None)
    state.hello(host_id, "one")


def test_a_host_that_dies_for_good_leaves_its_trials_to_the_next_one():
    state = build_seats(seats=1)
    join(state, 0, 1)
    report(state, 0, 20)
    state.advance(0, "a", 40, 0.0)
    state.end_host("h0", BROKEN)
    status = state.advance(0, "a", 40, 0.0)
    assert (status.phase, status.report.step) == (SeatPhase.WAITING, 20)
    build_next_host(state, "h1", seats=1)
    assert credit(state, "h1") == {0: 20}
    assert phase(state, 1) is SeatPhase.WAITING


def test_a_host_that_dies_for_good_leaves_suspects_that_train_alone():
    state = build_seats()
    join(state, 0, 1)
    for trial in (0, 1):
        state.advance(trial, "a", 20, 0.0)
    state.orders("h0", "one")
    state.end_host("h0", BROKEN)
    build_next_host(state, "h1")
    assert credit(state, "h1") == {0: 20}
    report(state, 0, 20, host="h1")
    assert credit(state, "h1") == {0: 0, 1: 20}


def test_a_trial_that_kills_one_host_after_the_other_fails_and_its_neighbour_goes_on():
    state = build_seats()
    join(state, 0, 1)
    for trial in (0, 1):
        state.advance(trial, "a", 20, 0.0)
    for number in range(3):
        state.orders(f"h{number}", "one")
        state.end_host(f"h{number}", BROKEN)
        build_next_host(state, f"h{number + 1}")
    reason = state.advance(0, "a", 20, 0.0).report.reason
    assert "died 2 times while training it alone" in reason
    assert credit(state, "h3") == {1: 20}


def test_hosts_that_die_one_after_the_other_without_a_report_fail_those_who_wait():
    state = build_seats(seats=1)
    join(state, 0, 1)
    report(state, 0, 20)
    join(state, 2, group="other")
    for number in range(MAX_DEAD_HOSTS):
        assert phase(state, 0) is SeatPhase.SEATED
        state.end_host(f"h{number}", BROKEN)
        if number + 1 < MAX_DEAD_HOSTS:
            build_next_host(state, f"h{number + 1}", seats=1)
    lost = state.advance(0, "a", 40, 0.0).report
    assert (lost.fault, lost.step, lost.reason) == ("failed", 20, BROKEN.reason)
    assert lost.metrics["eval_loss"] == 1e9
    assert state.advance(1, "a", 20, 0.0).report.reason == BROKEN.reason
    assert state.advance(2, "a", 20, 0.0).report is None


def test_a_report_between_two_deaths_starts_the_count_anew():
    state = build_seats(seats=1)
    join(state, 0)
    for number in range(2 * MAX_DEAD_HOSTS):
        report(state, 0, 20 * (number + 1), host=f"h{number}")
        state.end_host(f"h{number}", BROKEN)
        build_next_host(state, f"h{number + 1}", seats=1)
    assert phase(state, 0) is SeatPhase.SEATED


def test_a_report_that_is_said_again_does_not_start_the_count_anew():
    state = build_seats(seats=1)
    join(state, 0)
    report(state, 0, 20)
    for number in range(MAX_DEAD_HOSTS):
        report(state, 0, 20, host=f"h{number}")
        state.end_host(f"h{number}", BROKEN)
        build_next_host(state, f"h{number + 1}", seats=1)
    assert state.advance(0, "a", 40, 0.0).report.reason == BROKEN.reason


def test_a_task_goes_to_the_next_host_and_fails_with_the_third():
    state = build_seats(seats=1)
    state.submit_task("base", "g", Task(spec=SPEC, split="test"), 0.0)
    for number in range(MAX_DEAD_HOSTS):
        assert state.tasks["base"].host == f"h{number}"
        state.end_host(f"h{number}", BROKEN)
        build_next_host(state, f"h{number + 1}", seats=1)
    assert state.tasks["base"].report.error == BROKEN.reason


def test_a_host_that_cannot_load_its_base_again_leaves_its_trials_to_the_next_one():
    state = build_seats(seats=1)
    join(state, 0)
    for _ in range(MAX_DEAD_HOSTS):  # saying it again changes nothing
        state.refuse("h0", BROKEN)
    state.end_host("h0", None)
    build_next_host(state, "h1", seats=1)
    assert phase(state, 0) is SeatPhase.SEATED


def test_a_bundle_is_tried_once_more_on_the_next_host():
    state = build_seats()
    join(state, 0)
    report(state, 0, 20)
    state.orders("h0", "one")
    state.leave(0, "a", True, 0.0)
    state.end_host("h0", BROKEN)
    assert phase(state, 0) is SeatPhase.LEAVING
    build_next_host(state, "h1")
    assert [order.is_leaving for order in state.orders("h1", "one").seats] == [True]
    state.end_host("h1", BROKEN)
    status = state.leave(0, "a", True, 0.0)
    assert (status.phase, status.report.step) == (SeatPhase.LEFT, 20)
    assert status.reason == "its host ended before the bundle was written"


def test_a_trial_that_leaves_between_two_hosts_gets_its_bundle_from_the_next():
    state = build_seats()
    join(state, 0)
    report(state, 0, 60)
    state.end_host("h0", BROKEN)
    assert state.leave(0, "a", True, 0.0).phase is SeatPhase.LEAVING
    build_next_host(state, "h1")
    freed(state, 0, host="h1")
    assert state.leave(0, "a", True, 0.0).phase is SeatPhase.LEFT


def test_a_trial_with_a_fault_that_was_leaving_leaves_with_its_host():
    state = build_seats()
    join(state, 0)
    state.leave(0, "a", True, 0.0)
    report(state, 0, 13, fault="diverged")
    state.end_host("h0", BROKEN)
    assert state.leave(0, "a", True, 0.0).phase is SeatPhase.LEFT


@pytest.mark.parametrize("is_closed_first", [True, False], ids=["closed-before", "closed-after"])
def test_a_bundle_is_not_waited_for_once_the_sweep_is_closed(is_closed_first):
    state = build_seats()
    join(state, 0)
    report(state, 0, 20)
    state.leave(0, "a", True, 0.0)
    ends = [state.close, lambda: state.end_host("h0", BROKEN)]
    for end in ends if is_closed_first else reversed(ends):
        end()
    assert "before the bundle was written" in state.leave(0, "a", True, 0.0).reason


def test_a_host_that_never_came_up_fails_those_who_waited_for_it():
    state = Seats(lease_s=30)
    state.open_host(HostStart(host_id="h0", group="g", base={}), 1, None)
    join(state, 0)
    join(state, 1, group="other")
    state.end_host("h0", BROKEN)
    assert state.advance(0, "a", 20, 0.0).report.fault == "failed"
    assert phase(state, 1) is SeatPhase.WAITING


def test_a_host_that_ends_without_a_failure_puts_its_trials_back_in_line():
    state = build_seats(seats=1)
    join(state, 0, 1)
    state.end_host("h0", None)
    state.open_host(HostStart(host_id="h1", group="g", base={}), 1, None)
    state.hello("h1", "one")
    assert (phase(state, 0), phase(state, 1)) == (SeatPhase.SEATED, SeatPhase.WAITING)


def test_a_fault_frees_the_seat_and_is_told_again_and_again():
    state = build_seats(seats=1)
    join(state, 0, 1)
    report(state, 0, 13, fault="diverged")
    assert phase(state, 1) is SeatPhase.SEATED
    assert list(credit(state)) == [1]
    assert state.advance(0, "a", 20, 0.0).report.fault == "diverged"
    assert state.leave(0, "a", True, 0.0).phase is SeatPhase.LEFT


# ------------------------------------------------------------------------- tasks and the end


def test_a_task_is_ordered_until_it_is_reported():
    state = build_seats(seats=1)
    task = Task(spec=SPEC, split="validation")
    state.submit_task("base", "g", task, 0.0)
    state.submit_task("base", "g", task, 1.0)
    assert [order.task_id for order in state.orders("h0", "one").tasks] == ["base"]
    done = TaskReport(task_id="base", metrics={"eval_loss": 2.0})
    state.take("h0", "one", HostReport(tasks=(done,)))
    assert state.tasks["base"].report == done
    assert state.orders("h0", "one").tasks == ()


def test_a_task_takes_a_seat_while_it_runs():
    state = build_seats(seats=1)
    state.submit_task("base", "g", Task(spec=SPEC, split="test"), 0.0)
    assert join(state, 0) == [SeatPhase.WAITING]


def test_a_task_that_its_host_dies_of_twice_is_given_up():
    state = build_seats(seats=1)
    state.submit_task("base", "g", Task(spec=SPEC, split="test"), 0.0)
    for now, then in (("one", "two"), ("two", "three")):
        state.orders("h0", now)
        state.hello("h0", then)
    assert "died 2 times during this task" in state.tasks["base"].report.error


def test_closing_drops_seats_but_lets_those_who_are_leaving_leave():
    state = build_seats(seats=2)
    join(state, 0, 1)
    state.leave(0, "a", True, 0.0)
    state.close()
    orders = state.orders("h0", "one")
    assert [order.is_leaving for order in orders.seats] == [True]
    assert not orders.is_over
    freed(state, 0)
    assert state.orders("h0", "one").is_over
    assert phase(state, 1) is SeatPhase.CLOSED


# ---------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("base", "key"),
    [
        (BaseSpec(model="org/m"), "org/m nf4+dq auto"),
        (BaseSpec(model="org/m", revision="abc", double_quant=False), "org/m@abc nf4 auto"),
        (BaseSpec(model="m", quantization="int8", compute_dtype="float32"), "m int8 float32"),
        (BaseSpec(model="m", quantization="none", double_quant=False), "m none auto"),
    ],
    ids=["nf4", "pinned", "int8", "unquantized"],
)
def test_group_keys_are_readable_and_blind_to_what_does_not_matter(base, key):
    spec = TrialSpec(base=base, optim=OptimSpec(steps=1), data=DataSpec(train="rows.jsonl"))
    assert group_key(spec) == key
    assert base_key(spec.to_dict()["base"]) == key


# ------------------------------------------------------------------------------ silent hosts

PROCESS = HostProcess(node_id="n", pid=7)


def silent(state, now):
    return [(host.host_id, host.process, host.reason) for host in state.take_silent(now, 60, 600)]


def test_a_host_without_signs_of_life_is_named_once():
    state = build_seats(hosts=2)
    for host in ("h0", "h1"):
        state.beat(host, "one", PROCESS, 0.0)
    state.beat("h1", "one", PROCESS, 30.0)
    assert silent(state, 60.0) == []
    assert silent(state, 61.0) == [("h0", PROCESS, "gave no sign of life for 61 s")]
    assert silent(state, 62.0) == []  # its end is under way
    state.hello("h0", "two")
    state.beat("h0", "one", PROCESS, 63.0)  # of the process that was ended
    assert silent(state, 500.0) == [("h1", PROCESS, "gave no sign of life for 470 s")]


def test_a_host_that_lives_and_never_finishes_is_named():
    state = build_seats()
    state.note_orders("h0", "one", 6.0)
    for now in range(0, 700, 50):
        state.beat("h0", "one", PROCESS, now)
    assert silent(state, 606.0) == []
    state.take("h0", "one", HostReport())  # done in time: it waits for orders
    assert silent(state, 607.0) == []
    state.note_orders("h0", "one", 6.0)
    assert silent(state, 607.0) == [("h0", PROCESS, "has been in one piece of work for 601 s")]


def test_loading_a_base_may_take_its_time():
    state = build_seats(hosts=0)
    state.open_host(HostStart(host_id="h0", group="g", base={}), 1, None)
    for now in range(0, 5000, 50):
        state.beat("h0", "one", PROCESS, now)
    assert silent(state, 5000.0) == []
    assert silent(state, 5020.0) == [("h0", PROCESS, "gave no sign of life for 70 s")]


def test_a_pause_of_the_broker_counts_against_nobody():
    state = build_seats()
    join(state, 0)
    state.beat("h0", "one", PROCESS, 0.0)
    state.note_orders("h0", "one", 0.0)
    state.forgive_pause(5000.0)
    state.expire(5001.0)
    assert state.advance(0, "a", 10, 5001.0).phase is SeatPhase.SEATED
    assert silent(state, 5001.0) == []


# --------------------------------------------------------------------------------- activities


def activity(state, host="h0"):
    found = describe_activity(state.hosts[host], state.members.values(), state.tasks)
    return found.stage, found.trials, found.tasks


def test_a_host_starts_loads_and_then_shows_who_is_seated():
    state = Seats(lease_s=30)
    state.open_host(HostStart(host_id="h0", group="g", base={}), 2, None)
    join(state, 5)
    assert activity(state) == ("starting", (), ())
    state.beat("h0", "one", HostProcess(node_id="n", pid=1), 1.0)
    assert activity(state) == ("loading", (), ())
    state.hello("h0", "one")
    state.submit_task("task", "g", Task(spec=SPEC, split="test"), 2.0)
    assert activity(state) == ("working", (5,), ("task",))


def test_an_activity_names_the_stored_form_of_the_base():
    state = build_seats(group=base_key(SPEC["base"]))
    found = describe_activity(state.hosts["h0"], state.members.values(), state.tasks)
    assert found.form == "nf4"


# ------------------------------------------------------------------------------- measurements


def decided(seats, reason="knee", speeds=(1.0, 2.0)):
    return HostGauge(decision=SeatsDecision(seats=seats, reason=reason, speeds=speeds))


def tell(state, gauge, host="h0"):
    orders = state.orders(host, "one")
    holding = frozenset(order.key for order in orders.seats)
    state.take(host, "one", HostReport(holding=holding, gauge=gauge))


def test_a_host_that_decides_on_more_seats_takes_who_waits():
    state = build_seats(seats=1)
    assert join(state, 0, 1, 2, 3) == ["seated", "waiting", "waiting", "waiting"]
    tell(state, decided(3))
    assert [phase(state, trial) for trial in range(4)] == ["seated"] * 3 + ["waiting"]
    found = describe_activity(state.hosts["h0"], state.members.values(), state.tasks)
    assert (found.seats, found.limit) == (3, "knee")


def test_fewer_seats_take_no_trial_from_its_seat():
    state = build_seats(seats=3)
    join(state, 0, 1, 2, 3)
    tell(state, decided(1, "memory"))
    assert [phase(state, trial) for trial in range(4)] == ["seated"] * 3 + ["waiting"]
    for trial in (0, 1):
        state.leave(trial, "a", keep=False, now=0.0)
        assert phase(state, 3) is SeatPhase.WAITING
    state.leave(2, "a", keep=False, now=0.0)
    assert phase(state, 3) is SeatPhase.SEATED


def test_the_next_host_of_a_group_knows_what_was_measured():
    state = build_seats(seats=1)
    tell(state, decided(2, speeds=(5.0, 9.0)))
    reading = MemoryReading(
        seats=1, train_tokens=64, forecast={}, measured={}, capacity=9,
        correction=Correction(factor=1.5),
    )  # fmt: skip
    tell(state, HostGauge(reading=reading))
    prior = state.gauges.priors["g"]
    assert prior.speeds == (5.0, 9.0)
    assert prior.corrections == {64: Correction(factor=1.5)}
    told = state.gauges.take()
    assert [(one.host_id, one.group) for one in told] == [("h0", "g")] * 2
    assert state.gauges.take() == []
