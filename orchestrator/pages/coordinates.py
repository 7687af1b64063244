"""Parallel coordinates: a line for each trial through all its settings, to the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from orchestrator.pages.charts import MANY, Series, about, point, stretched
from orchestrator.pages.scales import Scale, scale_of

_HEIGHT_PX = 280
_AXIS_PX = 110
"""Least distance of two axes: on a narrow screen the chart scrolls sideways."""
_FAINTEST = 0.1


@dataclass(frozen=True, kw_only=True)
class Line:
    """One trial, with its values in the order of the axes."""

    trial: int
    values: Sequence[Any]


def draw_coordinates(heads: Sequence[str], lines: Sequence[Line]) -> str:
    """The chart; the first lines are the strongest and lie on top.

    Args:
        heads: Names of the axes; the last one is the objective.
        lines: The trials, best first.
    """
    columns = list(zip(*(line.values for line in lines), strict=True))
    scales = [scale_of(column, is_setting=True) for column in columns[:-1]]
    scales.append(scale_of(columns[-1]))
    places = [number / (len(heads) - 1) for number in range(len(heads))]
    drawn = []
    for place, line in reversed(list(enumerate(lines))):
        path = "L".join(
            point(share, (1 - scale.share(value)) * _HEIGHT_PX)
            for share, scale, value in zip(places, scales, line.values, strict=True)
        )
        strength = max(_FAINTEST, (1 - place / len(lines)) ** 2)
        series = Series(marks=(), trial=line.trial, style="best" if place == 0 else "front")
        opening = about(series).replace("<g ", f'<g style="--strength:{strength:.2f}" ', 1)
        drawn.append(f"{opening}{stretched(f'M{path}', _HEIGHT_PX)}</g>")
    axes = "".join(
        _axis(head, scale, place) for head, scale, place in zip(heads, scales, places, strict=True)
    )
    kind = "plot many" if len(lines) > MANY else "plot"
    return (
        f'<div class="scroll"><figure class="panel coordinates" '
        f'style="min-width:{_AXIS_PX * len(heads)}px">'
        f'<svg class="{kind}" role="img" aria-label="settings and objective of ranked trials" '
        f'height="{_HEIGHT_PX}">{"".join(drawn)}{axes}</svg></figure></div>'
    )


def _axis(head: str, scale: Scale, place: float) -> str:
    at = f"{place:.2%}"
    ticks = "".join(
        f'<text class="tick halo" x="{at}" y="{(1 - share) * _HEIGHT_PX:.1f}" dx="6" dy=".32em">'
        f"{escape(text)}</text>"
        for share, text in scale.ticks()
    )
    return (
        f'<line class="axis" x1="{at}" x2="{at}" y1="0" y2="{_HEIGHT_PX}"/>{ticks}'
        f'<text class="head" x="{at}" y="-12">{escape(head)}</text>'
    )
