"""A curve in a few characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"

WIDTH = 8
"""Characters of the longest curve."""


def draw_sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The values as blocks between their own least and greatest; empty for fewer than two.

    More values than fit are thinned evenly; the first and the last stay. Values that are not
    finite are left out.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    if len(finite) > width:
        gap = (len(finite) - 1) / (width - 1)
        finite = [finite[round(place * gap)] for place in range(width)]
    low, high = min(finite), max(finite)
    if high == low:
        return _LEVELS[0] * len(finite)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((value - low) / (high - low) * top)] for value in finite)
