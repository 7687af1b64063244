"""Ray Tune's callbacks on trials become events, each fact once."""

import pickle
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from orchestrator.errors import ClusterError, SweepStorageError
from orchestrator.journal.events import PhaseEnded
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import EventLog, read_events
from orchestrator.journal.recording import SweepRecord, TrialRecorder
from orchestrator.journal.requests import STOPPED_BY_USER, Request, UserRequests
from orchestrator.outcome import Outcome, TrialOutcome
from tests.support.events import ANY_TRIAL, event
from trainables.hosts.orders import WORST_METRICS, fault_metrics
from trainables.hosts.progress import BACK_TO_STEP, LOST_STEP

HORIZON = 40


class Scene:
    """A recorder with Ray Tune's trials."""

    def __init__(self, storage):
        self.storage = storage
        self.log = EventLog(storage / "events.jsonl")
        self.changes = []
        self.record = SweepRecord(
            self.log, SweepHistory(), lambda history: self.changes.append(len(history.trials))
        )
        self.requests, self.verdicts = UserRequests(), {}
        self.broken = []
        self.recorder = TrialRecorder(
            self.record, HORIZON, self.verdicts.get, self.requests, self.check_hosts
        )

    def check_hosts(self):
        for problem in self.broken:
            raise problem

    def trial(self, number=0, last=None, error=None):
        config = {"trial": number, "knobs": {"lora.rank": 4}, "spec": ANY_TRIAL}
        return SimpleNamespace(config=config, last_result=last or {}, get_error=lambda: error)

    def start(self, number=0, **kin):
        trial = self.trial(number)
        trial.config |= kin
        self.recorder.on_trial_start(0, [], trial)

    def report(self, step, loss=2.0, number=0, **more):
        result = {"step": step, **WORST_METRICS, "eval_loss": loss, "tokens_per_s": 1.0, **more}
        self.recorder.on_trial_result(0, [], self.trial(number), result)

    def complete(self, last, number=0):
        self.recorder.on_trial_complete(0, [], self.trial(number, last))

    def events(self):
        return [(one.kind, asdict(one.event)) for one in read_events(self.log.path)]

    def kinds(self):
        return [kind for kind, _ in self.events()]

    def end(self, number=0):
        record = self.record.history.trials[number]
        return record.outcome, record.reason, record.bundle


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    scene.log.close()


def test_an_event_is_on_disk_and_in_memory_before_anyone_hears_of_it(tmp_path):
    seen = []
    with EventLog(tmp_path / "events.jsonl") as log:

        def look(history):
            seen.append((history.phases.copy(), len(list(read_events(log.path)))))

        record = SweepRecord(log, SweepHistory(), look)
        record.add(event("phase", name="searching", seconds=2.0))
    assert seen == [({"searching": 2.0}, 1)]


def test_an_event_that_cannot_be_written_changes_nothing(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    heard = []
    record = SweepRecord(log, SweepHistory(), heard.append)
    with pytest.raises(ValueError, match="JSON"):
        record.add(PhaseEnded(name="searching", seconds=float("nan")))
    log.close()
    assert record.history == SweepHistory()
    assert heard == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("OSError: [Errno 28] No space left on device", "no space is left"),
        (
            "SafetensorError: Error while serializing: I/O error: No space left on device "
            "(os error 28)",
            "no space is left",
        ),
        ("OSError: [Errno 122] Disk quota exceeded", "no space is left"),
        ("OSError: [Errno 30] Read-only file system: 'runs'", "the storage cannot be used"),
        ("OSError: [Errno 116] Stale file handle", "the storage cannot be used"),
        ("SafetensorError: I/O error: Input/output error (os error 5)", "storage cannot be used"),
        (
            "s3://b/runs: cannot be used (no answer); allowed: a bucket on an S3 server that "
            "answers and may be read and written. Check the address and the server.",
            "the storage cannot be used",
        ),
    ],
)
def test_a_state_that_the_storage_refuses_ends_the_run_and_not_its_trial(scene, said, told):
    scene.start()
    scene.report(10)
    with pytest.raises(SweepStorageError, match=rf"trial 0: .*{told}.*same command"):
        scene.report(20, done=True, outcome="failed", reason=said)
    assert scene.record.problem is not None
    assert scene.kinds() == ["trial_started", "report"]
    assert scene.record.history.trials[0].outcome is None


def test_a_damaged_state_is_recorded_once_and_its_marks_are_no_metrics(scene):
    scene.start()
    marks = {LOST_STEP: 20.0, BACK_TO_STEP: 10.0}
    for step in (30, 40):
        scene.report(step, **marks)
    assert scene.kinds() == ["trial_started", "state_lost", "report", "report"]
    assert scene.events()[1][1] == {"trial": 0, "step": 20, "back_to": 10}
    assert not scene.record.history.reports[0][1].metrics.keys() & marks.keys()


def test_a_trial_that_starts_again_is_the_same_trial(scene):
    scene.start()
    scene.report(20)
    scene.start()
    assert scene.kinds() == ["trial_started", "report", "trial_resumed"]
    assert scene.events()[0][1]["knobs"] == {"lora.rank": 4}
    assert scene.events()[2][1] == {"trial": 0, "step": 20}


def test_a_report_holds_the_metrics_and_not_what_ray_tune_adds(scene):
    scene.start()
    scene.report(10, time_this_iter_s=3.0, hostname="here")
    _, fields = scene.events()[1]
    assert fields["step"] == 10
    assert fields["is_fault"] is False
    assert set(fields["metrics"]) == {*WORST_METRICS, "tokens_per_s"}


def test_a_result_without_a_step_is_no_report(scene):
    scene.start()
    scene.recorder.on_trial_result(0, [], scene.trial(), {"done": True})
    assert scene.kinds() == ["trial_started"]


def test_what_a_resumed_trial_says_again_is_recorded_once(scene):
    scene.start()
    for step, loss in ((10, 3.0), (20, float("nan"))):
        scene.report(step, loss)
    scene.start()
    for step, loss in ((10, 3.0), (20, float("nan")), (30, 1.0)):
        scene.report(step, loss, tokens_per_s=9.0)
    steps = [fields["step"] for kind, fields in scene.events() if kind == "report"]
    assert steps == [10, 20, 30]
    assert scene.record.history.trials[0].step == 30


def test_steps_trained_again_with_another_result_replace_the_first(scene):
    scene.start()
    for step, loss in ((10, 3.0), (20, 2.0), (20, 2.5)):
        scene.report(step, loss)
    reports = scene.record.history.trials[0].reports
    assert [(each.step, each.metrics["eval_loss"]) for each in reports] == [(10, 3.0), (20, 2.5)]


@pytest.mark.parametrize("fault", ["diverged", "infeasible", "failed"])
def test_a_fault_is_marked_and_ends_without_a_bundle(scene, fault):
    scene.start()
    scene.report(10)
    result = {**fault_metrics({"step": 10}), "outcome": fault, "reason": "it broke"}
    scene.recorder.on_trial_result(0, [], scene.trial(), result)
    scene.complete(result)
    assert scene.events()[2][1]["is_fault"] is True
    assert scene.end() == (Outcome(fault), "it broke", None)


@pytest.mark.parametrize(
    ("last", "end"),
    [
        (
            {"step": 40, "outcome": "completed", "reason": "trained 40 steps"},
            (Outcome.COMPLETED, "trained 40 steps", "trials/t0000/bundle"),
        ),
        (
            {"step": 20},
            (Outcome.STOPPED, "others were better at step 20", "trials/t0000/bundle"),
        ),
        ({"step": 40}, (Outcome.COMPLETED, "trained 40 steps", "trials/t0000/bundle")),
        ({}, (Outcome.CANCELLED, "ended before its first report", None)),
        (
            {"trial_id": "a1", "done": True},
            (Outcome.CANCELLED, "ended before its first report", None),
        ),
        (
            {"step": 0, "outcome": "cancelled", "reason": "the sweep ended"},
            (Outcome.CANCELLED, "the sweep ended", None),
        ),
    ],
    ids=["completed", "stopped", "horizon", "silent", "without-a-report", "cancelled"],
)
def test_an_end_says_how_and_why(scene, last, end):
    scene.start()
    if last.get("step"):
        scene.report(last["step"])
    scene.complete(last)
    assert scene.end() == end


def test_the_scheduler_says_why_it_stopped_a_trial(scene):
    scene.start()
    scene.report(20)
    scene.verdicts[0] = TrialOutcome(Outcome.DIVERGED, "ran away")
    scene.complete({"step": 20})
    assert scene.end() == (Outcome.DIVERGED, "ran away", None)


