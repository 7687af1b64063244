"""The last round: the finalists on test rows, beside the bare base."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping

import ray
from ray.actor import ActorHandle

from orchestrator.finals.standings import (
    finalists,
    has_test_rows,
)
from orchestrator.hosts.broker import MAX_WAIT_S
from orchestrator.hosts.members import group_key
from orchestrator.journal.events import BaseEvaluated, FinalistEvaluated
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import Outcome
from orchestrator.spec.sweep import SweepSpec
from trainables.hosts.orders import Split, Task, TaskReport
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

_LEAVING_S = 60.0


def contenders(spec: SweepSpec, history: SweepHistory) -> list[TrialRecord]:
    """The adapters worth a last look: each finalist and its repeats, best finalist first."""
    return [
        run
        for trial in finalists(spec, history)
        for run in (trial, *history.repeats_of(trial.number))
        if run is trial or run.outcome is Outcome.COMPLETED
    ]


def evaluate_finalists(
    spec: SweepSpec, record: SweepRecord, broker: ActorHandle, storage: SweepStorage
) -> None:
    """Measure the finalists on the test rows, and the bare base on the rows of both splits.

    What the record holds already, from before a resume, is not measured again. Other adapters that
    should be there, and are not as a driver or host was lost before it was written, are exported.
    """
    _await_leaving(broker)
    chosen = contenders(spec, record.history)
    splits = _splits(spec)
    measured = record.history.base_metrics
    bases: dict[str, TrialRecord] = {}
    for trial in chosen:  # best first: of those on one base, the best one stands for it
        bases.setdefault(group_key(TrialSpec.from_dict(trial.spec)), trial)
    tasks = {
        _base_task_name(trial, split): Task(spec=dict(trial.spec), split=split)
        for base, trial in bases.items()
        for split in splits
        if split not in measured.get(base, {})
    }
    tasks |= {
        f"trial-{trial.number}": _trial_task(trial, splits[-1], storage)
        for trial in chosen
        if not _is_measured(trial, splits[-1], storage)
    }
    exports = {
        f"bundle-of-{trial.number}": _trial_task(trial, "validation", storage)
        for trial in _without_bundle(record.history, storage)
        if f"trial-{trial.number}" not in tasks
    }
    reports = _run_tasks(broker, tasks | exports)
    for name in exports:
        if reports[name].error:
            logger.warning("%s: %s", name, reports[name].error)
    for base, trial in bases.items():
        for split in splits:
            _note_base(record, base, split, reports.get(_base_task_name(trial, split)))
    for trial in chosen:
        _note_trial(record, trial, reports.get(f"trial-{trial.number}"))


def are_finalists_evaluated(spec: SweepSpec, record: SweepRecord, storage: SweepStorage) -> bool:
    """Whether every finalist has all metrics and a bundle."""
    split = _splits(spec)[-1]
    return all(_is_measured(trial, split, storage) for trial in contenders(spec, record.history))


def _splits(spec: SweepSpec) -> tuple[Split, ...]:
    """Splits that finalists are evaluated on; the last split decides the finals."""
    return ("validation", "test") if has_test_rows(spec) else ("validation",)


def _base_task_name(trial: TrialRecord, split: Split) -> str:
    return f"base-of-{trial.number}-{split}"


def _trial_task(trial: TrialRecord, split: Split, storage: SweepStorage) -> Task:
    return Task(
        spec=dict(trial.spec),
        split=split,
        state_dir=storage.state_location(trial.number),
        bundle_dir=storage.bundle_location(trial.number),
    )


def _is_measured(trial: TrialRecord, split: Split, storage: SweepStorage) -> bool:
    """Whether the trial has a bundle with all the metrics it should have."""
    is_known = split == "validation" or trial.final_metrics is not None
    return is_known and storage.has_bundle(trial.number)


def _without_bundle(history: SweepHistory, storage: SweepStorage) -> list[TrialRecord]:
    """Trials with an adapter in the record and no bundle in the storage."""
    return [
        trial
        for trial in history.ended()
        if trial.bundle is not None and not storage.has_bundle(trial.number)
    ]


def _note_base(record: SweepRecord, base: str, split: Split, report: TaskReport | None) -> None:
    if report is not None and report.error:
        logger.warning("bare base %s on %s rows: %s", base, split, report.error)
    elif report is not None:
        record.add(BaseEvaluated(base=base, split=split, metrics=report.metrics))


def _note_trial(record: SweepRecord, trial: TrialRecord, report: TaskReport | None) -> None:
    if report is not None and report.error:
        logger.warning("trial %d in the finals: %s", trial.number, report.error)
    elif report is not None:
        record.add(FinalistEvaluated(trial=trial.number, metrics=report.metrics))


def _await_leaving(broker: ActorHandle) -> None:
    """Wait until leaving trials have written their bundles, as two writers would collide."""
    deadline = time.monotonic() + _LEAVING_S
    while not ray.get(broker.settle.remote(MAX_WAIT_S)) and time.monotonic() < deadline:
        pass


def _run_tasks(broker: ActorHandle, tasks: Mapping[str, Task]) -> dict[str, TaskReport]:
    """Hand all tasks to the hosts and wait for every one."""
    session = uuid.uuid4().hex[:8]
    for name, task in tasks.items():
        group = group_key(TrialSpec.from_dict(task.spec))
        ray.get(broker.submit_task.remote(f"{session}-{name}", group, task))
    return {name: _await(broker, f"{session}-{name}") for name in tasks}


def _await(broker: ActorHandle, task_id: str) -> TaskReport:
    while True:
        report: TaskReport | None = ray.get(broker.task_report.remote(task_id, MAX_WAIT_S))
        if report is not None:
            return report
