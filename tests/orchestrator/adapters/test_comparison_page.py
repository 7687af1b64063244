"""Versions side by side, in a terminal and on a page."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.adapters.comparison_page import build_comparison_page, render_comparison
from registry.evaluations.comparison import TRAINING, Comparison, Cost, Difference, Score
from registry.evaluations.significance import Interval

HOSTILE = "<script>alert(1)</script>[red]&\x1b[31m"
CC = "sha256:cc00112233"


def build_score(adapter: str, measure: str, value: float, form: str = "trained", **more: Any):
    settings = {"data": "test", "digest": CC, "rows": 64, "low": value - 0.1, "high": value + 0.2}
    mode = "min" if measure == "loss" else "max"
    return Score(
        adapter=adapter, form=form, measure=measure, mode=mode, value=value, **(settings | more)
    )


def build_difference(second: str, measure: str, low: float, high: float, form: str = "trained"):
    found = Interval(estimate=(low + high) / 2, low=low, high=high, confidence=0.95)
    return Difference(
        first="demo/1",
        second=second,
        form=form,
        data="test",
        digest=CC,
        measure=measure,
        mode="min" if measure == "loss" else "max",
        interval=found,
    )


def build_comparison(**changes: Any) -> Comparison:
    recorded = {"low": None, "high": None, "rows": None, "is_recorded": True}
    values: dict[str, Any] = {
        "adapters": ("demo/1", "demo/2", "demo/3"),
        "confidence": 0.95,
        "differing": {"lora.rank": ("4", "16", "8"), "seed": ("7", "8", None)},
        "shared": {"base.model": "owner/name", "base.digest": "sha256:00"},
        "scores": (
            build_score("demo/1", "loss", 1.0),
            build_score("demo/2", "loss", 0.5),
            build_score("demo/3", "loss", 0.75, **recorded),
            build_score("demo/1", "accuracy", 0.25),
            build_score("demo/2", "accuracy", 0.5),
            build_score("demo/1", "loss", 1.125, "merged"),
            build_score("demo/2", "loss", 0.625, "merged"),
        ),
        "differences": (
            build_difference("demo/2", "loss", -0.6, -0.4),
            build_difference("demo/2", "accuracy", -0.1, 0.6),
            build_difference("demo/2", "loss", -0.7, -0.3, "merged"),
            Difference(first="demo/1", second="demo/3", reason="no evaluation of demo/3"),
            Difference(first="demo/2", second="demo/3", reason="no evaluation of demo/3"),
        ),
        "costs": (
            Cost(adapter="demo/1", form=TRAINING, peak_memory_gib=2.5, trainable_params=230400),
            Cost(adapter="demo/1", form="trained", data="test", seconds=1.5, peak_memory_gib=1.25,
                 adapter_bytes=921600, model_bytes=1.5e8, tokens_per_s=1234.5),
            Cost(adapter="demo/2", form="trained", data="test", peak_memory_gib=1.5,
                 adapter_bytes=3686400),
            Cost(adapter="demo/2", form="merged", data="test", peak_memory_gib=2.5),
        ),
        "notes": ("demo/3 was not evaluated: its scores are those recorded.",),
    }  # fmt: skip
    return Comparison(**values | changes)


def show(comparison: Comparison, width: int = 160) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(render_comparison(comparison))
    return file.getvalue()


def words_of(text: str, start: str) -> list[str]:
    """The columns of the line whose first ones are these, two spaces between them."""
    wanted = start.split("  ")
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return next(words for words in lines if words[: len(wanted)] == wanted)


# ---------------------------------------------------------------------------------- the terminal


def test_the_terminal_sets_versions_in_columns():
    text = show(build_comparison())
    assert words_of(text, "lora.rank") == ["lora.rank", "4", "16", "8"]
    assert words_of(text, "seed") == ["seed", "7", "8", "-"]
    assert "The same in all: base.model owner/name, base.digest sha256:00" in text
    assert words_of(text, "trained  test  loss") == [
        "trained", "test", "loss", "1.0000 (0.9000 … 1.2000)", "0.5000 (0.4000 … 0.7000)",
        "0.7500 (recorded)",
    ]  # fmt: skip
    assert words_of(text, "trained  test  accuracy")[-1] == "-"


def test_the_terminal_says_who_is_better_and_what_could_be_chance():
    text = show(build_comparison())
    assert words_of(text, "/2 − /1  trained  loss")[3:] == ["-0.5000", "-0.6000 … -0.4000", "/2"]
    assert words_of(text, "/2 − /1  trained  accuracy")[-1] == "could be chance"
    assert "/3 − /1: not comparable, no evaluation of demo/3" in text
    assert "Comparing demo/1, demo/2, demo/3" in text
    assert "demo/3 was not evaluated" in text
    assert "Intervals at 95%" in text


def test_the_terminal_names_costs_with_units():
    text = show(build_comparison())
    assert words_of(text, "demo/1  training") == [
        "demo/1", "training", "-", "2.50 GiB", "230,400 weights", "-", "-", "-", "-",
    ]  # fmt: skip
    assert words_of(text, "demo/1  trained")[3:] == [
        "1.25 GiB", "921.6 kB", "150.0 MB", "1,234.5", "-", "1.5 s",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_off_in_a_narrow_terminal(width):
    text = show(build_comparison(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace(" … ", "").replace(" …\n", "").replace("… ", "")


def test_foreign_text_is_text_in_the_terminal():
    strange = build_comparison(
        adapters=("[red]x/1", "b/2"),
        differing={"base.model": (HOSTILE, None)},
        scores=(build_score("[red]x/1", "loss", 1.0, data="[bold]rows"),),
        differences=(Difference(first="[red]x/1", second="b/2", reason=HOSTILE),),
        costs=(),
    )
    text = show(strange, 300)
    assert "\x1b" not in text
    for part in ("[red]x/1", "<script>alert(1)</script>[red]&", "[bold]rows"):
        assert part in text


def test_versions_that_are_alike_and_unmeasured_can_be_compared():
    empty = build_comparison(differing={}, scores=(), costs=())
    assert "The same in all" in show(empty)
    page = build_comparison_page(empty)
    assert "No version has a score." in page
    assert "<figure" not in page.partition("<h2>Differences")[0]


# -------------------------------------------------------------------------------------- the page


def test_the_page_is_self_contained_and_has_every_part():
    page = build_comparison_page(build_comparison())
    assert len(page) < 100_000
    for part in (
        "<title>demo/1 · demo/2 · demo/3 – comparison</title>", "loss (less is better)",
        "difference in accuracy", "loss on test by adapter, MB", "test cc001122",
        "0.7500 (recorded)", "-0.6000 … -0.4000", "no evaluation of demo/3", "3.7 MB", "64 rows",
    ):  # fmt: skip
        assert part in page
    for tag in ("<script src", "<img", "@import", "http"):
        assert tag not in page


def test_foreign_text_is_text_on_the_page():
    scores = (
        build_score(HOSTILE, "loss", 1.0, data=HOSTILE),
        build_score("b/2", HOSTILE, 1.0, data=HOSTILE),
    )
    strange = build_comparison(
        adapters=(HOSTILE, "b/2"),
        differing={HOSTILE: (HOSTILE, None)},
        shared={"base.model": HOSTILE},
        scores=scores,
        differences=(
            replace(build_difference("b/2", "loss", 0.1, 0.2), first=HOSTILE, data=HOSTILE),
            Difference(first=HOSTILE, second="b/2", reason=HOSTILE),
        ),
        costs=(Cost(adapter=HOSTILE, form="trained", data=HOSTILE, peak_memory_gib=1.0),),
        notes=(HOSTILE,),
    )
    page = build_comparison_page(strange)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_recorded_settings_are_short_and_equal_scores_are_no_chance():
    long = {
        "optim.learning_rate": ("0.019477641833243357", "2e-05"),
        "base.model": ("1.50", "a.b"),
    }
    equal = replace(build_difference("demo/2", "loss", 0.0, 0.0))
    pair = build_comparison(adapters=("demo/1", "demo/2"), differing=long, differences=(equal,))
    text = show(pair)
    assert words_of(text, "optim.learning_rate")[1:] == ["0.01948", "2e-05"]
    assert words_of(text, "base.model")[1:] == ["1.50", "a.b"]
    assert words_of(text, "/2 − /1")[-1] == "no difference"
