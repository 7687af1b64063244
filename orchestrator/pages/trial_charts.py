"""Charts of a sweep's trials: curves, progress, settings, tradeoffs, importance, serving forms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from orchestrator.finals.form_scores import Estimate, list_form_scores
from orchestrator.journal.history import SweepHistory
from orchestrator.pages.charts import (
    Mark,
    Series,
    Strip,
    draw_legend,
    draw_panel,
    draw_strips,
    in_grid,
)
from orchestrator.pages.coordinates import Line, draw_coordinates
from orchestrator.pages.scales import format_tick, scale_of
from orchestrator.report.columns import setting_cells, short_heads
from orchestrator.report.importance import Importance
from orchestrator.report.leaderboard import UNRANKED_ORDER, setting_columns
from orchestrator.report.plots import collect_curves
from orchestrator.report.report import SweepReport
from orchestrator.report.tradeoffs import COSTS, Point, Tradeoff, find_tradeoffs
from orchestrator.wording import format_bounds, format_metric

_PERPLEXITY = "perplexity"  # left out: the exponential of the loss adds no information


def label_trials(report: SweepReport) -> dict[int, str]:
    """What a trial's marks say on hovering: number, outcome, objective and searched settings."""
    names = setting_columns(report.leaderboard)
    heads = short_heads(names)
    labels = {}
    for row in report.leaderboard.to_dict("records"):
        cells = zip(heads, setting_cells(names, {name: row[name] for name in names}), strict=True)
        settings = ", ".join(f"{head} {value}" for head, value in cells)
        value = row[report.metric]
        told = "" if pd.isna(value) else f", {report.metric} {format_metric(float(value))}"
        labels[int(row["trial"])] = f"trial {row['trial']} ({row['outcome']}){told}\n{settings}"
    return labels


# ---------------------------------------------------------------------------------------- curves


def draw_curves(report: SweepReport, history: SweepHistory) -> str:
    """The objective by step; repeats of a finalist are dashed. Empty without measured trials."""
    best = None if report.best is None else report.best.found_by
    curves = collect_curves(history, report.metric)
    if not curves:
        return ""
    series, legend = [], {}
    for trial, outcome, steps, values in reversed(curves):
        again = history.trials[trial].repeat_of
        shown = trial if again is None else again
        style = "best" if shown == best else outcome
        legend[style] = f"best: trial {best}" if style == "best" else style
        series.append(
            Series(
                marks=[
                    Mark(x=step, y=value, tip=f"step {step}: {format_metric(value)}")
                    for step, value in zip(steps, values, strict=True)
                ],
                label="" if again is None else f"trial {trial}, repeats {again} with another seed",
                style=style,
                trial=shown,
                is_line=True,
                has_dots=again is None,
                is_dashed=again is not None,
            )
        )
    series.sort(key=lambda one: one.style == "best")  # on top of the others
    base = report.base_metrics.get("validation", {}).get(report.metric)
    rule = (base, "base alone") if base is not None and math.isfinite(base) else None
    order = ["best", *UNRANKED_ORDER]
    named = [(style, legend[style]) for style in order if style in legend]
    chart = draw_panel(series, title=report.metric, x_title="step", rule=rule, height=340)
    return chart + draw_legend(named)


def draw_progress(report: SweepReport) -> str:
    """The objective by trial, with a line of the best so far; empty for fewer than two trials."""
    points = sorted(_ranked_points(report))
    if len(points) < 2:
        return ""
    better = min if report.mode == "min" else max
    so_far, best = [], points[0][1]
    for trial, value, _ in points:
        best = better(best, value)
        so_far.append(Mark(x=trial, y=best))
    stairs = Series(marks=so_far, style="best", is_line=True, has_dots=False, is_stair=True)
    dots = [
        Series(
            marks=[Mark(x=trial, y=value)],
            style=outcome,
            trial=trial,
        )
        for trial, value, outcome in points
    ]
    return draw_panel([stairs, *dots], title=f"best {report.metric} so far", x_title="trial")


def _ranked_points(report: SweepReport) -> Iterator[tuple[int, float, str]]:
    """Trial, objective and CSS class of each ranked trial."""
    best = None if report.best is None else report.best.found_by
    for row in _ranked(report.leaderboard):
        trial = int(row["trial"])
        yield trial, float(row[report.metric]), "best" if trial == best else row["outcome"]


def _ranked(board: pd.DataFrame) -> list[Mapping[str, Any]]:
    rows = board[board["rank"].notna()].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


# -------------------------------------------------------------------------------------- settings


def draw_slices(report: SweepReport) -> str:
    """The objective by each searched setting; empty for fewer than two ranked trials."""
    rows = _ranked(report.leaderboard)
    if len(rows) < 2:
        return ""
    names = [n for n in setting_columns(report.leaderboard) if len({str(r[n]) for r in rows}) > 1]
    best = None if report.best is None else report.best.found_by
    panels = []
    for name, head in zip(names, short_heads(names), strict=True):
        series = [
            Series(
                marks=[Mark(x=row[name], y=float(row[report.metric]))],
                style="best" if row["trial"] == best else row["outcome"],
                trial=int(row["trial"]),
            )
            for row in reversed(rows)
        ]
        x = scale_of([row[name] for row in rows], is_setting=True)
        title = f"{report.metric} by {head}" + (f" ({name})" if head != name else "")
        panels.append(draw_panel(series, title=title, x=x, height=190))
    return in_grid(panels)