def test_what_a_trial_says_of_its_own_end_goes_before_the_scheduler(scene):
    scene.start()
    scene.report(40)
    scene.verdicts[0] = TrialOutcome(Outcome.STOPPED, "others were better")
    scene.complete({"step": 40, "outcome": "completed", "reason": "trained 40 steps"})
    assert scene.end()[:2] == (Outcome.COMPLETED, "trained 40 steps")


@pytest.mark.parametrize(
    "last",
    [{"step": 20}, {"step": 20, "outcome": "stopped", "reason": "stopped from outside"}],
    ids=["at-a-report", "between-two"],
)
def test_a_trial_that_the_user_stopped_keeps_its_adapter(scene, last):
    scene.start()
    scene.report(20)
    scene.requests.add(Request(kind="stop", trial=0))
    scene.complete(last)
    assert scene.end() == (Outcome.CANCELLED, STOPPED_BY_USER.reason, "trials/t0000/bundle")
    assert scene.record.history.trials[0].ended_by == "user"


def test_a_trial_stopped_before_its_first_report_reports_nothing(scene):
    scene.start()
    scene.requests.add(Request(kind="stop", trial=0))
    result = {**fault_metrics({"step": 0}), "outcome": "stopped", "reason": "from outside"}
    scene.recorder.on_trial_result(0, [], scene.trial(), result)
    scene.complete(result)
    assert scene.kinds() == ["trial_started", "trial_ended"]
    assert scene.end() == (Outcome.CANCELLED, STOPPED_BY_USER.reason, None)


def test_a_trial_remembers_where_it_comes_from(scene):
    scene.start(0, repeat_of=3)
    scene.start(1, parent={"trial": 0, "step": 20, "replaces": 2})
    assert scene.record.history.trials[0].repeat_of == 3
    assert scene.record.history.trials[1].parent == {"trial": 0, "step": 20, "replaces": 2}


def test_a_process_that_failed_for_good_gives_its_last_line(scene):
    scene.start()
    error = "Traceback\n  File x\nValueError: no\n\n"
    scene.recorder.on_trial_error(0, [], scene.trial(error=error))
    assert scene.end() == (Outcome.FAILED, "its process failed: ValueError: no", None)


def test_a_trial_ends_once(scene):
    scene.start()
    scene.complete({"step": 20})
    scene.complete({"step": 40})
    scene.record.end_trial(0, TrialOutcome(Outcome.FAILED, "too late"))
    assert scene.kinds().count("trial_ended") == 1
    assert scene.end()[0] is Outcome.STOPPED


def test_an_end_of_a_trial_that_never_started_is_no_event(scene):
    scene.complete({"step": 20}, number=7)
    scene.recorder.on_trial_error(0, [], scene.trial(7, error="it broke"))
    assert scene.events() == []


def test_ray_tune_can_pickle_the_recorder(scene):
    assert isinstance(pickle.loads(pickle.dumps(scene.recorder)), TrialRecorder)


def test_a_record_on_a_closed_log_raises(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    record = SweepRecord(log, SweepHistory(), lambda history: None)
    log.close()
    with pytest.raises((SweepStorageError, ValueError)):
        record.add(event("phase", name="searching", seconds=1.0))


def test_a_trial_that_ran_away_with_its_last_steps_did_not_complete(scene):
    scene.start()
    scene.report(40)
    scene.verdicts[0] = TrialOutcome(Outcome.DIVERGED, "ran away")
    scene.complete({"step": 40, "outcome": "completed", "reason": "trained 40 steps"})
    assert scene.end() == (Outcome.DIVERGED, "ran away", None)


@pytest.mark.parametrize(
    ("broken", "error", "said"),
    [
        ([], None, "trial 0: each process that Ray started for it died"),
        ([ClusterError("the broker died")], "ActorDiedError", "the broker died"),
    ],
    ids=["killed", "without a broker"],
)
def test_a_death_around_a_trial_ends_the_run_and_not_the_trial(scene, broken, error, said):
    scene.start()
    scene.report(20)
    scene.broken += broken
    with pytest.raises(ClusterError, match=said):
        scene.recorder.on_trial_error(0, [], scene.trial(error=error))
    assert said in str(scene.record.problem)
    assert scene.kinds() == ["trial_started", "report"]
