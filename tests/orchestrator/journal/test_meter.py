"""Spending adds up over sessions with any kind of end."""

from orchestrator.journal.history import SweepHistory
from orchestrator.journal.meter import Meter
from tests.support.events import entry


def fold(*events):
    history = SweepHistory()
    for at, kind, fields in events:
        history.apply(entry(kind, float(at), **fields))
    return history.meter


START = {"sweep_id": "s", "spec": {}, "digest": "d"}
END = {"status": "completed", "reason": ""}
PHASE = {"name": "searching", "seconds": 1.0}


def usage(cpu_s, gpu_s=0.0):
    return {"cpu_s": cpu_s, "gpu_s": gpu_s}


def test_nothing_is_spent_before_a_start():
    assert fold() == Meter()
    assert fold((5, "phase", PHASE)).wall_clock_s(now=100.0) == 0.0


def test_a_session_lasts_from_its_start_to_its_end():
    meter = fold((10, "sweep_started", START), (17, "sweep_ended", END))
    assert meter.wall_clock_s(now=1000.0) == 7.0


def test_a_session_under_way_lasts_until_now():
    meter = fold((10, "sweep_started", START), (14, "phase", PHASE))
    assert (meter.wall_clock_s(), meter.wall_clock_s(now=30.0)) == (4.0, 20.0)


def test_a_session_that_was_killed_lasted_until_its_last_event():
    meter = fold(
        (10, "sweep_started", START), (14, "phase", PHASE),
        (1000, "sweep_resumed", {}), (1003, "sweep_ended", END),
    )  # fmt: skip
    assert meter.wall_clock_s() == 7.0


def test_what_is_written_between_two_sessions_takes_no_time():
    meter = fold(
        (0, "sweep_started", START), (5, "sweep_ended", END), (900, "phase", PHASE),
        (1000, "sweep_resumed", {}), (1001, "phase", PHASE),
    )  # fmt: skip
    assert meter.wall_clock_s() == 6.0


def test_usage_is_cumulative_within_a_session_and_added_up_over_them():
    meter = fold(
        (0, "sweep_started", START), (1, "usage", usage(2.0, 1.0)), (2, "usage", usage(5.0, 3.0)),
        (9, "sweep_resumed", {}), (10, "usage", usage(4.0, 2.0)),
    )  # fmt: skip
    assert (meter.cpu_s, meter.gpu_s) == (9.0, 5.0)


def test_what_workers_beside_the_hosts_used_is_added_to_what_hosts_used():
    meter = fold(
        (0, "sweep_started", START), (1, "usage", usage(140.0, 7.0)),
        (2, "usage_added", usage(90.0)), (3, "usage_added", usage(8.0, 1.0)),
        (4, "usage", usage(140.0, 7.0)),
    )  # fmt: skip
    assert (meter.cpu_s, meter.gpu_s) == (238.0, 8.0)
