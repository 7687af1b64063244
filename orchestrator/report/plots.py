"""Pictures of a sweep: learning curves, and settings of all pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import TRAITS
from orchestrator.report.leaderboard import UNFINISHED, UNRANKED_ORDER, outcome_of

OUTCOME_COLORS: Mapping[str, str] = {
    **{outcome.value: traits.color for outcome, traits in TRAITS.items()},
    UNFINISHED: "#56b4e9",
}

BEST_COLOR = "#009e73"
_LOG_RATIO = 20
"""Values with a larger ratio of maximum to minimum are drawn on a logarithmic axis."""

DPI = 150
"""Resolution of pictures in files."""

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


def is_number(value: object) -> bool:
    """Whether the value is an integer or a float, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows the values better."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO
