"""Charts as SVG that fits any width: the page's script adds what moves, not what shows.

Places along the width are percentages, places along the height pixels, so letters and dots keep
their size on a telephone. Curves lie in an inner drawing that is stretched, without their width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from orchestrator.pages.scales import Scale, scale_of

_WIDE = 1000
"""Width of the inner drawing, in units that are stretched."""
_HEIGHT_PX = 240
_STRIP_PX = 22
MANY = 60
"""More series than this are drawn fainter."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point of a chart.

    Attributes:
        x: Value on the axis along the width.
        y: Value on the axis along the height.
        tip: Text on hovering, after the series' label.
        low: Lower end of an interval of `y`.
        high: Upper end.
    """

    x: Any
    y: float
    tip: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together.

    Attributes:
        marks: The points, in the order of a line.
        label: Text on hovering; when empty, the page's text for the trial.
        style: CSS class: an outcome, `best`, `front` or `s0` to `s6`.
        trial: Trial that a click highlights in all charts; `None` for none.
        is_line: Whether a line connects the points.
        has_dots: Whether the points are drawn.
        is_dashed: Whether the line is dashed.
        is_stair: Whether the line keeps its value up to the next point.
    """

    marks: Sequence[Mark]
    label: str = ""
    style: str = ""
    trial: int | None = None
    is_line: bool = False
    has_dots: bool = True
    is_dashed: bool = False
    is_stair: bool = False


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A line of `draw_strips`: a value with its interval, between a label and a text."""

    label: str
    value: float
    low: float | None
    high: float | None
    text: str
    style: str = ""


def draw_panel(
    series: Sequence[Series],
    *,
    title: str,
    x: Scale | None = None,
    y: Scale | None = None,
    x_title: str = "",
    rule: tuple[float, str] | None = None,
    height: int = _HEIGHT_PX,
) -> str:
    """A chart of two axes.

    Args:
        series: What to draw; later series lie above earlier ones.
        title: Text above the chart, which names the axis along the height.
        x: Axis along the width; one that holds all points when not given.
        y: Axis along the height; one that holds all points and intervals when not given.
        x_title: Text below the chart.
        rule: A value along the height with its name, drawn as a dashed line.
        height: Pixels of the plot.
    """
    marks = [mark for one in series for mark in one.marks]
    heights = [v for mark in marks for v in (mark.y, mark.low, mark.high) if v is not None]
    x = x or scale_of(mark.x for mark in marks)
    y = y or scale_of(heights, holds=[rule[0]] if rule else ())
    parts = [_grid(x, y, height)]
    if rule is not None:
        at = f"{(1 - y.share(rule[0])) * height:.1f}"
        parts.append(f'<line class="rule" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="rule" x="100%" y="{at}" dy="-4">{escape(rule[1])}</text>')
    parts += [_line(one, x, y, height) for one in series if one.is_line]
    parts += [_dots(one, x, y, height) for one in series if one.has_dots]
    kind = "plot many" if len(series) > MANY else "plot"
    below = f'<span class="below">{escape(x_title)}</span>' if x_title else ""
    return (
        f'<figure class="panel"><figcaption>{escape(title)}</figcaption>'
        f'<svg class="{kind}" role="img" aria-label="{escape(title)}" height="{height}">'
        f"{''.join(parts)}</svg>{below}</figure>"
    )


def draw_strips(
    strips: Sequence[Strip], *, title: str, zero: float | None = None, is_bar: bool = False
) -> str:
    """Values with intervals below one another, on one axis.

    Args:
        strips: At least one line.
        title: Text above the lines.
        zero: A value that the axis holds and marks.
        is_bar: Whether bars begin at `zero`.
    """
    ends = [v for one in strips for v in (one.value, one.low, one.high) if v is not None]
    scale = scale_of(ends, holds=[] if zero is None else [zero])
    lines = "".join(_strip(one, scale, zero, is_bar) for one in strips)
    ticks = "".join(
        f'<text class="tick" x="{_percent(tick.share)}" y="12">{escape(tick.text)}</text>'
        for tick in scale.ticks()
    )
    axis = (
        f'<div class="strip axis"><span></span><svg height="16">{ticks}</svg><span></span></div>'
    )
    return f'<figure class="strips"><figcaption>{escape(title)}</figcaption>{lines}{axis}</figure>'


def draw_legend(entries: Iterable[tuple[str, str]]) -> str:
    """A legend: (CSS class, name) of each entry."""
    items = "".join(
        f'<li><i class="swatch {style}"></i>{escape(name)}</li>' for style, name in entries
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def in_grid(panels: Iterable[str]) -> str:
    """Charts side by side, as many as fit."""
    return f'<div class="grid">{"".join(panels)}</div>'


def about(series: Series) -> str:
    """Attributes and title that the page's script reads: trial and text on hovering."""
    title = f"<title>{escape(series.label)}</title>" if series.label else ""
    trial = "" if series.trial is None else f' data-trial="{series.trial}"'
    return f'<g class="{series.style}"{trial}>{title}'


