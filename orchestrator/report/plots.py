"""Pictures of a sweep: learning curves, parallel coordinates, and settings of all pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import TRAITS
from orchestrator.report.leaderboard import UNFINISHED, UNRANKED_ORDER, outcome_of, setting_columns
from orchestrator.wording import format_setting

OUTCOME_COLORS: Mapping[str, str] = {
    **{outcome.value: traits.color for outcome, traits in TRAITS.items()},
    UNFINISHED: "#56b4e9",
}

BEST_COLOR = "#009e73"
_LOG_RATIO = 20
"""Values with a larger ratio of maximum to minimum are drawn on a logarithmic axis."""

DPI = 150
"""Resolution of pictures in files."""

_HEIGHT_PX = 460
_MAX_TICKS = 8
_FEW = 5
_SHADES = [[0.0, "#08306b"], [0.5, "#4292c6"], [1.0, "#c6dbef"]]

Curve = tuple[int, str, list[int], list[float]]
"""Trial, outcome, steps, finite values."""


def collect_curves(history: SweepHistory, metric: str) -> list[Curve]:
    """The learning curve of every evaluated trial, by outcome and number."""
    curves = []
    for record in history.trials.values():
        points = [
            (report.step, value)
            for report in record.measured
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
        history: History of the sweep.
        title: Title of the picture.
        metric: The metric to draw.
        best: Number of the trial to highlight.
        base: The metric of the base alone, drawn as a line.
    """
    # No pyplot, which keeps global state and chooses a backend; a bare figure draws with Agg.
    figure = Figure(figsize=(8, 5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    curves = collect_curves(history, metric)
    named: set[str] = set()
    for trial, outcome, steps, values in curves:
        is_best = trial == best
        label = f"best: trial {trial}" if is_best else outcome
        axes.plot(
            steps,
            values,
            color=BEST_COLOR if is_best else OUTCOME_COLORS[outcome],
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
    if is_wide([value for *_, values in curves for value in values]):
        make_log(axes, "y")
    axes.set(title=title, xlabel="step", ylabel=metric)
    axes.grid(alpha=0.25)
    if curves:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "no measurements", ha="center", transform=axes.transAxes)
    return to_png(figure)


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def make_log(axes: Axes, side: Literal["x", "y"]) -> None:
    """Make one axis logarithmic, with plain numbers at 1, 2 and 5."""
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


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
            "color": BEST_COLOR if is_best else OUTCOME_COLORS[outcome],
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
    if is_wide([value for *_, values in curves for value in values]):
        figure.update_yaxes(type="log")
    figure.update_layout(xaxis_title="step", yaxis_title=metric, height=_HEIGHT_PX)
    figure.update_layout(template="plotly_white", margin={"t": 30, "r": 20})
    return figure


def plot_parallel_coordinates(board: pd.DataFrame, *, metric: str) -> Any | None:
    """Settings and objective of the ranked trials; `None` for fewer than two trials."""
    ranked = board[board["rank"].notna()]
    if len(ranked) < 2:
        return None
    names = [*setting_columns(board), metric]
    dimensions = [_dimension(name, list(ranked[name])) for name in names]
    dimensions[-1]["label"] = metric
    # Good trials are dark. Shades follow the rank, because many values can be nearly equal.
    line = {"color": list(ranked["rank"]), "colorscale": _SHADES}
    figure = go.Figure(go.Parcoords(line=line, dimensions=dimensions))
    figure.update_layout(height=_HEIGHT_PX, margin={"l": 90, "r": 60, "t": 80, "b": 30})
    return figure


def _dimension(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """An axis for a setting: numbers, logarithms of numbers, or the places of words."""
    label = name.rpartition(".")[2]
    if all(map(is_number, values)):
        distinct = sorted(set(values))
        if not is_wide(values):
            axis = {"label": label, "values": [float(value) for value in values]}
            # With few distinct values, put ticks at those values only.
            few = {"tickvals": distinct, "ticktext": [format_setting(one) for one in distinct]}
            return axis | (few if len(distinct) <= _FEW else {})
        ticks = _spread_ticks([float(value) for value in distinct])
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


def _spread_ticks(distinct: Sequence[float]) -> list[float]:
    """A selection of these ascending values, readable as ticks of a logarithmic axis."""
    apart = math.log(distinct[-1] / distinct[0]) / _MAX_TICKS
    ticks = [distinct[0]]
    for value in distinct[1:]:
        if math.log(value / ticks[-1]) >= apart:
            ticks.append(value)
    return ticks


def is_number(value: object) -> bool:
    """Whether the value is an integer or a float, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows the values better."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO
