"""The state of a sweep, folded from its events: trials, their reports and ends.

Resuming, showing progress and reporting need nothing but the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.journal.events import (
    AdapterRegistered,
    BaseEvaluated,
    DataInspected,
    Event,
    FinalistEvaluated,
    FoldersPruned,
    FormEvaluated,
    HostMeasured,
    InputsPinned,
    LogEntry,
    PhaseEnded,
    PromotionDecided,
    SeatsDecided,
    SessionLost,
    StageEnded,
    StageName,
    StartPointsChosen,
    StateLost,
    SweepEnded,
    SweepResumed,
    SweepStarted,
    TrialEnded,
    TrialReported,
    TrialResumed,
    TrialStarted,
    UnknownEvent,
    UsageAdded,
    UsageMeasured,
)
from orchestrator.journal.log import read_events
from orchestrator.journal.meter import Meter
from orchestrator.outcome import Outcome, can_leave_adapter
from orchestrator.spec.sections import ObjectiveSpec


class TrialReport(NamedTuple):
    """Report of a trial at a step.

    Attributes:
        step: Optimizer steps so far.
        metrics: Values for the searcher and the scheduler.
        at: Seconds since the epoch.
        is_fault: The trial broke; the metrics are stand-ins for the searcher.
    """

    step: int
    metrics: Mapping[str, float]
    at: float
    is_fault: bool = False


@dataclass(kw_only=True)
class TrialRecord:
    """All facts of a trial in the log.

    Attributes:
        number: Number of the trial in the sweep, from 0.
        knobs: Values that the searcher chose.
        spec: All settings of the trial, from `TrialSpec.to_dict`.
        reports: Reports in order of steps; a repeated step is there once.
        outcome: `None` while the trial is unfinished.
        reason: Why the trial ended, in one sentence.
        bundle: Folder of the adapter; `None` without an adapter.
        started_at: Seconds since the epoch.
        ended_at: Seconds since the epoch.
        final_metrics: Metrics on test rows, for finalists.
        forms_evaluated: Last evaluation of a finalist in each serving form.
        ref: The adapter version made from the trial.
        parent: For a trial that continued from a checkpoint: the `trial` and `step` of the
            checkpoint, and the stopped trial that the new trial `replaces`; `None` for others.
        repeat_of: The finalist that the trial repeats with another seed.
        ended_by: `user` or `budget` for a cancelled trial.
        pruned: Folders that were removed from the storage: `state`, `bundle`.
    """

    number: int
    knobs: Mapping[str, Any]
    spec: Mapping[str, Any]
    started_at: float
    reports: list[TrialReport] = field(default_factory=list)
    outcome: Outcome | None = None
    reason: str = ""
    bundle: str | None = None
    ended_at: float | None = None
    final_metrics: Mapping[str, float] | None = None
    forms_evaluated: dict[str, FormEvaluated] = field(default_factory=dict)
    ref: str | None = None
    parent: Mapping[str, int] | None = None
    repeat_of: int | None = None
    ended_by: str = ""
    pruned: frozenset[str] = frozenset()

    @property
    def step(self) -> int:
        """Last reported step."""
        return self.reports[-1].step if self.reports else 0

    @property
    def measured(self) -> list[TrialReport]:
        """Reports without stand-ins; a copy, as another thread may add reports."""
        return [report for report in list(self.reports) if not report.is_fault]

    @property
    def forms(self) -> dict[str, Mapping[str, float]]:
        """Metrics of the adapter by serving form; forms with an error are left out."""
        return {form: each.metrics for form, each in self.forms_evaluated.items() if each.metrics}

    def last(self, metric: str) -> float | None:
        """Last value of a metric; `None` if missing or not finite."""
        value = self.reports[-1].metrics.get(metric) if self.reports else None
        return value if value is not None and math.isfinite(value) else None


@dataclass(kw_only=True)
class SweepHistory:
    """State of a sweep, folded from the log's events; `apply` adds the next event.

    Attributes:
        sweep_id: Identifies the sweep in MLflow.
        spec: The sweep at its start, for `parse_sweep`.
        digest: `SweepSpec.digest` at the start.
        status: `running`, or the status of the last `sweep_ended`; `None` before the start.
        reason: Why the sweep ended.
        resumes: Number of times that the sweep was resumed.
        trials: Trials by number.
        reports: (trial number, report) in the order of the log; a scheduler saw the same order.
        base_metrics: Metrics of the base without an adapter, by `members.group_key` and split.
        phases: Seconds by name, summed over sessions.
        last_phase: The phase that ended last in the present session; empty before the first.
        promotions: Decisions of the promotion gate, in order.
        meter: Time and devices spent.
        start_points: First configurations; `None` before they are chosen.
        stages: End of the search and of the finalists' repeats, with the settings that limited the
            stage; a stage continues if these settings have changed.
        pins: Commits of hub repositories that the sweep reads; see `orchestrator.journal.pins`.
        data_lines: Sentences on the bases and rows, from the last start.
        data_facts: The same as plain values, by base.
        states_lost: (seconds since the epoch, event) of each damaged state, in order.
        hosts_measured: Forecast and outcome of the memory of hosts, in order.
        seats_decided: (seconds since the epoch, event) of each decision on seats, in order.
    """

    sweep_id: str | None = None
    spec: Mapping[str, Any] | None = None
    digest: str | None = None
    status: str | None = None
    reason: str = ""
    resumes: int = 0
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    reports: list[tuple[int, TrialReport]] = field(default_factory=list)
    base_metrics: dict[str, dict[str, Mapping[str, float]]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    last_phase: str = ""
    promotions: list[PromotionDecided] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    start_points: list[Mapping[str, Any]] | None = None
    stages: dict[StageName, StageEnded] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    data_lines: tuple[str, ...] = ()
    data_facts: Mapping[str, Any] = field(default_factory=dict)
    states_lost: list[tuple[float, StateLost]] = field(default_factory=list)
    hosts_measured: list[HostMeasured] = field(default_factory=list)
    seats_decided: list[tuple[float, SeatsDecided]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> SweepHistory:
        """Fold a log; a missing log gives an empty history.

        Raises:
            SweepStorageError: The log is damaged.
        """
        history = cls()
        for entry in read_events(path):
            history.apply(entry)
        return history

    def apply(self, entry: LogEntry) -> None:
        """Fold an entry of the log; unknown events and unknown trials are ignored."""
        _apply(entry.event, self, entry.at)
        self.meter.see(entry.at)

    def searched(self) -> list[TrialRecord]:
        """Trials of the search, by number: all but the repeats of the finals."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].repeat_of is None]

    def repeats_of(self, number: int) -> list[TrialRecord]:
        """Trials that repeat a finalist with other seeds, by number."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].repeat_of == number]

    def unfinished(self) -> list[TrialRecord]:
        """Trials without an end, by number; a resumed sweep continues them."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].outcome is None]

    def ended(self) -> list[TrialRecord]:
        """Trials with an end of any kind, by number."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].outcome is not None]

    def ranking(
        self, objective: ObjectiveSpec, *, with_running: bool = False
    ) -> list[TrialRecord]:
        """Trials of the search that left an adapter with a finite last value, best first.

        Trials that were stopped, or cancelled when the budget was spent, also rank by their last
        value. Equal values rank by more steps, then completed before others, then by lower number.
        A trial beyond a constraint is not ranked.

        Args:
            objective: Metric, direction and constraints.
            with_running: Also rank trials without an end, by their last value so far.
        """
        sign = 1.0 if objective.mode == "min" else -1.0
        ranked = [
            (sign * value, -record.step, record.outcome != Outcome.COMPLETED, record.number)
            for record in self.searched()
            if (can_leave_adapter(record.outcome) or (with_running and record.outcome is None))
            and not (record.reports and record.reports[-1].is_fault)
            and (value := record.last(objective.metric)) is not None
            and not exceeded(record, objective)
        ]
        return [self.trials[number] for *_, number in sorted(ranked)]

    def best(self, objective: ObjectiveSpec, *, with_running: bool = False) -> TrialRecord | None:
        """The first of `ranking`."""
        return next(iter(self.ranking(objective, with_running=with_running)), None)


def exceeded(record: TrialRecord, objective: ObjectiveSpec) -> str:
    """The first constraint that a trial's last report violates; empty if there is none."""
    for bound, written in zip(objective.bounds, objective.constraints, strict=True):
        value = record.last(bound.metric)
        if value is None or bound.excess(value) > 0:
            return written
    return ""