def stretched(path: str, height: int, style: str = "") -> str:
    """A path of the inner drawing; its points are as `point` gives them."""
    kind = f' class="{style}"' if style else ""
    return (
        f'<svg class="inner" viewBox="0 0 {_WIDE} {height}" preserveAspectRatio="none">'
        f'<path{kind} d="{path}"/></svg>'
    )


def point(share: float, y_px: float) -> str:
    """A point of the inner drawing."""
    return f"{share * _WIDE:.1f} {y_px:.1f}"


def _grid(x: Scale, y: Scale, height: int) -> str:
    parts = []
    for share, text in y.ticks():
        at = f"{(1 - share) * height:.1f}"
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick y" x="-6" y="{at}" dy=".32em">{escape(text)}</text>')
    ticks = x.ticks()
    is_dense = sum(len(tick.text) for tick in ticks) > 34
    for number, (share, text) in enumerate(ticks):
        lower = 16 + 13 * (number % 2 if is_dense else 0)
        at = _percent(share)
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{height + lower}">{escape(text)}</text>')
    return "".join(parts)


def _line(series: Series, x: Scale, y: Scale, height: int) -> str:
    points = [(x.share(mark.x), (1 - y.share(mark.y)) * height) for mark in series.marks]
    path = f"M{point(*points[0])}" if points else ""
    for before, here in itertools.pairwise(points):
        if series.is_stair:
            path += f"L{point(here[0], before[1])}"
        path += f"L{point(*here)}"
    dashed = "dashed" if series.is_dashed else ""
    return f"{about(series)}{stretched(path, height, dashed)}</g>"


def _dots(series: Series, x: Scale, y: Scale, height: int) -> str:
    parts = []
    for mark in series.marks:
        at, y_px = _percent(x.share(mark.x)), (1 - y.share(mark.y)) * height
        if mark.low is not None and mark.high is not None:
            low, high = ((1 - y.share(end)) * height for end in (mark.low, mark.high))
            parts.append(f'<line x1="{at}" x2="{at}" y1="{low:.1f}" y2="{high:.1f}"/>')
        tip = f' data-tip="{escape(mark.tip)}"' if mark.tip else ""
        parts.append(f'<circle cx="{at}" cy="{y_px:.1f}" r="3.5"{tip}/>')
    return f"{about(series)}{''.join(parts)}</g>"


def _strip(one: Strip, scale: Scale, zero: float | None, is_bar: bool) -> str:
    middle, at, parts = _STRIP_PX / 2, _percent(scale.share(one.value)), []
    if zero is not None:
        start = _percent(scale.share(zero))
        parts.append(f'<line class="zero" x1="{start}" x2="{start}" y1="0" y2="{_STRIP_PX}"/>')
        if is_bar:
            width = _percent(abs(scale.share(one.value) - scale.share(zero)))
            parts.append(f'<rect x="{start}" y="4" width="{width}" height="14"/>')
    if one.low is not None and one.high is not None:
        low, high = _percent(scale.share(one.low)), _percent(scale.share(one.high))
        parts.append(f'<line x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>')
    if not is_bar:
        parts.append(f'<circle cx="{at}" cy="{middle}" r="4.5"/>')
    return (
        f'<div class="strip"><span>{escape(one.label)}</span>'
        f'<svg height="{_STRIP_PX}" aria-hidden="true"><g class="{one.style}">{"".join(parts)}</g>'
        f"</svg><span>{escape(one.text)}</span></div>"
    )


def _percent(share: float) -> str:
    return f"{share:.2%}"
