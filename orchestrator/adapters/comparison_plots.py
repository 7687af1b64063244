"""Pictures of versions side by side: scores with intervals, differences, quality by cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from plotly.subplots import make_subplots

from orchestrator.report.plots import OUTCOME_COLORS, is_wide
from registry.evaluations.comparison import Comparison, Cost, Difference, Score

_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000")
"""Okabe and Ito's palette."""

_CLEAR, _UNCLEAR = "#0072b2", OUTCOME_COLORS["cancelled"]
_SYMBOLS = ("circle", "square", "diamond", "cross", "x")
_COLUMNS = 3
_ASIDE = 0.5
"""Share of a form's width on the axis that its versions use."""

_COSTS = {"adapter_bytes": "adapter, MB", "peak_memory_gib": "peak memory, GiB"}
_BYTES = 1e6


def short_names(adapters: Sequence[str]) -> dict[str, str]:
    """Names for legends, without the adapter's name where all versions have the same name."""
    names = {adapter.rpartition("/")[0] for adapter in adapters}
    if len(names) == 1 and "" not in names:
        return {adapter: "/" + adapter.rpartition("/")[2] for adapter in adapters}
    return {adapter: adapter for adapter in adapters}


def plot_scores(scores: Sequence[Score], adapters: Sequence[str]) -> Any | None:
    """A panel for each measure: versions by serving form, with their intervals.

    Args:
        scores: Scores on the same rows.
        adapters: All versions, in the order of their colours.
    """
    panels = _by_measure(scores)
    if not panels:
        return None
    forms = list(dict.fromkeys(score.form for score in scores))
    figure = _grid(panels)
    for number, each in enumerate(panels.values()):
        for place, adapter in enumerate(adapters):
            points = [score for score in each if score.adapter == adapter]
            # Side by side, because overlapping intervals are hard to read.
            aside = (place - (len(adapters) - 1) / 2) * _ASIDE / len(adapters)
            figure.add_scatter(
                x=[forms.index(score.form) + aside for score in points],
                y=[score.value for score in points],
                error_y=_whiskers(points),
                mode="markers",
                name=escape(adapter),
                legendgroup=adapter,
                showlegend=number == 0,
                marker={"color": _COLORS[place % len(_COLORS)], "size": 9,
                        "symbol": ["circle-open" if score.is_recorded else "circle"
                                   for score in points]},
                customdata=[score.form for score in points],
                hovertemplate="%{customdata}: %{y:.5g}<extra>" + escape(adapter) + "</extra>",
                **_cell(number),
            )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(forms))), ticktext=forms, range=[-0.5, len(forms) - 0.5]
    )
    return figure


def plot_differences(differences: Sequence[Difference], adapters: Sequence[str]) -> Any | None:
    """A forest plot: a panel for each measure, a line for each pair and form, a mark at zero.

    Args:
        differences: Differences; those without an interval are left out.
        adapters: All versions.
    """
    known = [one for one in differences if one.interval is not None]
    panels = _by_measure(known)
    if not panels:
        return None
    short = short_names(adapters)

    def line_of(one: Difference) -> str:
        return escape(f"{short[one.second]} − {short[one.first]}, {one.form}")

    lines = list(dict.fromkeys(map(line_of, known)))
    figure = _grid(panels, lines=len(lines))
    for number, each in enumerate(panels.values()):
        for is_clear, color in ((True, _CLEAR), (False, _UNCLEAR)):
            chosen = [
                (line_of(one), one.interval)
                for one in each
                if one.is_clear == is_clear and one.interval is not None
            ]
            if chosen:
                figure.add_scatter(
                    x=[found.estimate for _, found in chosen],
                    y=[line for line, _ in chosen],
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [found.high - found.estimate for _, found in chosen],
                        "arrayminus": [found.estimate - found.low for _, found in chosen],
                        "thickness": 2,
                    },
                    mode="markers",
                    marker={"color": color, "size": 9},
                    name="beyond chance" if is_clear else "could be chance",
                    showlegend=False,
                    hovertemplate="%{y}: %{x:+.5g}<extra></extra>",
                    **_cell(number),
                )
        figure.add_vline(x=0, line={"color": "#d55e00", "width": 1, "dash": "dash"},
                         **_cell(number))  # fmt: skip
    # Plotly draws categories from bottom to top.
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=lines[::-1], automargin=True
    )
    return figure


class _Place(NamedTuple):
    score: Score
    cost: Cost


def plot_costs(comparison: Comparison) -> Any | None:
    """The loss, or else the first measure, by the size of the adapter and by the peak memory."""
    costs = {(one.adapter, one.form, one.data): one for one in comparison.costs}
    measured = [
        _Place(score, costs[key])
        for score in comparison.scores
        if not score.is_recorded and (key := (score.adapter, score.form, score.data)) in costs
    ]
    measures = [place.score.measure for place in measured]
    if not measures:
        return None
    measure = "loss" if "loss" in measures else measures[0]
    places = [place for place in measured if place.score.measure == measure]
    first = places[0].score.digest  # one set of rows: values on other rows are not comparable
    places = [place for place in places if place.score.digest == first]
    names = [name for name in _COSTS if any(getattr(one.cost, name) for one in places)]
    if not names:
        return None
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.04)
    for column, name in enumerate(names, 1):
        axis = _add_costs(figure, name, column, places, comparison.adapters)
        figure.update_xaxes(title=_COSTS[name], type=axis, row=1, col=column)
    figure.update_yaxes(title=f"{measure} on {escape(places[0].score.data)}", row=1, col=1)
    figure.update_layout(template="plotly_white", height=420, margin={"t": 30, "r": 20})
    return figure


def _add_costs(
    figure: Any, name: str, column: int, places: Sequence[_Place], adapters: Sequence[str]
) -> str:
    """Add a panel to the figure and return the type of the cost axis."""
    unit = _BYTES if name == "adapter_bytes" else 1.0
    forms = list(dict.fromkeys(place.score.form for place in places))
    seen = []
    for score, cost in places:
        taken = getattr(cost, name)
        if not taken:
            continue  # a merged adapter has no weights of its own
        seen.append(taken)
        label = escape(f"{score.adapter}, {score.form}")
        figure.add_scatter(
            x=[taken / unit],
            y=[score.value],
            error_y=_whiskers([score]),
            mode="markers",
            name=label,
            legendgroup=label,
            showlegend=column == 1 or (name == "peak_memory_gib" and not cost.adapter_bytes),
            marker={"color": _COLORS[adapters.index(score.adapter) % len(_COLORS)], "size": 11,
                    "symbol": _SYMBOLS[forms.index(score.form) % len(_SYMBOLS)]},
            hovertemplate="%{x:.4g}: %{y:.5g}<extra>" + label + "</extra>",
            row=1,
            col=column,
        )  # fmt: skip
    return "log" if is_wide(seen) else "linear"


def _by_measure(entries: Sequence[Any]) -> Mapping[str, list[Any]]:
    panels: dict[str, list[Any]] = {}
    for entry in entries:
        panels.setdefault(entry.measure, []).append(entry)
    return panels


def _grid(panels: Mapping[str, Sequence[Any]], lines: int = 0) -> Any:
    """A grid of panels, one for each measure; with `lines`, panels of a row share the axis."""
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    better = {"min": "less is better", "max": "more is better"}
    height = (max(150, 40 * lines) if lines else 250) + 70
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[
            f"{escape(name)} ({better[each[0].mode]})" for name, each in panels.items()
        ],
        horizontal_spacing=0.03 if lines else 0.07,
        vertical_spacing=60 / (height * rows),
        shared_yaxes=bool(lines),
    )
    figure.update_annotations(font={"size": 13})
    margin = {"t": 60, "r": 20, "b": 40}
    figure.update_layout(template="plotly_white", height=height * rows + 60, margin=margin)
    return figure


def _cell(number: int) -> dict[str, int]:
    return {"row": number // _COLUMNS + 1, "col": number % _COLUMNS + 1}


def _whiskers(points: Sequence[Score]) -> dict[str, Any]:
    ups = [0.0 if one.high is None else one.high - one.value for one in points]
    downs = [0.0 if one.low is None else one.value - one.low for one in points]
    return {"type": "data", "symmetric": False, "array": ups, "arrayminus": downs}
