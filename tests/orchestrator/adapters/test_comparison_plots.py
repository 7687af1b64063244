"""Pictures of versions side by side."""

import re

from orchestrator.adapters.comparison_plots import (
    draw_costs,
    draw_differences,
    draw_scores,
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


def titles(html):
    return re.findall("<figcaption>(.*?)</figcaption>", html)


def lines(html):
    """Label, CSS class and text of each line."""
    found = re.findall(
        '<div class="strip"><span>(.*?)</span>.*?<g class="(.*?)">.*?</svg><span>(.*?)</span>',
        html,
    )
    return {label: (style, text) for label, style, text in found}


def test_scores_have_a_figure_per_measure_and_a_colour_per_version():
    html = draw_scores(SCORES, ADAPTERS)
    assert titles(html) == ["loss (less is better)", "accuracy (more is better)"]
    losses = lines(html.partition("<figcaption>accuracy")[0])
    assert list(losses) == [
        "/1, trained",
        "/1, merged",
        "/2, trained",
        "/2, merged",
        "/3, trained",
    ]
    assert losses["/1, trained"] == ("s0", "1.0000 (0.9000 … 1.2000)")
    assert losses["/2, merged"][0] == "s1"
    assert losses["/3, trained"] == ("s2", "0.7500 (recorded)")
    assert draw_scores([], ADAPTERS) == ""


def test_the_forest_tells_clear_differences_from_others_beside_zero():
    html = draw_differences(DIFFERENCES, ADAPTERS)
    clear, unclear = html.split("<figcaption>")[1:]
    assert lines(clear) == {
        "/2 − /1, trained": ("front", "-0.5000"),
        "/2 − /1, merged": ("front", "-0.5000"),
    }
    assert lines(unclear) == {"/2 − /1, trained": ("cancelled", "+0.2500")}
    assert clear.count('class="zero"') == 2
    assert draw_differences([REFUSED], ADAPTERS) == ""


def test_costs_are_drawn_where_they_were_measured():
    html = draw_costs(build_comparison())
    assert titles(html) == ["loss on test by adapter, MB", "loss on test by peak memory, GiB"]
    size, memory = html.split("<figcaption>")[1:]
    named = "<title>(.*?)</title>"
    assert re.findall(named, size) == ["demo/1, trained", "demo/2, trained"]  # none when merged
    assert set(re.findall(named, memory)) == {
        "demo/1, trained", "demo/2, trained", "demo/2, merged",
    }  # fmt: skip
    assert draw_costs(build_comparison(costs=())) == ""


def test_names_are_shortened_where_they_say_the_same():
    assert short_names(("demo/1", "demo/2")) == {"demo/1": "/1", "demo/2": "/2"}
    assert short_names(("a/1", "b/1")) == {"a/1": "a/1", "b/1": "b/1"}
