"""The last round: the finalists on test rows, beside the bare base, then the registry."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping

import ray
from ray.actor import ActorHandle

from orchestrator.broker import MAX_WAIT_S
from orchestrator.delivery import Delivery
from orchestrator.history import SweepHistory, TrialRecord
from orchestrator.members import group_key
from orchestrator.outcome import Outcome
from orchestrator.recording import SweepRecord
from orchestrator.spec import SweepSpec
from orchestrator.standings import (
    Standing,
    finalists,
    has_test_rows,
    held_out_name,
    rank_finalists,
)
from orchestrator.storage import SweepStorage
from registry import TrackingError, promote, register
from trainables.orders import Split, Task, TaskReport
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


def registrants(spec: SweepSpec, history: SweepHistory) -> list[Standing]:
    """The finalists whose adapters become versions, best first."""
    top = 0 if spec.register is None else spec.register.top
    return [one for one in rank_finalists(spec, history) if one.adapter.bundle][:top]


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


def are_measured(spec: SweepSpec, record: SweepRecord, storage: SweepStorage) -> bool:
    """Whether every finalist has all its measures and its bundle."""
    split = _splits(spec)[-1]
    return all(_is_measured(trial, split, storage) for trial in contenders(spec, record.history))


def register_finalists(
    spec: SweepSpec,
    record: SweepRecord,
    delivery: Delivery,
    storage: SweepStorage,
    tracking_uri: str,
) -> None:
    """Make versions of the finalists and put the best before the promotion gate.

    Registering again makes nothing twice.

    Raises:
        RegistryError: MLflow cannot be used, or a bundle is not what its trial left.
    """
    if spec.register is None:
        return
    for rank, standing in enumerate(registrants(spec, record.history), 1):
        trial = standing.adapter
        version = register(
            storage.fetch_bundle(trial.number),
            spec.register.name,
            tracking_uri=tracking_uri,
            run_id=_run_of(trial, delivery),
            tags={
                "lorchestra.sweep": str(record.history.sweep_id),
                "lorchestra.trial": str(trial.number),
                "lorchestra.rank": str(rank),
                **_standing_tags(standing),
            },
        )
        if trial.ref != str(version.ref):
            record.add(
                "registered", trial=trial.number, ref=str(version.ref), digest=version.digest
            )
        if rank == 1 and spec.register.promote:
            metric = held_out_name(spec.objective, trial.final_metrics or {})
            decision = promote(
                version, metric=metric, mode=spec.objective.mode, tracking_uri=tracking_uri
            )
            record.add(
                "promoted",
                ref=str(version.ref),
                promoted=decision.promoted,
                reason=decision.reason,
            )


def _run_of(trial: TrialRecord, delivery: Delivery) -> str:
    """MLflow's id of the trial's run: what is registered without it can never be traced back.

    Raises:
        TrackingError: MLflow has not been told of the trial yet.
    """
    run_id = delivery.trial_run(trial.number)
    if run_id is None:
        problem = delivery.problem or "it is slow"
        raise TrackingError(
            f"trial {trial.number}: MLflow has no run of it yet ({problem}); allowed: adapters of "
            "recorded trials. Run the sweep again when MLflow is back."
        )
    return run_id


def _standing_tags(standing: Standing) -> dict[str, str]:
    """What the finals said of the version's configuration, over its seeds."""
    if standing.half_width is None:
        return {}
    return {
        "finals.metric": standing.metric,
        "finals.mean": f"{standing.mean:.6g}",
        "finals.half_width": f"{standing.half_width:.6g}",
        "finals.runs": str(len(standing.values)),
    }


def _splits(spec: SweepSpec) -> tuple[Split, ...]:
    """Splits that finalists are measured on; the last one is what they are judged by."""
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
    """Trials that left an adapter, as the record has it, of which there is none."""
    return [
        trial
        for trial in history.ended()
        if trial.bundle is not None and not storage.has_bundle(trial.number)
    ]


def _note_base(record: SweepRecord, base: str, split: Split, report: TaskReport | None) -> None:
    if report is not None and report.error:
        logger.warning("bare base %s on %s rows: %s", base, split, report.error)
    elif report is not None:
        record.add("base_evaluated", base=base, split=split, metrics=report.metrics)


def _note_trial(record: SweepRecord, trial: TrialRecord, report: TaskReport | None) -> None:
    if report is not None and report.error:
        logger.warning("trial %d in the finals: %s", trial.number, report.error)
    elif report is not None:
        record.add("final_evaluated", trial=trial.number, metrics=report.metrics)


def _await_leaving(broker: ActorHandle) -> None:
    """Let those who are leaving write their bundles, so that nobody else writes them meanwhile."""
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