def describe_lost_state(event: StateLost) -> str:
    """One sentence on a damaged state."""
    return (
        f"trial {event.trial}: its saved state of step {event.step} is damaged; the trial "
        f"continues from step {event.back_to}"
    )


def describe_seats(event: SeatsDecided) -> str:
    """One sentence on the seats of a host."""
    why = {
        "memory": f"its memory is forecast to hold {event.by_memory}",
        "knee": "one more would raise tokens per second by less than a tenth",
    }.get(event.reason, "no limit of its memory is known")
    noun = "seat" if event.seats == 1 else "seats"
    return f"host {event.host} ({event.group}): {event.seats} {noun}, because {why}"


@singledispatch
def _apply(event: Event | UnknownEvent, history: SweepHistory, at: float) -> None:
    """Fold an event into a history; an event without a registered function is ignored."""


@_apply.register
def _start_sweep(event: SweepStarted, history: SweepHistory, at: float) -> None:
    history.sweep_id, history.digest = event.sweep_id, event.digest
    history.spec = event.spec
    history.status = "running"
    history.meter.begin(at)


@_apply.register
def _pin_inputs(event: InputsPinned, history: SweepHistory, at: float) -> None:
    history.pins = event.pins


@_apply.register
def _inspect_data(event: DataInspected, history: SweepHistory, at: float) -> None:
    history.data_lines, history.data_facts = tuple(event.lines), event.facts


