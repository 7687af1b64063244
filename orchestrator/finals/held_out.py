"""Evaluates the finalists on test rows, and the base without an adapter for comparison."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping

import ray
from ray.actor import ActorHandle

from orchestrator.finals.standings import (
    finalists,
    has_test_rows,
)
from orchestrator.finals.telling import Tell, tell_nobody
from orchestrator.hosts.broker import MAX_WAIT_S
from orchestrator.hosts.members import group_key
from orchestrator.interrupts import raise_swallowed
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
    """Trials to evaluate in the finals: each finalist and its repeats, best finalist first."""
    return [
        run
        for trial in finalists(spec, history)
        for run in (trial, *history.repeats_of(trial.number))
        if run is trial or run.outcome is Outcome.COMPLETED
    ]


def evaluate_finalists(
    spec: SweepSpec,
    record: SweepRecord,
    broker: ActorHandle,
    storage: SweepStorage,
    check_hosts: Callable[[], None] = lambda: None,
    tell: Tell = tell_nobody,
) -> None:
    """Evaluate the finalists on the test rows, and the base alone on both splits.

    Results in the record, from before a resume, are not evaluated again. Bundles of other trials
    are exported if they are missing, because a driver or host was lost before the export, or
    damaged.

    Args:
        spec: The sweep.
        record: Record that gets the metrics.
        broker: The actor of `orchestrator.hosts.broker`.
        storage: Storage of the sweep.
        check_hosts: Raises `ClusterError` if the hosts of the sweep cannot go on.
        tell: Shows which evaluation is in work.
    """
    tell("waiting for trials to leave their hosts")
    _await_leaving(broker)
    chosen = contenders(spec, record.history)
    splits = _splits(spec)
    known = record.history.base_metrics
    bases: dict[str, TrialRecord] = {}
    for trial in chosen:  # best first: the task of a base uses the spec of its best trial
        bases.setdefault(group_key(TrialSpec.from_dict(trial.spec)), trial)
    tasks = {
        _base_task_name(trial, split): Task(spec=dict(trial.spec), split=split)
        for base, trial in bases.items()
        for split in splits
        if split not in known.get(base, {})
    }
    tasks |= {
        f"trial-{trial.number}": _trial_task(trial, splits[-1], storage)
        for trial in chosen
        if not _is_evaluated(trial, splits[-1], storage)
    }
    exports = {
        f"bundle-of-{trial.number}": _trial_task(trial, "validation", storage)
        for trial in record.history.ended()
        if trial.bundle is not None
        and "state" not in trial.pruned
        and not storage.has_bundle(trial.number)
        and f"trial-{trial.number}" not in tasks
    }
    metrics = _run_tasks(broker, tasks | exports, check_hosts, tell)
    for base, trial in bases.items():
        for split in splits:
            name = _base_task_name(trial, split)
            if name in metrics:
                record.add(BaseEvaluated(base=base, split=split, metrics=metrics[name]))
    for trial in chosen:
        name = f"trial-{trial.number}"
        if name in metrics:
            record.add(FinalistEvaluated(trial=trial.number, metrics=metrics[name]))


def are_finalists_evaluated(spec: SweepSpec, record: SweepRecord, storage: SweepStorage) -> bool:
    """Whether every finalist has all metrics and a bundle."""
    split = _splits(spec)[-1]
    return all(_is_evaluated(trial, split, storage) for trial in contenders(spec, record.history))


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


def _is_evaluated(trial: TrialRecord, split: Split, storage: SweepStorage) -> bool:
    """Whether the trial has a sound bundle and all metrics of its evaluation.

    Without a saved state, a missing or damaged bundle cannot be exported again.
    """
    is_known = split == "validation" or trial.final_metrics is not None
    if not is_known or "state" in trial.pruned:
        return is_known
    return storage.has_bundle(trial.number, downloads=True)


def _await_leaving(broker: ActorHandle) -> None:
    """Wait until leaving trials have written their bundles, because two writers would collide."""
    deadline = time.monotonic() + _LEAVING_S
    while not ray.get(broker.settle.remote(MAX_WAIT_S)) and time.monotonic() < deadline:
        pass


def _run_tasks(
    broker: ActorHandle, tasks: Mapping[str, Task], check_hosts: Callable[[], None], tell: Tell
) -> dict[str, Mapping[str, float]]:
    """Give all tasks to the hosts and wait; returns the metrics of tasks without an error."""
    session = uuid.uuid4().hex[:8]
    for name, task in tasks.items():
        group = group_key(TrialSpec.from_dict(task.spec))
        ray.get(broker.submit_task.remote(f"{session}-{name}", group, task))
    metrics: dict[str, Mapping[str, float]] = {}
    for done, (name, task) in enumerate(tasks.items()):
        tell(f"evaluation {done + 1} of {len(tasks)}: {_describe(name, task)}", done, len(tasks))
        report: TaskReport | None = None
        while report is None:
            raise_swallowed()
            check_hosts()
            report = ray.get(broker.task_report.remote(f"{session}-{name}", MAX_WAIT_S))
        if report.error:
            logger.warning("finals: task %s failed: %s", name, report.error)
        else:
            metrics[name] = report.metrics
    return metrics


def _describe(name: str, task: Task) -> str:
    """What a task does, in a few words."""
    kind, _, trial = name.rpartition("-")
    if kind.startswith("base-of"):
        return f"measuring the bare base {task.spec['base']['quantization']} on {task.split} rows"
    if kind == "bundle-of":
        return f"exporting the adapter of trial {trial}"
    return f"measuring trial {trial} on {task.split} rows"
