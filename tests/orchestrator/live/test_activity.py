"""Present activities with their durations, and the time left of counted pieces."""

import pytest

from orchestrator.hosts.members import HostActivity
from orchestrator.live.activity import Activities, describe_host

BOTH = "base nf4, 3 of 4 seats: trial 7; 2 evaluations"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def host(stage: str, **fields: object) -> HostActivity:
    known = {"host_id": "h000", "form": "nf4", "seats": 2}
    return HostActivity(stage=stage, **(known | fields))  # type: ignore[arg-type]


def test_the_time_left_follows_the_mean_of_the_pieces_done(clock: Clock) -> None:
    activities = Activities(clock)
    activities.enter("evaluating serving forms")
    for done, at in enumerate([0.0, 10.0, 30.0]):
        clock.now = at
        assert activities.step(f"form {done + 1} of 8", done, 8)
    clock.now = 34.0
    assert activities.lines() == [
        "evaluating serving forms · 34 s",
        "form 3 of 8 · 4 s; about 1:26 left",  # six at 15 s, four seconds of them gone
    ]


def test_no_time_is_promised_before_a_piece_is_done(clock: Clock) -> None:
    activities = Activities(clock)
    activities.enter("evaluating serving forms")
    activities.step("form 1 of 8", 0, 8)
    clock.now = 100.0
    assert activities.lines()[1] == "form 1 of 8 · 1:40"


def test_a_wait_stands_beside_what_goes_on_and_keeps_its_start(clock: Clock) -> None:
    activities = Activities(clock)
    activities.enter("searching")
    assert activities.wait("waiting for 2 more GPUs")
    clock.now = 65.0
    assert activities.wait("waiting for 2 more GPUs; 1 node on the way")
    assert not activities.wait("waiting for 2 more GPUs; 1 node on the way")
    assert activities.lines() == [
        "searching · 1:05",
        "waiting for 2 more GPUs; 1 node on the way · 1:05",
    ]
    assert activities.wait("")
    assert activities.lines() == ["searching · 1:05"]


def test_a_new_phase_ends_the_step_of_the_last(clock: Clock) -> None:
    activities = Activities(clock)
    activities.enter("evaluating")
    activities.step("measuring trial 3 on test rows")
    assert activities.enter("registering")
    assert not activities.enter("registering")
    assert activities.lines() == ["registering · 0 s"]


def test_the_duration_of_a_host_counts_from_its_last_change(clock: Clock) -> None:
    activities = Activities(clock)
    assert activities.take_hosts([host("loading")]) == ["host h000: loading base nf4"]
    clock.now = 12.0
    assert activities.take_hosts([host("loading")]) == []
    assert activities.lines() == ["host h000: loading base nf4 · 12 s"]
    activities.take_hosts([host("working", trials=(3,))])
    clock.now = 15.0
    assert activities.take_hosts([host("working", trials=(3, 4))]) == []  # not a new stage
    assert activities.lines() == ["host h000: base nf4, 2 of 2 seats: trials 3, 4 · 0 s"]
    activities.take_hosts([])
    assert activities.lines() == []


@pytest.mark.parametrize(
    ("activity", "said"),
    [
        (host("starting"), "starting a worker for base nf4"),
        (host("working"), "base nf4 is loaded, 2 seats"),
        (host("working", tasks=("a",)), "base nf4, 1 of 2 seats: 1 evaluation"),
        (host("working", trials=(7,), tasks=("a", "b"), seats=4), BOTH),
        (host("ending"), "ending, base nf4"),
        (host("working", limit="memory"), "base nf4 is loaded, 2 seats (limited by memory)"),
        (host("working", seats=1, limit="knee", trials=(7,)),
         "base nf4, 1 of 1 seat (one more would not pay): trial 7"),
    ],
)  # fmt: skip
def test_what_a_host_does_is_said_in_words(activity: HostActivity, said: str) -> None:
    assert describe_host(activity) == said


def test_a_decision_on_seats_is_told_once(clock: Clock) -> None:
    activities = Activities(clock)
    activities.take_hosts([host("working", seats=1)])
    decided = host("working", seats=4, limit="knee", trials=(1,))
    said = "host h000: base nf4 is loaded, 4 seats (one more would not pay)"
    assert activities.take_hosts([decided]) == [said]
    assert activities.take_hosts([decided]) == []