def draw_settings(report: SweepReport) -> str:
    """Parallel coordinates of the ranked trials; empty for fewer than two of them."""
    rows = _ranked(report.leaderboard)
    names = setting_columns(report.leaderboard)
    if len(rows) < 2 or not names:
        return ""
    lines = [
        Line(
            trial=int(row["trial"]),
            values=[*(row[name] for name in names), float(row[report.metric])],
        )
        for row in rows
    ]
    return draw_coordinates([*short_heads(names), report.metric], lines)


def draw_importance_strips(importance: Importance) -> str:
    """The share of each setting as a bar, with its interval over resampled trials."""
    strips = []
    for (name, part), head in zip(
        importance.parts.items(), short_heads(list(importance.parts)), strict=True
    ):
        low, high = importance.intervals.get(name, (None, None))
        bounds = "" if low is None or high is None else f" ({low:.0%} … {high:.0%})"
        label = head if head == name else f"{head} ({name})"
        strips.append(
            Strip(label=label, value=part, low=low, high=high, text=f"{part:.0%}{bounds}",
                  style="front")
        )  # fmt: skip
    title = "part of what single settings explain"
    return draw_strips(strips, title=title, zero=0.0, is_bar=True)


# ------------------------------------------------------------------------------------- tradeoffs


def draw_tradeoff_panels(report: SweepReport, history: SweepHistory, also: Iterable[str]) -> str:
    """The objective by each cost and by each further objective; empty if none differs.

    Args:
        report: The report.
        history: History of the sweep, with values that the leaderboard lacks.
        also: Further objectives.
    """
    found = find_tradeoffs(report.leaderboard, metric=report.metric, mode=report.mode)
    further = [name for name in also if name not in {one.cost for one in found}]
    found += [one for name in further if (one := _by_objective(report, history, name)) is not None]
    best = None if report.best is None else report.best.found_by
    panels = [_draw_tradeoff(one, report.metric, best) for one in found]
    legend = [("front", "on the Pareto front"), ("cancelled", "others")]
    legend += [] if best is None else [("best", f"best: trial {best}")]
    return in_grid(panels) + draw_legend(legend) if panels else ""


def _by_objective(report: SweepReport, history: SweepHistory, name: str) -> Tradeoff | None:
    """Ranked trials by a further objective; its front is that of all objectives."""
    points = [
        Point(trial, cost, quality)
        for trial, quality, _ in _ranked_points(report)
        if (cost := history.trials[trial].last(name)) is not None
    ]
    if len({point.cost for point in points}) < 2:
        return None
    front = [point for point in points if point.trial in report.pareto]
    others = [point for point in points if point.trial not in report.pareto]
    return Tradeoff(name, sorted(front, key=lambda one: one.cost), others)


def _draw_tradeoff(tradeoff: Tradeoff, metric: str, best: int | None) -> str:
    title = COSTS.get(tradeoff.cost, tradeoff.cost)
    stairs = Series(
        marks=[Mark(x=cost, y=value) for cost, value in zip(*tradeoff.staircase(), strict=True)],
        style="front",
        is_line=tradeoff.cost in COSTS,
        has_dots=False,
        is_stair=True,
    )
    dots = [
        Series(
            marks=[Mark(x=point.cost, y=point.quality, tip=f"{title} {format_tick(point.cost)}")],
            style="best" if point.trial == best else style,
            trial=point.trial,
        )
        for style, points in (("cancelled", tradeoff.others), ("front", tradeoff.front))
        for point in points
    ]
    return draw_panel([stairs, *dots], title=f"{metric} by {title}", x_title=title)


# ---------------------------------------------------------------------------------------- finals


def draw_forms(report: SweepReport) -> str:
    """The best adapter's measures in each serving form; empty for a single form."""
    number = None if report.best is None else report.best.trial
    scores = [one for one in list_form_scores(report.forms) if one.trial == number]
    figures = []
    for measure in dict.fromkeys(one.measure for one in scores if one.measure != _PERPLEXITY):
        strips = [
            Strip(
                label=one.form,
                value=one.score.value,
                low=one.score.low,
                high=one.score.high,
                text=_with_bounds(one.score),
                style="best" if one.difference is None else "front",
            )
            for one in scores
            if one.measure == measure
        ]
        if len(strips) > 1 and len({one.value for one in strips}) > 1:
            figures.append(draw_strips(strips, title=measure.replace("_", " ")))
    return in_grid(figures) if figures else ""


def draw_finals(report: SweepReport) -> str:
    """The finalists' means with their intervals; empty without repeated finalists."""
    strips = [
        Strip(
            label=f"trial {one.trial.number}",
            value=one.mean,
            low=None if one.half_width is None else one.mean - one.half_width,
            high=None if one.half_width is None else one.mean + one.half_width,
            text=f"{format_metric(one.mean)} ({len(one.values)} runs)",
            style="best" if place == 0 else "front",
        )
        for place, one in enumerate(report.finals)
        if one.mean is not None
    ]
    if len(strips) < 2:
        return ""
    return draw_strips(strips, title=f"mean {report.finals[0].metric} of the finalists")


def _with_bounds(score: Estimate) -> str:
    bounds = format_bounds(score.low, score.high)
    return format_metric(score.value) + (f"  ({bounds})" if bounds else "")
