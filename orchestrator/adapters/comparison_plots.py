"""Charts of versions side by side: scores with intervals, differences, quality by cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.pages.charts import (
    Mark,
    Series,
    Strip,
    draw_legend,
    draw_panel,
    draw_strips,
    in_grid,
)
from orchestrator.pages.markup import SERIES_COLORS
from orchestrator.wording import format_bounds, format_difference, format_metric
from registry.evaluations.comparison import Comparison, Cost, Difference, Score

_CLEAR, _UNCLEAR = "front", "cancelled"
_COSTS = {"adapter_bytes": "adapter, MB", "peak_memory_gib": "peak memory, GiB"}
_BYTES = 1e6
_BETTER = {"min": "less is better", "max": "more is better"}


def short_names(adapters: Sequence[str]) -> dict[str, str]:
    """Names for legends, without the adapter's name where all versions have the same name."""
    names = {adapter.rpartition("/")[0] for adapter in adapters}
    if len(names) == 1 and "" not in names:
        return {adapter: "/" + adapter.rpartition("/")[2] for adapter in adapters}
    return {adapter: adapter for adapter in adapters}


def draw_scores(scores: Sequence[Score], adapters: Sequence[str]) -> str:
    """Lines of scores with intervals, for each measure; empty without scores.

    Args:
        scores: Scores on the same rows.
        adapters: All versions, in the order of their colours.
    """
    short = short_names(adapters)
    figures = []
    for measure, each in _by_measure(scores).items():
        strips = [
            Strip(
                label=f"{short[one.adapter]}, {one.form}",
                value=one.value,
                low=one.low,
                high=one.high,
                text=_score_text(one),
                style=_style(adapters, one.adapter),
            )
            for one in sorted(each, key=lambda one: adapters.index(one.adapter))
        ]
        figures.append(draw_strips(strips, title=f"{measure} ({_BETTER[each[0].mode]})"))
    if not figures:
        return ""
    legend = [(_style(adapters, name), name) for name in adapters]
    return in_grid(figures) + draw_legend(legend)


def draw_differences(differences: Sequence[Difference], adapters: Sequence[str]) -> str:
    """A forest plot for each measure, with a mark at zero; empty without any interval.

    Args:
        differences: Differences; those without an interval are left out.
        adapters: All versions.
    """
    short = short_names(adapters)
    figures = []
    for measure, each in _by_measure([one for one in differences if one.interval]).items():
        strips = [
            Strip(
                label=f"{short[one.second]} − {short[one.first]}, {one.form}",
                value=one.interval.estimate,
                low=one.interval.low,
                high=one.interval.high,
                text=format_difference(one.interval.estimate),
                style=_CLEAR if one.is_clear else _UNCLEAR,
            )
            for one in each
            if one.interval is not None
        ]
        title = f"difference in {measure} ({_BETTER[each[0].mode]})"
        figures.append(draw_strips(strips, title=title, zero=0.0))
    if not figures:
        return ""
    legend = [(_CLEAR, "beyond chance"), (_UNCLEAR, "could be chance")]
    return in_grid(figures) + draw_legend(legend)


class _Place(NamedTuple):
    score: Score
    cost: Cost


def draw_costs(comparison: Comparison) -> str:
    """The loss, or else the first measure, by the size of the adapter and by the peak memory."""
    costs = {(one.adapter, one.form, one.data): one for one in comparison.costs}
    measured = [
        _Place(score, costs[key])
        for score in comparison.scores
        if not score.is_recorded and (key := (score.adapter, score.form, score.data)) in costs
    ]
    measures = [place.score.measure for place in measured]
    if not measures:
        return ""
    measure = "loss" if "loss" in measures else measures[0]
    places = [place for place in measured if place.score.measure == measure]
    first = places[0].score.digest  # one set of rows: values on other rows are not comparable
    places = [place for place in places if place.score.digest == first]
    adapters = comparison.adapters
    panels = [panel for name in _COSTS if (panel := _draw_cost(name, places, adapters))]
    if not panels:
        return ""
    return in_grid(panels) + draw_legend([(_style(adapters, name), name) for name in adapters])


def _draw_cost(name: str, places: Sequence[_Place], adapters: Sequence[str]) -> str:
    """One panel; a merged adapter has no weights of its own and no point by size."""
    unit = _BYTES if name == "adapter_bytes" else 1.0
    series = [
        Series(
            marks=[
                Mark(x=taken / unit, y=score.value, low=score.low, high=score.high,
                     tip=format_metric(score.value))
            ],
            label=f"{score.adapter}, {score.form}",
            style=_style(adapters, score.adapter),
        )
        for score, cost in places
        if (taken := getattr(cost, name))
    ]  # fmt: skip
    if not series:
        return ""
    score = places[0].score
    title = f"{score.measure} on {score.data} by {_COSTS[name]}"
    return draw_panel(series, title=title, x_title=_COSTS[name])


def _style(adapters: Sequence[str], adapter: str) -> str:
    return f"s{adapters.index(adapter) % len(SERIES_COLORS)}"


def _score_text(score: Score) -> str:
    if score.is_recorded:
        return f"{format_metric(score.value)} (recorded)"
    bounds = format_bounds(score.low, score.high)
    return format_metric(score.value) + (f" ({bounds})" if bounds else "")


def _by_measure(entries: Sequence[Any]) -> Mapping[str, list[Any]]:
    panels: dict[str, list[Any]] = {}
    for entry in entries:
        panels.setdefault(entry.measure, []).append(entry)
    return panels
