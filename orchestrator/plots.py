"""Pictures of a sweep: learning curves for a page and for a file, parallel coordinates."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from orchestrator.history import SweepHistory
from orchestrator.leaderboard import UNFINISHED, UNRANKED_ORDER, outcome_of, setting_columns
from orchestrator.measurements import measured_reports
from orchestrator.sections import Mode
from orchestrator.wording import format_setting

OUTCOME_COLORS: Mapping[str, str] = {
    "completed": "#0072b2",
    "stopped": "#e69f00",
    "diverged": "#d55e00",
    "infeasible": "#cc79a7",
    "failed": "#000000",
    "cancelled": "#999999",
    UNFINISHED: "#56b4e9",
}
"""Okabe and Ito's palette, which readers with any colour vision can tell apart."""

_BEST_COLOR = "#009e73"
_LOG_RATIO = 20
"""Values that span more than this are drawn on a logarithmic axis."""

_DPI = 150
_HEIGHT_PX = 460
_MAX_TICKS = 8

Curve = tuple[int, str, list[int], list[float]]
"""Trial, outcome, steps, finite values."""


def collect_curves(history: SweepHistory, metric: str) -> list[Curve]:
    """The learning curve of every trial that measured something, by outcome and number."""
    curves = []
    for record in history.trials.values():
        points = [
            (report.step, value)
            for report in measured_reports(record)
            if math.isfinite(value := report.metrics.get(metric, math.nan))
        ]
        if points:
            steps, values = map(list, zip(*points, strict=True))
            curves.append((record.number, outcome_of(record), steps, values))
    return sorted(curves, key=lambda curve: (UNRANKED_ORDER.index(curve[1]), curve[0]))


def draw_learning_curves(
    history: SweepHistory, *, title: str, metric: str, best: int | None, base: float | None
) -> bytes:
    """The metric of every trial by step, as a PNG of 1200 by 750 pixels.

    Args:
        history: What is known of the sweep.
        title: Above the picture.
        metric: What to draw.
        best: Number of the trial to stress.
        base: The metric of the base alone, drawn as a line.
    """
    # No pyplot: it keeps global state and chooses a backend; a bare figure draws with Agg.
    figure = Figure(figsize=(8, 5), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    curves = collect_curves(history, metric)
    named: set[str] = set()
    for trial, outcome, steps, values in curves:
        is_best = trial == best
        label = f"best: trial {trial}" if is_best else outcome
        axes.plot(
            steps,
            values,
            color=_BEST_COLOR if is_best else OUTCOME_COLORS[outcome],
            linewidth=2.5 if is_best else 1.2,
            alpha=1.0 if is_best else 0.7,
            marker="o",
            markersize=5 if is_best else 3,
            zorder=3 if is_best else 2,
            label=None if label in named else label,
        )
        named.add(label)
    if base is not None and math.isfinite(base):
        axes.axhline(base, color="#666666", linestyle="--", linewidth=1, label="base alone")
    if _is_wide([value for *_, values in curves for value in values]):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title=title, xlabel="step", ylabel=metric)
    axes.grid(alpha=0.25)
    if curves:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "no measurements", ha="center", transform=axes.transAxes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def plot_learning_curves(
    history: SweepHistory, *, metric: str, best: int | None, base: float | None
) -> Any:
    """A plotly figure of `draw_learning_curves`, with every trial's number on hovering."""
    figure = go.Figure()
    named: set[str] = set()
    curves = collect_curves(history, metric)
    for trial, outcome, steps, values in curves:
        is_best = trial == best
        label = f"best: trial {trial}" if is_best else outcome
        line = {
            "color": _BEST_COLOR if is_best else OUTCOME_COLORS[outcome],
            "width": 4 if is_best else 1.5,
        }
        figure.add_scatter(
            x=steps,
            y=values,
            mode="lines+markers",
            name=label,
            legendgroup=label,
            showlegend=label not in named,
            line=line,
            hovertemplate=f"trial {trial} ({outcome})<br>step %{{x}}<br>%{{y:.5g}}<extra></extra>",
        )
        named.add(label)
    if curves and base is not None and math.isfinite(base):
        last = max(steps[-1] for _, _, steps, _ in curves)
        line = {"dash": "dash", "color": "#666666", "width": 1}
        figure.add_scatter(x=[0, last], y=[base, base], mode="lines", name="base alone", line=line)
    if _is_wide([value for *_, values in curves for value in values]):
        figure.update_yaxes(type="log")
    figure.update_layout(xaxis_title="step", yaxis_title=metric, height=_HEIGHT_PX)
    figure.update_layout(margin={"t": 30, "r": 20})
    return figure


def plot_parallel_coordinates(board: pd.DataFrame, *, metric: str, mode: Mode) -> Any | None:
    """Settings and objective of the ranked trials; `None` for fewer than two of them."""
    ranked = board[board["rank"].notna()]
    if len(ranked) < 2:
        return None
    values = [float(value) for value in ranked[metric]]
    dimensions = [_dimension(name, list(ranked[name])) for name in setting_columns(board)]
    line = {
        "color": values,
        "colorscale": "Viridis",
        "reversescale": mode == "min",
        "showscale": True,
        "colorbar": {"title": {"text": metric}},
    }
    figure = go.Figure(
        go.Parcoords(line=line, dimensions=[*dimensions, {"label": metric, "values": values}])
    )
    figure.update_layout(height=_HEIGHT_PX, margin={"l": 90, "r": 40, "t": 60, "b": 30})
    return figure


def _dimension(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """One axis: numbers as they are or by their logarithm, everything else by its place."""
    label = name.rpartition(".")[2]
    if all(map(_is_number, values)):
        if not _is_wide(values):
            return {"label": label, "values": [float(value) for value in values]}
        distinct = sorted(set(values))
        ticks = distinct[:: math.ceil(len(distinct) / _MAX_TICKS)]
        return {
            "label": label,
            "values": [math.log10(value) for value in values],
            "tickvals": [math.log10(value) for value in ticks],
            "ticktext": [format_setting(value) for value in ticks],
        }
    words = sorted({format_setting(value) for value in values})
    return {
        "label": label,
        "values": [words.index(format_setting(value)) for value in values],
        "tickvals": list(range(len(words))),
        "ticktext": words,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_wide(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO
