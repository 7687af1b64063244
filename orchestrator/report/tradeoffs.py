"""Tradeoffs of quality and cost: trials by objective and by memory, size and training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from orchestrator.metrics import TRIAL_METRICS
from orchestrator.report.leaderboard import find_front
from orchestrator.report.plots import BEST_COLOR, DPI, is_wide, make_log, to_png
from trainables.contract import Mode

COSTS: Mapping[str, str] = {name: one.cost for name, one in TRIAL_METRICS.items() if one.cost}
"""Columns of a leaderboard in which less is better, with titles of axes."""

_FRONT_COLOR, _OTHER_COLOR = "#0072b2", "#b0b0b0"
_FRONT, _OTHER = "on the front", "others"


class Point(NamedTuple):
    """A ranked trial with a cost and its objective."""

    trial: int
    cost: float
    quality: float


class Tradeoff(NamedTuple):
    """Ranked trials by one cost.

    Attributes:
        cost: A key of `COSTS`.
        front: Trials on the Pareto front of cost and objective, the cheapest first.
        others: All other trials.
    """

    cost: str
    front: list[Point]
    others: list[Point]

    def staircase(self) -> tuple[list[float], list[float]]:
        """Costs on the front, and the best objective up to each cost."""
        return [point.cost for point in self.front], [point.quality for point in self.front]


def find_tradeoffs(board: pd.DataFrame, *, metric: str, mode: Mode) -> list[Tradeoff]:
    """Tradeoffs among a leaderboard's ranked trials, by each cost that differs between trials."""
    ranked = board[board["rank"].notna()]
    sign = 1.0 if mode == "min" else -1.0
    found = []
    for cost in COSTS:
        rows = ranked[ranked[cost].notna()]
        points = [
            Point(int(trial), float(paid), float(quality))
            for trial, paid, quality in zip(rows["trial"], rows[cost], rows[metric], strict=True)
        ]
        if len({point.cost for point in points}) > 1:
            front = find_front({one.trial: (one.cost, sign * one.quality) for one in points})
            first = [point for point in points if point.trial in front]
            rest = [point for point in points if point.trial not in front]
            found.append(Tradeoff(cost, sorted(first, key=lambda one: one.cost), rest))
    return found


def draw_tradeoffs(
    tradeoffs: Sequence[Tradeoff], *, title: str, metric: str, best: int | None
) -> bytes:
    """A panel for each tradeoff, as a PNG 600 pixels high.

    Args:
        tradeoffs: At least one tradeoff.
        title: Title of the picture.
        metric: The objective.
        best: Number of the trial to highlight.
    """
    width = 2.0 + 3.3 * len(tradeoffs)
    figure = Figure(figsize=(width, 4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(tradeoffs), sharey=True, squeeze=False)[0]
    for axes, tradeoff in zip(panels, tradeoffs, strict=True):
        costs, values = tradeoff.staircase()
        axes.step(costs, values, where="post", color=_FRONT_COLOR, linewidth=1)
        for name, color, symbol, size, points in _groups(tradeoff, best):
            axes.scatter(
                [point.cost for point in points],
                [point.quality for point in points],
                color=color,
                marker="*" if symbol == "star" else "o",
                s=size**2 / 2,
                label=name,
                zorder=3,
            )
        axes.set_xlabel(COSTS[tradeoff.cost])
        axes.grid(alpha=0.25)
        if is_wide([point.cost for point in _points(tradeoff)]):
            make_log(axes, "x")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if is_wide(_qualities(tradeoffs)):
        make_log(panels[0], "y")
    panels[0].set_ylabel(metric)
    panels[-1].legend(frameon=False, fontsize="small")
    figure.suptitle(title)
    return to_png(figure)


def _groups(tradeoff: Tradeoff, best: int | None) -> list[tuple[str, str, str, int, list[Point]]]:
    """Groups of points: name in the legend, colour, symbol, size in pixels, points."""
    chosen = [point for point in _points(tradeoff) if point.trial == best]
    front = [point for point in tradeoff.front if point.trial != best]
    others = [point for point in tradeoff.others if point.trial != best]
    groups = [
        (_OTHER, _OTHER_COLOR, "circle", 8, others),
        (_FRONT, _FRONT_COLOR, "circle", 10, front),
        (f"best: trial {best}", BEST_COLOR, "star", 16, chosen),
    ]
    return [group for group in groups if group[-1]]


def _points(tradeoff: Tradeoff) -> list[Point]:
    return [*tradeoff.front, *tradeoff.others]


def _qualities(tradeoffs: Sequence[Tradeoff]) -> list[float]:
    return [point.quality for tradeoff in tradeoffs for point in _points(tradeoff)]
