"""Requests from a second terminal: to a driver that runs, and to a sweep without one."""

import pytest

from orchestrator.control import (
    CANCELLED_BY_USER,
    STOPPED_BY_USER,
    Request,
    Wishes,
    cancel_sweep,
    post_request,
    stop_trial,
    take_requests,
)
from orchestrator.errors import SweepSpecError
from orchestrator.events import EventLog
from orchestrator.history import SweepHistory
from orchestrator.outcome import Outcome


@pytest.fixture
def log(tmp_path):
    """The log of a sweep with a trial that ended, one that reported and one that did not."""
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        events.append("sweep_started", sweep_id="s", spec={}, digest="d")
        for trial in range(3):
            events.append("trial_started", trial=trial, knobs={}, spec={})
        for trial in range(2):
            events.append("report", trial=trial, step=10, metrics={"eval_loss": 1.0})
        end = {"outcome": "completed", "reason": "", "step": 10, "bundle": "b"}
        events.append("trial_ended", trial=0, **end)
    return path


def test_requests_are_taken_once(tmp_path):
    post_request(tmp_path, Request(kind="stop", trial=3))
    post_request(tmp_path, Request(kind="cancel"))
    taken = take_requests(tmp_path)
    assert {(one.kind, one.trial) for one in taken} == {("stop", 3), ("cancel", None)}
    assert take_requests(tmp_path) == []


def test_a_folder_without_requests_has_none(tmp_path):
    assert take_requests(tmp_path) == []


def test_wishes_add_up():
    wishes = Wishes()
    assert (wishes.is_cancelled, wishes.is_stopped(3)) == (False, False)
    wishes.add(Request(kind="stop", trial=3))
    assert (wishes.is_cancelled, wishes.is_stopped(3), wishes.is_stopped(4)) == (
        False, True, False,
    )  # fmt: skip
    wishes.add(Request(kind="cancel"))
    assert wishes.is_cancelled


def test_a_stop_without_a_driver_ends_the_trial_and_keeps_its_adapter(log, tmp_path):
    assert "no driver" in stop_trial(tmp_path, log, 1)
    record = SweepHistory.read(log).trials[1]
    assert (record.outcome, record.reason) == (Outcome.CANCELLED, STOPPED_BY_USER)
    assert (record.ended_by, record.bundle) == ("user", "trials/t0001/bundle")
    assert take_requests(tmp_path) == []


def test_a_trial_that_measured_nothing_leaves_no_adapter(log, tmp_path):
    stop_trial(tmp_path, log, 2)
    assert SweepHistory.read(log).trials[2].bundle is None


def test_a_stop_with_a_driver_is_left_for_it(log, tmp_path):
    with EventLog(log):
        assert stop_trial(tmp_path, log, 1) == "trial 1 is told to stop"
    assert SweepHistory.read(log).trials[1].outcome is None
    assert take_requests(tmp_path) == [Request(kind="stop", trial=1)]


@pytest.mark.parametrize("trial", [0, 7], ids=["ended", "unknown"])
def test_only_a_trial_without_an_end_can_be_stopped(log, tmp_path, trial):
    with pytest.raises(SweepSpecError, match=rf"stop: got {trial}.*without an end: 1, 2"):
        stop_trial(tmp_path, log, trial)


def test_a_cancel_without_a_driver_ends_everything(log, tmp_path):
    assert "no driver" in cancel_sweep(tmp_path, log)
    history = SweepHistory.read(log)
    assert (history.status, history.reason) == ("cancelled", CANCELLED_BY_USER)
    assert [trial.outcome for trial in history.trials.values()] == [
        Outcome.COMPLETED, Outcome.CANCELLED, Outcome.CANCELLED,
    ]  # fmt: skip
    with pytest.raises(SweepSpecError, match="which is cancelled"):
        cancel_sweep(tmp_path, log)


def test_a_cancel_with_a_driver_is_left_for_it(log, tmp_path):
    with EventLog(log):
        assert cancel_sweep(tmp_path, log) == "the sweep is told to end"
    assert SweepHistory.read(log).status == "running"
    assert take_requests(tmp_path) == [Request(kind="cancel")]
