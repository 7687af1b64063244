"""The lines of a log: one for each thing that happens in a sweep."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.journal.history import (
    SweepHistory,
    TrialRecord,
    describe_lost_state,
    describe_seats,
)
from orchestrator.metrics import HEADLINES
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_metric, format_settings, one_line


class Diary:
    """Turns a growing history into lines; tells each change once.

    The first reading of a resumed sweep sums up the past in one line.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        # Number of starts, reports and damaged states told.
        self._started, self._reports, self._lost, self._decided = 0, 0, 0, 0
        self._going: set[int] = set()  # trials whose end was not told yet
        self._best: int | None = None
        self._is_new = True

    def read_on(self, history: SweepHistory) -> list[str]:
        """Lines for the changes since the last reading, in order."""
        entries = sorted(self._entries(history), key=lambda entry: entry[:2])
        lines = [line for *_, line in entries]
        if self._is_new and (history.resumes or history.status not in (None, "running")):
            begun, done = self._started, self._started - len(self._going)
            lines = [f"resumed: {begun} trials started before, {done} of them ended"]
        self._is_new = False
        return lines

    def _entries(self, history: SweepHistory) -> Iterator[tuple[float, int, str]]:
        """Entries of time, order within the same time, and line."""
        # Read reports before trials: the history has every trial of a report.
        reports = history.reports[self._reports :]
        self._reports += len(reports)
        news = list(history.trials.values())[self._started :]
        self._started += len(news)
        self._going |= {record.number for record in news}
        for record in sorted(news, key=lambda record: record.number):
            line = f"trial {record.number}  started  {_about(record)}".rstrip()
            yield record.started_at, 0, line
        lost = history.states_lost[self._lost :]
        self._lost += len(lost)
        for at, event in lost:
            yield at, 1, describe_lost_state(event)
        decided = history.seats_decided[self._decided :]
        self._decided += len(decided)
        for at, decision in decided:
            yield at, 1, describe_seats(decision)
        names = dict.fromkeys((self._spec.objective.metric, *HEADLINES))
        for number, report in reports:
            if not report.is_fault:
                parts = [f"trial {number}", f"step {report.step}/{self._spec.horizon}"]
                found = [name for name in names if name in report.metrics]
                parts += [f"{name} {format_metric(report.metrics[name])}" for name in found]
                yield report.at, 1, "  ".join(parts)
        for number in sorted(self._going):
            record = history.trials[number]
            if record.outcome is not None:
                self._going.discard(number)
                yield record.ended_at or record.started_at, 2, self._end(record, history)

    def _end(self, record: TrialRecord, history: SweepHistory) -> str:
        """The line for the end of a trial; also updates the best trial so far."""
        parts = [f"trial {record.number}", record.outcome or ""]
        goal = self._spec.objective
        numbers = {record.number} if self._best is None else {record.number, self._best}
        two = SweepHistory(trials={number: history.trials[number] for number in numbers})
        best = two.best(goal)
        self._best = None if best is None else best.number
        if self._best == record.number:
            parts.append(f"best so far: {goal.metric} {format_metric(record.last(goal.metric))}")
        return "  ".join([*parts, one_line(record.reason)]).rstrip()


def _about(record: TrialRecord) -> str:
    """Settings of a trial, or the finalist that the trial repeats."""
    if record.repeat_of is not None:
        return f"trial {record.repeat_of} again, seed {record.spec['seed']}"
    settings = format_settings(record.knobs)
    if record.parent is not None:
        origin = f"from trial {record.parent['trial']}, step {record.parent['step']}"
        return f"{settings}, {origin}" if settings else origin
    return settings
