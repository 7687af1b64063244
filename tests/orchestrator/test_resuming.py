"""What of a sweep goes on when it is run again, under the same settings and under larger ones."""

import re
from dataclasses import replace

import pytest

from orchestrator.errors import SweepStorageError
from orchestrator.journal.events import SweepStarted
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import (
    CANCELLED_BY_USER,
    STOPPED_BY_USER,
    Request,
    post_request,
    take_requests,
)
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.preflight.continuing import require_same_sweep
from orchestrator.preflight.data_report import DataReport
from orchestrator.resuming import SweepProgress
from orchestrator.spec.finals_sections import FinalsSpec
from orchestrator.spec.sections import ExitSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import event
from trainables.memory_settings import MEMORY_NAMES
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec, TrialSpec

SPEC = SweepSpec(
    name="tiny",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows", test_fraction=0.0),
    optim=OptimSpec(steps=20),
    eval=EvalSpec(every=10),
    budget=BudgetSpec(trials=2),
    space={"lora.rank": {"choice": [2, 4, 8, 16]}},
    finals=FinalsSpec(top=1, seeds=0, forms=()),
)
TRIAL = TrialSpec(base=SPEC.base, optim=SPEC.optim, data=SPEC.data, eval=SPEC.eval).to_dict()


class Scene:
    """A sweep's folder, opened again and again."""

    def __init__(self, storage, spec=SPEC):
        self.storage = SweepStorage(storage)
        self.log = self.storage.open_log()
        self.record = SweepRecord(self.log, SweepHistory(), lambda history: None)
        self.run(spec)

    def run(self, spec=SPEC):
        self.progress = SweepProgress(spec=spec, storage=self.storage, record=self.record)
        self.progress.start_or_resume()
        return self.progress

    def trial(self, number, outcome, reason="", reports=True, **more):
        self.record.add(event("trial_started", trial=number, knobs={}, spec=TRIAL, **more))
        if reports:
            self.record.add(event("report", trial=number, step=10, metrics={"eval_loss": 1.0}))
        if outcome:
            end = {"outcome": outcome, "reason": reason, "step": 10}
            bundle = f"trials/t{number:04d}/bundle"
            self.record.add(event("trial_ended", trial=number, bundle=bundle, **end))
            folder = self.storage.folder / bundle
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")

    def end(self, *stages):
        for stage in stages or ("search", "repeats"):
            self.progress.end(stage, "")

    def conclude(self, status, reason=""):
        self.record.add(event("sweep_ended", status=status, reason=reason))

    def going_on(self):
        return [trial.number for trial in self.record.history.unfinished()]


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    scene.log.close()


def test_a_new_sweep_is_recorded_and_not_over(scene):
    assert scene.record.history.digest == SPEC.digest
    assert not scene.progress.is_over()


def test_another_sweep_is_refused(scene):
    settings = ("budget", "finals", "hosts", "register", *MEMORY_NAMES)
    allowed = re.escape(f"only {', '.join(settings)} may change")
    with pytest.raises(SweepStorageError, match=allowed):
        scene.run(replace(SPEC, seed=9))


def test_a_sweep_goes_on_with_other_settings_of_memory(scene):
    scene.trial(0, "completed")
    scene.run(replace(SPEC, optim=replace(SPEC.optim, gradient_checkpointing=True)))
    assert scene.record.history.digest == scene.progress.spec.digest
    scene.run(replace(SPEC, base=replace(SPEC.base, dense=True)))
    with pytest.raises(SweepStorageError, match=r"\(optim\.batch_size was 8, is 4\)"):
        scene.run(
            replace(SPEC, optim=replace(SPEC.optim, gradient_checkpointing=True, batch_size=4))
        )


@pytest.mark.parametrize("source", ["rows", "rows/*.jsonl", "rows/train.jsonl"])
def test_other_rows_than_those_of_the_start_are_refused(tmp_path, source):
    file = tmp_path / "rows" / "train.jsonl"
    file.parent.mkdir()
    file.write_text('{"text": "a"}\n')
    data = DataSpec(train=str(tmp_path / source))
    scene = Scene(tmp_path / "storage", replace(SPEC, data=data))
    scene.run(replace(SPEC, data=data))
    file.write_text('{"text": "b"}\n')
    with pytest.raises(SweepStorageError, match="data files hold other rows than it was started"):
        scene.run(replace(SPEC, data=data))
    scene.log.close()


def test_another_function_than_that_of_the_start_is_refused(tmp_path):
    file = tmp_path / "rules.py"
    file.write_text("def stop(reports): return None\n")
    spec = replace(SPEC, exits=ExitSpec(stop=f"{file}:stop"))
    scene = Scene(tmp_path / "storage", spec.with_saved_rows(tmp_path / "data"))
    scene.run(spec.with_saved_rows(tmp_path / "data"))
    file.write_text("def stop(reports): return 'never'\n")
    with pytest.raises(SweepStorageError, match=r"of another spec \(exits.stop was .*, is "):
        scene.run(spec.with_saved_rows(tmp_path / "data"))
    scene.log.close()


