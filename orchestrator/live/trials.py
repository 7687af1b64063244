"""The table of trials: a column for each searched setting, as many others as the width allows.

Values are never cut. A table that is too wide for its settings breaks them into lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.live.sparkline import draw_sparkline
from orchestrator.metrics import HEADLINES, TRIAL_METRICS, ReportedMetric
from orchestrator.outcome import TRAITS, can_leave_adapter
from orchestrator.report.columns import (
    Column,
    build_setting_columns,
    fit_columns,
    lay_out,
    order_settings,
)
from orchestrator.spec.settings import ALPHA_PER_RANK
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_metric, one_line

STYLES: Mapping[str, str] = {
    "waiting": "dim",
    "running": "cyan",
    "unfinished": "dim",
    **{outcome.value: traits.style for outcome, traits in TRAITS.items()},
}
"""Style of each state of a trial."""

_LEAST_ROWS = 4
_MAX_REASONS = 2
_COSTS: Mapping[ReportedMetric, str] = {"tokens_per_s": "tok/s", "peak_memory_gib": "GiB"}


class TrialLine(NamedTuple):
    """A row.

    Attributes:
        number: The trial's number.
        state: `waiting`, `running`, or the outcome.
        step: Step of the last evaluation.
        value: The objective at the last evaluation; `None` if not finite.
        curve: The objective at all evaluations.
        metrics: All values of the last evaluation.
        settings: Values of the searched settings.
        origin: The checkpoint or finalist that the trial comes from; empty for a fresh trial.
        reason: Why the trial ended.
        is_adapter: Whether the value counts: the trial runs, or its outcome can leave an adapter.
    """

    number: int
    state: str
    step: int
    value: float | None
    curve: Sequence[float]
    metrics: Mapping[str, float]
    settings: Mapping[str, object]
    origin: str
    reason: str
    is_adapter: bool = True

    @property
    def is_ended(self) -> bool:
        """Whether the state is an outcome."""
        return self.state in set(TRAITS)


def setting_names(spec: SweepSpec) -> tuple[str, ...]:
    """The searched settings by dotted name, tied ones included."""
    space = spec.search_space
    names = (*space.knobs, *space.ties)
    return order_settings({"lora.alpha" if n == ALPHA_PER_RANK else n for n in names})


def read_trials(
    history: SweepHistory, spec: SweepSpec, seated: Collection[int] = ()
) -> list[TrialLine]:
    """The rows of all trials, by number.

    Args:
        history: The history; another thread may add to it.
        spec: The sweep.
        seated: Trials that have a seat: one without a report is running, not waiting.
    """
    names = setting_names(spec)
    return [_read_trial(record, spec, names, seated) for record in list(history.trials.values())]


def render_trials(
    lines: Sequence[TrialLine], leader: int | None, spec: SweepSpec, width: int, rows: int
) -> RenderableType:
    """Running and waiting trials by number, then ended trials from the best to the failed.

    Args:
        lines: The rows in any order.
        leader: Number of the leading trial, which is marked by a star.
        spec: The sweep.
        width: Columns of the terminal.
        rows: Rows to show, at least four; the other trials are counted.
    """
    ordered = sorted(lines, key=_place(spec))
    columns, gap = fit_columns(_columns(ordered, leader, spec), width)
    shown = ordered[: _count_fitting(columns, max(rows, _LEAST_ROWS))]
    table = lay_out(columns, gap)
    for place, line in enumerate(shown):
        style = "bold" if line.number == leader else "" if line.is_adapter else "dim"
        cells = [Text(column.cells[place]) for column in columns]
        cells[1].stylize(STYLES[line.state])
        table.add_row(*cells, style=style)
    parts: list[RenderableType] = [table]
    left = len(lines) - len(shown)
    if left > 0:
        parts.append(Text(f"and {left} more trials", style="dim"))
    broken = [line for line in lines if not line.is_adapter and line.reason]
    parts += [
        Text(f"trial {line.number} {line.state}: {line.reason}", "dim", no_wrap=True, end="\n")
        for line in broken[-_MAX_REASONS:]
    ]
    return Group(*parts)


def _read_trial(
    record: TrialRecord, spec: SweepSpec, names: Sequence[str], seated: Collection[int]
) -> TrialLine:
    reports, metric = record.measured, spec.objective.metric
    curve = [report.metrics.get(metric, math.nan) for report in reports]
    is_running = bool(reports) or record.number in seated
    return TrialLine(
        number=record.number,
        state=record.outcome or ("running" if is_running else "waiting"),
        step=reports[-1].step if reports else 0,
        value=curve[-1] if curve and math.isfinite(curve[-1]) else None,
        curve=curve,
        metrics=reports[-1].metrics if reports else {},
        settings=_settings(record, names),
        origin=_origin(record),
        reason=one_line(record.reason),
        is_adapter=record.outcome is None or (can_leave_adapter(record.outcome) and bool(reports)),
    )


def _settings(record: TrialRecord, names: Sequence[str]) -> dict[str, object]:
    """The named settings of a trial, as far as the record has them."""
    found = dict(record.knobs)
    for name in names:
        section, _, key = name.rpartition(".")
        settings = record.spec.get(section, {}) if section else record.spec
        if key in settings:
            found[name] = settings[key]
    return found


def _origin(record: TrialRecord) -> str:
    if record.repeat_of is not None:
        return f"{record.repeat_of}, seed {record.spec['seed']}"
    if record.parent is not None:
        return f"{record.parent['trial']}, step {record.parent['step']}"
    return ""


def _place(spec: SweepSpec) -> Callable[[TrialLine], tuple[int, float, int]]:
    going = ["running", "waiting", "unfinished"]
    sign = 1.0 if spec.objective.mode == "min" else -1.0

    def place(line: TrialLine) -> tuple[int, float, int]:
        if line.state in going:
            return going.index(line.state), 0.0, line.number
        cost = math.inf if line.value is None else sign * line.value
        return len(going) + (not line.is_adapter), cost, line.number

    return place


def _columns(lines: Sequence[TrialLine], leader: int | None, spec: SweepSpec) -> list[Column]:
    """All columns that have something to say, in their order."""
    goal, names = spec.objective.metric, setting_names(spec)
    stars = [f"{'* ' if line.number == leader else ''}{line.number}" for line in lines]
    columns = [
        Column(head="trial", cells=stars),
        Column(head="state", cells=[line.state for line in lines], side="left"),
        Column(head="step", cells=[str(line.step) for line in lines]),
        Column(head=goal.removeprefix("eval_"), cells=[_value(line) for line in lines]),
        Column(head="", cells=[draw_sparkline(line.curve) for line in lines], side="left", rank=1),
        *build_setting_columns(names, [line.settings for line in lines]),
        Column(head="from trial", cells=[line.origin for line in lines], side="left"),
    ]
    others = [name for name in HEADLINES if name != goal]
    columns += [_metric_column(name.removeprefix("eval_"), name, lines, rank=2) for name in others]
    columns += [
        _metric_column(head, name, lines, rank=3 + place)
        for place, (name, head) in enumerate(_COSTS.items())
    ]
    return [column for column in columns if any(column.cells)]


def _metric_column(head: str, name: str, lines: Sequence[TrialLine], rank: int) -> Column:
    show = TRIAL_METRICS[name].show  # type: ignore[index]
    cells = [
        show(line.metrics[name]) if line.is_adapter and name in line.metrics else ""
        for line in lines
    ]
    return Column(head=head, cells=cells, rank=rank)


def _value(line: TrialLine) -> str:
    return format_metric(line.value) if line.is_adapter else "-"


def _count_fitting(columns: Sequence[Column], rows: int) -> int:
    """The number of trials that take at most so many lines."""
    taken = 0
    for place, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        taken += max(cell.count("\n") + 1 for cell in cells)
        if taken > rows:
            return place
    return len(columns[0].cells)
