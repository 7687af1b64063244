"""Curves in a few characters."""

import math

import pytest

from orchestrator.live.sparkline import draw_sparkline


@pytest.mark.parametrize(
    ("values", "curve"),
    [
        ([], ""),
        ([1.0], ""),
        ([1.0, 1.0], "▁▁"),
        ([2.0, 1.0, 1.5], "█▁▅"),
        ([3.0, math.nan, 1.0, math.inf], "█▁"),
        ([8, 7, 6, 5, 4, 3, 2, 1], "█▇▆▅▄▃▂▁"),
    ],
)
def test_each_value_is_a_block_between_the_least_and_the_greatest(values, curve):
    assert draw_sparkline(values) == curve


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    assert draw_sparkline([100.0, *[0.0] * 98, 50.0]) == "█▁▁▁▁▁▁▅"