def test_a_sweep_of_an_older_version_goes_on_where_new_fields_have_their_defaults(tmp_path):
    older = SPEC.to_dict()
    for section, name in (("optim", "optimizer"), ("exits", "stop"), ("eval", "metric")):
        del older[section][name]
    del older["forbid"]
    storage = SweepStorage(tmp_path)
    with storage.open_log() as log:
        log.append(SweepStarted(sweep_id="old", spec=older, digest=SPEC.digest_of(older)))
    history = SweepHistory.read(log.path)
    assert history.digest != SPEC.digest
    require_same_sweep(SPEC, history, "here")
    lion = replace(SPEC, optim=replace(SPEC.optim, optimizer="lion"))
    with pytest.raises(SweepStorageError, match=r"\(optim.optimizer was absent, is lion\)"):
        require_same_sweep(lion, history, "here")


def test_what_is_known_of_the_inputs_is_recorded_where_it_is_new(scene):
    report = DataReport(lines=("Rows: 3.",), facts={"base": {"rows": {}}})
    for _ in range(2):
        scene.progress.keep_inputs({"dataset a/b@main": "c" * 40}, report)
    history = SweepHistory.read(scene.log.path)
    assert history.pins == {"dataset a/b@main": "c" * 40}
    assert history.data_lines == report.lines
    assert history.data_facts == report.facts
    assert len(scene.log.path.read_text().splitlines()) == 3


def test_a_sweep_whose_stages_have_ended_is_over(scene):
    scene.trial(0, "completed")
    scene.end("search")
    assert not scene.progress.is_over()
    scene.end("repeats")
    assert scene.progress.is_over()
    assert scene.progress.is_registered()
    scene.conclude("completed")
    scene.run()
    assert scene.record.history.resumes == 0


def test_a_larger_budget_goes_on_with_what_the_smaller_one_cut_short(scene):
    scene.trial(0, "completed")
    scene.trial(1, "cancelled", "the budget is spent")
    scene.end()
    scene.conclude("completed")
    assert scene.run().is_over()
    assert scene.going_on() == []
    progress = scene.run(replace(SPEC, budget=BudgetSpec(trials=4)))
    assert not progress.has_ended("search")
    assert scene.going_on() == [1]


def test_other_finals_leave_the_search_alone(scene):
    scene.trial(0, "completed")
    scene.trial(1, "cancelled", "the budget is spent")
    scene.end()
    scene.conclude("completed")
    progress = scene.run(replace(SPEC, finals=FinalsSpec(top=1, seeds=3)))
    assert (progress.has_ended("search"), progress.has_ended("repeats")) == (True, False)
    assert scene.going_on() == []


def test_a_trial_that_the_user_stopped_stays_stopped(scene):
    scene.trial(0, "cancelled", STOPPED_BY_USER.reason)
    scene.trial(1, None)
    scene.run()
    assert scene.going_on() == [1]


def test_a_cancelled_sweep_goes_on_when_it_is_run_again(scene):
    scene.trial(0, "completed")
    scene.trial(1, "cancelled", CANCELLED_BY_USER)
    scene.conclude("cancelled", CANCELLED_BY_USER)
    scene.run()
    assert scene.going_on() == [1]
    assert scene.record.history.status == "running"


def test_a_failed_sweep_retries_what_never_measured_anything(scene):
    scene.trial(0, "failed", "no such file", reports=False)
    scene.trial(1, "failed", "it broke later")
    scene.trial(2, "diverged", reports=False)
    scene.conclude("failed")
    scene.run()
    assert scene.going_on() == [0]


def test_a_stop_that_no_driver_heard_is_heard_now(scene):
    scene.trial(0, None)
    scene.trial(1, None)
    post_request(scene.storage, Request(kind="stop", trial=1))
    post_request(scene.storage, Request(kind="cancel"))
    scene.run()
    assert scene.going_on() == [0]
    assert scene.record.history.trials[1].reason == STOPPED_BY_USER.reason
    assert take_requests(scene.storage.folder) == []


def test_a_failed_sweep_retries_what_only_a_fault_was_reported_of(scene):
    for number, outcome in enumerate(("failed", "infeasible")):
        scene.trial(number, None, reports=False)
        metrics = {"eval_loss": 1e9}
        scene.record.add(event("report", trial=number, step=10, metrics=metrics, is_fault=True))
        end = {"outcome": outcome, "reason": "", "step": 10, "bundle": None}
        scene.record.add(event("trial_ended", trial=number, **end))
    scene.conclude("failed")
    scene.run()
    assert scene.going_on() == [0, 1]


def test_a_trial_that_goes_on_leaves_no_old_adapter_behind(scene):
    scene.trial(0, "cancelled", "the budget is spent")
    scene.end()
    assert scene.storage.has_bundle(0)
    scene.run(replace(SPEC, budget=BudgetSpec(trials=4)))
    assert not scene.storage.has_bundle(0)
