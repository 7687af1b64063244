"""Requests from a second terminal, with and without a running driver."""

import time

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.journal.requests import (
    CANCELLED_BY_USER,
    STOPPED_BY_USER,
    Request,
    UserRequests,
    cancel_sweep,
    post_request,
    stop_trial,
    take_requests,
)
from orchestrator.journal.sweep_storage import SweepStorage, read_history
from orchestrator.outcome import Outcome
from tests.support.events import ANY_TRIAL, event


@pytest.fixture
def storage(location):
    """A sweep with three trials: ended, reported, and without a report."""
    storage = SweepStorage(location)
    with storage.open_log() as events:
        events.append(event("sweep_started", sweep_id="s", spec={}, digest="d"))
        for trial in range(3):
            events.append(event("trial_started", trial=trial, knobs={}, spec=ANY_TRIAL))
        for trial in range(2):
            events.append(event("report", trial=trial, step=10, metrics={"eval_loss": 1.0}))
        end = {"outcome": "completed", "reason": "", "step": 10, "bundle": "b"}
        events.append(event("trial_ended", trial=0, **end))
    return storage


def requests_of(storage):
    storage.collect("requests")
    return take_requests(storage.folder)


def test_requests_are_taken_once(storage):
    post_request(storage, Request(kind="stop", trial=3))
    post_request(storage, Request(kind="cancel"))
    taken = requests_of(storage)
    assert {(one.kind, one.trial) for one in taken} == {("stop", 3), ("cancel", None)}
    assert requests_of(storage) == []


def test_a_folder_without_requests_has_none(tmp_path):
    assert take_requests(tmp_path) == []


def test_what_is_no_request_is_dropped(storage):
    storage.send("requests/torn.json", b"{")
    storage.send("requests/other.json", b'{"kind": "stop", "what": 1}')
    storage.send("requests/list.json", b'{"kind": "stop", "trial": [1]}')
    storage.send("requests/huge.json", b'{"kind": "stop", "trial": 1' + b"0" * 5000 + b"}")
    storage.send("requests/kind.json", b'{"kind": "jump"}')
    post_request(storage, Request(kind="cancel"))
    assert requests_of(storage) == [Request(kind="cancel")]
    assert requests_of(storage) == []


def test_requests_add_up():
    requests = UserRequests()
    assert (requests.is_cancelled, requests.is_stopped(3)) == (False, False)
    requests.add(Request(kind="stop", trial=3))
    assert (requests.is_cancelled, requests.is_stopped(3), requests.is_stopped(4)) == (
        False, True, False,
    )  # fmt: skip
    requests.add(Request(kind="cancel"))
    assert requests.is_cancelled


def test_a_stop_without_a_driver_ends_the_trial_and_keeps_its_adapter(storage):
    assert "no driver" in stop_trial(storage, 1)
    record = read_history(storage.location).trials[1]
    assert (record.outcome, record.reason) == (Outcome.CANCELLED, STOPPED_BY_USER.reason)
    assert (record.ended_by, record.bundle) == ("user", "trials/t0001/bundle")
    assert requests_of(storage) == []


def test_a_trial_that_measured_nothing_leaves_no_adapter(storage):
    stop_trial(storage, 2)
    assert read_history(storage.location).trials[2].bundle is None


def test_a_stop_with_a_driver_is_left_for_it(storage):
    with storage.open_log():
        assert stop_trial(storage, 1) == "trial 1 is told to stop"
    assert read_history(storage.location).trials[1].outcome is None
    assert requests_of(storage) == [Request(kind="stop", trial=1)]


@pytest.mark.parametrize("trial", [0, 7], ids=["ended", "unknown"])
def test_only_a_trial_without_an_end_can_be_stopped(storage, trial):
    with pytest.raises(SweepSpecError, match=rf"stop: got {trial}.*without an end: 1, 2"):
        stop_trial(storage, trial)


def test_a_cancel_without_a_driver_ends_everything(storage):
    assert "no driver" in cancel_sweep(storage)
    history = read_history(storage.location)
    assert (history.status, history.reason) == ("cancelled", CANCELLED_BY_USER)
    assert [trial.outcome for trial in history.trials.values()] == [
        Outcome.COMPLETED, Outcome.CANCELLED, Outcome.CANCELLED,
    ]  # fmt: skip
    with pytest.raises(SweepSpecError, match="which is cancelled"):
        cancel_sweep(storage)


def test_a_cancel_with_a_driver_is_left_for_it(storage):
    with storage.open_log():
        assert cancel_sweep(storage) == "the sweep is told to end"
    assert read_history(storage.location).status == "running"
    assert requests_of(storage) == [Request(kind="cancel")]


def test_a_cancel_that_comes_after_the_training_is_told_so(storage):
    with storage.open_log() as log:
        log.append(event("phase", name="searching", seconds=1.0))
        log.append(event("phase", name="evaluating serving forms", seconds=1.0))
        with pytest.raises(SweepSpecError, match=r"which registers its adapters now.*Wait for"):
            cancel_sweep(storage)
        log.append(event("sweep_resumed"))
        assert cancel_sweep(storage) == "the sweep is told to end"
    assert requests_of(storage) == [Request(kind="cancel")]


def test_ending_a_sweep_that_lies_there_takes_none_of_its_time(storage):
    began = read_history(storage.location).meter.wall_clock_s()
    time.sleep(0.3)
    stop_trial(storage, 1)
    cancel_sweep(storage)
    assert read_history(storage.location).meter.wall_clock_s() == began
