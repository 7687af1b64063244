"""What a sweep's events add up to: its trials, their reports and ends.

Reading the log is all there is to resuming, showing progress and reporting.
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
    InputsPinned,
    LogEntry,
    PhaseEnded,
    PromotionDecided,
    SessionLost,
    StageEnded,
    StageName,
    StartPointsChosen,
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
    """What a trial reported at a step.

    Attributes:
        step: Optimizer steps so far.
        metrics: Values that searcher and scheduler saw.
        at: Seconds since the epoch.
        is_fault: The trial broke, and its metrics are stand-ins for the searcher.
    """

    step: int
    metrics: Mapping[str, float]
    at: float
    is_fault: bool = False


@dataclass(kw_only=True)
class TrialRecord:
    """All facts of a trial in the log.

    Attributes:
        number: Its number in the sweep, from 0.
        knobs: What the searcher chose.
        spec: The trial whole, as `TrialSpec.to_dict` gives it.
        reports: In order of steps; a step that was done twice is there once.
        outcome: `None` while it is unfinished.
        reason: One sentence on its end.
        bundle: Folder of its adapter, when it left one.
        started_at: Seconds since the epoch.
        ended_at: Seconds since the epoch.
        final_metrics: Metrics on test rows, for finalists.
        forms_evaluated: Of a finalist, the last evaluation in each serving form.
        ref: The adapter version it became.
        parent: The trial whose checkpoint it went on from (`trial`), the step of that (`step`)
            and the trial in whose place it came (`replaces`); `None` for one that started fresh.
        repeat_of: The trial it repeats with another seed, in the finals.
        ended_by: `user` or `budget` for one that was cancelled.
        pruned: What of it was removed from the storage since: its `state`, its `bundle`.
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
        """Steps trained, as last reported."""
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
        """The metric as last reported, when it is there and finite."""
        value = self.reports[-1].metrics.get(metric) if self.reports else None
        return value if value is not None and math.isfinite(value) else None


@dataclass(kw_only=True)
class SweepHistory:
    """The fold of a log's events; `apply` the next one to go on.

    Attributes:
        sweep_id: Set by the first start.
        spec: The sweep as it was started, for `parse_sweep`.
        digest: `SweepSpec.digest` of that.
        status: `running`, or what the last `sweep_ended` said; `None` before a start.
        reason: Why it ended.
        resumes: How often it was resumed.
        trials: By number.
        reports: (trial number, report) in the order they came, which is what a scheduler saw.
        base_metrics: Of the base without an adapter, by `members.group_key` and then split.
        phases: Seconds by name, added up over resumes.
        promotions: Decisions of the promotion gate, in their order.
        meter: What was spent.
        start_points: Configurations to begin with; `None` before they were chosen.
        stages: How the search and the repeats of finalists ended, and under which settings; a
            stage goes on when those have changed since.
        pins: Commits of hub repositories that the sweep reads; see `orchestrator.journal.pins`.
        data_lines: What was said of the rows at the last start.
        data_facts: The same as plain values, by base.
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
    promotions: list[PromotionDecided] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    start_points: list[Mapping[str, Any]] | None = None
    stages: dict[StageName, StageEnded] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    data_lines: tuple[str, ...] = ()
    data_facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> SweepHistory:
        """Fold a log; an empty history when there is none.

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
        """Trials without an end, by number: what a resumed sweep goes on with."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].outcome is None]

    def ended(self) -> list[TrialRecord]:
        """Trials with an end of any kind, by number."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].outcome is not None]

    def ranking(
        self, objective: ObjectiveSpec, *, with_running: bool = False
    ) -> list[TrialRecord]:
        """Trials of the search that left an adapter with a finite last value, best first.

        A trial that was stopped, or cancelled when the budget was spent, is an adapter like any
        other and ranks by what it measured; of equal values the one trained further comes first,
        then the completed one, then the lower number. One beyond a constraint is not ranked.

        Args:
            objective: Metric, direction and constraints.
            with_running: Rank trials without an end, too, by what they measured so far.
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
    """The first constraint that a trial's last report breaks; empty without one."""
    for bound, written in zip(objective.bounds, objective.constraints, strict=True):
        value = record.last(bound.metric)
        if value is None or bound.excess(value) > 0:
            return written
    return ""


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


@_apply.register
def _end_stage(event: StageEnded, history: SweepHistory, at: float) -> None:
    if event.stage == "search":
        history.stages.pop("repeats", None)  # of the finalists of an earlier search
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
    # A trial that a host lost is started again: it is still the same one.
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
        # A trial that the budget cut short, or that failed with its whole sweep, goes on: what
        # was made of it and measured is of an adapter that will be another one.
        record.outcome, record.reason, record.ended_at, record.ended_by = None, "", None, ""
        record.bundle, record.final_metrics, record.ref = None, None, None
        record.forms_evaluated = {}
        record.pruned = frozenset()


@_apply.register
def _report_trial(event: TrialReported, history: SweepHistory, at: float) -> None:
    report = TrialReport(step=event.step, metrics=event.metrics, at=at, is_fault=event.is_fault)
    history.reports.append((event.trial, report))
    record = history.trials.get(event.trial)
    if record is not None:
        # Steps done again after a lost host replace those the host did not save.
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
            record.bundle = None  # nobody is to export it again