@_apply.register
def _resume_sweep(event: SweepResumed, history: SweepHistory, at: float) -> None:
    history.status, history.reason = "running", ""
    history.last_phase = ""
    history.resumes += 1
    history.meter.begin(at)


@_apply.register
def _end_sweep(event: SweepEnded, history: SweepHistory, at: float) -> None:
    history.status, history.reason = event.status, event.reason
    history.meter.end(at)


@_apply.register
def _lose_session(event: SessionLost, history: SweepHistory, at: float) -> None:
    history.meter.lose()


@_apply.register
def _measure_usage(event: UsageMeasured, history: SweepHistory, at: float) -> None:
    history.meter.use(event.cpu_s, event.gpu_s)


@_apply.register
def _add_usage(event: UsageAdded, history: SweepHistory, at: float) -> None:
    history.meter.add(event.cpu_s, event.gpu_s)


@_apply.register
def _add_phase(event: PhaseEnded, history: SweepHistory, at: float) -> None:
    history.phases[event.name] = history.phases.get(event.name, 0.0) + event.seconds
    history.last_phase = event.name


@_apply.register
def _end_stage(event: StageEnded, history: SweepHistory, at: float) -> None:
    if event.stage == "search":
        history.stages.pop("repeats", None)  # belongs to finalists of the earlier search
    history.stages[event.stage] = event


@_apply.register
def _keep_start_points(event: StartPointsChosen, history: SweepHistory, at: float) -> None:
    history.start_points = list(event.points)


@_apply.register
def _evaluate_base(event: BaseEvaluated, history: SweepHistory, at: float) -> None:
    history.base_metrics.setdefault(event.base, {})[event.split] = event.metrics


@_apply.register
def _decide_promotion(event: PromotionDecided, history: SweepHistory, at: float) -> None:
    history.promotions.append(event)


@_apply.register
def _start_trial(event: TrialStarted, history: SweepHistory, at: float) -> None:
    # A later start of a known trial does not replace its record.
    history.trials.setdefault(
        event.trial,
        TrialRecord(
            number=event.trial,
            knobs=event.knobs,
            spec=event.spec,
            started_at=at,
            parent=event.parent,
            repeat_of=event.repeat_of,
        ),
    )


@_apply.register
def _resume_trial(event: TrialResumed, history: SweepHistory, at: float) -> None:
    record = history.trials.get(event.trial)
    if record is not None:
        # After an end (by the budget, or with a failed sweep) the adapter will change: results
        # of the earlier adapter are dropped.
        record.outcome, record.reason, record.ended_at, record.ended_by = None, "", None, ""
        record.bundle, record.final_metrics, record.ref = None, None, None
        record.forms_evaluated = {}
        record.pruned = frozenset()


@_apply.register
def _lose_state(event: StateLost, history: SweepHistory, at: float) -> None:
    history.states_lost.append((at, event))


@_apply.register
def _measure_host(event: HostMeasured, history: SweepHistory, at: float) -> None:
    history.hosts_measured.append(event)


@_apply.register
def _decide_seats(event: SeatsDecided, history: SweepHistory, at: float) -> None:
    history.seats_decided.append((at, event))


@_apply.register
def _report_trial(event: TrialReported, history: SweepHistory, at: float) -> None:
    report = TrialReport(step=event.step, metrics=event.metrics, at=at, is_fault=event.is_fault)
    history.reports.append((event.trial, report))
    record = history.trials.get(event.trial)
    if record is not None:
        # Steps repeated after a lost host replace the steps that the host did not save.
        kept = [each for each in record.reports if each.step < report.step]
        record.reports = [*kept, report]


@_apply.register
def _end_trial(event: TrialEnded, history: SweepHistory, at: float) -> None:
    record = history.trials.get(event.trial)
    if record is not None:
        record.outcome, record.reason = event.outcome, event.reason
        record.bundle, record.ended_by, record.ended_at = event.bundle, event.by, at


@_apply.register
def _evaluate_finalist(event: FinalistEvaluated, history: SweepHistory, at: float) -> None:
    record = history.trials.get(event.trial)
    if record is not None:
        record.final_metrics = event.metrics


@_apply.register
def _evaluate_form(event: FormEvaluated, history: SweepHistory, at: float) -> None:
    record = history.trials.get(event.trial)
    if record is not None:
        record.forms_evaluated[event.form] = event


@_apply.register
def _register_adapter(event: AdapterRegistered, history: SweepHistory, at: float) -> None:
    record = history.trials.get(event.trial)
    if record is not None:
        record.ref = event.ref


@_apply.register
def _prune_folders(event: FoldersPruned, history: SweepHistory, at: float) -> None:
    for number in history.trials.keys() & set(event.trials):
        record = history.trials[number]
        record.pruned |= {event.what}
        if event.what == "bundle":
            record.bundle = None  # so that it is not exported again
