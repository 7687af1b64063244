"""Charts as SVG."""

import re
from xml.etree import ElementTree

import pytest

from orchestrator.pages.charts import Mark, Series, Strip, draw_legend, draw_panel, draw_strips

HOSTILE = "</svg><script>alert('1')</script>&"


def parse(html):
    return ElementTree.fromstring(html)


def test_a_panel_places_marks_by_their_values():
    marks = [Mark(x=0, y=0.0), Mark(x=10, y=1.0, tip="last")]
    panel = parse(draw_panel([Series(marks=marks, trial=5, is_line=True)], title="t", height=100))
    dots = [(float(dot.get("cx")[:-1]), float(dot.get("cy"))) for dot in panel.iter("circle")]
    assert dots == [pytest.approx((4.55, 95.5), abs=0.1), pytest.approx((95.45, 4.5), abs=0.1)]
    assert {one.get("data-trial") for one in panel.iter("g")} == {"5"}
    (path,) = panel.iter("path")
    assert re.fullmatch(r"M45\.5 95\.5L954\.5 4\.5", path.get("d"))


def test_stairs_keep_a_value_until_the_next_one():
    marks = [Mark(x=0, y=0.0), Mark(x=10, y=1.0)]
    stairs = Series(marks=marks, is_line=True, has_dots=False, is_stair=True)
    (path,) = parse(draw_panel([stairs], title="t", height=100)).iter("path")
    assert path.get("d") == "M45.5 95.5L954.5 95.5L954.5 4.5"


def test_intervals_are_within_the_axis():
    marks = [Mark(x=1, y=1.0, low=0.5, high=3.0), Mark(x=2, y=1.2)]
    panel = parse(draw_panel([Series(marks=marks)], title="t", height=100))
    (whisker,) = [line for group in panel.iter("g") for line in group.iter("line")]
    assert 0 < float(whisker.get("y2")) < float(whisker.get("y1")) < 100


def test_strips_begin_at_zero_where_they_are_bars():
    strips = [Strip(label="lr", value=0.6, low=0.4, high=0.8, text="60%")]
    found = parse(draw_strips(strips, title="t", zero=0.0, is_bar=True))
    (bar,) = found.iter("rect")
    assert bar.get("x") == "0.00%"
    assert float(bar.get("width")[:-1]) == pytest.approx(60 / 0.84, abs=0.2)


def test_foreign_text_is_text_in_every_chart():
    series = Series(marks=[Mark(x=HOSTILE, y=1.0, tip=HOSTILE)], label=HOSTILE)
    panel = draw_panel([series], title=HOSTILE, x_title=HOSTILE, rule=(1.0, HOSTILE))
    strips = draw_strips(
        [Strip(label=HOSTILE, value=1.0, low=None, high=None, text=HOSTILE)], title=HOSTILE
    )
    for chart in (panel, strips, draw_legend([("best", HOSTILE)])):
        assert "script" not in {element.tag for element in parse(chart).iter()}
        assert "alert(" in chart
