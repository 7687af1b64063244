"""Descriptions of a sweep's run in MLflow, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.journal.events import SweepEnded
from orchestrator.journal.history import TrialRecord
from orchestrator.report.leaderboard import describe_trial
from orchestrator.spec.space import searched_names
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_metric, format_settings

_SPLITS = ("eval", "test")
_MEASURES = ("loss", "accuracy")


def describe_sweep(spec: SweepSpec, recorded: Mapping[str, Any]) -> str:
    """What is searched, for what base and rows.

    Args:
        spec: The sweep.
        recorded: The sweep's spec at its first start.
    """
    settings = ", ".join(f"`{name}`" for name in searched_names(spec.search_space)) or "nothing"
    return (
        f"Search for the best adapter of `{recorded['base']['model']}` on "
        f"`{_rows_name(recorded['data']['train'])}`: up to {spec.budget.trials} trials of "
        f"{spec.horizon} steps over {settings}. Objective: `{spec.objective.metric}` "
        f"({spec.objective.mode})."
    )


def describe_result(
    end: SweepEnded,
    adapter: TrialRecord | None,
    best: Mapping[str, float],
    base: Mapping[str, float],
) -> str:
    """How a sweep ended: the best trial, and its measures beside those of the bare base.

    Args:
        end: The end of the sweep.
        adapter: The trial with the best adapter; `None` without one.
        best: Its metrics.
        base: Metrics of the base without an adapter.
    """
    if adapter is None:
        return f"{end.status.capitalize()}: {end.reason}. No adapter was found."
    settings = describe_trial(adapter)
    shown = {name: settings[name] for name in adapter.knobs if name in settings}
    lines = [f"Best: trial {adapter.number}" + (f" ({format_settings(shown)})." if shown else ".")]
    names = [f"{split}_{measure}" for split in _SPLITS for measure in _MEASURES]
    rows = [
        f"| {name} | {format_metric(best[name])} | {format_metric(base.get(name))} |"
        for name in names
        if name in best
    ]
    return "\n".join([*lines, "", "| measure | best trial | base |", "|---|---|---|", *rows])


def _rows_name(train: object) -> str:
    return str(train) if isinstance(train, str) else "rows in memory"
