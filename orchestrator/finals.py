"""The last round: the best adapters on test rows, beside the bare base, then the registry."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.actor import ActorHandle

from orchestrator.broker import MAX_WAIT_S
from orchestrator.delivery import Delivery
from orchestrator.history import TrialRecord
from orchestrator.members import group_key
from orchestrator.recording import SweepRecord
from orchestrator.spec import SweepSpec
from orchestrator.trial import trial_dir
from registry import promote, register
from trainables.orders import Split, Task, TaskReport
from trainables.spec import Quantization, TrialSpec

logger = logging.getLogger(__name__)


def finalists(spec: SweepSpec, record: SweepRecord) -> list[TrialRecord]:
    """The trials worth a last look, best first."""
    ranking = record.history.ranking(spec.objective.metric, spec.objective.mode)
    return ranking[: 1 if spec.register is None else spec.register.top]


def evaluate_finalists(
    spec: SweepSpec, record: SweepRecord, broker: ActorHandle, storage: Path
) -> None:
    """Measure the finalists on the test rows, and the bare base on the rows of both splits.

    What the record holds already, from before a resume, is not measured again.
    """
    chosen = finalists(spec, record)
    has_test = spec.data.test is not None or spec.data.test_fraction > 0
    splits: tuple[Split, ...] = ("validation", "test") if has_test else ("validation",)
    tasks: dict[str, tuple[str, Task]] = {}
    bases: dict[str, tuple[Quantization, Split]] = {}
    for trial in chosen:
        trial_spec = TrialSpec.from_dict(trial.spec)
        form, group = trial_spec.base.quantization, group_key(trial_spec)
        for split in splits:
            name = f"base-{form}-{split}"
            if split not in record.history.base_metrics.get(form, {}) and name not in tasks:
                tasks[name] = (group, Task(spec=dict(trial.spec), split=split))
                bases[name] = (form, split)
        if has_test and trial.final_metrics is None:
            folder = trial_dir(storage, trial.number)
            task = Task(
                spec=dict(trial.spec),
                split="test",
                state_dir=str(folder / "state"),
                bundle_dir=str(folder / "bundle"),
            )
            tasks[f"trial-{trial.number}"] = (group, task)
    reports = _run_tasks(broker, tasks)
    for name, (form, split) in bases.items():
        _note_base(record, form, split, reports[name])
    for trial in chosen:
        report = reports.get(f"trial-{trial.number}")
        if report is not None and report.error:
            logger.warning("trial %d on test rows: %s", trial.number, report.error)
        elif report is not None:
            record.add("final_evaluated", trial=trial.number, metrics=report.metrics)


def register_finalists(
    spec: SweepSpec, record: SweepRecord, delivery: Delivery, storage: Path, tracking_uri: str
) -> None:
    """Make versions of the finalists and put the best before the promotion gate.

    Registering again makes nothing twice.

    Raises:
        RegistryError: MLflow cannot be used, or a bundle is not what its trial left.
    """
    if spec.register is None:
        return
    for rank, trial in enumerate(finalists(spec, record), 1):
        version = register(
            storage / str(trial.bundle),
            spec.register.name,
            tracking_uri=tracking_uri,
            run_id=delivery.trial_run(trial.number),
            tags={
                "lorchestra.sweep": str(record.history.sweep_id),
                "lorchestra.trial": str(trial.number),
                "lorchestra.rank": str(rank),
            },
        )
        if trial.ref != str(version.ref):
            record.add(
                "registered", trial=trial.number, ref=str(version.ref), digest=version.digest
            )
        if rank == 1 and spec.register.promote:
            metric = _gate_metric(spec, trial.final_metrics or {})
            decision = promote(
                version, metric=metric, mode=spec.objective.mode, tracking_uri=tracking_uri
            )
            record.add(
                "promoted",
                ref=str(version.ref),
                promoted=decision.promoted,
                reason=decision.reason,
            )


def _gate_metric(spec: SweepSpec, final_metrics: Mapping[str, float]) -> str:
    """The objective as measured on test rows; as measured on validation rows without any."""
    on_test = spec.objective.metric.replace("eval_", "test_")
    return on_test if on_test in final_metrics else spec.objective.metric


def _note_base(record: SweepRecord, form: str, split: Split, report: TaskReport) -> None:
    if report.error:
        logger.warning("bare base %s on %s rows: %s", form, split, report.error)
    else:
        record.add("base_evaluated", quantization=form, split=split, metrics=report.metrics)


def _run_tasks(
    broker: ActorHandle, tasks: Mapping[str, tuple[str, Task]]
) -> dict[str, TaskReport]:
    """Hand all tasks to the hosts and wait for every one."""
    session = uuid.uuid4().hex[:8]
    for name, (group, task) in tasks.items():
        ray.get(broker.submit_task.remote(f"{session}-{name}", group, task))
    return {name: _await(broker, f"{session}-{name}") for name in tasks}


def _await(broker: ActorHandle, task_id: str) -> TaskReport:
    while True:
        report: TaskReport | None = ray.get(broker.task_report.remote(task_id, MAX_WAIT_S))
        if report is not None:
            return report
