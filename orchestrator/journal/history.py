"""What a sweep's events add up to: its trials, their reports and ends.

Reading the log is all there is to resuming, showing progress and reporting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.journal.events import Event, read_events
from orchestrator.journal.meter import Meter
from orchestrator.outcome import Outcome
from orchestrator.spec.sections import ObjectiveSpec


class Report(NamedTuple):
    """One measurement of a trial."""

    step: int
    metrics: Mapping[str, float]
    at: float


@dataclass(kw_only=True)
class TrialRecord:
    """Everything known of one trial.

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
        scores: Of a finalist, by serving form, the fields of its `form_scored` event.
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
    reports: list[Report] = field(default_factory=list)
    outcome: Outcome | None = None
    reason: str = ""
    bundle: str | None = None
    ended_at: float | None = None
    final_metrics: Mapping[str, float] | None = None
    scores: dict[str, Mapping[str, Any]] = field(default_factory=dict)
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
    def forms(self) -> dict[str, Mapping[str, float]]:
        """What was measured in each serving form that could be."""
        return {form: each["metrics"] for form, each in self.scores.items() if each["metrics"]}

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
        promotions: Fields of each `promoted` event.
        meter: What was spent.
        start_points: Configurations to begin with; `None` before they were chosen.
        stages: How `search` and `finals` ended (`reason`), and the settings that they ended
            `under`; a stage goes on when those have changed since.
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
    reports: list[tuple[int, Report]] = field(default_factory=list)
    base_metrics: dict[str, dict[str, Mapping[str, float]]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    promotions: list[Mapping[str, Any]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    start_points: list[Mapping[str, Any]] | None = None
    stages: dict[str, Mapping[str, Any]] = field(default_factory=dict)
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
        for event in read_events(path):
            history.apply(event)
        return history

    def apply(self, event: Event) -> None:
        """Take in one event; those of unknown kinds, or of unknown trials, change nothing."""
        if event.kind in _ON_TRIAL:
            record = self.trials.get(event.fields["trial"])
            if record is not None:
                _ON_TRIAL[event.kind](record, event)
        if event.kind in _ON_SWEEP:
            _ON_SWEEP[event.kind](self, event)
        self.meter.see(event.at)

    def searched(self) -> list[TrialRecord]:
        """Trials of the search, by number: all but the repeats of the finals."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].repeat_of is None]

    def repeats_of(self, number: int) -> list[TrialRecord]:
        """Trials that repeat one with other seeds, by number."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].repeat_of == number]

    def unfinished(self) -> list[TrialRecord]:
        """Trials without an end, by number: what a resumed sweep goes on with."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].outcome is None]

    def ended(self) -> list[TrialRecord]:
        """Trials with an end of any kind, by number."""
        return [self.trials[n] for n in sorted(self.trials) if self.trials[n].outcome is not None]

    def ranking(self, objective: ObjectiveSpec) -> list[TrialRecord]:
        """Trials of the search that left an adapter with a finite last value, best first.

        A trial that was stopped, or cancelled when the budget was spent, is an adapter like any
        other and ranks by what it measured; of equal values the one trained further comes first,
        then the completed one, then the lower number. One beyond a constraint is not ranked.
        """
        sign = 1.0 if objective.mode == "min" else -1.0
        ranked = [
            (sign * value, -record.step, record.outcome != Outcome.COMPLETED, record.number)
            for record in self.searched()
            if record.outcome in WITH_ADAPTER
            and (value := record.last(objective.metric)) is not None
            and not exceeded(record, objective)
        ]
        return [self.trials[number] for *_, number in sorted(ranked)]

    def best(self, objective: ObjectiveSpec) -> TrialRecord | None:
        """The first of `ranking`."""
        return next(iter(self.ranking(objective)), None)


def exceeded(record: TrialRecord, objective: ObjectiveSpec) -> str:
    """The first constraint that a trial's last report breaks; empty when it keeps them all."""
    for bound, written in zip(objective.bounds, objective.constraints, strict=True):
        value = record.last(bound.metric)
        if value is None or bound.excess(value) > 0:
            return written
    return ""


WITH_ADAPTER = (Outcome.COMPLETED, Outcome.STOPPED, Outcome.CANCELLED)
"""Ends that can leave an adapter."""


def _resume_trial(record: TrialRecord, event: Event) -> None:
    # A trial that the budget cut short, or that failed with its whole sweep, goes on: what was
    # made of it and measured is of an adapter that will be another one.
    record.outcome, record.reason, record.ended_at, record.ended_by = None, "", None, ""
    record.bundle, record.final_metrics, record.ref = None, None, None
    record.scores = {}
    record.pruned = frozenset()


def _report(record: TrialRecord, event: Event) -> None:
    report = _parse_report(event)
    # Steps done again after a lost host replace those the host did not save.
    record.reports = [each for each in record.reports if each.step < report.step]
    record.reports.append(report)


def _end_trial(record: TrialRecord, event: Event) -> None:
    record.outcome = Outcome(event.fields["outcome"])
    record.reason = event.fields["reason"]
    record.bundle = event.fields["bundle"]
    record.ended_by = event.fields.get("by", "")
    record.ended_at = event.at


def _evaluate_final(record: TrialRecord, event: Event) -> None:
    record.final_metrics = event.fields["metrics"]


def _score_form(record: TrialRecord, event: Event) -> None:
    record.scores[event.fields["form"]] = event.fields


def _register(record: TrialRecord, event: Event) -> None:
    record.ref = event.fields["ref"]


def _start(history: SweepHistory, event: Event) -> None:
    history.sweep_id = event.fields["sweep_id"]
    history.spec = event.fields["spec"]
    history.digest = event.fields["digest"]
    history.status = "running"
    history.meter.begin(event.at)


def _pin(history: SweepHistory, event: Event) -> None:
    history.pins = event.fields["pins"]


def _inspect_data(history: SweepHistory, event: Event) -> None:
    history.data_lines = tuple(event.fields["lines"])
    history.data_facts = event.fields["facts"]


def _resume(history: SweepHistory, event: Event) -> None:
    history.status, history.reason = "running", ""
    history.resumes += 1
    history.meter.begin(event.at)


def _end(history: SweepHistory, event: Event) -> None:
    history.status, history.reason = event.fields["status"], event.fields["reason"]
    history.meter.end(event.at)


def _lose_session(history: SweepHistory, event: Event) -> None:
    history.meter.lose()


def _use(history: SweepHistory, event: Event) -> None:
    history.meter.use(event.fields["cpu_s"], event.fields["gpu_s"])


def _start_points(history: SweepHistory, event: Event) -> None:
    history.start_points = list(event.fields["points"])


def _start_trial(history: SweepHistory, event: Event) -> None:
    number = event.fields["trial"]
    # A trial that a host lost is started again: it is still the same one.
    history.trials.setdefault(
        number,
        TrialRecord(
            number=number,
            knobs=event.fields["knobs"],
            spec=event.fields["spec"],
            started_at=event.at,
            parent=event.fields.get("parent"),
            repeat_of=event.fields.get("repeat_of"),
        ),
    )


def _keep_order(history: SweepHistory, event: Event) -> None:
    history.reports.append((event.fields["trial"], _parse_report(event)))


def _end_stage(history: SweepHistory, event: Event) -> None:
    stage = event.fields["stage"]
    if stage == "search":
        history.stages.pop("finals", None)  # those were of what was found before
    history.stages[stage] = event.fields


def _evaluate_base(history: SweepHistory, event: Event) -> None:
    splits = history.base_metrics.setdefault(event.fields["base"], {})
    splits[event.fields["split"]] = event.fields["metrics"]


def _add_phase(history: SweepHistory, event: Event) -> None:
    name = event.fields["name"]
    history.phases[name] = history.phases.get(name, 0.0) + event.fields["seconds"]


def _promote(history: SweepHistory, event: Event) -> None:
    history.promotions.append(event.fields)


def _prune(history: SweepHistory, event: Event) -> None:
    what = event.fields["what"]
    for number in history.trials.keys() & set(event.fields["trials"]):
        record = history.trials[number]
        record.pruned |= {what}
        if what == "bundle":
            record.bundle = None  # nobody is to export it again


def _parse_report(event: Event) -> Report:
    return Report(step=event.fields["step"], metrics=event.fields["metrics"], at=event.at)


_ON_TRIAL: dict[str, Callable[[TrialRecord, Event], None]] = {
    "trial_resumed": _resume_trial,
    "report": _report,
    "trial_ended": _end_trial,
    "final_evaluated": _evaluate_final,
    "form_scored": _score_form,
    "registered": _register,
}

_ON_SWEEP: dict[str, Callable[[SweepHistory, Event], None]] = {
    "sweep_started": _start,
    "sweep_resumed": _resume,
    "sweep_ended": _end,
    "pinned": _pin,
    "data_inspected": _inspect_data,
    "trial_started": _start_trial,
    "report": _keep_order,
    "base_evaluated": _evaluate_base,
    "phase": _add_phase,
    "promoted": _promote,
    "session_lost": _lose_session,
    "usage": _use,
    "start_points": _start_points,
    "stage_ended": _end_stage,
    "pruned": _prune,
}
