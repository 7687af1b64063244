"""Live view of a sweep: a table that redraws itself in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.journal.history import SweepHistory, TrialRecord, describe_lost_state
from orchestrator.metrics import HEADLINES
from orchestrator.outcome import TRAITS, Outcome, can_leave_adapter
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_duration, format_metric, format_settings, one_line

_REFRESH_PER_S = 4
_MAX_ROWS = 15

_STYLES = {
    "waiting": "dim",
    "running": "cyan",
    **{outcome.value: traits.style for outcome, traits in TRAITS.items()},
}


class TrialLine(NamedTuple):
    """A row of the live table.

    Attributes:
        number: The trial's number.
        state: `waiting`, `running`, or the outcome.
        step: Step of the last evaluation.
        value: The objective at the last evaluation; `None` if not finite.
        knobs: Searched settings of the trial.
        reason: Why the trial ended.
        is_repeat: Whether the trial repeats a finalist with another seed.
        is_adapter: Whether the value counts: the trial runs, or its outcome can leave an adapter.
    """

    number: int
    state: str
    step: int
    value: float | None
    knobs: str
    reason: str
    is_repeat: bool = False
    is_adapter: bool = True


class ProgressDisplay:
    """Shows a sweep while the context is open; its end restores the terminal, also after an error.

    Thread-safe: events come from several threads.

    Attributes:
        budget: Returns the spent part of each limit as text; set when the budget is known.
    """

    def __init__(self, spec: SweepSpec, console: Console) -> None:
        self._spec = spec
        self._console = console
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        # Reentrant, because a signal handler may call `update` during an update.
        self._guard = threading.RLock()
        self._began = time.monotonic()
        self._phase = ""
        self._note = ""
        self._history = SweepHistory()
        self._diary = Diary(spec)
        self._live: Live | None = None
        self.budget: Callable[[], str] = str

    def __enter__(self) -> ProgressDisplay:
        self._began = time.monotonic()
        if self._is_live:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=_REFRESH_PER_S,
                # `orchestrator.quiet` sends other output to a file.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            try:
                self._live.start()
            except BaseException:
                self._live.stop()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str) -> None:
        """Show the present activity of the sweep, such as `searching`."""
        with self._guard:
            if name != self._phase:
                self._phase = name
                spent = self.budget()
                self._say(one_line(name) + (f"  spent: {spent}" if spent else ""))

    def update(self, history: SweepHistory, note: str | None = None) -> None:
        """Show changes of the history since the last call.

        Args:
            history: History of the sweep; another thread may add to the history meanwhile.
            note: A sentence, shown until the next note.
        """
        with self._guard:
            if self._live is not None:
                self._history = history  # the next frame reads it
            else:
                for line in self._diary.read_on(history):
                    self._say(line)
            if note is not None and note != self._note:
                self._note = note
                self._say(one_line(note))

    def _say(self, line: str) -> None:
        if self._live is None:
            elapsed = f"[{time.monotonic() - self._began:7.1f}s] "
            # A line of a log is not wrapped here; the reader's viewer can wrap it.
            self._console.print(Text(elapsed + line), soft_wrap=True)

    def _render(self) -> RenderableType:
        with self._guard:
            trials = _read_trials(self._history, self._spec)
            elapsed = time.monotonic() - self._began
            head = _render_head(self._spec, self._phase, elapsed, trials, self.budget())
            leader = self._history.best(self._spec.objective, with_running=True)
            found = (line for line in trials if leader and line.number == leader.number)
            best = next(found, None)
            parts: list[RenderableType] = [head]
            lost = [describe_lost_state(event) for _, event in self._history.states_lost[-1:]]
            for note in filter(None, (self._note, *lost)):
                parts.append(Text(one_line(note), style="dim"))
            if trials:
                parts.append(_render_trials(trials, best, self._spec))
            line = "none yet"
            if best is not None:
                metric, value = self._spec.objective.metric, format_metric(best.value)
                place = f"at step {best.step}/{self._spec.horizon} ({best.knobs})"
                line = f"trial {best.number}, {metric} {value} {place}"
            parts.append(Text(f"best so far: {line}"))
            return Group(*parts)


class Diary:
    """Turns a growing history into lines; tells each change once.

    The first reading of a resumed sweep sums up the past in one line.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        # Number of starts, reports and damaged states told.
        self._started, self._reports, self._lost = 0, 0, 0
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


def _read_trials(history: SweepHistory, spec: SweepSpec) -> list[TrialLine]:
    lines, metric = [], spec.objective.metric
    for record in list(history.trials.values()):
        reports = record.measured
        value = reports[-1].metrics.get(metric, math.nan) if reports else math.nan
        lines.append(
            TrialLine(
                number=record.number,
                state=record.outcome or ("running" if reports else "waiting"),
                step=reports[-1].step if reports else 0,
                value=value if math.isfinite(value) else None,
                knobs=_about(record),
                reason=one_line(record.reason),
                is_repeat=record.repeat_of is not None,
                is_adapter=record.outcome is None
                or (can_leave_adapter(record.outcome) and bool(reports)),
            )
        )
    return lines


def _about(record: TrialRecord) -> str:
    """Settings of a trial, or the finalist that the trial repeats."""
    if record.repeat_of is not None:
        return f"trial {record.repeat_of} again, seed {record.spec['seed']}"
    settings = format_settings(record.knobs)
    if record.parent is not None:
        origin = f"from trial {record.parent['trial']}, step {record.parent['step']}"
        return f"{settings}, {origin}" if settings else origin
    return settings


def _render_head(
    spec: SweepSpec, phase: str, elapsed: float, trials: list[TrialLine], spent: str
) -> RenderableType:
    searched = [line for line in trials if not line.is_repeat]
    ended = sum(line.state in set(Outcome) for line in searched)
    total = spec.budget.trials
    facts = [
        format_duration(elapsed),
        f"{ended}/{total} trials done",
        f"budget left: {max(total - len(searched), 0)} trials",
    ]
    if spent:
        facts.append(f"spent: {spent}")
    return Text.assemble((spec.name, "bold"), f"  {one_line(phase)}\n", "  ".join(facts))


def _render_trials(
    trials: list[TrialLine], best: TrialLine | None, spec: SweepSpec
) -> RenderableType:
    """Running and waiting trials by number, then ended trials from the best to the failed."""
    going = ["running", "waiting"]
    sign = 1.0 if spec.objective.mode == "min" else -1.0

    def place(line: TrialLine) -> tuple[int, float, int]:
        if line.state in going:
            return going.index(line.state), 0.0, line.number
        cost = math.inf if line.value is None else sign * line.value
        return 2 if line.is_adapter else 3, cost, line.number

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("", width=10)
    table.add_column(spec.objective.metric, justify="right", no_wrap=True)
    table.add_column("settings", ratio=1, no_wrap=True, overflow="ellipsis")
    for line in sorted(trials, key=place)[:_MAX_ROWS]:
        is_best = best is not None and line.number == best.number
        table.add_row(
            f"{'* ' if is_best else ''}{line.number}",
            Text(line.state, style=_STYLES[line.state]),
            f"{line.step}/{spec.horizon}",
            ProgressBar(total=spec.horizon, completed=line.step, width=10),
            format_metric(line.value) if line.is_adapter else "-",
            Text(line.knobs if line.is_adapter else line.reason),
            style="bold" if is_best else "",
        )
    left = len(trials) - _MAX_ROWS
    return Group(table, Text(f"and {left} more trials", style="dim")) if left > 0 else table
