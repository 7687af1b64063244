"""Pictures of versions side by side."""

import pytest

from orchestrator.adapters.comparison_plots import (
    plot_costs,
    plot_differences,
    plot_scores,
    short_names,
)
from registry.evaluations.comparison import TRAINING, Comparison, Cost, Difference, Score
from registry.evaluations.significance import Interval

ADAPTERS = ("demo/1", "demo/2", "demo/3")
MODES = {"loss": "min", "accuracy": "max"}


def build_score(adapter, measure, value, form="trained", margin=0.2):
    return Score(
        adapter=adapter,
        form=form,
        data="test",
        digest="sha256:cc",
        rows=None if margin is None else 64,
        measure=measure,
        mode=MODES[measure],
        value=value,
        low=None if margin is None else value - 0.1,
        high=None if margin is None else value + margin,
        is_recorded=margin is None,
    )


def build_difference(measure, low, high, form="trained"):
    found = Interval(estimate=(low + high) / 2, low=low, high=high, confidence=0.95)
    names = {"first": "demo/1", "second": "demo/2", "data": "test", "digest": "sha256:cc"}
    return Difference(**names, form=form, measure=measure, mode=MODES[measure], interval=found)


SCORES = (
    build_score("demo/1", "loss", 1.0),
    build_score("demo/2", "loss", 0.5),
    build_score("demo/3", "loss", 0.75, margin=None),
    build_score("demo/1", "accuracy", 0.25),
    build_score("demo/1", "loss", 1.125, "merged"),
    build_score("demo/2", "loss", 0.625, "merged"),
)
REFUSED = Difference(first="demo/1", second="demo/3", reason="no evaluation of demo/3")
DIFFERENCES = (
    build_difference("loss", -0.6, -0.4),
    build_difference("accuracy", -0.1, 0.6),
    build_difference("loss", -0.7, -0.3, "merged"),
    REFUSED,
)
COSTS = (
    Cost(adapter="demo/1", form=TRAINING, peak_memory_gib=2.5),
    Cost(
        adapter="demo/1", form="trained", data="test", peak_memory_gib=1.25, adapter_bytes=921600
    ),
    Cost(
        adapter="demo/2", form="trained", data="test", peak_memory_gib=1.5, adapter_bytes=3686400
    ),
    Cost(adapter="demo/2", form="merged", data="test", peak_memory_gib=2.5, adapter_bytes=0),
)


def build_comparison(costs=COSTS):
    return Comparison(
        adapters=ADAPTERS,
        confidence=0.95,
        differing={},
        shared={},
        scores=SCORES,
        differences=DIFFERENCES,
        costs=costs,
        notes=(),
    )


def test_scores_have_a_panel_per_measure_and_a_colour_per_version():
    figure = plot_scores(SCORES, ADAPTERS)
    titles = [each.text for each in figure.layout.annotations]
    assert titles == ["loss (less is better)", "accuracy (more is better)"]
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert shown == ["demo/1", "demo/2", "demo/3"]
    first = figure.data[0]
    assert list(first.customdata) == ["trained", "merged"]
    assert list(figure.layout.xaxis.ticktext) == ["trained", "merged"]
    assert [round(first.x[0], 3), round(figure.data[1].x[0], 3)] == [-0.167, 0.0]  # side by side
    assert list(first.error_y.array) == pytest.approx([0.2, 0.2])
    recorded = figure.data[2]
    assert list(recorded.marker.symbol) == ["circle-open"]
    assert list(recorded.error_y.array) == [0.0]
    assert plot_scores([], ADAPTERS) is None


def test_the_forest_tells_clear_differences_from_others_beside_zero():
    figure = plot_differences(DIFFERENCES, ADAPTERS)
    lines = {(trace.name, line) for trace in figure.data for line in trace.y}
    assert lines == {
        ("beyond chance", "/2 − /1, trained"),
        ("beyond chance", "/2 − /1, merged"),
        ("could be chance", "/2 − /1, trained"),
    }
    assert [shape.x0 for shape in figure.layout.shapes] == [0, 0]
    assert plot_differences([REFUSED], ADAPTERS) is None


def test_costs_are_drawn_where_they_were_measured():
    figure = plot_costs(build_comparison())
    points = {(trace.name, trace.xaxis): (trace.x[0], trace.y[0]) for trace in figure.data}
    assert points[("demo/1, trained", "x")] == (pytest.approx(0.9216), 1.0)
    assert points[("demo/2, merged", "x2")] == (2.5, 0.625)
    assert ("demo/2, merged", "x") not in points  # no adapter beside a merged base
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(shown) == ["demo/1, trained", "demo/2, merged", "demo/2, trained"]
    assert plot_costs(build_comparison(costs=())) is None


def test_names_are_shortened_where_they_say_the_same():
    assert short_names(("demo/1", "demo/2")) == {"demo/1": "/1", "demo/2": "/2"}
    assert short_names(("a/1", "b/1")) == {"a/1": "a/1", "b/1": "b/1"}
