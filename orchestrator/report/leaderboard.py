"""Leaderboard: every trial of a sweep in one table, ranked trials first, then by outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.journal.history import SweepHistory, TrialRecord, exceeded
from orchestrator.metrics import TRIAL_METRICS
from orchestrator.outcome import TRAITS, can_leave_adapter
from orchestrator.spec.sections import ObjectiveSpec
from orchestrator.spec.space import describe, searched_names
from orchestrator.spec.sweep import SweepSpec
from trainables.spec import TrialSpec

UNFINISHED = "unfinished"
"""Value of the column `outcome` for a trial that has not ended."""

UNRANKED_ORDER: tuple[str, ...] = (*TRAITS, UNFINISHED)
"""Values of the column `outcome` in the order of trials without a rank."""

_METRICS = tuple(name for name, one in TRIAL_METRICS.items() if one.measure and one.is_listed)
_COSTS = tuple(name for name, one in TRIAL_METRICS.items() if not one.measure)


def build_leaderboard(spec: SweepSpec, history: SweepHistory) -> pd.DataFrame:
    """One row per trial of the search; trials without a comparable value have no `rank`.

    Metrics are those of a trial's last report; values that are not finite are missing. The reason
    of a trial also names a constraint that keeps its adapter out of the ranking.
    """
    settings = searched_names(spec.search_space)
    metrics = objective_first(spec.objective.metric)
    ranked = history.ranking(spec.objective)
    rows = []
    placed = {record.number for record in ranked}
    rest = sorted(
        (record for record in history.searched() if record.number not in placed),
        key=lambda record: (UNRANKED_ORDER.index(outcome_of(record)), record.number),
    )
    for rank, record in [*enumerate(ranked, 1), *((None, record) for record in rest)]:
        is_adapter = can_leave_adapter(record.outcome)
        broken = exceeded(record, spec.objective) if is_adapter else ""
        reason = f"{record.reason}; not {broken}" if broken else record.reason
        rows.append(
            {"rank": rank, "trial": record.number, "outcome": outcome_of(record)}
            | _last_values(record, ("step", *metrics))
            | {name: value for name, value in describe_trial(record).items() if name in settings}
            | _last_values(record, _COSTS)
            | {"seconds": _seconds(record), "reason": reason}
        )
    columns = ["rank", "trial", "outcome", "step", *metrics]
    columns += [*settings, *_COSTS, "seconds", "reason"]
    types = dict.fromkeys((*metrics, *_COSTS, "seconds"), "float64")
    whole = [name for name, one in TRIAL_METRICS.items() if one.is_whole]
    types |= dict.fromkeys(("rank", "trial", "step", *whole), "Int64")
    # Settings stay objects, because pandas turns 4 and None into 4.0 and NaN.
    return pd.DataFrame(
        {
            name: pd.Series([row[name] for row in rows], dtype=types.get(name, "object"))
            for name in columns
        }
    )


def build_curves(history: SweepHistory) -> pd.DataFrame:
    """One row for each evaluation of each trial, repeats included, by trial and step.

    The columns are `trial`, `repeat_of`, `step`, the reported metrics and `seconds` since the
    trial's start.
    """
    rows = [
        {"trial": record.number, "repeat_of": record.repeat_of, "step": report.step}
        | {name: value for name, value in report.metrics.items() if name != "step"}
        | {"seconds": report.at - record.started_at}
        for record in history.trials.values()
        for report in record.measured
    ]
    first = ["trial", "repeat_of", "step"]
    names = dict.fromkeys([*first, *(name for row in rows for name in row), "seconds"])
    curves = pd.DataFrame(rows, columns=list(names)).astype(dict.fromkeys(first, "Int64"))
    return curves.sort_values(["trial", "step"], ignore_index=True)


def build_outcomes(history: SweepHistory) -> pd.DataFrame:
    """One row for each outcome of trials of the search: `outcome`, `trials`, `share`, `reason`.

    `reason` is the most frequent reason of the outcome.
    """
    reasons: dict[str, list[str]] = {name: [] for name in UNRANKED_ORDER}
    for record in history.searched():
        reasons[outcome_of(record)].append(record.reason)
    total = sum(map(len, reasons.values()))
    rows = [
        (name, len(said), len(said) / total, max(said, key=said.count))
        for name, said in reasons.items()
        if said
    ]
    return pd.DataFrame(rows, columns=["outcome", "trials", "share", "reason"])


def find_pareto(objective: ObjectiveSpec, history: SweepHistory) -> tuple[int, ...]:
    """Ranked trials on the Pareto front of the objectives.

    Empty for a single objective, because the ranking shows the best trial.
    """
    if not objective.also:
        return ()
    signs = {name: 1.0 if mode == "min" else -1.0 for name, mode in objective.goals.items()}
    costs = {}
    for record in history.ranking(objective):
        values = [record.last(name) for name in signs]
        if None not in values:
            costs[record.number] = [
                sign * float(value or 0.0)
                for sign, value in zip(signs.values(), values, strict=True)
            ]
    return find_front(costs)


def find_front(costs: Mapping[int, Sequence[float]]) -> tuple[int, ...]:
    """Numbers on the Pareto front: no other number dominates a number on the front."""
    return tuple(
        number
        for number, cost in costs.items()
        if not any(_dominates(other, cost) for other in costs.values())
    )


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether no cost of `a` is higher than in `b`, and at least one cost is lower."""
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def objective_first(metric: str) -> list[str]:
    """The metrics in a table of trials, the objective first."""
    return [metric, *(name for name in _METRICS if name != metric)]


def setting_columns(board: pd.DataFrame) -> list[str]:
    """The columns of a leaderboard that hold searched hyperparameters."""
    names = [str(name) for name in board.columns]
    first = 1 + max(names.index(name) for name in ("step", *_METRICS))
    return names[first : names.index(_COSTS[0])]


def describe_trial(record: TrialRecord) -> dict[str, Any]:
    """All hyperparameters of a trial under readable names."""
    return describe(TrialSpec.from_dict(record.spec))


def outcome_of(record: TrialRecord) -> str:
    """The value of the column `outcome`."""
    return UNFINISHED if record.outcome is None else record.outcome.value


def _last_values(record: TrialRecord, names: tuple[str, ...]) -> dict[str, float | None]:
    reports = record.measured
    last: Mapping[str, float] = reports[-1].metrics if reports else {}
    values = {name: last.get(name) for name in names}
    found: dict[str, float | None] = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }
    if "step" in found:
        found["step"] = reports[-1].step if reports else 0
    return found


def _seconds(record: TrialRecord) -> float | None:
    """Seconds from the start to the end, or to the last report of an unfinished trial."""
    end = record.ended_at
    if end is None and record.reports:
        end = record.reports[-1].at
    return None if end is None else end - record.started_at
